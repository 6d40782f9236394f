"""What each token's log-probability is weighted with: the Ψ of the policy gradient.

Ψ carries no gradient and is 0 at padding. To add one: a function with its equation, and a row of `PSI`.
"""

from __future__ import annotations

from torch import Tensor

from hfrlhf.core import baselines
from hfrlhf.core.masking import at_least_float32, masked
from hfrlhf.core.returns import (
    discounted_rewards,
    discounted_sum,
    n_step_return,
    reward_to_go,
    shifted,
    total_return,
)
from hfrlhf.core.rows import rows


def td_error(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, bootstrap_values: Tensor | None = None
) -> Tensor:
    """How much better a step went than the critic expected.

        δ_t = r_t + γ·V(s_{t+1}) − V(s_t),  V(s_{n+1}) = bootstrap                                     (SPEC §4.1)

    Shapes: rewards, values, mask [B,A], bootstrap_values [B] (0 where terminated) or None for 0 -> [B,A], 0 at padding.
    """
    rewards, values = at_least_float32(rewards), at_least_float32(values)
    return masked(rewards + gamma * shifted(values, mask, bootstrap_values) - values, mask)


def k_step(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, k: int, bootstrap_values: Tensor | None = None
) -> Tensor:
    """The advantage over k steps, after which the critic takes over.

        A_t^{(k)} = Σ_{l=0}^{k−1} γ^l·δ_{t+l}  =  n-step return − V(s_t)                               (SPEC §4.2)

    Shapes: as `td_error`.

    Raises:
        ValueError: k is not positive.
    """
    target = n_step_return(rewards, values, mask, gamma, k, bootstrap_values)
    return masked(target - at_least_float32(values), mask)


def gae(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    gamma: float,
    gae_lambda: float,
    bootstrap_values: Tensor | None = None,
) -> Tensor:
    """Generalised advantage estimation (Schulman 2015): all k-step advantages, weighted geometrically.

        A_t = δ_t + γλ·A_{t+1}  =  Σ_l (γλ)^l·δ_{t+l}                                                  (SPEC §4.3)

    Shapes: as `td_error`; the recursion restarts at each episode's own end.
    """
    return discounted_sum(td_error(rewards, values, mask, gamma, bootstrap_values), mask, gamma * gae_lambda)


def expected_baseline(
    rewards: Tensor, best_values: Tensor, expected_values: Tensor, mask: Tensor, gamma: float
) -> Tensor:
    """The best that can follow, less what the policy gets on average; biased by its max.

        Ψ_t = r_t + γ·max_a' Q_w(s_{t+1}, a') − Σ_a π(a|s_t)·Q_w(s_t, a),  Q = 0 after the end      (SPEC §5, last row)

    Shapes: rewards, best_values, expected_values, mask [B,A] -> [B,A], 0 at padding; `best_values[:, t]` is
    max_a Q_w(s_t, a), `expected_values[:, t]` is Σ_a π(a|s_t)·Q_w(s_t, a).
    """
    following = shifted(at_least_float32(best_values), mask)
    return masked(at_least_float32(rewards) + gamma * following - at_least_float32(expected_values), mask)


# The rows. Each docstring is the formula that the table of algorithms shows. The keyword arguments are the options: a
# setting by its name, or what is known of the rollout: `bootstrap_values` [B] the value of the state after the last
# token (0 where terminated), None for 0; `grad_sq_norms` [B] squared norms of ∇log P(τ); `best_values` and
# `expected_values` [B,A] max_a Q(s_t, a) and Σ_a π(a|s_t)·Q(s_t, a).


def _total_return(rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float) -> Tensor:
    """R(τ)"""
    return _per_token(total_return(rewards, mask, gamma), mask)


def _constant_baseline(rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, exclude_self: bool) -> Tensor:
    """R(τ) − mean R(τ)"""
    total = total_return(rewards, mask, gamma)
    return _per_token(total - baselines.constant(total, exclude_self), mask)


def _minimal_variance_baseline(
    rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, exclude_self: bool, grad_sq_norms: Tensor
) -> Tensor:
    """R(τ) − Σ‖g‖²R(τ)/Σ‖g‖²"""
    total = total_return(rewards, mask, gamma)
    return _per_token(total - baselines.minimal_variance(total, grad_sq_norms, exclude_self), mask)


