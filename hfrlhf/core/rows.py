"""Rows of a table of functions that each read some of many options, and say which by their keyword-only arguments.

Options are a mapping and no record, so that a new row with a new number touches nothing but itself: the caller gives
all settings by their names, and what it knows of the rollout.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping

from torch import Tensor

Row = Callable[[Tensor, Tensor, Tensor, Mapping[str, object]], Tensor]


def rows(table: str, functions: Mapping[str, Callable[..., Tensor]]) -> dict[str, Row]:
    """The rows of a table, called alike: `row(x, y, z, options)`, each of which gets the options that it names.

    Args:
        table: its name, for errors. functions: of three tensors, and keyword-only arguments: the options it reads. One
            without a default has to be given.
    """
    return {name: _row(f"{table}[{name!r}]", function) for name, function in functions.items()}


def options_of(row: Row) -> frozenset[str]:
    """The options that a row reads: by construction no other reaches its function."""
    parameters = inspect.signature(row).parameters.values()
    return frozenset(parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY)


def _row(called: str, function: Callable[..., Tensor]) -> Row:
    parameters = inspect.signature(function).parameters
    needed = {name for name in options_of(function) if parameters[name].default is inspect.Parameter.empty}

    @functools.wraps(function)
    def row(x: Tensor, y: Tensor, z: Tensor, options: Mapping[str, object]) -> Tensor:
        given = {name: options.get(name) for name in options_of(function)}
        missing = sorted(name for name in needed if given[name] is None)
        if missing:
            raise ValueError(f"{called} needs the option {missing[0]!r}, which was not given")
        return function(x, y, z, **{name: value for name, value in given.items() if value is not None})

    return row
