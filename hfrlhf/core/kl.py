"""Divergence from the reference policy: estimators from samples, exact values, and adaptive coefficients."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from hfrlhf.core.masking import at_least_float32

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


KL_ESTIMATORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"k1": k1, "k2": k2, "k3": k3}


def kl_penalty(logprobs: Tensor, ref_logprobs: Tensor, estimator: str) -> Tensor:
    """The per-token estimate of KL(π_θ ‖ π_ref) by the estimator of that name (SPEC §2.3).

    Shapes: logprobs, ref_logprobs [B,A] -> [B,A], nats per token.

    Raises:
        ValueError: an unknown estimator.
    """
    if estimator not in KL_ESTIMATORS:
        raise ValueError(f"unknown KL estimator {estimator!r}; choose one of {', '.join(KL_ESTIMATORS)}")
    return KL_ESTIMATORS[estimator](logprobs, ref_logprobs)


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


class AdaptiveKLController:
    """A KL coefficient that steers the divergence towards a target (Ziegler 2019).

        e = clip(KL/target − 1, −0.2, 0.2),  β ← β·(1 + e·n/horizon)                                   (SPEC §2.4)

    `coef` is β; `target` in nats per response (the sum over its tokens); `horizon` in episodes.

    Raises:
        ValueError: a negative start, or a target or horizon that is not positive.
    """

    def __init__(self, init: float, target: float, horizon: float) -> None:
        if init < 0 or target <= 0 or horizon <= 0:
            raise ValueError(
                f"the adaptive KL coefficient needs a start of at least 0 and a positive target and horizon, "
                f"got kl_coef={init}, kl_target={target}, kl_horizon={horizon}"
            )
        self.coef = float(init)
        self.target = float(target)
        self.horizon = float(horizon)

    def update(self, kl: float, episodes: int) -> float:
        """The new coefficient after a rollout of `episodes` responses whose mean KL was `kl` (nats per response).

        Raises:
            ValueError: the KL is not a number, or so many episodes that the coefficient could reach 0.
        """
        if episodes >= 5 * self.horizon:
            raise ValueError(
                f"{episodes} episodes per rollout are too many for kl_horizon={self.horizon:g}: one update could set "
                f"the KL coefficient to 0 for good; use a horizon above {episodes / 5:g}, better {10 * episodes}"
            )
        error = min(max(_number(kl) / self.target - 1, -0.2), 0.2)
        self.coef *= 1 + error * episodes / self.horizon
        return self.coef

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint has to keep."""
        return {"coef": self.coef}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Continue from what `state_dict` gave."""
        self.coef = float(state["coef"])


class FixedKLCoefficient:
    """A KL coefficient β that stays what it is, with the interface of the adaptive one (SPEC §2.2)."""

    def __init__(self, coef: float) -> None:
        self.coef = float(coef)

    def update(self, kl: float, episodes: int) -> float:
        """β, whatever the KL was."""
        return self.coef

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint has to keep."""
        return {"coef": self.coef}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Nothing to restore: β is the configuration's, so that a resumed run may be given another."""


def kl_coefficient(
    coef: float, target: float | None = None, horizon: float = 10_000
) -> FixedKLCoefficient | AdaptiveKLController:
    """β as the settings say: adaptive where there is a target (nats per response), else fixed.

    Raises:
        ValueError: what `AdaptiveKLController` refuses.
    """
    return FixedKLCoefficient(coef) if target is None else AdaptiveKLController(coef, target, horizon)


class PenaltyCoefficient:
    """The coefficient of PPO-Penalty, halved or doubled once per rollout.

        KL < target/1.5: c ← c/2;  KL > 1.5·target: c ← 2c;  else unchanged                            (SPEC §6.4)

    `coef` is c; `target` in nats per token, of KL(π_old ‖ π_θ).

    Raises:
        ValueError: a start or target that is not positive.
    """

    def __init__(self, init: float, target: float) -> None:
        if init <= 0 or target <= 0:
            raise ValueError(f"the penalty coefficient and its target must be positive, got {init} and {target}")
        self.coef = float(init)
        self.target = float(target)

    def update(self, kl: float) -> float:
        """The new coefficient after the epochs of a rollout ended at a mean KL of `kl` (nats per token).

        Raises:
            ValueError: the KL is not a number.
        """
        kl = _number(kl)
        if kl < self.target / 1.5:
            self.coef /= 2
        elif kl > 1.5 * self.target:
            self.coef *= 2
        return self.coef

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint has to keep."""
        return {"coef": self.coef}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Continue from what `state_dict` gave."""
        self.coef = float(state["coef"])


def _number(kl: float) -> float:
    """The KL as a float, NaN refused: it would stay in the coefficient for the rest of the run."""
    kl = float(kl)
    if math.isnan(kl):
        raise ValueError("the KL of this rollout is NaN: the policy or the reference gives non-finite log-probs")
    return kl
