"""How large a model is, and where it is, as its tensors say: configurations and wrappers' attributes need not know."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig

# PEFT's names for what an adapter stands on.
WRAPPERS = ("base_layer", "original_module")


def without_adapters(module: nn.Module) -> Any:
    """The layer itself, inside whatever adapters were put around it."""
    inner = next((getattr(module, name) for name in WRAPPERS if hasattr(module, name)), None)
    return module if inner is None else without_adapters(inner)


def embeddings_of(model: Any) -> int:
    """How many token ids a model can read: rows of its input embedding, through adapters."""
    return _shape(model.get_input_embeddings(), "num_embeddings", "embedding_dim")[0]


def outputs_of(lm: Any) -> int:
    """How many tokens a language model has logits for: rows of its vocabulary head, through adapters."""
    return _shape(lm.get_output_embeddings(), "out_features", "in_features")[0]


def trunk_width(lm: Any) -> int:
    """The width of the last hidden states, which the vocabulary head reads. Some models project them (OPT-350M)."""
    return _shape(lm.get_output_embeddings(), "out_features", "in_features")[1]


def _shape(layer: nn.Module, rows: str, columns: str) -> tuple[int, int]:
    """By the weight where it is a matrix as it computes, else (packed into bits, or gathered only when it is used) by
    the layer's own words for it."""
    inner = without_adapters(layer)
    weight: Any = getattr(inner, "weight", None)
    if weight is not None and weight.dim() == 2 and weight.is_floating_point():
        return int(weight.shape[0]), int(weight.shape[1])
    return int(getattr(inner, rows)), int(getattr(inner, columns))


def device_of(model: Any) -> torch.device:
    """The device that token ids go to: that of the input embedding, also under adapters and on several devices."""
    parameter = next(model.get_input_embeddings().parameters(), None)
    device: torch.device = model.device if parameter is None else parameter.device
    return device


def largest(config: PreTrainedConfig, name: str) -> int | None:
    """A number of a configuration, the largest where it differs from layer to layer; None where it has none."""
    try:
        value = getattr(config, name, None)
    except RuntimeError:  # of a configuration with layers of several kinds, which says so instead of a number
        layers = config.per_layer_config
        value = [getattr(layer, name, None) for layer in (layers.values() if hasattr(layers, "values") else layers)]
    return max((v for v in value if v is not None), default=None) if isinstance(value, list | tuple) else value
