"""What every kind of dataset needs: columns checked, with errors that teach."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset


def check_dataset(dataset: Any, needed: Sequence[str], purpose: str, name: str) -> None:
    """Refuse what is not a dataset, is empty, or lacks a column.

    Args:
        dataset: what was passed. needed: its columns. purpose: what a dataset with these columns is called and holds.
        name: what to call the dataset in messages.

    Raises:
        TypeError: not a `datasets.Dataset`.
        ValueError: no rows, a column is missing, or texts that are not UTF-8.
    """
    if isinstance(dataset, Mapping):
        raise TypeError(f"the {name} dataset holds several splits, {list(dataset)}; pass one: dataset[{name!r}]")
    if not isinstance(dataset, Dataset):
        raise TypeError(
            f"the {name} dataset must be a datasets.Dataset (one split, not streaming), got {type(dataset).__name__}; "
            "a list of rows becomes one by `Dataset.from_list(rows)`, a stream by `Dataset.from_list(list(stream))`"
        )
    missing = [column for column in needed if column not in dataset.column_names]
    if missing:
        raise ValueError(
            f"the {name} dataset has no column {' and no column '.join(map(repr, missing))}; {purpose}; this one has "
            f"{dataset.column_names}"
        )
    if len(dataset) == 0:
        raise ValueError(f"the {name} dataset is empty")
    try:
        dataset.data.table.validate(full=True)  # a file may hold bytes that are no text; here is when to say so
    except ValueError as error:
        raise ValueError(f"the {name} dataset is damaged, or not in UTF-8: {error}; write its files anew") from error


def without_format(dataset: Any) -> Any:
    """The same rows as Python's own texts and lists, whatever a format (`with_format("numpy")`) would make of them.

    A transform that the user has set (`with_transform`) makes the rows what they are, and stays.
    """
    if isinstance(dataset, Dataset) and dataset.format["type"] not in (None, "custom"):
        return dataset.with_format(None)
    return dataset


def kind_of_column(values: Sequence[Any], column: str, name: str) -> str:
    """Whether a column holds "text" or "chat" (lists of messages with `role` and `content`).

    Raises:
        TypeError: it holds something else, or both. ValueError: it holds a null.
    """
    kinds = set()
    for row, value in enumerate(values):
        if value is None:
            raise ValueError(f"the {name} dataset has a null in column {column!r}, row {row}; remove or fill such rows")
        kind = "text" if isinstance(value, str) else "chat" if _is_chat(value) else None
        if kind is None:
            raise TypeError(
                f"column {column!r} of the {name} dataset must hold text, or chat messages [{{'role': …, 'content': "
                f"…}}, …]; row {row} holds {str(value)[:80]!r} ({type(value).__name__})"
            )
        kinds.add(kind)
    if len(kinds) > 1:
        raise TypeError(f"column {column!r} of the {name} dataset mixes text and chat messages")
    return kinds.pop()


def _is_chat(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(_is_message(message) for message in value)


def _is_message(message: object) -> bool:
    """With text, or with calls of tools in its place."""
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        return False
    content = message.get("content")
    return isinstance(content, str) or (content is None and bool(message.get("tool_calls")))
