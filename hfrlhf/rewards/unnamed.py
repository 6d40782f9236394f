"""A file of reward functions that is given without the name of one; nothing is imported, not even torch."""

from __future__ import annotations

import ast
from pathlib import Path

SHOWN = 8


def without_function(name: str) -> str | None:
    """What to write instead of FILE.py, FILE.py: or FILE.py:WHAT_IS_NO_NAME; None where a function is named.

    The message has the functions that the file defines, where it can be read.
    """
    place, _, function = (name, "", "") if name.endswith(".py") else name.rpartition(":")
    if not place.endswith(".py") or function.isidentifier():
        return None
    what = f"{function!r}, which is no name of a function" if function else "no function"
    found = _functions_in(Path(place).expanduser())
    there = f"; it has {', '.join(found[:SHOWN])}{', …' * (len(found) > SHOWN)}" if found else ""
    return f"{name!r} names {what}: write {place}:{found[0] if len(found) == 1 else 'FUNCTION'}{there}"


def _functions_in(file: Path) -> list[str]:
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return []
    return [node.name for node in tree.body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")]
