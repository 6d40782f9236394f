"""How far two computations of one log-prob may lie apart: a matter of the precision they are made in."""

from __future__ import annotations

import torch
from torch import nn

from ..policy.response_states import causal_lm
from ..quantization import is_quantized

# Nats per token, mean of |Δ log π| over sampled tokens, between the decode loop (one token a step, with a cache) and a
# forward pass of whole sequences. What rounding gives, and what a model that has lost its context gives:
#   float32    0 to 7e-6 measured, up to 135 M parameters    0.25 to 10 (the smallest: a tiny model after 5 minutes)
#   TF32       10 bits of mantissa, 2^13 times float32's rounding error
#   16 bits    8 bits (bfloat16): 0.005 to 0.05 measured; so are 4- and 8-bit weights, which are multiplied in 16 bits
# Each bound lies well above the one and below the other.
MISMATCH_BOUNDS = {"float32": 1e-3, "tf32": 0.02, "half": 0.15}


def precision_of(model: nn.Module, half: bool = False) -> str:
    """The key of `MISMATCH_BOUNDS` for a model's forward passes.

    Args:
        model: causal language model. half: it runs under autocast in 16 bits.
    """
    lm = causal_lm(model)
    device = lm.get_output_embeddings().weight.device.type
    if half or torch.is_autocast_enabled(device) or lm.dtype.itemsize < 4 or is_quantized(lm):
        return "half"
    return "tf32" if device == "cuda" and torch.backends.cuda.matmul.allow_tf32 else "float32"


def mismatch_bound(model: nn.Module, half: bool = False) -> float:
    """The most that `policy/sampler_mismatch` may be, in nats per token."""
    return MISMATCH_BOUNDS[precision_of(model, half)]
