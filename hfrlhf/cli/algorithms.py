"""The table of algorithms, read from its source: importing it would import torch."""

from __future__ import annotations

import ast
from functools import cache
from typing import Any

from .options import syntax_tree

# By the way the policy is updated; as in `hfrlhf.trainers.family`.
CONFIGS = {
    "gradient": "hfrlhf.settings.policy_gradient:PolicyGradientConfig",
    "natural": "hfrlhf.settings.policy_gradient:TRPOConfig",
    "trust_region": "hfrlhf.settings.policy_gradient:TRPOConfig",
}


@cache
def rows() -> dict[str, dict[str, str]]:
    """algorithm -> field of its row -> value, as the source has it."""
    tree = syntax_tree("hfrlhf.algorithms")
    fields = [field for node in _class(tree) for field in node.body if isinstance(field, ast.AnnAssign)]
    defaults = {ast.unparse(field.target): ast.unparse(field.value) for field in fields if field.value is not None}
    names = [ast.unparse(field.target) for field in fields]
    return {name: defaults | _row(call, names) for name, call in _table(tree)}


def _class(tree: ast.Module) -> list[ast.ClassDef]:
    return [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Algorithm"]


def _table(tree: ast.Module) -> list[tuple[str, ast.Call]]:
    for node in tree.body:
        target: Any = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        table = getattr(node, "value", None)
        if isinstance(target, ast.Name) and target.id == "ALGORITHMS" and isinstance(table, ast.Dict):
            pairs = zip(table.keys, table.values, strict=True)
            return [(str(ast.literal_eval(k)), v) for k, v in pairs if k is not None and isinstance(v, ast.Call)]
    return []


def _row(call: ast.Call, names: list[str]) -> dict[str, str]:
    given = dict(zip(names, call.args, strict=False)) | {str(k.arg): k.value for k in call.keywords}
    return {name: ast.unparse(value) for name, value in given.items()}


def settings_of(algorithm: str) -> str:
    """Where the settings class of an algorithm is; of an unknown one, the family's."""
    update = rows().get(algorithm, {}).get("update", "'gradient'").strip("'")
    return CONFIGS.get(update, CONFIGS["gradient"])
