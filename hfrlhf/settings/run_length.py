"""How long a run is: `max_steps` where it is given, `num_train_epochs` otherwise."""

from __future__ import annotations

from typing import Any


def without_the_other_length(names: tuple[str, ...], args: Any) -> list[str]:
    """The names of settings, less the one of the two that the run does not go by."""
    other = "num_train_epochs" if args.max_steps > 0 else "max_steps"
    return [name for name in names if name != other]
