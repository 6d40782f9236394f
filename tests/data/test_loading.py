"""Datasets by name: every layout a user may have, and errors that say what was found."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict

from hfrlhf.data.loading import load_splits, split_of

ROWS = [{"chosen": "a good film", "rejected": "a bad film"}, {"chosen": "fine", "rejected": "dull"}]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def write_jsonl(path: Path) -> None:
    path.write_text(LINES)


def write_gzip(path: Path) -> None:
    path.write_bytes(gzip.compress(LINES.encode()))


def write_csv(path: Path) -> None:
    Dataset.from_list(ROWS).to_csv(str(path))


def write_parquet(path: Path) -> None:
    Dataset.from_list(ROWS).to_parquet(str(path))


WRITERS = {".jsonl": write_jsonl, ".jsonl.gz": write_gzip, ".csv": write_csv, ".parquet": write_parquet}


@pytest.mark.parametrize("ending", WRITERS)
def test_a_folder_of_files_named_after_their_splits(ending: str, tmp_path: Path) -> None:
    for split in ("train", "test"):
        WRITERS[ending](tmp_path / f"{split}{ending}")
    (tmp_path / "README.md").write_text("not data")
    splits = load_splits(str(tmp_path))
    assert {name: part.to_list() for name, part in splits.items()} == {"train": ROWS, "test": ROWS}


@pytest.mark.parametrize("ending", WRITERS)
def test_a_single_file_is_the_training_split(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"pairs{ending}"
    WRITERS[ending](path)
    splits = load_splits(str(path))
    assert list(splits) == ["train"] and splits["train"].to_list() == ROWS


def test_splits_have_their_own_names_columns_and_kinds_of_file(tmp_path: Path) -> None:
    """What one call of `datasets` for the whole folder would leave out, fill with None, or refuse."""
    rows = {"train": [{"prompt": "a"}], "test": [{"prompt": "b", "label": 1}], "held_out": [{"text": "c"}]}
    for split, part in rows.items():
        Dataset.from_list(part).to_json(str(tmp_path / f"{split}.jsonl"))
    Dataset.from_list(rows["test"]).to_csv(str(tmp_path / "more.csv"))
    splits = load_splits(str(tmp_path))
    assert {name: part.to_list() for name, part in splits.items()} == rows | {"more": rows["test"]}


def test_shards_are_one_split_in_their_order(tmp_path: Path) -> None:
    for shard, row in enumerate(ROWS):
        Dataset.from_list([row]).to_parquet(str(tmp_path / f"train-0000{shard}-of-00002.parquet"))
    splits = load_splits(str(tmp_path))
    assert list(splits) == ["train"] and splits["train"].to_list() == ROWS


def test_what_save_to_disk_wrote(tmp_path: Path) -> None:
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "one")
    DatasetDict(train=Dataset.from_list(ROWS), test=Dataset.from_list(ROWS[:1])).save_to_disk(tmp_path / "two")
    assert list(load_splits(str(tmp_path / "one"))) == ["train"]
    assert load_splits(str(tmp_path / "two"))["test"].to_list() == ROWS[:1]


def test_a_missing_path_is_not_sought_on_the_hub(tmp_path: Path) -> None:
    for name in (str(tmp_path / "nowhere"), "./nowhere", "nowhere.jsonl"):
        with pytest.raises(FileNotFoundError, match=r"there is no file or folder .*nowhere.*looked from"):
            load_splits(name)


def test_an_unreachable_hub_name_says_that_both_places_were_tried() -> None:
    with pytest.raises(FileNotFoundError, match=r"'someone/pairs' is neither a local file or folder .* nor a dataset"):
        load_splits("someone/pairs")


def test_a_folder_without_data_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match=r"holds no data files such as train\.jsonl.*; it holds notes\.txt"):
        load_splits(str(tmp_path))


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "broken.jsonl").write_text('{"chosen": "a"\n')
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "pairs.txt").write_text("x")
    with pytest.raises(ValueError, match=r"cannot read broken\.jsonl"):
        load_splits(str(tmp_path / "broken.jsonl"))
    with pytest.raises(ValueError, match=r"empty\.jsonl of .* is an empty file"):
        load_splits(str(tmp_path / "empty.jsonl"))
    with pytest.raises(ValueError, match=r"cannot read pairs\.txt .* expected files of one kind: jsonl"):
        load_splits(str(tmp_path / "pairs.txt"))


def test_a_configuration_is_for_the_hub(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'default'.* is for Hub datasets"):
        load_splits(str(tmp_path), "default")


def test_a_missing_split_is_named_with_those_that_exist() -> None:
    splits = DatasetDict(train=Dataset.from_list(ROWS))
    assert split_of(splits, "train", "pairs").to_list() == ROWS
    with pytest.raises(ValueError, match=r"pairs has no split 'test'; it has \['train'\]"):
        split_of(splits, "test", "pairs")
