"""What `help()` says of a trainer that adds a name and numbers to another."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T", bound=type)


def with_arguments_of(base: type) -> Callable[[T], T]:
    """A decorator that appends to a class's docstring what another's says of arguments and errors."""
    text = inspect.getdoc(base) or ""

    def append(cls: T) -> T:
        cls.__doc__ = f"{inspect.getdoc(cls)}\n\n{text[text.index('Args:') :]}"
        return cls

    return append
