"""How a model of transformers is called: the flags that its configuration would otherwise decide are said aloud."""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

from peft import PeftModel
from torch import nn
from transformers import PreTrainedConfig

# Each makes `forward` return more than was asked for: it costs memory, and with the router's logits a mixture of
# experts computes a loss as well, whose mask has to fit (it does not in a decode loop).
UNWANTED_OUTPUTS = ("output_router_logits", "output_hidden_states", "output_attentions")


def forward_flags(model: nn.Module, use_cache: bool) -> dict[str, Any]:
    """The flags for a call of a model, or of its backbone, as keyword arguments.

    `use_cache` is always said: configurations and gradient checkpointing set it as they like (DETAILS 29). What a
    configuration adds to the outputs is switched off, and only where it does so: no model is given an argument that it
    need not know.

    Args:
        model: plain or wrapped by PEFT; under a data-parallel wrapper pass the model inside it.
        use_cache: whether the call hands a state on.
    """
    inner = model.get_base_model() if isinstance(model, PeftModel) else model
    kind: Any = type(inner)
    asked = {flag: False for flag in UNWANTED_OUTPUTS if any(getattr(config, flag, False) for config in _of(inner))}
    accepted = _accepted(kind)
    return {
        flag: value for flag, value in ({"use_cache": use_cache} | asked).items() if not accepted or flag in accepted
    }


def return_records(model: nn.Module) -> None:
    """Make every part of a model return its outputs by name, in place.

    With `return_dict=False` in its configuration a model's own parts cannot read each other's tuples any more, whatever
    is passed to the model as a whole; so this one flag is set, not passed.
    """
    for module in model.modules():
        for config in _of(module):
            config.return_dict = True


def _of(module: nn.Module) -> list[Any]:
    """A module's configuration, and that of its text part."""
    config = getattr(module, "config", None)
    return [config, config.get_text_config()] if isinstance(config, PreTrainedConfig) else []


@cache
def _accepted(kind: Any) -> frozenset[str]:
    """The names that a class's `forward` takes; none where it takes any."""
    parameters = inspect.signature(kind.forward).parameters
    any_name = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    return frozenset() if any_name else frozenset(parameters)
