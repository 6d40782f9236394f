"""Divergence from the reference policy: estimators from samples, and exact values over the vocabulary.

The coefficients that are steered by it stand in `kl_coefficients` and are offered here too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hfrlhf.core.kl_coefficients import AdaptiveKLController, PenaltyCoefficient
from hfrlhf.core.masking import at_least_float32

__all__ = [
    "KL_ESTIMATORS",
    "KL_PLACES",
    "MAX_LOG_RATIO",
    "AdaptiveKLController",
    "KLEstimator",
    "PenaltyCoefficient",
    "entropy_from_logits",
    "exact_kl",
    "k1",
    "k2",
    "k3",
    "kl_lacks",
    "kl_penalty",
]

# exp of a larger log-ratio would overflow or drown everything else; exp(20) is about 5e8.
MAX_LOG_RATIO = 20.0


def k1(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """The plain log-ratio: unbiased, of either sign.

        k1 = d,  d = log π_θ(a) − log π_ref(a)                                                         (SPEC §2.3)

    Shapes: logprobs, ref_logprobs [...] -> [...], nats.
    """
    return at_least_float32(logprobs) - at_least_float32(ref_logprobs)


def k2(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """Half the squared log-ratio: biased as a value, but its gradient is that of the KL.

        k2 = d² / 2,  d = log π_θ(a) − log π_ref(a)                                                    (SPEC §2.3)

    As an on-policy loss per token its gradient is that of each state's own KL, Σ_t E[∇KL(π(·|s_t) ‖ π_ref(·|s_t))]. How
    earlier tokens change which states are visited is not in it; k1 in the reward has that too.
    Shapes: logprobs, ref_logprobs [...] -> [...], nats.
    """
    return k1(logprobs, ref_logprobs).square() / 2


def k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """The log-ratio with a control variate: unbiased and never negative.

        k3 = e^{−d} − 1 + d,  d = log π_θ(a) − log π_ref(a)                                            (SPEC §2.3)

    Shapes: logprobs, ref_logprobs [...] -> [...], nats. −d is held at 20 where it is larger (gradient 0 there).
    """
    log_ratio = (-k1(logprobs, ref_logprobs)).clamp(max=MAX_LOG_RATIO)
    # expm1 keeps the digits that e^{−d} − 1 would lose near d = 0.
    return torch.expm1(log_ratio) - log_ratio


@dataclass(frozen=True)
class KLEstimator:
    """A way to estimate KL(π_θ ‖ π_ref) from sampled tokens, and what it is not good for.

    Args:
        estimate: (logprobs, ref_logprobs) [...] -> [...], nats per token.
        lacks: by place of use (a key of `KL_PLACES`), what it lacks there, in words; a place not named is fine.
    """

    estimate: Callable[[Tensor, Tensor], Tensor]
    lacks: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
        """The estimate. Shapes: logprobs, ref_logprobs [...] -> [...], nats."""
        return self.estimate(logprobs, ref_logprobs)


_SMALL = "as a detached reward it has a few per cent of the gradient of the KL"
# To add one: a function, and a row that says what it is not good for. The settings and the objective read this table.
KL_ESTIMATORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "k1": KLEstimator(k1, {"loss": "its gradient is 0 in expectation"}),
    "k2": KLEstimator(k2, {"reward": _SMALL}),
    "k3": KLEstimator(k3, {"reward": _SMALL, "loss": "its gradient is not that of the KL"}),
}
# Where a KL may enter the objective, and the estimator that is right there.
KL_PLACES = {"reward": "k1", "loss": "k2"}


def kl_penalty(logprobs: Tensor, ref_logprobs: Tensor, estimator: str) -> Tensor:
    """The per-token estimate of KL(π_θ ‖ π_ref) by the estimator of that name (SPEC §2.3).

    Shapes: logprobs, ref_logprobs [B,A] -> [B,A], nats per token.

    Raises:
        ValueError: an unknown estimator.
    """
    if estimator not in KL_ESTIMATORS:
        raise ValueError(f"unknown KL estimator {estimator!r}; choose one of {', '.join(KL_ESTIMATORS)}")
    return KL_ESTIMATORS[estimator](logprobs, ref_logprobs)


def kl_lacks(estimator: str, place: str) -> str | None:
    """What an estimator lacks in the reward or in the loss, in words; None where it is right (a bare function is)."""
    return getattr(KL_ESTIMATORS[estimator], "lacks", {}).get(place)


def exact_kl(logits: Tensor, ref_logits: Tensor) -> Tensor:
    """The divergence itself, over the whole vocabulary.

        KL(p ‖ q) = Σ_a p(a)·(log p(a) − log q(a)),  p = softmax(logits), q = softmax(ref_logits)      (SPEC §2.3)

    Shapes: logits, ref_logits [..., V] -> [...], nats. A logit of −inf (a forbidden token) contributes 0.
    """
    logp = at_least_float32(logits).log_softmax(-1)
    logq = at_least_float32(ref_logits).log_softmax(-1)
    p = logp.exp()
    difference = torch.where(p > 0, logp - logq, torch.zeros_like(p))
    return (p * difference).sum(-1)


def entropy_from_logits(logits: Tensor) -> Tensor:
    """The entropy of a categorical distribution, over the whole vocabulary.

        H = −Σ_a p(a)·log p(a),  p = softmax(logits)                                                   (SPEC §6.6)

    Shapes: logits [..., V] (already divided by the temperature) -> [...], nats. A logit of −inf contributes 0.
    """
    logp = at_least_float32(logits).log_softmax(-1)
    p = logp.exp()
    return -(p * torch.where(p > 0, logp, torch.zeros_like(p))).sum(-1)
