"""Switching dropout off wherever it hides: modules, bare numbers, configurations, adapters."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn
from transformers import PreTrainedConfig

from ..libraries import DROPOUT_MODULE


def disable_dropout(model: nn.Module) -> None:
    """Set every dropout probability of a model to 0, in place.

    A ratio or a KL formed under two different dropout masks is noise (DETAILS 28). Zeroing the `nn.Dropout` modules
    alone is not enough: some architectures keep a bare number (`attention_dropout`) and read it in `forward`, and new
    LoRA layers take theirs from the adapter's configuration.
    """
    for module in model.modules():
        if isinstance(module, DROPOUT_MODULE):
            module.p = 0.0
        _zero_dropout_numbers(module)
    for config in _configurations(model):
        _zero_dropout_numbers(config)


def dropout_numbers(thing: object) -> dict[str, float]:
    """The plain numbers of an object whose names speak of dropout (`attention_dropout`, `resid_pdrop`, `layerdrop`)."""
    numbers = {name: value for name, value in vars(thing).items() if "drop" in name}
    return {n: v for n, v in numbers.items() if isinstance(v, int | float) and not isinstance(v, bool)}


def _zero_dropout_numbers(thing: object) -> None:
    for name in dropout_numbers(thing):
        setattr(thing, name, 0.0)


def _configurations(model: nn.Module) -> Iterator[Any]:
    """The configuration of every part (a composite model's text config too), and those of its adapters."""
    for config in (getattr(module, "config", None) for module in model.modules()):
        if isinstance(config, PreTrainedConfig):
            yield from (config, config.get_text_config())
    yield from getattr(model, "peft_config", {}).values()
