"""From what was sampled, scored and evaluated to what the update learns from: pure functions of records."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..algorithms import Algorithm
from ..core.advantages import PSI
from ..core.kl import kl_penalty
from ..core.masking import masked_whiten
from ..core.reward_shaping import clip_scores, missing_eos, token_rewards
from ..core.value_losses import CRITIC_TARGETS
from ..experience import OLD_LOGPROBS, EvaluatedRollout, Experience, Rollout
from ..reporting.metrics import kl_per_response
from ..settings.policy_gradient import PolicyGradientConfig


@dataclass(frozen=True)
class Estimate:
    """An experience, and the rewards [B,A] as they were before any whitening, for the log."""

    experience: Experience
    rewards: Tensor


def bounded_scores(seen: EvaluatedRollout, args: PolicyGradientConfig) -> Tensor:
    """[B] scores after the missing-EOS penalty (SPEC §2.5) and clipping (SPEC §2.6)."""
    scores = missing_eos(seen.scores, seen.terminated, args.missing_eos_penalty or 0.0)
    return scores if args.reward_clip is None else clip_scores(scores, args.reward_clip)


def estimate(
    seen: EvaluatedRollout, scores: Tensor, row: Algorithm, args: PolicyGradientConfig, kl_coef: float
) -> Estimate:
    """Scores and KL to per-token rewards (SPEC §2.2), rewards and values to Ψ and returns (SPEC §3, 4).

        r_t = [t = n]·score − β·KL_t,   A = Ψ(r, V),   R = the critic's target

    Args:
        seen: a whole rollout, of all processes. scores: [B] as they enter the rewards.
        row: whose Ψ and critic. kl_coef: β as it is now; it enters here only with `kl_in="reward"`.
    """
    mask = seen.action_mask
    kl = kl_penalty(seen.logprobs, seen.ref_logprobs, args.estimator)
    rewards = token_rewards(scores, kl, kl_coef if args.kl_in == "reward" else 0.0, mask)
    shaped = masked_whiten(rewards, mask, shift_mean=False) if args.whiten_rewards else rewards
    psi = PSI[row.psi](shaped, seen.values, mask, psi_options(seen, args))
    experience = Experience(
        **{name: getattr(seen, name) for name in Rollout.__dataclass_fields__},
        scores=seen.scores,
        old_logprobs=getattr(seen, OLD_LOGPROBS[args.old_logprobs]),
        ref_logprobs=seen.ref_logprobs,
        values=seen.values,
        rewards=shaped,
        advantages=masked_whiten(psi, mask) if args.whiten_advantages else psi,
        returns=CRITIC_TARGETS[row.critic](psi, shaped, seen.values, mask, args.gamma),
        kl=kl_per_response(seen),
    )
    return Estimate(experience, rewards)


def psi_options(seen: EvaluatedRollout, args: PolicyGradientConfig) -> dict[str, object]:
    """What the rows of `core.advantages.PSI` may read, by name: every setting, and what is known of the rollout."""
    # After a stop token nothing follows; where a response was cut off, the critic may say what would have.
    bootstrap = torch.where(seen.terminated, 0.0, seen.bootstrap_values) if args.bootstrap_truncated else None
    return args.options | {
        "bootstrap_values": bootstrap,
        "grad_sq_norms": seen.grad_sq_norms,
        "best_values": seen.best_values,
        "expected_values": seen.expected_values,
    }
