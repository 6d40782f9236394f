"""The options of a dataclass, read from its source: importing it would import torch and transformers, for seconds.

Whatever the installed release of a library has for fields is what is read. What cannot be read (a default that is
computed) is left open, and the real parser decides.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ..settings.fields import with_unit
from .computed import literal, text_of, words_of

# Where a library's class really is, for names that are imported from the library's front door.
HOMES = {
    ("transformers", "TrainingArguments"): "transformers.training_args",
    ("trl", "ModelConfig"): "trl.trainer.model_config",
    ("trl", "SFTConfig"): "trl.trainer.sft_config",
}
NOT_READ = object()  # a default that the source computes
FIELD_MAKERS = {"field", "setting"}  # of dataclasses, and of our own settings


@dataclass(frozen=True)
class Option:
    """A field as an option: its annotation, default, help, choices and `Interval`, as the source has them."""

    name: str
    annotation: str
    default: Any
    help: str
    choices: tuple[str, ...] = ()
    range: str = ""

    @property
    def kinds(self) -> set[str]:
        """The types that its annotation names."""
        return {kind.strip() for kind in self.annotation.replace("Optional[", "").rstrip("]").split("|")} - {"None"}

    @property
    def is_switch(self) -> bool:
        """Whether its name alone is a value."""
        return self.kinds == {"bool"}

    @property
    def takes_several(self) -> bool:
        """Whether several words may follow it."""
        return "list[" in self.annotation.lower()

    @property
    def is_deprecated(self) -> bool:
        """Whether the library says that it will go."""
        return "deprecated" in self.help.lower()[:60]


def options_of(places: Sequence[str]) -> dict[str, Option]:
    """The options of dataclasses by name, in the order of the parser's.

    Args:
        places: "package.module:Class" or "package:Class", each.
    """
    found: dict[str, Option] = {}
    for place in places:
        module, _, name = place.partition(":")
        found |= _fields(module, name)
    return found


@cache
def syntax_tree(module: str) -> ast.Module:
    """A module's syntax tree; its package is found, not imported."""
    package, *rest = module.split(".")
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ImportError(f"there is no package {package!r}")
    path = Path(spec.origin).parent.joinpath(*rest) if rest else Path(spec.origin)
    path = path / "__init__.py" if path.is_dir() else path if path.suffix else path.with_suffix(".py")
    return ast.parse(path.read_text(encoding="utf-8"))


def _fields(module: str, name: str) -> dict[str, Option]:
    module = HOMES.get((module, name), module)
    tree = syntax_tree(module)
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    found: dict[str, Option] = {}
    for base in reversed(classes[name].bases):
        base_name = ast.unparse(base)
        home = module if base_name in classes else _imported_from(tree, module, base_name)
        if home:
            found |= _fields(home, base_name)
    constants = _constants([*tree.body, *classes[name].body])
    for node in classes[name].body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            option = _option(node.target.id, ast.unparse(node.annotation), node.value, constants, module)
            if option:
                found[option.name] = option
    return found


def _imported_from(tree: ast.Module, module: str, name: str) -> str | None:
    """The module that a name is imported from; None where it is no import."""
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and any(alias.name == name for alias in node.names):
            above = module.split(".")[: -node.level] if node.level else []
            place = ".".join([*above, *([node.module] if node.module else [])])
            return HOMES.get((place, name), place)
    return None


def _constants(body: Sequence[ast.stmt]) -> dict[str, Any]:
    found = {}
    for node in body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            value = _value(node.value, {})
            if value is not NOT_READ:
                found[node.targets[0].id] = value
        elif isinstance(node, ast.If):  # what depends on the machine is left open
            names = {target.id for target in ast.walk(node) if isinstance(target, ast.Name)}
            found = {name: value for name, value in found.items() if name not in names}
    return found


def _option(
    name: str, annotation: str, value: ast.expr | None, constants: dict[str, Any], module: str
) -> Option | None:
    if "ClassVar" in annotation or name.startswith("_"):
        return None
    maker = ast.unparse(value.func).split(".")[-1] if isinstance(value, ast.Call) else ""
    if maker not in FIELD_MAKERS or not isinstance(value, ast.Call):
        return Option(name, annotation, NOT_READ if value is None else _value(value, constants), "")
    given = {keyword.arg: keyword.value for keyword in value.keywords}
    if ast.unparse(given.get("init", ast.Constant(True))) == "False":
        return None
    given |= dict(zip(("default", "help"), value.args, strict=False))
    metadata = given.get("metadata")
    if isinstance(metadata, ast.Dict):
        pairs = zip(metadata.keys, metadata.values, strict=True)
        given |= {str(key.value): item for key, item in pairs if isinstance(key, ast.Constant)}
    default = _value(given["default"], constants) if "default" in given else NOT_READ
    if "default_factory" in given:
        default = {"list": [], "dict": {}}.get(ast.unparse(given["default_factory"]), NOT_READ)
    names = _names(given.values(), constants, module)
    unit, numbers = (str(_value(given.get(key, ast.Constant("")), constants)) for key in ("unit", "range"))
    text = with_unit(text_of(given.get("help"), names), unit)
    return Option(name, annotation, default, text, words_of(given.get("choices"), names), numbers)


def _value(node: ast.expr, constants: dict[str, Any]) -> Any:
    if isinstance(node, ast.Name):
        return constants.get(node.id, NOT_READ)
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError):
        return NOT_READ


def _names(nodes: Iterable[ast.expr], constants: Mapping[str, Any], module: str) -> dict[str, Any]:
    """What a declaration takes from this module and from those that it imports."""
    used = {name.id for node in nodes for name in ast.walk(node) if isinstance(name, ast.Name)}
    found = {name: _literal_of(module, name) for name in used - set(constants)}
    return dict(constants) | {name: value for name, value in found.items() if value is not NOT_READ}


def _literal_of(module: str, name: str) -> Any:
    """What a name of a module is set to there, or in the module that it is imported from."""
    tree = syntax_tree(module)
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        value = getattr(node, "value", None)
        if isinstance(node, ast.Assign | ast.AnnAssign) and value and ast.unparse(targets[0] or value) == name:
            try:
                return literal(value)
            except (ValueError, TypeError, SyntaxError):
                return NOT_READ
    home = _imported_from(tree, module, name)
    return _literal_of(home, name) if home and home.split(".")[0] == module.split(".")[0] else NOT_READ
