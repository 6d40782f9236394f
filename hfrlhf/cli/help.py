"""The pages of `--help` and `--help-all`."""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path

from ..reporting.screen import say
from ..settings.fields import Interval
from .algorithms import rows
from .options import NOT_READ, Option

WIDTH, INDENT = 100, 34
# Defaults that depend on other settings, in words; the rest is said by the help text's own "Default: …".
IN_WORDS = {
    "max_steps": "as many as num_train_epochs gives",
    "rollout_batch_size": "8 per process: per_device_train_batch_size × gradient_accumulation_steps × num_mini_batches",
}
UNLESS = {"num_train_epochs": "max_steps"}  # a default, each class's own, that another option sets aside
# Texts of other libraries that do not say what holds here.
OURS = {
    "resume_from_checkpoint": "`True` for the newest checkpoint in output_dir, or the folder of one. The run goes on "
    "where that was saved. Default: a run from the start.",
}
# What an algorithm fills in where nothing is said, by the field of its row.
OF_THE_ALGORITHM = {"num_ppo_epochs": "epochs", "whiten_advantages": "whiten"}


def print_short(
    description: str | None, options: Mapping[str, Option], shown: Mapping[str, str], algorithm: str | None = None
) -> None:
    """The options one needs, in groups, each with the first sentence of its help and its real default."""
    _print_head(description)
    count = len([option for option in options.values() if not option.is_deprecated])
    for title, names in shown.items():
        say(f"{title}:")
        for name in names.split():
            option = _of_these_libraries(name, options)
            if option is not None:
                count -= 1
                say(_entry(option, real_default(option, options, algorithm), first_sentence(_help(option))))
        say()
    say(f"and {count} options more: --help-all")


def print_all(description: str | None, options: Mapping[str, Option]) -> None:
    """Every option that is not deprecated, with all of its help."""
    _print_head(description)
    for option in options.values():
        if not option.is_deprecated:
            allowed = str(Interval(option.range)) if option.range else ""
            say(_entry(option, real_default(option, options, None), _help(option), allowed))


def _help(option: Option) -> str:
    return OURS.get(option.name, option.help)


def _print_head(description: str | None) -> None:
    name = Path(sys.argv[0]).name
    say(f"usage: {name} [--config FILE.yaml] [--OPTION VALUE ...] [--help | --help-all]\n")
    say(f"{(description or '').strip()}\n")


def _of_these_libraries(name: str, options: Mapping[str, Option]) -> Option | None:
    """The first of `a|b` that the installed libraries have, and not as deprecated.

    Raises:
        ValueError: none of them is a field.
    """
    there = [options[part] for part in name.split("|") if part in options]
    if not there:
        raise ValueError(f"`shown` lists {name!r}, which is no field of the dataclasses")
    return next((option for option in there if not option.is_deprecated), None)


def first_sentence(text: str) -> str:
    """Up to the first full stop that ends one ("e.g." does not); a mere unit ("Tokens.") has the next one beside it."""
    sentences = re.split(r"(?<=[^.]\.)\s", text)
    enough = 1 if len(sentences[0]) > 20 or (sentences[1:2] and sentences[1].startswith(("Typical", "Default"))) else 2
    return " ".join(sentences[:enough])


def real_default(option: Option, options: Mapping[str, Option], algorithm: str | None) -> str:
    """What holds where nothing is said; empty where that is nothing."""
    if option.name in IN_WORDS:
        return IN_WORDS[option.name]
    if option.default is NOT_READ:
        return ""
    if option.name in UNLESS:
        return f"{option.default:g}, unless {UNLESS[option.name]} is given"
    if option.default is None or option.default == []:
        return _of_row(option.name, algorithm or _text(options.get("algorithm"))) or _said(_help(option))
    return str(option.default)


def _text(option: Option | None) -> str:
    return str(option.default) if option is not None else ""


def _said(text: str) -> str:
    """What a help text says after "Default:"."""
    found = re.search(r"Default:\s*(.+?)\.(\s|$)", text, re.DOTALL)
    return found[1] if found else ""


def _of_row(name: str, algorithm: str) -> str:
    """What the row of an algorithm says, read from the source of the table."""
    if name not in OF_THE_ALGORITHM or not algorithm:
        return ""
    return rows().get(algorithm, {}).get(OF_THE_ALGORITHM[name], "")


def _entry(option: Option, default: str, text: str, allowed: str = "") -> str:
    """An option with its help beside it, as argparse prints it; its default is not said twice."""
    value = "" if option.is_switch else " " + (" | ".join(option.choices) or "X") + (" ..." * option.takes_several)
    name = f"  --{option.name}{value}"
    added = [allowed, f"default: {default}" if default != _said(text) else ""] if default else [allowed]
    words = f"{text} ({'; '.join(filter(None, added))})" if any(added) else text
    lines = textwrap.wrap(" ".join(words.split()), WIDTH - INDENT) or [""]
    if len(name) > INDENT - 2:
        return "\n".join([name, *(" " * INDENT + line for line in lines)])
    return "\n".join([name.ljust(INDENT) + lines[0], *(" " * INDENT + line for line in lines[1:])])
