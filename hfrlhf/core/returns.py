"""Sums of future rewards.

Steps are counted over the valid positions of a row only, so neither the amount of padding nor its side matters.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hfrlhf.core.masking import at_least_float32, masked


def total_return(rewards: Tensor, mask: Tensor, gamma: float) -> Tensor:
    """The discounted reward of the whole episode.

        R(τ) = Σ_{k=1}^{n} γ^{k−1}·r_k                                                                 (SPEC §3.1)

    Shapes: rewards, mask [B,A] -> [B]; 0 for a row without valid positions.
    """
    return discounted_rewards(rewards, mask, gamma).sum(-1)


def discounted_rewards(rewards: Tensor, mask: Tensor, gamma: float) -> Tensor:
    """Each token's reward as it counts in the whole return.

        γ^{k−1}·r_k, whose sum is R(τ)                                                                 (SPEC §3.1)

    Shapes: rewards, mask [B,A] -> [B,A], 0 at padding.
    """
    rewards, mask = at_least_float32(rewards), mask.bool()
    step = (mask.cumsum(-1) - 1).clamp(min=0)
    return masked(rewards, mask) * gamma ** step.to(rewards.dtype)


def reward_to_go(rewards: Tensor, mask: Tensor, gamma: float) -> Tensor:
    """The discounted reward from each token on.

        R_t = Σ_{k=t}^{n} γ^{k−t}·r_k                                                                  (SPEC §3.2)

    Shapes: rewards, mask [B,A] -> [B,A], 0 at padding.
    """
    return discounted_sum(rewards, mask, gamma)


def n_step_return(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, n: int, bootstrap_values: Tensor | None = None
) -> Tensor:
    """The reward of the next n tokens and the value of the state after them.

        G_t = Σ_{l=0}^{n−1} γ^l·r_{t+l} + γ^n·V(s_{t+n}),  V = bootstrap after the end of the episode   (SPEC §4.2)

    Shapes: rewards, values, mask [B,A], bootstrap_values [B] or None for 0 -> [B,A], 0 at padding.

    Raises:
        ValueError: n is not positive.
    """
    if n < 1:
        raise ValueError(f"the number of steps must be at least 1, got {n}")
    result = at_least_float32(values)
    for _ in range(n):
        result = masked(at_least_float32(rewards) + gamma * shifted(result, mask, bootstrap_values), mask)
    return result


def discounted_sum(x: Tensor, mask: Tensor, factor: float) -> Tensor:
    """The recursion y_t = x_t + factor·y_{t+1} over the valid positions of each row, from the last one backwards.

    Shapes: x, mask [B,A] -> [B,A], 0 at padding. A padded position is skipped: it neither adds nor discounts.
    """
    x, mask = masked(at_least_float32(x), mask), mask.bool()
    result = torch.zeros_like(x)
    carry = torch.zeros_like(x[:, 0]) if x.shape[1] else x.sum(-1)
    for t in reversed(range(x.shape[1])):
        carry = torch.where(mask[:, t], x[:, t] + factor * carry, carry)
        result[:, t] = carry
    return masked(result, mask)


def shifted(x: Tensor, mask: Tensor, last: Tensor | None = None) -> Tensor:
    """The entry of the next valid position, and `last` (0 if None) after the last one.

    Shapes: x, mask [B,A], last [B] or None -> [B,A], 0 at padding.
    """
    mask, width = mask.bool(), x.shape[1]
    after = x.new_zeros(x.shape[0]) if last is None else last.to(x.dtype)
    here = torch.where(mask, torch.arange(width, device=x.device), width)
    # The nearest valid index at or after each position; one column further on it is the index strictly after.
    nearest = here.flip(-1).cummin(-1).values.flip(-1) if width else here
    following = torch.cat([nearest, nearest.new_full((x.shape[0], 1), width)], dim=1)[:, 1:]
    return masked(torch.cat([x, after.unsqueeze(-1)], dim=1).gather(1, following), mask)
