"""How a setting is declared: once, in its field, with all that hangs on it.

    gae_lambda: float = setting(0.95, "GAE's λ, …", range="[0, 1]", read_by="gae_lambda", shown=True)

Nothing is imported here, so that the pages of `--help` may read ranges as the checks do, without torch.
"""

from __future__ import annotations

import inspect
import math
import textwrap
from collections.abc import Collection
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

Settings = TypeVar("Settings", bound=type)


@dataclass(frozen=True)
class Interval:
    """The numbers that a setting may have, written as in mathematics: "[0, 1]", "(0, ∞)".

    Args:
        text: the interval; a square bracket takes its end in, a round one leaves it out.
    """

    text: str

    @property
    def ends(self) -> tuple[float, float]:
        """Its low and its high end."""
        low, high = self.text[1:-1].replace("∞", "inf").split(",")
        return float(low), float(high)

    def __contains__(self, value: float) -> bool:
        low, high = self.ends
        above = low < value if self.text[0] == "(" else low <= value
        return above and (value < high if self.text[-1] == ")" else value <= high)

    def __str__(self) -> str:
        """In words: "above 0, at most 1"."""
        low, high = self.ends
        words = [f"{'above' if self.text[0] == '(' else 'at least'} {low:g}"] if low > -math.inf else []
        words += [f"{'below' if self.text[-1] == ')' else 'at most'} {high:g}"] if high < math.inf else []
        return ", ".join(words)


@dataclass(frozen=True, eq=False)
class Setting(str):
    """The help text of a setting, which carries what else is declared of it.

    It is a text because parsers hand all metadata of a field to argparse, which knows `help` and would stumble over
    every key of ours.

    Args:
        text: one sentence on its effect, then typical values. unit: of its number; the help text begins with it.
        range: the numbers allowed, as an `Interval`. whole: whether only whole ones are.
        choices: the words allowed, beside None where that is the default; a table as it is, so that a row added to it
            later is allowed as well.
        refusal: what to say of another value, with {} in its place, where range and choices don't say it all.
        read_by: who reads it, so that it is refused where it would do nothing: "critic", or the option of a Ψ or a
            policy loss (a keyword argument of their functions in `core`); empty where every algorithm does.
        resumed: whether a resumed run must have it as it was. shown: whether the model card lists it. follows: whether
            it may follow from other settings (`derived`).
    """

    text: str = ""
    unit: str = ""
    range: str = ""
    whole: bool = False
    choices: Collection[str | None] = ()
    refusal: str = ""
    read_by: str = ""
    resumed: bool = False
    shown: bool = False
    follows: bool = False

    def __new__(cls, text: str = "", unit: str = "", **_: Any) -> Setting:
        """The text that people see."""
        return super().__new__(cls, with_unit(text, unit))

    def over(self, earlier: Setting) -> Setting:
        """What a class says of a setting anew, over what the classes above it have declared."""
        said = {f.name: getattr(self, f.name) or getattr(earlier, f.name) for f in fields(Setting)}
        return Setting(**said)


def documented(settings: Settings) -> Settings:
    """A decorator that appends all settings declared in a class, and above it, to what `help()` says of it."""
    lines = ["Settings beyond those of `TrainingArguments`, or with other defaults:"]
    for name, declared in settings.__dataclass_fields__.items():  # type: ignore[attr-defined]
        said = declared.metadata.get("help")
        if isinstance(said, Setting):
            is_told = declared.default is None or "Default: " in said
            more = [str(Interval(said.range)) if said.range else "", "" if is_told else f"default: {declared.default}"]
            text = f"{name}: {said}" + (f" ({'; '.join(filter(None, more))})" if any(more) else "")
            lines += textwrap.wrap(text, 110, initial_indent=" " * 4, subsequent_indent=" " * 8)
    settings.__doc__ = "\n".join([inspect.getdoc(settings) or "", "", *lines])
    return settings


def with_unit(text: str, unit: str) -> str:
    """A help text as people see it: its unit comes first."""
    return f"{unit[0].upper()}{unit[1:]}. {text}" if unit else text


def setting(
    default: Any,
    text: str,
    *,
    unit: str = "",
    range: str = "",
    whole: bool = False,
    choices: Collection[str | None] = (),
    refusal: str = "",
    read_by: str = "",
    resumed: bool = False,
    shown: bool = False,
    follows: bool = False,
) -> Any:
    """A dataclass field, with all that is declared of a setting; the arguments after `default` are those of `Setting`.

    A class that declares a setting of a class above it anew says only what differs.
    """
    declared = Setting(
        text,
        unit,
        range=range,
        whole=whole,
        choices=choices,
        refusal=refusal,
        read_by=read_by,
        resumed=resumed,
        shown=shown,
        follows=follows,
    )
    return field(default=default, metadata={"help": declared})
