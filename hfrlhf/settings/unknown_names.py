"""Names that nothing here has: refused all at once, each with its name here, the nearest one, or why there is none."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

Init = TypeVar("Init", bound=Callable[..., None])
NONE = "none: "


def hint(name: str, known: Iterable[str], table: Mapping[str, str]) -> str:
    """What to say of an unknown name: its row in a table of `old_names`, else the nearest known one, else nothing."""
    if name in table:
        there_is_none = table[name].startswith(NONE)
        return (
            table[name].replace(NONE, "there is none here: ") if there_is_none else f"its name here is: {table[name]}"
        )
    near = difflib.get_close_matches(name.lower().replace("-", "_"), sorted(known), n=1)
    return f"did you mean {near[0]}?" if near else ""


def refuse_unknown(given: Iterable[str], function: Callable[..., Any], table: Mapping[str, str], owner: str) -> None:
    """Refuse the keywords that a function does not take, with a hint for each.

    Args:
        given: names of the keywords. function: whose they are; where it takes any keyword, only names of the table are
            refused. table: one of `old_names`. owner: what the names were passed to.

    Raises:
        TypeError: the message names every one of them.
    """
    parameters = inspect.signature(function).parameters
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    unknown = [name for name in given if name not in parameters and (name in table or not takes_any)]
    if not unknown:
        return
    alike: dict[str, list[str]] = {}  # names of which the same is to be said
    for name in unknown:
        alike.setdefault(hint(name, parameters, table) or f"help({owner}) lists what there is", []).append(repr(name))
    said = [f"{', '.join(names)}; {words}" for words, names in alike.items()]
    if len(unknown) == 1:
        raise TypeError(f"{owner} has no {said[0]}")
    raise TypeError(f"{owner} has none of these {len(unknown)}:\n" + "\n".join(f"  {line}" for line in said))


def checks_names(arguments: Mapping[str, str], settings: type) -> Callable[[Init], Init]:
    """Make a trainer's `__init__` refuse unknown arguments by `refuse_unknown`, before Python's own error.

    Args:
        arguments: a table of `old_names`. settings: the class of `args`, whose fields are pointed there.
    """
    own = {name: f"args.{name}" for name in settings.__dataclass_fields__}  # type: ignore[attr-defined]

    def checked(init: Init) -> Init:
        @functools.wraps(init)
        def wrapper(self: object, *args: Any, **kwargs: Any) -> None:
            refuse_unknown(kwargs, init, {**own, **arguments}, type(self).__name__)
            init(self, *args, **kwargs)

        return wrapper  # type: ignore[return-value]

    return checked
