"""The objective of one optimiser step: records in, per-token terms out; `total` weighs them, one place divides.

    L = Σ_tokens (L_policy + c_v·L_value − c_e·H + β·KL) / N                                           (SPEC §6.7, 6.9)

The policy's term is a row of `core.policy_losses.POLICY_LOSSES`; PPO's is `core.policy_losses.ppo_clip`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..algorithms import Algorithm
from ..core.kl import kl_penalty
from ..core.masking import at_least_float32, masked_sum
from ..core.policy_losses import POLICY_LOSSES, approx_kl, clip_fraction, ratio
from ..core.value_losses import clipped_squared_error, squared_error, value_clip_fraction
from ..experience import Experience
from ..models.policy.actor_critic import Evaluation
from ..settings.policy_gradient import PolicyGradientConfig


@dataclass(frozen=True)
class Weights:
    """What each term counts in the objective.

    Args:
        policy: 1, or 0 where the policy rests (its graph stays, so that all processes take part alike).
        value: c_v. entropy: c_e, of a bonus. kl: β, where the KL is a loss.
    """

    policy: float = 1.0
    value: float = 0.0
    entropy: float = 0.0
    kl: float = 0.0


def objective(
    now: Evaluation, batch: Experience, row: Algorithm, args: PolicyGradientConfig, penalty: float
) -> dict[str, Tensor]:
    """The terms of the objective by name, [B,A] each, unweighted and not reduced.

    Args:
        now: what policy and critic say of the batch as they are now. batch: rows of an experience.
        row: whose policy loss. penalty: the coefficient of PPO-Penalty as it is now.
    """
    options = args.options | {"penalty_coef": penalty}
    terms = {"policy": POLICY_LOSSES[row.loss](now.logprobs, batch.old_logprobs, batch.advantages, options)}
    if now.values is not None:
        terms["value"] = value_loss(now.values, batch, args.clip_range_value)
    if now.entropy is not None:
        terms["entropy"] = now.entropy
    if args.kl_in == "loss":
        terms["kl"] = kl_penalty(now.logprobs, batch.ref_logprobs, args.estimator)
    return terms


def value_loss(values: Tensor, batch: Experience, clip_range: float | None) -> Tensor:
    """[B,A] squared error of the values against the returns, clipped around the old values (SPEC §6.5).

    Args:
        clip_range: in reward units; None or 0 for no clip.
    """
    if not clip_range:
        return squared_error(values, batch.returns)
    return clipped_squared_error(values, batch.values, batch.returns, clip_range)


def total(terms: Mapping[str, Tensor], weights: Weights, mask: Tensor) -> Tensor:
    """[] Σ_tokens of the weighted terms; the caller divides by N (SPEC §6.9)."""
    signs = {"policy": weights.policy, "value": weights.value, "entropy": -weights.entropy, "kl": weights.kl}
    return masked_sum(torch.stack([signs[name] * term for name, term in terms.items()]).sum(0), mask)


@torch.no_grad()
def observe(
    now: Evaluation, batch: Experience, terms: Mapping[str, Tensor], args: PolicyGradientConfig
) -> dict[str, Tensor]:
    """Sums over response tokens of what the metrics show; padding is in none of them (DETAILS 37)."""
    per_token = {f"{name}/loss": term for name, term in terms.items()}
    per_token["policy/ratio"] = ratio(now.logprobs, batch.old_logprobs)
    per_token["deviation"] = (per_token["policy/ratio"] - 1).abs()
    per_token["policy/approx_kl"] = approx_kl(now.logprobs, batch.old_logprobs)
    clips = now.logprobs, batch.old_logprobs, batch.advantages, *args.clip_ranges
    per_token["policy/clip_fraction"] = clip_fraction(*clips)
    if now.values is not None and args.clip_range_value:
        per_token["value/clip_fraction"] = value_clip_fraction(
            now.values, batch.values, batch.returns, args.clip_range_value
        )
    return {name: masked_sum(at_least_float32(x), batch.action_mask) for name, x in per_token.items()}
