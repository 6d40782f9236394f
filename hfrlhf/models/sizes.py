"""How large a model is, and where it is, as its tensors say: configurations and wrappers' attributes need not know."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

# PEFT's names for what an adapter stands on.
WRAPPERS = ("base_layer", "original_module")


def without_adapters(module: Any) -> Any:
    """The layer itself, inside whatever adapters were put around it."""
    inner = next((getattr(module, name) for name in WRAPPERS if hasattr(module, name)), None)
    return module if inner is None else without_adapters(inner)


def embeddings_of(model: Any) -> int:
    """How many token ids a model can read: rows of its input embedding, through adapters."""
    layer = without_adapters(model.get_input_embeddings())
    return _rows(layer, "num_embeddings")


def outputs_of(lm: Any) -> int:
    """How many tokens a language model has logits for: rows of its vocabulary head, through adapters."""
    return _rows(without_adapters(lm.get_output_embeddings()), "out_features")


def _rows(layer: nn.Module, attribute: str) -> int:
    """By the weight where it is a matrix as it computes, else (packed into bits, or gathered only when it is used) by
    the layer's own word for it."""
    weight: Any = getattr(layer, "weight", None)
    if weight is not None and weight.dim() == 2 and weight.is_floating_point():
        return int(weight.shape[0])
    return int(getattr(layer, attribute))


def trunk_width(lm: Any) -> int:
    """The width of a language model's last hidden states: what its vocabulary head reads (OPT-350M projects them)."""
    head = without_adapters(lm.get_output_embeddings())
    weight: Any = getattr(head, "weight", None)
    plain = weight is not None and weight.dim() == 2 and weight.is_floating_point()
    return int(weight.shape[1] if plain else head.in_features)


def device_of(model: Any) -> torch.device:
    """The device that token ids go to: that of the input embedding, also under adapters and on several devices."""
    parameter = next(model.get_input_embeddings().parameters(), None)
    return model.device if parameter is None else parameter.device
