"""Mistakes of users end in a line that says what to do; a traceback is for what is wrong in the code.

`HFRLHF_TRACEBACK=1` shows the traceback all the same.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from ..reporting.screen import say

VARIABLE = "HFRLHF_TRACEBACK"
EXIT_CODE = 2
STOPPED = 130  # what shells say of Ctrl-C
PACKAGE = str(Path(__file__).resolve().parents[1])
LINES = 12  # of another library's message


class Refused(SystemExit):
    """A mistake of the user that has been told; as an exit it has the code 2."""

    def __init__(self, message: str) -> None:
        super().__init__(EXIT_CODE)
        self.message = message

    def __str__(self) -> str:
        return self.message


def refuse(text: str) -> NoReturn:
    """Say what is wrong, a line each, and stop.

    Raises:
        Refused: always.
    """
    for line in text.splitlines():
        say(f"error: {line}", to="stderr")
    raise Refused(text)


@contextmanager
def told_in_a_line() -> Iterator[None]:
    """The context of a recipe.

    Raises:
        Refused: for a mistake. SystemExit: with code 130, at Ctrl-C outside the training.
    """
    try:
        yield
    except KeyboardInterrupt:  # before or after the training; within it the trainer saves a checkpoint
        say("\nstopped by Ctrl-C; what was saved before that, if anything, is as it was", to="stderr")
        raise SystemExit(STOPPED) from None
    except Exception as error:
        if os.environ.get(VARIABLE, "") not in ("", "0") or not is_mistake(error):
            raise
        lines = str(error).strip().splitlines() or [type(error).__name__]
        text = "\n".join(lines[:LINES])
        say(f"error: {text}", to="stderr")
        raise Refused(text) from None


def is_mistake(error: Exception) -> bool:
    """Whether an error tells a user what is wrong with what he gave.

    It does if it is raised by this package on purpose (a ValueError, TypeError, OSError, or a kind of our own), or if
    a file, a model or a dataset is not there, whichever library has found that out.
    """
    if type(error).__module__.startswith("hfrlhf."):
        return True
    if isinstance(error, OSError):
        return True
    if not isinstance(error, ValueError | TypeError | ImportError):
        return False
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and _is_ours(frames[-1].filename) and frames[-1].line is not None and _raises(frames[-1])


def _is_ours(file: str) -> bool:
    path = str(Path(file).resolve())
    return path.startswith(PACKAGE + os.sep) or path == str(Path(sys.argv[0]).resolve())


def _raises(frame: traceback.FrameSummary) -> bool:
    """Whether the line is a `raise`: an error of the same kind that merely happens there is no message to a user."""
    return (frame.line or "").lstrip().startswith("raise ")