def _reward_to_go(rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float) -> Tensor:
    """R_t"""
    return reward_to_go(rewards, mask, gamma)


def _reward_to_go_constant_baseline(
    rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, exclude_self: bool
) -> Tensor:
    """R_t − mean R(τ)"""
    baseline = baselines.constant(total_return(rewards, mask, gamma), exclude_self)
    return masked(reward_to_go(rewards, mask, gamma) - baseline.unsqueeze(-1), mask)


def _time_dependent_baseline(
    rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, exclude_self: bool
) -> Tensor:
    """R_t − mean R_t of those running"""
    to_go = reward_to_go(rewards, mask, gamma)
    return masked(to_go - baselines.time_dependent(to_go, mask, exclude_self), mask)


def _leave_one_out(rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, num_generations: int) -> Tensor:
    """R_t − mean R(τ) of the prompt's others"""
    baseline = baselines.leave_one_out(total_return(rewards, mask, gamma), num_generations)
    return masked(reward_to_go(rewards, mask, gamma) - baseline.unsqueeze(-1), mask)


def _group_normalised(rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, num_generations: int) -> Tensor:
    """(R(τ) − mean) / std over the prompt's responses"""
    return _per_token(baselines.group_normalised(total_return(rewards, mask, gamma), num_generations), mask)


def _value_baseline(rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float) -> Tensor:
    """R_t − V(s_t)"""
    return masked(reward_to_go(rewards, mask, gamma) - at_least_float32(values), mask)


def _td_error(
    rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, bootstrap_values: Tensor | None = None
) -> Tensor:
    """δ_t = r_t + γV(s_{t+1}) − V(s_t)"""
    return td_error(rewards, values, mask, gamma, bootstrap_values)


def _n_step(
    rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, n_step: int, bootstrap_values: Tensor | None = None
) -> Tensor:
    """Σ_{l<n} γˡδ_{t+l}"""
    return k_step(rewards, values, mask, gamma, n_step, bootstrap_values)


def _gae(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    *,
    gamma: float,
    gae_lambda: float,
    bootstrap_values: Tensor | None = None,
) -> Tensor:
    """Σ_l (γλ)ˡδ_{t+l} (GAE)"""
    return gae(rewards, values, mask, gamma, gae_lambda, bootstrap_values)


def _action_value(rewards: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """Q(s_t, a_t)"""
    return masked(at_least_float32(values), mask)


def _expected_baseline(
    rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, best_values: Tensor, expected_values: Tensor
) -> Tensor:
    """r_t + γ·max_a Q(s_{t+1}, a) − Σ_a π(a|s_t)Q(s_t, a)"""
    return expected_baseline(rewards, best_values, expected_values, mask, gamma)


def _discounted_rewards(rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float) -> Tensor:
    """γᵗ⁻¹r_t"""
    return discounted_rewards(rewards, mask, gamma)


def _per_token(per_sequence: Tensor, mask: Tensor) -> Tensor:
    """[B] written on every valid token [B,A]."""
    return masked(per_sequence.unsqueeze(-1).expand(mask.shape), mask)


# PSI[name](rewards, values, mask, options) -> [B,A]; the names are the rows of SPEC §5. `values` are V(s_t), or
# Q(s_t, a_t) where the critic is a Q head.
PSI = rows(
    "PSI",
    {
        "total_return": _total_return,
        "constant_baseline": _constant_baseline,
        "minimal_variance_baseline": _minimal_variance_baseline,
        "reward_to_go": _reward_to_go,
        "reward_to_go_constant_baseline": _reward_to_go_constant_baseline,
        "time_dependent_baseline": _time_dependent_baseline,
        "leave_one_out": _leave_one_out,
        "group_normalised": _group_normalised,
        "value_baseline": _value_baseline,
        "td_error": _td_error,
        "n_step": _n_step,
        "gae": _gae,
        "action_value": _action_value,
        "expected_baseline": _expected_baseline,
        "discounted_rewards": _discounted_rewards,
    },
)
