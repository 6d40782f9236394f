"""Losses of the critic, per token; the caller sums them over the valid tokens and divides once (SPEC §6.9)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hfrlhf.core.masking import at_least_float32, masked, masked_mean
from hfrlhf.core.returns import shifted


def sarsa_target(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float) -> Tensor:
    """What a Q head is regressed on: the reward and the value of the action that was then taken.

        y_t = r_t + γ·Q_w(s_{t+1}, a_{t+1}),  Q = 0 after the end                                        (SPEC §5)

    Shapes: rewards, values (Q_w(s_t, a_t) when sampled), mask [B,A] -> [B,A], 0 at padding.
    """
    return masked(at_least_float32(rewards) + gamma * shifted(at_least_float32(values), mask), mask)


# CRITIC_TARGETS[critic](psi, rewards, values, mask, gamma) -> [B,A], with Ψ before whitening. For V it is Ψ + V: the TD
# target, the n-step return, the λ-return or the reward-to-go, according to Ψ (SPEC §3.4).
CriticTarget = Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor]
CRITIC_TARGETS: dict[str | None, CriticTarget] = {
    None: lambda psi, rewards, values, mask, gamma: torch.zeros_like(psi),
    "V": lambda psi, rewards, values, mask, gamma: masked(psi + at_least_float32(values), mask),
    "Q": lambda psi, rewards, values, mask, gamma: sarsa_target(rewards, values, mask, gamma),
}


def squared_error(values: Tensor, returns: Tensor) -> Tensor:
    """Half the squared distance from the regression target.

        L_t = ½·(V_t − R_t)²                                                                           (SPEC §6.5)

    Shapes: values, returns [B,A] -> [B,A], squared reward units. No gradient flows into the target.
    """
    return (at_least_float32(values) - returns.detach()).square() / 2


def clipped_squared_error(values: Tensor, old_values: Tensor, returns: Tensor, clip_range: float) -> Tensor:
    """The larger of the losses of the value and of the value held near the one at sampling time.

        L_t = ½·max((V_t − R_t)², (clip(V_t, V_old ± ε_v) − R_t)²)                                     (SPEC §6.5)

    Shapes: values, old_values, returns [B,A] -> [B,A]. ε_v is in reward units: too small a range stalls the critic.

    Raises:
        ValueError: a range that is not positive.
    """
    held = _held_near(values, old_values, clip_range)
    return torch.maximum(squared_error(values, returns), squared_error(held, returns))


def value_clip_fraction(values: Tensor, old_values: Tensor, returns: Tensor, clip_range: float) -> Tensor:
    """Where the clip of `clipped_squared_error` decides the loss (and the gradient is 0); its mean is the metric.

        (clip(V_t, V_old ± ε_v) − R_t)² > (V_t − R_t)²,  which implies |V_t − V_old| > ε_v             (SPEC §6.5)

    Shapes: values, old_values, returns [B,A] -> [B,A] bool.

    Raises:
        ValueError: a range that is not positive.
    """
    held = _held_near(values, old_values, clip_range)
    return squared_error(held, returns) > squared_error(values, returns)


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """How much of the spread of the returns the critic predicts: 1 all, 0 no more than their mean would, below 0 less.

        1 − Var(R − V) / Var(R), over the valid tokens

    Shapes: values, returns, mask [B,A] -> []; 0 where the returns do not vary.
    """
    error = at_least_float32(returns) - at_least_float32(values)
    spread = _variance(returns, mask)
    explained = 1 - _variance(error, mask) / torch.where(spread > 0, spread, torch.ones_like(spread))
    return torch.where(spread > 0, explained, torch.zeros_like(spread))


def _held_near(values: Tensor, old_values: Tensor, clip_range: float) -> Tensor:
    """clip(V, V_old − ε_v, V_old + ε_v)."""
    if clip_range <= 0:
        raise ValueError(f"clip_range_value must be positive (None switches value clipping off), got {clip_range}")
    old_values = at_least_float32(old_values).detach()
    return at_least_float32(values).clamp(old_values - clip_range, old_values + clip_range)


def _variance(x: Tensor, mask: Tensor) -> Tensor:
    """The population variance over the valid positions."""
    return masked_mean((at_least_float32(x) - masked_mean(x, mask)).square(), mask)
