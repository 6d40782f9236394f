"""Sums, means and whitening over the valid positions of a padded tensor.

Everything is selected with `torch.where` and never multiplied by the mask, because NaN · 0 = NaN: whatever stands in
the padding cannot reach a result.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# What the losses of an optimiser step are divided by: from its mask [B,A] to N (SPEC §6.9).
LOSS_ITEMS: dict[str, Callable[[Tensor], int]] = {
    "tokens": lambda mask: max(1, int(mask.sum())),
    "episodes": lambda mask: max(1, len(mask)),
}


def masked(x: Tensor, mask: Tensor) -> Tensor:
    """x where the mask is True, 0 elsewhere; same shape and dtype as x (the mask is broadcast)."""
    return torch.where(mask.bool(), x, torch.zeros((), dtype=x.dtype, device=x.device))


def masked_sum(x: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Sum over the valid positions.

        s = Σ_{i: mask_i} x_i                                                                          (SPEC §6.9)

    Shapes: x and mask [...] (broadcast against each other) -> [] or, with `dim`, without that dimension.
    """
    selected = masked(at_least_float32(x), mask)
    return selected.sum() if dim is None else selected.sum(dim)


def masked_mean(x: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Mean over the valid positions, 0 where there is none.

        m = Σ_{i: mask_i} x_i / max(1, |mask|)                                                         (SPEC §6.9)

    Shapes: x and mask [...] (broadcast against each other) -> [] or, with `dim`, without that dimension.
    """
    # An empty mask gives 0 / 1 = 0: one response without tokens must not turn the metrics of a rollout into NaN.
    return masked_sum(x, mask, dim) / masked_sum(torch.ones_like(x), mask, dim).clamp(min=1)


def masked_whiten(x: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
    """Scale the valid positions to unit variance, and to mean 0 unless `shift_mean` is False.

        y = (x − mean) / √(var + 1e-8)  (+ mean if not shift_mean),  var = Σ (x − mean)² / n           (SPEC §4.4)

    Rewards are whitened with `shift_mean=False` (their mean is the task), advantages with True.
    Shapes: x, mask [...] -> [...], 0 at padding; a single valid element becomes 0 (or keeps its value).
    """
    x = at_least_float32(x)
    mean = masked_mean(x, mask)
    centred = masked(x - mean, mask)
    # The mean of equal numbers is off by a rounding error, which the tiny standard deviation of such a batch would
    # blow up; taking the mean of the rest away once more leaves constant input at 0.
    centred = masked(centred - masked_mean(centred, mask), mask)
    whitened = centred * torch.rsqrt(masked_mean(centred.square(), mask) + 1e-8)
    return whitened if shift_mean else masked(whitened + mean, mask)


def at_least_float32(x: Tensor) -> Tensor:
    """x itself if float32 or float64, otherwise (bfloat16, float16, bool, integers) x in float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
