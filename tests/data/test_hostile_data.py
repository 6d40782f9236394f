"""Data from strangers, from the file to the token ids: handled as what it is, or refused with what and where it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from transformers import AutoTokenizer

from hfrlhf.data.loading import load_splits
from hfrlhf.data.preferences import prepare_pairs
from hfrlhf.data.prompts import prepare_prompts

HUGE = "the film " * 550_000  # 5 MB


@pytest.fixture(scope="module")
def tokenizer(tiny_model_folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model_folder)


def from_file(folder: Path, name: str, content: str | bytes) -> Dataset:
    """A dataset by the way that a recipe takes: a file by its name."""
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return load_splits(str(path))["train"]


def jsonl(*rows: dict[str, Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_a_huge_row_is_left_out_like_any_that_is_too_long(tokenizer, tmp_path):
    rows = from_file(tmp_path, "huge.jsonl", jsonl({"prompt": HUGE}, {"prompt": "the film"}))
    prompts = prepare_prompts(rows, tokenizer, 16)
    assert (len(prompts), prompts.dropped, prompts.texts) == (1, 1, ["the film"])
    pair = {"chosen": "good", "rejected": "bad"}
    pairs = prepare_pairs(from_file(tmp_path, "pairs.jsonl", jsonl(pair, pair | {"rejected": HUGE})), tokenizer, 16)
    assert (len(pairs.dataset), pairs.dropped) == (1, 1)


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        ([{"prompt": 1}], TypeError, r"'prompt' .* must hold text.* row 0 holds '1' \(int\)"),
        ([{"prompt": "a"}, {"prompt": 1}], TypeError, r"must hold text.* row 1 holds '1' \(int\)"),
        ([{"prompt": ["a", "b"]}], TypeError, r"must hold text.* row 0 holds .*\(list\)"),
        ([{"prompt": "a"}, {"prompt": ["b"]}], TypeError, r"must hold text.* row 1 holds .*\(list\)"),
        ([{"prompt": {"text": "a"}}], TypeError, r"must hold text.* row 0 holds .*\(dict\)"),
        ([{"prompt": True}], TypeError, r"row 0 holds 'True' \(bool\)"),
        ([{"prompt": "a"}, {"prompt": None}], ValueError, "null in column 'prompt', row 1"),
        ([{"prompt": "a"}, {"question": "b"}], ValueError, "null in column 'prompt', row 1"),
        ([{"prompt": [{"role": "user"}]}], TypeError, r"must hold text, or chat messages.*row 0"),
        ([{"prompt": [{"content": "a"}]}], TypeError, r"must hold text, or chat messages.*row 0"),
        ([{"prompt": [{"role": "user", "content": "a"}, {"role": "user"}]}], TypeError, "or chat messages.*row 0"),
        ([{"prompt": [{"role": "user", "content": "a"}]}, {"prompt": [{"role": "user", "content": 5}]}], TypeError, ""),
        ([{"prompt": []}], TypeError, r"row 0 holds '\[\]'"),
        ([{}], ValueError, "cannot read|no column|null"),
    ],
)
def test_rows_of_other_types_are_refused_and_named(tokenizer, tmp_path, rows, error, message):
    with pytest.raises(error, match=message):
        prepare_prompts(from_file(tmp_path, "rows.jsonl", jsonl(*rows)), tokenizer, 16)


@pytest.mark.parametrize("wrong", [1, ["a"], {"b": "c"}, None, [{"role": "user"}], [{"role": 1, "content": "a"}]])
@pytest.mark.parametrize("side", ["chosen", "rejected", "prompt"])
def test_pairs_of_other_types_are_refused_and_named(tokenizer, tmp_path, side, wrong):
    row = {"prompt": "the film", "chosen": "good", "rejected": "bad"} | {side: wrong}
    with pytest.raises((TypeError, ValueError), match=rf"column {side!r} .*row 0|null in column {side!r}, row 0"):
        prepare_pairs(from_file(tmp_path, "pairs.jsonl", jsonl(row, row)), tokenizer, 16)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("twice.csv", "prompt,prompt\nthe,film\n", "the column 'prompt' is there twice"),
        ("twice.jsonl", '{"prompt": "the", "prompt": "film"}\n', "prompt.* was specified twice"),
        ("latin.csv", b"prompt\nthe \xff film\n", r"cannot read latin\.csv .* can't decode byte 0xff"),
        ("half.jsonl", '{"prompt": "the \\ud800 film"}\n', r"cannot read half\.jsonl .* surrogate"),
        ("rows.jsonl", "\n\n", r"cannot read rows\.jsonl"),
        ("heading.csv", "prompt\n", r"cannot read heading\.csv"),
        ("list.json", "[]", r"cannot read list\.json"),
        ("nothing.jsonl", "", "is an empty file"),
        ("number.json", "5", r"cannot read number\.json"),
        ("noise.parquet", b"\x00\x01PAR1\xff", r"cannot read noise\.parquet"),
    ],
)
def test_files_that_cannot_be_meant_are_refused(tmp_path, name, content, message):
    with pytest.raises(ValueError, match=message):
        from_file(tmp_path, name, content)


def test_bytes_that_are_no_text_are_refused_before_anything_reads_them(tokenizer, tmp_path):
    rows = from_file(tmp_path, "latin.jsonl", b'{"prompt": "the film", "label": "caf\xe9"}\n')
    with pytest.raises(ValueError, match="the train dataset is damaged, or not in UTF-8"):
        prepare_prompts(rows, tokenizer, 16)


def test_a_table_with_a_column_twice(tmp_path):
    table = pa.table([["the"], ["film"]], names=["prompt", "prompt"])
    pq.write_table(table, tmp_path / "twice.parquet")
    with pytest.raises(ValueError, match=r"cannot read twice\.parquet"):
        load_splits(str(tmp_path / "twice.parquet"))


def test_words_that_look_like_nulls_are_words(tokenizer, tmp_path):
    words = ["NA", "null", "None", "nan", "N/A"]
    rows = from_file(tmp_path, "words.csv", "prompt,label\n" + "".join(f"{word},{word}\n" for word in words))
    assert rows["prompt"][:] == words == rows["label"][:]
    empty = from_file(tmp_path, "empty.csv", "prompt,score\nthe,\nfilm,2\n")
    assert empty["score"][:] == [None, 2]
    with pytest.raises(ValueError, match="null in column 'prompt', row 1"):
        prepare_prompts(from_file(tmp_path, "null.csv", "prompt,label\nthe,a\n,b\n"), tokenizer, 16)


def test_control_characters_and_markup_are_text_like_any_other(tokenizer, tmp_path):
    texts = ["the \x1b[31mfilm\x07", "[red]the[/red]", "the\u202efilm", "the\x00film", "<script>"]
    prompts = prepare_prompts(from_file(tmp_path, "a.jsonl", jsonl(*({"prompt": t} for t in texts))), tokenizer, 16)
    assert prompts.texts == texts and len(prompts) == 5
