"""What moves from rollout to rollout: β of the KL, the coefficient of PPO-Penalty, the moments of the scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..core.kl_coefficients import AdaptiveKLController, FixedKLCoefficient, PenaltyCoefficient, kl_coefficient
from ..core.reward_shaping import RunningMoments
from ..experience import Experience
from ..settings.policy_gradient import PolicyGradientConfig


@dataclass
class Coefficients:
    """Part of a checkpoint: a resumed run goes on with them as they were.

    Args:
        kl: β (SPEC §2.4). penalty: of PPO-Penalty (SPEC §6.4). moments: of all scores so far (SPEC §2.6).
    """

    kl: AdaptiveKLController | FixedKLCoefficient
    penalty: PenaltyCoefficient
    moments: RunningMoments = field(default_factory=RunningMoments)

    @classmethod
    def of(cls, args: PolicyGradientConfig) -> Coefficients:
        """As they are at the start of a run."""
        kl = kl_coefficient(args.kl_coef, args.kl_target, args.kl_horizon)
        return cls(kl, PenaltyCoefficient(1.0, args.penalty_target))

    def follow(self, experience: Experience) -> None:
        """After the last step on a rollout: β moves by the KL that the rollout had (SPEC §2.4)."""
        assert experience.kl is not None  # of one that an experience maker made it is there
        self.kl.update(float(experience.kl.mean()), len(experience))

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint has to keep."""
        parts = {"kl_coef": self.kl, "penalty": self.penalty, "moments": self.moments}
        return {name: part.state_dict() for name, part in parts.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` gave."""
        self.kl.load_state_dict(state["kl_coef"])
        self.penalty.load_state_dict(state["penalty"])
        self.moments.load_state_dict(state["moments"])
