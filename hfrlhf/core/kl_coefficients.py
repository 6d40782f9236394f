"""Coefficients that follow the divergence from rollout to rollout; `core.kl` offers them beside the estimators."""

from __future__ import annotations

import math
from collections.abc import Mapping


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
