"""A pytest plugin: what a library says is deprecated is an error where this package's code asked for it.

    pytest -p tests.deprecations tests/trainers

A library says so by a warning or by its log, and not always on behalf of its caller: transformers warns out of its own
depths of what peft does. So the stack is read: whose call led into the library is whose call it was. What other
libraries do to each other is theirs.
"""

from __future__ import annotations

import logging
import re
import sys
import warnings
from collections.abc import Iterator
from types import FrameType
from typing import Any

import pytest

OURS = "hfrlhf"
LIBRARIES = {"accelerate", "bitsandbytes", "datasets", "deepspeed", "evaluate", "huggingface_hub", "numpy", "peft"}
LIBRARIES |= {"safetensors", "tokenizers", "torch", "transformers", "trl"}
# A module is called by torch, and a decorated function by the decorator, on somebody's behalf.
GO_BETWEENS = {"torch", "contextlib", "functools", "logging", "warnings", __name__.partition(".")[0]}
SAYS_SO = re.compile(r"deprecat|will be removed in", re.IGNORECASE)
# What is said nevertheless, and why.
ALLOWED = [
    re.compile("`gradient_checkpointing(_kwargs)?` is deprecated"),  # the new name is not there in transformers 5.20
]
CATEGORIES = (DeprecationWarning, FutureWarning, PendingDeprecationWarning)


class DeprecatedCall(AssertionError):
    """This package called what a library wants to get rid of."""


def is_to_go(text: str) -> bool:
    """Whether a text says that something is deprecated, and nothing allows for it."""
    return bool(SAYS_SO.search(text)) and not any(reason.search(text) for reason in ALLOWED)


def packages(frame: FrameType | None) -> Iterator[str]:
    """The top package of each frame, from the innermost one outwards."""
    while frame is not None:
        yield str(frame.f_globals.get("__name__", "")).partition(".")[0]
        frame = frame.f_back


def is_our_call(frame: FrameType | None) -> bool:
    """Whether the library that speaks in a frame, or above it, was called by this package itself."""
    outwards = [name for name in packages(frame) if name not in GO_BETWEENS - {"torch"}]
    if not outwards or outwards[0] not in LIBRARIES:
        return False
    caller = next((name for name in outwards if name != outwards[0] and name not in GO_BETWEENS), "")
    return caller == OURS


def pytest_configure(config: pytest.Config) -> None:
    """From here on both ways to say it are listened to."""
    warn, handle = warnings.warn, logging.Logger.handle

    def listening_warn(message: Any, category: Any = None, stacklevel: int = 1, *args: Any, **kwargs: Any) -> None:
        kind = type(message) if isinstance(message, Warning) else category or UserWarning
        if issubclass(kind, CATEGORIES) and is_to_go(f"deprecated: {message}") and is_our_call(sys._getframe(1)):
            raise DeprecatedCall(str(message))
        warn(message, category, stacklevel + 1, *args, **kwargs)  # this function is one level more

    def listening_handle(self: logging.Logger, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING and is_to_go(record.getMessage()) and is_our_call(sys._getframe(1)):
            raise DeprecatedCall(record.getMessage())
        handle(self, record)

    patch = pytest.MonkeyPatch()
    patch.setattr(warnings, "warn", listening_warn)
    patch.setattr(logging.Logger, "handle", listening_handle)
    config.add_cleanup(patch.undo)
