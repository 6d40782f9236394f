"""Everything that is printed goes through here: what a stream cannot show never ends a run.

Standard output may be of any encoding (cp1252 where Windows redirects it, gbk, ascii in containers), closed, missing
(`pythonw`), or a pipe that nobody reads any more. It may also share the terminal with a progress bar, which has to step
aside for a line.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO, cast

from rich.console import Console

# Our own signs in the letters that every encoding has.
PLAIN = str.maketrans(
    {"→": "->", "×": "x", "…": "...", "−": "-", "–": "-", "½": "1/2", "π": "pi", "θ": "theta", "β": "beta", "Ψ": "Psi"}
)
NO_TERMINAL = 120  # columns of a table that goes to a file or a pipe


class RunWarning(UserWarning):
    """A warning of this package: of several processes the first alone shows it (`settings.launch.stay_quiet`)."""


def say(text: str = "", to: str = "stdout") -> None:
    """Print a line, whatever the stream is; never raises.

    Args:
        text: may hold line breaks. to: "stdout" or "stderr", as `sys` has it now.
    """
    write(getattr(sys, to, None), f"{text}\n")


def write(stream: TextIO | None, text: str) -> None:
    """Write a text to a stream as well as it can show it, above a progress bar if there is one."""
    if stream is None:
        return
    with suppress(OSError, ValueError), above_bars(stream):  # closed, or nobody reads it any more
        stream.write(showable(text, getattr(stream, "encoding", None)))
        stream.flush()


def showable(text: str, encoding: str | None) -> str:
    """The text with what an encoding lacks in other signs: an arrow as `->`, a letter by its number (`\\xdf`)."""
    encoding = encoding or "utf-8"
    try:
        text.encode(encoding)
        return text
    except UnicodeEncodeError:
        return text.translate(PLAIN).encode(encoding, "backslashreplace").decode(encoding)
    except LookupError:  # an encoding that Python does not know
        return text.translate(PLAIN).encode("ascii", "backslashreplace").decode("ascii")


@contextmanager
def above_bars(stream: object) -> Iterator[None]:
    """Clear the terminal's progress bars for the length of a block, then draw them again."""
    tqdm = getattr(sys.modules.get("tqdm.std"), "tqdm", None)
    if tqdm is None:
        yield
    else:
        with tqdm.external_write_mode(file=stream):
            yield


class Screen:
    """Standard output as a file that takes every text; for rich, which writes tables to a file."""

    def write(self, text: str) -> int:
        """Write as `write` does."""
        write(sys.stdout, text)
        return len(text)

    def flush(self) -> None:
        """`write` has done so."""

    def isatty(self) -> bool:
        """Whether a person looks on."""
        try:
            return sys.stdout is not None and sys.stdout.isatty()
        except ValueError:  # closed
            return False

    @property
    def encoding(self) -> str:
        """The stream's: where it is no Unicode, rich draws its lines in ASCII."""
        return getattr(sys.stdout, "encoding", None) or "utf-8"


def console(width_elsewhere: int = NO_TERMINAL) -> Console:
    """rich's console on `Screen`; as wide as the terminal, or as given where there is none."""
    screen = cast(TextIO, Screen())  # what rich uses of a file
    made = Console(file=screen)
    return made if made.is_terminal else Console(file=screen, width=width_elsewhere)
