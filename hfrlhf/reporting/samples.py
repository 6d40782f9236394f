"""Responses as a person reads them: a table on the screen, lines of a file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from .plain_text import printable
from .screen import console

COMPLETIONS = "completions.jsonl"


def as_text(text: object) -> str:
    """A prompt or a completion as text: of chat messages what was said, each turn of several after its role."""
    if not isinstance(text, Sequence) or isinstance(text, str):
        return str(text)
    turns = [message for message in text if isinstance(message, Mapping)]
    if len(turns) == 1 and turns[0].get("role") != "system":
        return _content(turns[0])
    return "\n".join(f"{turn.get('role', '')}: {_content(turn)}" for turn in turns)


def _content(message: Mapping[str, object]) -> str:
    """What a message says; of parts (text, images) the text."""
    content = message.get("content")
    if isinstance(content, Sequence) and not isinstance(content, str):
        return " ".join(str(part.get("text", f"[{part.get('type')}]")) for part in content if isinstance(part, Mapping))
    return "" if content is None else str(content)


def print_samples(stages: Mapping[str, Sequence[Mapping[str, object]]]) -> None:
    """A table of samples, a block for each stage; with their scores, where there are any."""
    scored = any(row.get("score") is not None for rows in stages.values() for row in rows)
    table = Table("", "prompt", "completion", *["score"] * scored)
    for stage, rows in stages.items():
        for row in rows:
            score = "" if row.get("score") is None else f"{row['score']:.2f}"
            table.add_row(stage, _shown(row["prompt"]), _shown(row["completion"]), *[score] * scored)
        table.add_section()
    console(100).print(table)


def _shown(text: object) -> str:
    """As it was written: no markup of rich, no control sequence of a terminal."""
    return escape(printable(as_text(text)))


def append_samples(folder: Path, step: int, rows: Iterable[Mapping[str, object]]) -> None:
    """Add a log's samples to `completions.jsonl`, always UTF-8."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / COMPLETIONS).open("a", encoding="utf-8") as file:
        file.writelines(json.dumps({"step": step} | dict(row)) + "\n" for row in rows)


def forget_samples_after(folder: Path, step: int) -> None:
    """Drop what a run wrote to `completions.jsonl` beyond the checkpoint it goes on from: it is written again."""
    path = folder / COMPLETIONS
    if not path.exists():
        return
    rows = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    whole = [row for row in rows if row.endswith("\n")]  # a killed run may have written half of its last one
    kept = path.with_suffix(".kept")
    kept.write_text("".join(row for row in whole if json.loads(row)["step"] <= step), encoding="utf-8")
    kept.replace(path)
