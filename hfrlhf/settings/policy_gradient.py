"""Settings of the policy-gradient trainers: `TrainingArguments`, `UpdateSettings` and `RolloutSettings`, checked."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ..algorithms import ALGORITHMS, Algorithm, algorithm_named
from ..reporting.screen import RunWarning
from .algorithm_checks import check_algorithm, check_steps, switched_off
from .checks import (
    batch_sizes,
    check_kl_settings,
    check_length,
    check_numbers,
    check_rewards_and_precision,
    check_words,
    is_set,
)
from .declarations import derived, plain, unset_settings, without_derived
from .fields import documented, setting
from .inherited import FOLLOWED, POLICY_REFUSED, best_metric, check_accelerator_config, check_inherited
from .launch import check_launch
from .old_names import POLICY_SETTINGS
from .reward import RewardConfig
from .rollouts import RolloutSettings
from .unknown_names import refuse_unknown

__all__ = ["PPOConfig", "PolicyGradientConfig", "RewardConfig", "TRPOConfig"]


@documented
@dataclass
class PolicyGradientConfig(RolloutSettings):
    """Settings of `PolicyGradientTrainer`; every field says default, unit, typical range and effect in its help text.

    Raises:
        TypeError: names that are no fields (the message gives each one's name here, or the nearest).
        ValueError: a value outside its range, or batch sizes whose product does not hold.
    """

    # Other defaults than TrainingArguments: those of the N+ implementation details (arXiv 2403.17031).
    learning_rate: float = setting(3e-6, "Step size of the policy. Typical: 1e-6 to 1e-5 (full), 1e-5 to 1e-4 (LoRA).")
    adam_epsilon: float = setting(
        1e-5, "Adam's epsilon. 1e-5 as in the original PPO; 1e-8 makes early steps larger.", range="(0, ∞)"
    )
    logging_steps: float | None = setting(None, "Optimiser steps between logs. Default: one per rollout.")  # type: ignore[assignment]
    logging_nan_inf_filter: bool = setting(False, "Hide NaN losses from the log. Off: a NaN should be seen.")
    remove_unused_columns: bool = setting(False, "Must stay off: reward functions see every column of the dataset.")
    per_device_eval_batch_size: int | None = setting(  # type: ignore[assignment]
        None, "Evaluation prompts sampled at a time. Default: as many as a process samples for a rollout."
    )

    def __new__(cls, *args: Any, **kwargs: Any) -> PolicyGradientConfig:
        """Refuse unknown names before dataclass's own, less helpful, error."""
        refuse_unknown(kwargs, cls.__init__, cls.ELSEWHERE, cls.__name__)
        return super().__new__(cls)

    ELSEWHERE: ClassVar[Mapping[str, str]] = POLICY_SETTINGS

    def __post_init__(self) -> None:
        vars(self).update(without_derived(self))
        unset = unset_settings(self)
        check_inherited(self, FOLLOWED, POLICY_REFUSED, "the policy-gradient trainers")
        check_numbers(self)
        check_length(self)
        check_rewards_and_precision(self)
        check_algorithm(self, algorithm_named(self.algorithm))
        self._take_from(algorithm_named(self.algorithm))
        check_words(self)
        if self.logging_steps is None:
            self.logging_steps = self.steps_per_rollout
        self.metric_for_best_model, self.greater_is_better = best_metric(self, "objective/score", ("kl",))
        super().__post_init__()  # type: ignore[no-untyped-call]
        check_accelerator_config(self, "the policy-gradient trainers")
        check_launch(self)
        vars(self).update(batch_sizes(self))
        vars(self).update(derived(self, unset))
        check_steps(self, algorithm_named(self.algorithm))
        check_kl_settings(self)
        if self.save_only_model:
            warnings.warn(
                "`save_only_model=True`: a run cannot be resumed from such checkpoints", RunWarning, stacklevel=3
            )

    def to_dict(self) -> dict[str, Any]:
        """The fields and their values, as numbers, words and lists."""
        values: dict[str, Any] = super().to_dict()  # type: ignore[no-untyped-call]
        return {name: plain(value) for name, value in values.items()}

    def _take_from(self, row: Algorithm) -> None:
        """What was not set is the algorithm's own."""
        self.num_ppo_epochs = row.epochs if self.num_ppo_epochs is None else self.num_ppo_epochs
        self.whiten_advantages = row.whiten if self.whiten_advantages is None else self.whiten_advantages
        if row.critic and self.vf_coef is None:
            self.vf_coef = 0.1
        for name, off in switched_off(self, row).items():
            setattr(self, name, off)

    @property
    def options(self) -> dict[str, object]:
        """What the rows of `PSI` and `POLICY_LOSSES` may read of the settings: each by its own name."""
        return dict(vars(self))


@documented
@dataclass
class PPOConfig(PolicyGradientConfig):
    """Settings of `PPOTrainer`: PPO with GAE and a clipped ratio or an adaptive penalty (SPEC §6.3, 6.4, 4.3).

    Raises:
        ValueError: beside what `PolicyGradientConfig` refuses: another algorithm than PPO.
    """

    algorithm: str = setting("ppo_clip", "'ppo_clip', or 'ppo_penalty': an adaptive penalty in the clip's place.")

    def __post_init__(self) -> None:
        if self.algorithm in ALGORITHMS and not self.runs(self.algorithm):
            raise ValueError(
                f"`algorithm={self.algorithm!r}` is not PPO; use PolicyGradientConfig (TRPOConfig for trust regions)"
            )
        super().__post_init__()

    @classmethod
    def runs(cls, algorithm: str) -> bool:
        """Whether it is PPO."""
        return super().runs(algorithm) and algorithm_named(algorithm).is_ppo


@documented
@dataclass
class TRPOConfig(PolicyGradientConfig):
    """Settings of `TRPOTrainer`: one step of the policy per rollout, as long as the trust region allows (SPEC §6.8).

    The policy has no learning rate; `learning_rate` (or `value_learning_rate`) is the critic's.

    Raises:
        ValueError: beside what `PolicyGradientConfig` refuses: more than one step of the policy per rollout, or terms
            that are no part of TRPO's surrogate (entropy bonus, KL as a loss, `target_kl`).
    """

    UPDATES: ClassVar[tuple[str, ...]] = ("natural", "trust_region")

    algorithm: str = setting("trpo", "'trpo', or 'natural_policy_gradient': the same without the line search.")
    learning_rate: float = setting(
        1e-4, "Step size of the critic. Typical: 1e-5 (a model of its own) to 1e-3 (a head on the policy's trunk)."
    )
    max_kl: float = setting(
        0.01,
        "δ, how far a step may move the policy; less, the more damping. Typical: 0.001 to 0.05.",
        unit="nats per token",
        range="(0, ∞)",
        shown=True,
    )
    cg_iterations: int = setting(
        10, "Fisher-vector products per step. Typical: 5 to 20.", range="[1, ∞)", whole=True, shown=True
    )
    cg_damping: float = setting(
        0.1, "Added to the Fisher matrix's diagonal. Higher: steadier, nearer the gradient.", range="[0, ∞)", shown=True
    )
    max_backtracks: int = setting(
        10, "Steps tried, each 0.8 × the last; if none will do, the policy stays.", range="[1, ∞)", whole=True
    )
    value_epochs: int = setting(4, "Passes in which only the critic learns, after the policy's step.")

    def __post_init__(self) -> None:
        if self.algorithm == "natural_policy_gradient" and is_set(self, "max_backtracks"):
            raise ValueError(
                "`max_backtracks` would do nothing: 'natural_policy_gradient' has no line search; use 'trpo'"
            )
        refused = {"ent_coef": 0.0, "target_kl": None, "kl_in": "reward", "fp16": False}
        for name, only in refused.items():
            if getattr(self, name) != only:
                raise ValueError(
                    f"`{name}={getattr(self, name)!r}` is no part of a trust-region step (`max_kl` bounds it, and its "
                    f"surrogate has no further terms); leave it at {only!r}, or use 'ppo_clip'"
                )
        super().__post_init__()
