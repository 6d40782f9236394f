"""Whether a trainer was given settings of its own kind."""

from __future__ import annotations

from typing import Any

from ..algorithms import algorithm_named
from ..settings.algorithm_checks import TRAINERS
from ..settings.policy_gradient import PolicyGradientConfig


def check_settings_class(args: Any, wanted: type, accepted: type, owner: str) -> None:
    """Refuse what are no settings of this package: those of transformers and of TRL lack its fields.

    Args:
        args: what was passed. wanted: the class to name. accepted: it and its subclasses pass. owner: the trainer.

    Raises:
        TypeError: the message says what was passed, and what is needed.
    """
    if isinstance(args, accepted):
        return
    given = args if isinstance(args, type) else type(args)
    what = "nothing" if args is None else f"{given.__module__}.{given.__name__}".removeprefix("builtins.")
    what += " itself, not one that was made" if isinstance(args, type) else ""
    raise TypeError(
        f"`args` of {owner} must be hfrlhf's {wanted.__name__}, got {what}; it has every field of TrainingArguments "
        f"and more: make it by {wanted.__name__}(output_dir=..., ...)"
    )


def check_trainer(args: Any, trainer: Any) -> None:
    """Refuse settings of another kind, and of an algorithm that another trainer runs.

    Raises:
        TypeError: the message names the trainer for these settings.
    """
    check_settings_class(args, trainer.CONFIG, PolicyGradientConfig, trainer.__name__)
    if trainer.CONFIG.runs(args.algorithm):
        return
    raise TypeError(
        f"{trainer.__name__} does not run `algorithm={args.algorithm!r}` of this {type(args).__name__}: use "
        f"{TRAINERS[algorithm_named(args.algorithm).update]}, or give {trainer.__name__} a {trainer.CONFIG.__name__}"
    )
