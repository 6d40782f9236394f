"""What is declared of all settings of a class, and who asks for it: a resume, a model card, settings made of others.

Declared are the fields of our classes (`fields.setting`) and, here, the numbers of `TrainingArguments`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING
from types import MappingProxyType
from typing import Any

from transformers import TrainingArguments

from .fields import Setting

_COUNT = Setting(range="[1, ∞)", whole=True)
_AMOUNT = Setting(range="[0, ∞)")
_POSITIVE = Setting(range="(0, ∞)")
_SHARE = Setting(range="[0, 1)")
_SEED = Setting(range="[0, 4294967295]", whole=True, resumed=True)  # what numpy takes
# Numbers that transformers would only trip over in the middle of a run, or take for nothing to do.
INHERITED: Mapping[str, Setting] = {
    "learning_rate": Setting(range="[0, ∞)", shown=True),
    "weight_decay": _AMOUNT,
    "max_grad_norm": _AMOUNT,
    "adam_beta1": _SHARE,
    "adam_beta2": _SHARE,
    "adam_epsilon": _AMOUNT,
    "warmup_steps": _AMOUNT,
    "neftune_noise_alpha": _POSITIVE,
    "per_device_train_batch_size": Setting(range="[1, ∞)", whole=True, follows=True),
    "per_device_eval_batch_size": Setting(range="[1, ∞)", whole=True, follows=True),
    "gradient_accumulation_steps": Setting(range="[1, ∞)", whole=True, resumed=True),
    "eval_accumulation_steps": _COUNT,
    "torch_empty_cache_steps": Setting(range="[1, ∞)"),
    "max_steps": Setting(range="(-∞, ∞)", whole=True, shown=True),
    "num_train_epochs": Setting(range="(-∞, ∞)", shown=True),
    "logging_steps": Setting(range="(0, ∞)", follows=True),
    "save_steps": _POSITIVE,
    "save_total_limit": _COUNT,
    "eval_steps": Setting(range="[0, ∞)", follows=True),
    "eval_delay": _AMOUNT,
    "dataloader_num_workers": Setting(range="[0, ∞)", whole=True),
    "dataloader_prefetch_factor": _COUNT,
    "ddp_timeout": _POSITIVE,
    "seed": Setting(range="[0, 4294967295]", whole=True, resumed=True, shown=True),
    "data_seed": _SEED,
}


def declarations(settings: type) -> Mapping[str, Setting]:
    """What is declared of each setting of a class, by name: its own first, then those of `TrainingArguments`.

    A subclass that only gives a setting another default leaves the rest as it is.
    """
    found: dict[str, Setting] = {}
    for kind in reversed(settings.__mro__):
        for name, field in getattr(kind, "__dataclass_fields__", {}).items():
            said = field.metadata.get("help")
            if isinstance(said, Setting):
                found[name] = said.over(found.get(name, INHERITED.get(name, Setting())))
    return MappingProxyType(found | {name: said for name, said in INHERITED.items() if name not in found})


def resumed_settings(args: TrainingArguments) -> dict[str, Any]:
    """The settings that a resumed run must share with the run it continues."""
    return {name: getattr(args, name) for name, said in declarations(type(args)).items() if said.resumed}


def shown_settings(args: TrainingArguments) -> dict[str, Any]:
    """The settings that a model card lists, with the one of `max_steps` and `num_train_epochs` that the run goes by."""
    other = "num_train_epochs" if args.max_steps > 0 else "max_steps"
    shown = [name for name, said in declarations(type(args)).items() if said.shown and name != other]
    return {name: getattr(args, name) for name in shown}


# ---- Settings that follow from others ---------------------------------------------------------------------------
#
# `dataclasses.replace` hands every field of the old settings to the new ones, as if a user had set it. A number that
# was derived says so by its type: the new settings derive it again, from what they are now.


class DerivedInt(int):
    """A whole number that follows from other settings."""


class DerivedFloat(float):
    """A number that follows from other settings."""


DERIVED = (DerivedInt, DerivedFloat)


def without_derived(args: TrainingArguments) -> dict[str, Any]:
    """What earlier settings had derived, put back to "not set": name -> default."""
    names = [name for name, said in declarations(type(args)).items() if said.follows]
    return {name: default_of(args, name) for name in names if isinstance(getattr(args, name), DERIVED)}


def unset_settings(args: TrainingArguments) -> list[str]:
    """The settings that may follow from others and are not set."""
    names = [name for name, said in declarations(type(args)).items() if said.follows]
    return [name for name in names if getattr(args, name) == default_of(args, name)]


def derived(args: TrainingArguments, unset: list[str]) -> dict[str, Any]:
    """What was derived, marked as such: of the settings that were not set, those that have another value now."""
    values = {name: getattr(args, name) for name in unset if getattr(args, name) != default_of(args, name)}
    return {name: (DerivedInt if isinstance(value, int) else DerivedFloat)(value) for name, value in values.items()}


def plain(value: Any) -> Any:
    """The number itself, for files and other libraries."""
    return (int(value) if isinstance(value, int) else float(value)) if isinstance(value, DERIVED) else value


def default_of(args: TrainingArguments, name: str) -> Any:
    """A field's default in the class of these settings, which may be a subclass with defaults of its own."""
    declared = type(args).__dataclass_fields__[name]
    return declared.default if declared.default_factory is MISSING else declared.default_factory()
