"""What may be taken away from a return without changing the expected gradient (SPEC §3.3).

The group baselines expect the responses to one prompt next to each other: rows 0 … k−1 belong to the first prompt.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hfrlhf.core.masking import at_least_float32, masked, masked_mean


def constant(total: Tensor, exclude_self: bool = False) -> Tensor:
    """The mean return of the batch.

        b = mean_i R(τ_i);  excluding itself:  b_i = Σ_{j≠i} R(τ_j) / (m − 1)                          (SPEC §3.3)

    With the episode inside its own baseline the expected gradient shrinks by (m − 1)/m; without, it is unbiased.
    Shapes: total [m] -> [], or [m] with `exclude_self`; 0 where there is nothing to average.
    """
    total = at_least_float32(total)
    if exclude_self:
        return (total.sum() - total) / max(1, total.numel() - 1)
    return total.sum() / max(1, total.numel())


def minimal_variance(total: Tensor, grad_sq_norms: Tensor, exclude_self: bool = False) -> Tensor:
    """The constant with which R(τ) − b gives the least variance of the gradient.

        b = Σ_i ‖g_i‖²·R(τ_i) / Σ_i ‖g_i‖²,  g_i = ∇log P(τ_i);  excluding itself: both sums over j≠i    (SPEC §3.3)

    Shapes: total, grad_sq_norms [m] -> [], or [m] with `exclude_self`; 0 where all gradients vanish (no baseline
    matters then).
    """
    # In float64: what one gradient leaves over of a sum that it dominates would be rounding alone.
    total, weights = at_least_float32(total), grad_sq_norms.double()
    weighted, norm = (weights * total).sum(), weights.sum()
    if exclude_self:
        weighted, norm = weighted - weights * total, norm - weights
    return torch.where(norm > 0, weighted / torch.where(norm > 0, norm, 1.0), 0.0).to(total.dtype)


def time_dependent(rewards_to_go: Tensor, mask: Tensor, exclude_self: bool = False) -> Tensor:
    """The mean reward-to-go of the episodes still running at each step.

        b_t = mean of R_t over the episodes i with n_i ≥ t;  excluding itself: over j≠i                (SPEC §3.3)

    Shapes: rewards_to_go, mask [B,A] -> [A], or [B,A] with `exclude_self`; 0 where no (other) episode is running.
    """
    if not exclude_self:
        return masked_mean(rewards_to_go, mask, dim=0)
    own = masked(at_least_float32(rewards_to_go), mask)
    running = mask.to(own.dtype)
    return (own.sum(0) - own) / (running.sum(0) - running).clamp(min=1)


def leave_one_out(total: Tensor, group_size: int) -> Tensor:
    """The mean return of the other responses to the same prompt; RLOO's advantage is total − this.

        b_i = Σ_{j≠i} R(τ_j) / (k − 1)                                                                 (SPEC §3.3)

    Shapes: total [B], B a multiple of group_size -> [B], the baseline.

    Raises:
        ValueError: a group of one, or groups that don't fill the batch.
    """
    groups = _groups(total, group_size)
    return ((groups.sum(-1, keepdim=True) - groups) / (group_size - 1)).flatten()


def group_normalised(total: Tensor, group_size: int) -> Tensor:
    """The return in standard deviations above the mean of its group, as in GRPO.

        A_i = (R(τ_i) − mean) / (std + 1e-4),  std with k − 1 in the denominator                       (SPEC §3.3)

    Shapes: total [B], B a multiple of group_size -> [B], the advantage (not the baseline).

    Raises:
        ValueError: a group of one, or groups that don't fill the batch.
    """
    groups = _groups(total, group_size)
    return ((groups - groups.mean(-1, keepdim=True)) / (groups.std(-1, keepdim=True) + 1e-4)).flatten()


def _groups(total: Tensor, group_size: int) -> Tensor:
    """[B] as [B / group_size, group_size]."""
    if group_size < 2:
        raise ValueError(
            f"a group baseline compares the responses to one prompt, but num_generations={group_size}; use at least 2"
        )
    if total.numel() % group_size:
        raise ValueError(f"{total.numel()} responses don't form groups of num_generations={group_size}")
    return at_least_float32(total).reshape(-1, group_size)
