"""Datasets by name: a folder of files, a single file, or a dataset on the Hub."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, load_dataset, load_from_disk

from ..models.libraries import DatasetGenerationError

# In a table of texts an empty cell is a null, and "NA", "None" or "null" are words that somebody wrote.
OPTIONS: dict[str, dict[str, Any]] = {"csv": {"keep_default_na": False, "na_values": [""]}}
# File name ending -> the loader of `datasets` that reads it.
READERS = {"jsonl": "json", "json": "json", "csv": "csv", "parquet": "parquet"}
_DATA_FILE = re.compile(rf"(?P<stem>.+)\.(?P<kind>{'|'.join(READERS)})(\.gz|\.zst|\.xz|\.bz2)?")
_SHARD = re.compile(r"-\d{5}-of-\d{5}$")


def load_splits(name_or_path: str, config: str | None = None) -> DatasetDict:
    """All splits of a dataset, by split name.

    Args:
        name_or_path: a folder whose files are named after their splits (`train.jsonl`, `test.jsonl.gz`,
            `train-00000-of-00002.parquet`, csv, or what `save_to_disk` wrote); a single such file, which becomes the
            split `train`; else a dataset's name on the Hub.
        config: which configuration of a Hub dataset.

    Raises:
        FileNotFoundError: no such file or folder, and no such dataset could be reached on the Hub.
        ValueError: a folder or file without readable rows, or `config` for local files.
    """
    path = Path(name_or_path)
    if not path.exists():
        return _from_hub(name_or_path, config)
    if config is not None:
        raise ValueError(f"a configuration ({config!r}) is for Hub datasets; {name_or_path} is local: leave it out")
    if path.is_dir() and any((path / marker).is_file() for marker in ("dataset_dict.json", "state.json")):
        saved = load_from_disk(str(path))
        return saved if isinstance(saved, DatasetDict) else DatasetDict(train=saved)
    return _from_files(path, _files_by_split(path) if path.is_dir() else {"train": [path]})


def split_of(splits: DatasetDict, name: str, source: str) -> Dataset:
    """One split of a dataset.

    Raises:
        ValueError: there is no split of that name.
    """
    if name not in splits:
        raise ValueError(f"{source} has no split {name!r}; it has {sorted(splits)}")
    return splits[name]


def _files_by_split(folder: Path) -> dict[str, list[Path]]:
    """Each split's files. `load_dataset(folder)` knows the usual names of splits alone, and leaves others out."""
    splits: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(folder.iterdir()):
        match = _DATA_FILE.fullmatch(path.name)
        if match and path.is_file():
            splits[_SHARD.sub("", match["stem"])].append(path)
    if not splits:
        found = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
        raise ValueError(
            f"{folder} holds no data files such as train.jsonl, test.jsonl.gz, train.parquet or train.csv; it holds "
            f"{found}"
        )
    return dict(splits)


def _from_files(source: Path, files: dict[str, list[Path]]) -> DatasetDict:
    # A call for each: one for all, `data_files` by split, gives every split the columns of the first (filled with None)
    # or fails where one has more, wants one kind of file, and an error in it names no file.
    return DatasetDict({split: _read(source, paths) for split, paths in files.items()})


def _read(source: Path, paths: list[Path]) -> Dataset:
    matches = [_DATA_FILE.fullmatch(path.name) for path in paths]
    kinds = {match["kind"] for match in matches if match}
    if None in matches or len({READERS[k] for k in kinds}) != 1:
        raise ValueError(
            f"cannot read {', '.join(p.name for p in paths)} of {source} as one split; expected files of one kind: "
            f"{', '.join(READERS)} (also compressed)"
        )
    empty = [path.name for path in paths if path.stat().st_size == 0]
    if empty:
        raise ValueError(f"{', '.join(empty)} of {source} is an empty file")
    reader = READERS[kinds.pop()]
    try:
        data_files = [str(p.resolve()) for p in paths]
        loaded = load_dataset(reader, data_files=data_files, split="train", **OPTIONS.get(reader, {}))
        _refuse_renamed(reader, loaded.column_names)
        return loaded
    except (DatasetGenerationError, ValueError, TypeError) as error:  # datasets 5.0 takes a number for a mapping
        cause = error.__cause__ or error
        raise ValueError(f"cannot read {', '.join(p.name for p in paths)} of {source}: {cause}") from error


def _refuse_renamed(reader: str, columns: list[str]) -> None:
    """Of two columns of one name pandas calls the second `name.1`, in silence."""
    renamed = [name for name in columns if name.rpartition(".")[0] in columns and name.rpartition(".")[2].isdigit()]
    if reader == "csv" and renamed:
        raise ValueError(
            f"the column {renamed[0].rpartition('.')[0]!r} is there twice; rename or remove one of the two"
        )


def _from_hub(name: str, config: str | None) -> DatasetDict:
    is_path = name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name or os.path.isabs(name)
    if is_path or _DATA_FILE.fullmatch(Path(name).name):
        raise FileNotFoundError(f"there is no file or folder {name!r} (looked from {os.getcwd()})")
    try:
        loaded: Any = load_dataset(name, config)
    except (FileNotFoundError, ConnectionError, OSError) as error:
        raise FileNotFoundError(
            f"{name!r} is neither a local file or folder (looked from {os.getcwd()}) nor a dataset that could be "
            f"reached on the Hub: {error}"
        ) from error
    return loaded
