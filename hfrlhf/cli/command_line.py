"""The command line of the recipes: TRL's parser, with mistakes told in a line each.

Every field of the given dataclasses is an option; `--config file.yaml` gives them other defaults, and options on the
command line win over the file. The pages of `--help` and `--help-all` are `first_look`'s, which comes before.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections import ChainMap
from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Column, Table

from ..models.libraries import actions_of
from ..reporting.screen import console
from ..settings.old_names import POLICY_SETTINGS
from ..settings.unknown_names import hint
from .file_values import FileValuesParser
from .first_look import config_file, settings_in, value_given
from .mistakes import refuse


def parse_command_line(dataclass_types: Sequence[Any], argv: Sequence[str] | None = None) -> tuple[Any, ...]:
    """The dataclasses, filled from the YAML file of `--config` and the command line (`argv`, default `sys.argv[1:]`).

    Raises:
        SystemExit: the file is not there or holds no settings; an option or a name in the file is unknown (the message
            suggests another), a value is of the wrong type, or checkpoints were asked for and switched off.
    """
    arguments = _split_config(sys.argv[1:] if argv is None else argv)
    parser = FileValuesParser(dataclass_types, allow_abbrev=False)  # an abbreviation of today is a name tomorrow
    parser.error = refuse  # type: ignore[method-assign, assignment]  # a line that says what is wrong, without the usage
    _refuse_unknown(parser, _names_in(arguments), dataclass_types)
    parser.read_words(config_file(arguments))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of defaults that TRL sets, not the user
            parsed = parser.parse_args_and_config(arguments)
    except ValueError as error:  # settings that cannot work, or words that belong to no option
        parser.error(str(error))
    for record in parsed:
        resume = str(getattr(record, "resume_from_checkpoint", None)).lower()
        if resume in _RESUME:
            record.resume_from_checkpoint = _RESUME[resume]
        if value_given("save_steps", arguments) and getattr(record, "save_strategy", None) == "no":
            parser.error("save_steps with save_strategy 'no' saves nothing: say `--save_strategy steps`, too")
    return parsed


# The field is a path, but `True` means the newest checkpoint. YAML has these words for it, too.
_RESUME = dict.fromkeys(("true", "yes", "on"), True) | dict.fromkeys(("false", "no", "off"))


def _split_config(arguments: Sequence[str]) -> list[str]:
    """`--config=FILE` as two words, the only form that TRL's parser knows."""
    words: list[str] = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        words += [name, value] if name == "--config" and equals else [argument]
    return words


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """A table whose first row is its heading and whose first column is never cut; by the first process alone."""
    if os.environ.get("RANK", "0") != "0":
        return
    table = Table(Column(rows[0][0], no_wrap=True), *rows[0][1:], box=box.SIMPLE_HEAD)
    for row in rows[1:]:
        table.add_row(*map(escape, row))
    console(width_elsewhere=200).print(table)


def _names_in(arguments: Sequence[str]) -> list[str]:
    """The names of all options given, on the command line and in the file of `--config`."""
    names = [argument[2:].partition("=")[0] for argument in arguments if argument.startswith("--")]
    return [name for name in names if name != "config"] + list(settings_in(config_file(arguments))[0])


def _refuse_unknown(parser: argparse.ArgumentParser, names: Iterable[str], dataclass_types: Sequence[Any]) -> None:
    """Refuse all names at once that are no options, each with what to write instead."""
    known = {option.lstrip("-") for action in actions_of(parser) for option in action.option_strings}
    tables = [kind.ELSEWHERE for kind in dataclass_types if hasattr(kind, "ELSEWHERE")] or [POLICY_SETTINGS]
    table = ChainMap(*tables)
    unknown = [name for name in dict.fromkeys(names) if name not in known]
    said = [f"there is no option {name!r}; {hint(name, known, table) or 'see --help-all'}" for name in unknown]
    if said:
        parser.error("\n".join(said))
