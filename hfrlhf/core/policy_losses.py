"""Losses of the policy, per token; the caller sums them over the valid tokens and divides once (SPEC §6.9).

All are minimised. Ψ (here `psi` or `advantages`) and the old log-probs are constants: no gradient flows into them. A
log-ratio is held within ±20 before exp, in float32 or wider: e^20 ≈ 5e8 neither overflows nor hides that something is
wrong, and the gradient of a ratio beyond is 0. There is no mask: what stands at padding stays there, but has to be
finite (the records hold 0), because a NaN in Ψ would come back as NaN · 0 in the gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hfrlhf.core.kl import MAX_LOG_RATIO, k3
from hfrlhf.core.masking import at_least_float32
from hfrlhf.core.rows import rows


def score_function(logprobs: Tensor, psi: Tensor) -> Tensor:
    """The on-policy gradient (REINFORCE and all that is built on it).

        L_t = −log π_θ(a_t)·Ψ_t                                                                        (SPEC §6.1)

    Shapes: logprobs, psi [B,A] -> [B,A].
    """
    return -at_least_float32(logprobs) * psi.detach()


def importance_weighted(logprobs: Tensor, old_logprobs: Tensor, psi: Tensor) -> Tensor:
    """The same weighted by how much likelier the token has become since it was sampled.

        L_t = −ρ_t·Ψ_t,  ρ_t = π_θ(a_t) / π_old(a_t)                                                   (SPEC §6.2)

    Shapes: logprobs, old_logprobs, psi [B,A] -> [B,A].
    """
    return -ratio(logprobs, old_logprobs) * psi.detach()


def sequence_weighted(logprobs: Tensor, old_logprobs: Tensor, psi: Tensor) -> Tensor:
    """The score function, weighted by how much likelier the whole response has become: exact off-policy.

        L_t = −W·log π_θ(a_t)·Ψ_t,  W = π_θ(y|x) / π_old(y|x) = Π_j ρ_j held constant           (SPEC §6.2, on Ψ = R(τ))

    Its gradient is that of −W·R(τ); the variance of W grows with the length of the response, and log W is held within
    ±20. Exact for the rewards as they were when sampled: a KL in them is that of π_old, not of π_θ.
    Shapes: logprobs, old_logprobs, psi [B,A], 0 at padding -> [B,A].
    """
    log_weight = (at_least_float32(logprobs) - at_least_float32(old_logprobs)).sum(-1, keepdim=True)
    weight = log_weight.detach().clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    return weight * score_function(logprobs, psi)


def per_decision_weighted(logprobs: Tensor, old_logprobs: Tensor, psi: Tensor) -> Tensor:
    """Each reward weighted by how much likelier the tokens up to it have become: exact off-policy, less variance.

        L_t = −(Π_{j≤t} ρ_j)·Ψ_t,  Ψ_t = γ^{t−1}·r_t                                           (SPEC §6.2, per decision)

    Exact for the rewards as they were when sampled: a KL in them is that of π_old, not of π_θ.
    Shapes: logprobs, old_logprobs, psi [B,A], 0 at padding -> [B,A].
    """
    log_ratios = at_least_float32(logprobs) - at_least_float32(old_logprobs).detach()
    return -log_ratios.cumsum(-1).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp() * psi.detach()


def ppo_clip(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
) -> Tensor:
    """PPO's clipped surrogate (Schulman 2017): no reward for moving the ratio out of [1 − ε_low, 1 + ε_high].

        L_t = −min(ρ_t·A_t, clip(ρ_t, 1 − ε_low, 1 + ε_high)·A_t)                                      (SPEC §6.3)
        with dual clip, where A_t < 0:  L_t = −max(min(ρ_t·A_t, clip(ρ_t)·A_t), c·A_t)

    Shapes: logprobs, old_logprobs, advantages [B,A] -> [B,A]. Where the clipped branch is active the gradient is 0.

    Raises:
        ValueError: a negative clip range, clip_low above 1, or a dual clip that is not above 1.
    """
    _check_clip(clip_low, clip_high, dual_clip)
    rho, advantages = ratio(logprobs, old_logprobs), advantages.detach()
    bound = rho.detach().clamp(1 - clip_low, 1 + clip_high)
    is_clipped = clip_fraction(logprobs, old_logprobs, advantages, clip_low, clip_high)
    # min(ρ·A, clip(ρ)·A) is the second where it is clipped. Chosen by `where` instead of `minimum`: two products that
    # round to the same number would share the gradient.
    loss = -torch.where(is_clipped, bound, rho) * advantages
    if dual_clip is None:
        return loss
    return torch.where(advantages < 0, torch.minimum(loss, -dual_clip * advantages), loss)


def ppo_penalty(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, coef: float) -> Tensor:
    """PPO with a penalty on the divergence from the policy that sampled, instead of a clip.

        L_t = −ρ_t·A_t + c·[(ρ_t − 1) − log ρ_t]                                                       (SPEC §6.4)

    Shapes: logprobs, old_logprobs, advantages [B,A] -> [B,A].
    """
    return importance_weighted(logprobs, old_logprobs, advantages) + coef * approx_kl(logprobs, old_logprobs.detach())


# The rows. The keyword arguments are the options: a setting by its name, or `penalty_coef`, the weight of the
# divergence in PPO-Penalty as it is now.


def _score_function(new: Tensor, old: Tensor, psi: Tensor) -> Tensor:
    return score_function(new, psi)


def _ppo_clip(
    new: Tensor,
    old: Tensor,
    psi: Tensor,
    *,
    clip_range: float,
    clip_range_high: float | None = None,
    dual_clip: float | None = None,
) -> Tensor:
    return ppo_clip(new, old, psi, clip_range, clip_range if clip_range_high is None else clip_range_high, dual_clip)


def _ppo_penalty(new: Tensor, old: Tensor, psi: Tensor, *, penalty_coef: float) -> Tensor:
    return ppo_penalty(new, old, psi, penalty_coef)


# POLICY_LOSSES[name](logprobs, old_logprobs, psi, options) -> [B,A]
POLICY_LOSSES = rows(
    "POLICY_LOSSES",
    {
        "score_function": _score_function,
        "importance_weighted": importance_weighted,
        "sequence_weighted": sequence_weighted,
        "per_decision_weighted": per_decision_weighted,
        "ppo_clip": _ppo_clip,
        "ppo_penalty": _ppo_penalty,
    },
)


def ratio(logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    """The importance ratio ρ_t = π_θ(a_t) / π_old(a_t), between e^−20 and e^20 (SPEC §6).

    Shapes: logprobs, old_logprobs [B,A] -> [B,A], float32 or wider.
    """
    log_ratio = at_least_float32(logprobs) - at_least_float32(old_logprobs).detach()
    return log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()


def approx_kl(logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    """How far the policy has moved since it sampled: an unbiased, non-negative estimate of KL(π_old ‖ π_θ) per token.

        (ρ_t − 1) − log ρ_t                                                                (SPEC §6.4, the bracket)

    Shapes: logprobs, old_logprobs [B,A] -> [B,A], nats per token. It is k3 with π_old, whose sample a_t is, in front.
    """
    return k3(old_logprobs, logprobs)


def clip_fraction(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, clip_low: float, clip_high: float
) -> Tensor:
    """Where the clip of `ppo_clip` holds the loss (and its gradient is 0); its mean is the metric of that name.

        (A_t > 0 and ρ_t > 1 + ε_high) or (A_t < 0 and ρ_t < 1 − ε_low)                                (SPEC §6.3)

    A ratio outside the range on the other side is not clipped: there the loss leads it back.
    Shapes: logprobs, old_logprobs, advantages [B,A] -> [B,A] bool.
    """
    rho = ratio(logprobs, old_logprobs).detach()
    return ((advantages > 0) & (rho > 1 + clip_high)) | ((advantages < 0) & (rho < 1 - clip_low))


def _check_clip(clip_low: float, clip_high: float, dual_clip: float | None) -> None:
    if not 0 <= clip_low <= 1 or clip_high < 0:
        raise ValueError(
            f"the ratio is clipped to [1 - clip_low, 1 + clip_high]; clip_low must be in [0, 1] and clip_high at least "
            f"0, got {clip_low} and {clip_high}"
        )
    if dual_clip is not None and dual_clip <= 1:
        raise ValueError(
            f"dual_clip bounds the ratio where the advantage is negative and must be above 1, got {dual_clip}"
        )
