"""Settings that follow from others, and are known as such wherever the settings go.

`dataclasses.replace` hands every field of the old settings to the new ones, as if a user had set it. A number that was
derived says so by its type: the new settings derive it again, from what they are now.
"""

from __future__ import annotations

from dataclasses import MISSING
from typing import Any


class DerivedInt(int):
    """A whole number that follows from other settings."""


class DerivedFloat(float):
    """A number that follows from other settings."""


DERIVED = (DerivedInt, DerivedFloat)
# What may be derived; everything else is as it was set.
FIELDS = (
    *("rollout_batch_size", "per_device_train_batch_size", "per_device_eval_batch_size", "num_ppo_epochs", "vf_coef"),
    *("logging_steps", "eval_steps", "critic_warmup_rollouts", "value_epochs"),
)


def forget_derived(args: Any) -> list[str]:
    """Put what earlier settings had derived back to "not set"; the names of the fields that are not set now."""
    names = [name for name in FIELDS if hasattr(args, name)]
    for name in names:
        if isinstance(getattr(args, name), DERIVED):
            setattr(args, name, default_of(args, name))
    return [name for name in names if getattr(args, name) == default_of(args, name)]


def mark_derived(args: Any, unset: list[str]) -> None:
    """Mark what was derived: of the fields that were not set, those that have another value now."""
    for name in unset:
        value = getattr(args, name)
        if value != default_of(args, name):
            kind = DerivedInt if isinstance(value, int) else DerivedFloat
            setattr(args, name, kind(value))


def plain(value: Any) -> Any:
    """The number itself, for files and other libraries."""
    return (int(value) if isinstance(value, int) else float(value)) if isinstance(value, DERIVED) else value


def default_of(args: Any, name: str) -> Any:
    """A field's default in the class of these settings, which may be a subclass with defaults of its own."""
    declared = type(args).__dataclass_fields__[name]
    return declared.default if declared.default_factory is MISSING else declared.default_factory()
