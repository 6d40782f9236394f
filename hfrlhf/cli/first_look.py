"""What a recipe can answer in a moment, before torch and transformers are loaded: help, and mistakes in options.

Names, types and files are checked here; what settings mean together is checked by the real parser
(`hfrlhf.cli.command_line`), which reads the same words afterwards.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from ..settings.old_names import POLICY_SETTINGS
from ..settings.unknown_names import hint
from .help import print_all, print_short
from .mistakes import refuse
from .options import Option, options_of
from .places import missing, not_there, unnamed

SWITCH = {"yes", "true", "t", "y", "1", "no", "false", "f", "n", "0"}
# Not written by users, but by `parse_args_and_config` and by launchers.
SILENT = {"config", "help", "help-all", "local-rank"}


def first_look(
    description: str | None,
    shown: Mapping[str, str],
    places: Sequence[str],
    needed: Sequence[str] = (),
    argv: Sequence[str] | None = None,
) -> None:
    """Answer `--help` and `--help-all`, and refuse what cannot be meant, each mistake in a line.

    Args:
        description: the recipe's docstring. shown: what `--help` lists: a title, then names of options; `a|b` is the
            first of them that the installed libraries have and do not call deprecated.
        places: the dataclasses, as "package.module:Class". needed: options that must be given. argv: words, by default
            those of the command line.

    Raises:
        SystemExit: help was asked for (0), or something is wrong (2).
    """
    words = list(sys.argv[1:] if argv is None else argv)
    options = options_of(places)
    if "--help-all" in words:
        print_all(description, options)
        raise SystemExit(0)
    if {"-h", "--help"} & set(words):
        print_short(description, options, shown, value_given("algorithm", words))
        raise SystemExit(0)
    settings, file = settings_in(config_file(words))
    given = dict(_given(words, options))
    mistakes = [*_unknown([*given, *settings], options), *_wrong(settings, given, options)]
    mistakes = mistakes or [missing(name) for name in needed if not (given.get(name) or settings.get(name))]
    mistakes += list(not_there(settings, given, file)) or list(unnamed(settings, given))
    if mistakes:
        refuse("\n".join(mistakes))


# ---- The file of `--config` -------------------------------------------------------------------------------------


def config_file(words: Sequence[str]) -> str | None:
    """What `--config FILE` or `--config=FILE` names."""
    for word, following in pairwise([*words, ""]):
        name, equals, value = word.partition("=")
        if name == "--config":
            file = value if equals else following
            if not file or file.startswith("--"):
                refuse("--config needs a file, as in --config FILE.yaml")
            return file
    return None


def settings_in(file: str | None) -> tuple[dict[str, Any], str | None]:
    """The settings of a YAML file, and its name.

    Raises:
        SystemExit: there is no such file, or it is no mapping of names to values.
    """
    if file is None:
        return {}, None
    path = Path(file)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        refuse(f"--config {file}: the file {what} (looked from {Path.cwd()})")
    try:
        read = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        where = getattr(error, "problem_mark", None)
        line = f", line {where.line + 1}" if where else ""
        refuse(f"--config {file}{line}: no YAML that could be read ({getattr(error, 'problem', None) or error})")
    if read is None:
        read = {}
    if not isinstance(read, dict):
        refuse(f"--config {file} must hold `name: value` lines; it holds a {type(read).__name__}")
    return {str(name): value for name, value in read.items() if name != "env"}, file


# ---- Words of the command line ----------------------------------------------------------------------------------


def _given(words: Sequence[str], options: Mapping[str, Option]) -> Iterator[tuple[str, list[str]]]:
    """Each option of the command line with the words that follow it; `--no_x` counts as `x`."""
    name, values = "", list[str]()
    for word in [*words, "--"]:
        if not word.startswith("--") or _is_number(word):
            values.append(word)
            continue
        if name and name not in SILENT:
            yield name, values
        elif not name and values:
            refuse(f"{values[0]!r} belongs to no option; options are written --NAME VALUE")
        spelt, equals, value = word[2:].partition("=")
        name, values = _proper(spelt, options), [value] if equals else []


def _proper(spelt: str, options: Mapping[str, Option]) -> str:
    """The field that a word means: hyphens are underscores, `no_x` switches `x` off."""
    name = spelt.replace("-", "_")
    off = name.removeprefix("no_")
    if name not in options and off in options and options[off].is_switch:
        return off
    return name if name in options else spelt


def _is_number(word: str) -> bool:
    try:
        float(word)
        return True
    except ValueError:
        return False


def _unknown(names: Sequence[str], options: Mapping[str, Option]) -> Iterator[str]:
    for name in dict.fromkeys(names):
        if name not in options:
            yield f"there is no option {name!r}; {hint(name, options, POLICY_SETTINGS) or 'see --help-all'}"


def _wrong(settings: Mapping[str, Any], given: Mapping[str, list[str]], options: Mapping[str, Option]) -> Iterator[str]:
    """Values that are not of their option's type."""
    for name, value in settings.items():
        if name in options and name not in given and value is not None:
            yield from _check(options[name], value if isinstance(value, list) else [value], name)
    for name, words in given.items():
        if name in options and not (options[name].is_switch and not words):
            yield from _check(options[name], words, f"--{name}")


def _check(option: Option, values: Sequence[Any], spelt: str) -> Iterator[str]:
    if not values:
        yield f"{spelt} needs a value"
        return
    if len(values) > 1 and not option.takes_several and option.kinds <= set(CHECKS):
        yield f"{spelt} takes one value, got {' '.join(map(str, values))}"
        return
    wanted = [CHECKS[kind] for kind in option.kinds if kind in CHECKS]
    if option.choices and str(values[0]) not in option.choices:
        yield f"{spelt} must be one of {', '.join(option.choices)}; got {values[0]!r}"
    elif option.kinds <= set(CHECKS) and not any(fits(values[0]) for fits, _ in wanted):
        yield f"{spelt} must be {' or '.join(what for _, what in wanted)}, got {values[0]!r}"


def _is_whole(value: Any) -> bool:
    return not isinstance(value, float) and str(value).replace("_", "").lstrip("+-").isdigit()


# Annotation -> whether a value of the file or the command line fits, and what to call it. Other types take any text.
CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "int": (_is_whole, "a whole number"),
    "float": (lambda value: not isinstance(value, bool) and _is_number(str(value)), "a number"),
    "bool": (lambda value: str(value).lower() in SWITCH, "true or false"),
}


def value_given(name: str, argv: Sequence[str] | None = None) -> str | None:
    """What an option is set to, before anything is parsed: on the command line, else in the file of `--config`.

    Raises:
        SystemExit: the option stands there without a value, or the file cannot be read.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    given = None
    for word, following in pairwise([*words, ""]):
        option, equals, value = word.partition("=")
        if option == f"--{name}":
            given = value if equals else following
            if not given or given.startswith("--"):
                refuse(f"--{name} needs a value, as in --{name} NAME")
    return given or settings_in(config_file(words))[0].get(name)
