"""Texts that a source computes from names of its package, such as the keys of a table in another module.

The modules are not imported, which would import torch: a name is looked for where it is imported from, and the text's
own expression is worked out with what stands there.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

OPEN = "…"  # what cannot be worked out
FUNCTIONS = {function.__name__: function for function in (str, map, sorted, len, list, tuple, repr, max, min)}


def text_of(node: ast.expr | None, names: Mapping[str, Any]) -> str:
    """A text; its parts that cannot be worked out are an ellipsis.

    Args:
        node: of the text. names: those it may use, with what the source says of them, as `literal`.
    """
    if node is None:
        return ""
    try:
        return str(_worked_out(node, names))
    except Exception:  # of whatever kind: another library's expression, with less than it needs
        return _in_parts(node, names)


def words_of(node: ast.expr | None, names: Mapping[str, Any]) -> tuple[str, ...]:
    """The words that an option may be; none where any will do, or where it cannot be worked out."""
    try:
        return tuple(str(word) for word in _worked_out(node, names) if word is not None) if node is not None else ()
    except Exception:
        return ()


def _worked_out(node: ast.expr, names: Mapping[str, Any]) -> Any:
    known = {"__builtins__": FUNCTIONS, **names}
    return eval(compile(ast.fix_missing_locations(ast.Expression(node)), "<help>", "eval"), known)


def _in_parts(node: ast.expr, names: Mapping[str, Any]) -> str:
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(ast.JoinedStr([part]), names) if len(node.values) > 1 else OPEN for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return text_of(node.left, names) + text_of(node.right, names)
    return OPEN


def literal(node: ast.expr) -> Any:
    """What is written there; of a table its keys, with the values' source where they are computed.

    Raises:
        ValueError: neither.
    """
    if isinstance(node, ast.Dict):
        pairs = zip(node.keys, node.values, strict=True)
        return {ast.literal_eval(key): _or_source(value) for key, value in pairs if key is not None}
    return ast.literal_eval(node)


def _or_source(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError):
        return ast.unparse(node)
