"""What trainers have in common as classes: settings of their own kind, and the description of their arguments."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TypeVar

from ..algorithms import algorithm_named
from ..settings.algorithm_checks import TRAINERS
from ..settings.policy_gradient import PolicyGradientConfig

T = TypeVar("T")

C = TypeVar("C", bound=type)


def check_settings_class(args: object, wanted: type, accepted: type[T], owner: str) -> T:
    """Refuse what are no settings of this package: those of transformers and of TRL lack its fields.

    Args:
        args: what was passed. wanted: the class to name. accepted: it and its subclasses pass. owner: the trainer.

    Returns:
        the same settings.

    Raises:
        TypeError: the message says what was passed, and what is needed.
    """
    if isinstance(args, accepted):
        return args
    given = args if isinstance(args, type) else type(args)
    what = "nothing" if args is None else f"{given.__module__}.{given.__name__}".removeprefix("builtins.")
    what += " itself, not one that was made" if isinstance(args, type) else ""
    raise TypeError(
        f"`args` of {owner} must be hfrlhf's {wanted.__name__}, got {what}; it has every field of TrainingArguments "
        f"and more: make it by {wanted.__name__}(output_dir=..., ...)"
    )


def check_trainer(args: object, config: type[PolicyGradientConfig], owner: str) -> None:
    """Refuse settings of another kind, and of an algorithm that another trainer runs.

    Args:
        args: what was passed. config: the trainer's class of settings. owner: its name.

    Raises:
        TypeError: the message names the trainer for these settings.
    """
    args = check_settings_class(args, config, PolicyGradientConfig, owner)
    if config.runs(args.algorithm):
        return
    raise TypeError(
        f"{owner} does not run `algorithm={args.algorithm!r}` of this {type(args).__name__}: use "
        f"{TRAINERS[algorithm_named(args.algorithm).update]}, or give {owner} a {config.__name__}"
    )


def with_arguments_of(base: type) -> Callable[[C], C]:
    """A decorator that appends to a class's docstring what another's says of arguments and errors."""
    text = inspect.getdoc(base) or ""

    def append(cls: C) -> C:
        cls.__doc__ = f"{inspect.getdoc(cls)}\n\n{text[text.index('Args:') :]}"
        return cls

    return append
