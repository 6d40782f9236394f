"""What a YAML file says, as the command line would have said it: one value for a list, words that YAML reads otherwise.

argparse converts the words of a command line; what a file gives as a default is left as YAML has read it.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml
from trl import TrlParser

from ..models.libraries import actions_of


class FileValuesParser(TrlParser):
    """TRL's parser, whose file may say what the command line may."""

    written: Mapping[str, Any] = MappingProxyType({})

    def read_words(self, file: str | None) -> None:
        """Keep how the file spells its values: YAML reads `no` as False and 2024-01-01 as a date."""
        node = yaml.compose(Path(file).read_text(encoding="utf-8"), yaml.SafeLoader) if file else None
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        self.written = {str(key.value): _spelt(value) for key, value in pairs}

    def set_defaults_with_config(self, **kwargs: Any) -> list[str]:
        """As TRL's, with each value as its option takes it.

        Raises:
            ValueError: a list holds what is not of the option's type.
        """
        actions = {action.dest: action for action in reversed(actions_of(self))}
        meant = {
            name: _meant(actions[name], value, self.written.get(name)) if name in actions else value
            for name, value in kwargs.items()
        }
        left: list[str] = super().set_defaults_with_config(**meant)
        return left


def _spelt(node: yaml.Node) -> Any:
    """Scalars as the file has them, also those of a list; None for what has no one spelling."""
    if isinstance(node, yaml.SequenceNode):
        return [_spelt(item) for item in node.value]
    return node.value if isinstance(node, yaml.ScalarNode) else None


def _meant(action: argparse.Action, value: Any, written: Any) -> Any:
    """A value of the file as the option takes it."""
    if value is None or isinstance(value, dict):
        return value
    if action.nargs != "+":
        return _word(action, value, written)
    values, words = (value, written) if isinstance(value, list) else ([value], [written])
    return [_item(action, item, word) for item, word in zip(values, words or [None] * len(values), strict=True)]


def _word(action: argparse.Action, value: Any, written: Any) -> Any:
    """The word itself where the option takes words; `No` is the choice "no"."""
    if isinstance(value, str | list | dict) or not isinstance(written, str):
        return value
    choices = {str(choice) for choice in action.choices or ()}
    if written not in choices and written.lower() in choices:
        return written.lower()
    return written if choices or action.type is str else value


def _item(action: argparse.Action, value: Any, written: Any) -> Any:
    """One of a list, of the list's type.

    Raises:
        ValueError: it cannot be of that type.
    """
    kind: Any = action.type or str
    try:
        if value is None or isinstance(value, list | dict):
            raise TypeError
        return kind(_word(action, value, written))
    except (TypeError, ValueError):
        raise ValueError(f"{action.dest} takes a list of {kind.__name__}; it holds {value!r}") from None
