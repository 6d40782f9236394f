"""Settings of the policy-gradient trainers: what `TrainingArguments` has, and about thirty fields more.

The arithmetic of batches, in sequences:

    rollout_batch_size = per_device_train_batch_size × gradient_accumulation_steps × processes × num_mini_batches
    optimiser steps per rollout = (num_ppo_epochs + value_epochs) × num_mini_batches
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from transformers import TrainingArguments

from ..algorithms import ALGORITHMS, Algorithm, algorithm_named
from ..core.kl import KL_PLACES
from ..core.policy_losses import PolicyLossOptions
from ..reporting.screen import RunWarning
from .algorithm_checks import check_algorithm, check_steps, switched_off
from .checks import (
    check_batches,
    check_kl_settings,
    check_length,
    check_numbers,
    check_rewards_and_precision,
    check_words,
    is_set,
)
from .declarations import forget_derived, mark_derived, plain
from .fields import documented, setting
from .inherited import FOLLOWED, POLICY_REFUSED, check_accelerator_config, check_inherited, settle_best_metric
from .launch import check_launch
from .old_names import POLICY_SETTINGS
from .reward import RewardConfig
from .rollouts import RolloutSettings
from .unknown_names import refuse_unknown
from .updates import UpdateSettings

__all__ = ["PPOConfig", "PolicyGradientConfig", "RewardConfig", "TRPOConfig"]


@documented
@dataclass
class PolicyGradientConfig(UpdateSettings, RolloutSettings, TrainingArguments):
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

    algorithm: str = setting("vpg", f"Row of ALGORITHMS: one of {', '.join(ALGORITHMS)}.", resumed=True, shown=True)

    def __new__(cls, *args: Any, **kwargs: Any) -> PolicyGradientConfig:
        """Refuse unknown names before dataclass's own, less helpful, error."""
        refuse_unknown(kwargs, cls.__init__, cls.ELSEWHERE, cls.__name__)
        return super().__new__(cls)

    ELSEWHERE: ClassVar[Mapping[str, str]] = POLICY_SETTINGS
    # The ways of updating the policy that the trainer of these settings knows.
    UPDATES: ClassVar[tuple[str, ...]] = ("gradient",)

    @classmethod
    def runs(cls, algorithm: str) -> bool:
        """Whether the trainer of these settings runs the algorithm of that name."""
        return algorithm_named(algorithm).update in cls.UPDATES

    def __post_init__(self) -> None:
        unset = forget_derived(self)
        check_inherited(self, FOLLOWED, POLICY_REFUSED, "the policy-gradient trainers")
        check_numbers(self)
        check_length(self)
        check_rewards_and_precision(self)
        check_algorithm(self, algorithm_named(self.algorithm))
        self._take_from(algorithm_named(self.algorithm))
        check_words(self)
        if self.logging_steps is None:
            self.logging_steps = self.steps_per_rollout
        settle_best_metric(self, "objective/score", lower_is_better=("kl",))
        super().__post_init__()  # type: ignore[no-untyped-call]
        check_accelerator_config(self, "the policy-gradient trainers")
        check_launch(self)
        self._settle_batches()
        mark_derived(self, unset)
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
    def policy_steps_per_rollout(self) -> int:
        """Optimiser steps of the policy on one rollout: E × M."""
        assert self.num_ppo_epochs is not None  # settled when the configuration is made
        return self.num_ppo_epochs * self.num_mini_batches

    @property
    def steps_per_rollout(self) -> int:
        """Optimiser steps that use one rollout: those of the policy, then those of the critic alone."""
        return self.policy_steps_per_rollout + self.value_epochs * self.num_mini_batches

    @property
    def episodes_per_rollout(self) -> int:
        """`rollout_batch_size` as a number: it is settled once the configuration is made."""
        assert self.rollout_batch_size is not None
        return self.rollout_batch_size

    @property
    def prompts_per_rollout(self) -> int:
        """Prompts drawn for one rollout, over all processes."""
        return self.episodes_per_rollout // self.num_generations

    @property
    def mini_batch_size(self) -> int:
        """Episodes per optimiser step, over all processes."""
        return self.episodes_per_rollout // self.num_mini_batches

    @property
    def clip_ranges(self) -> tuple[float, float]:
        """ε_low and ε_high of the clipped ratio."""
        return self.clip_range, self.clip_range if self.clip_range_high is None else self.clip_range_high

    @property
    def estimator(self) -> str:
        """The KL estimator in use: the one that was set, or the one that is right where the KL enters."""
        return self.kl_estimator or KL_PLACES[self.kl_in]

    @property
    def policy_loss_options(self) -> PolicyLossOptions:
        """What the rows of `core.policy_losses.POLICY_LOSSES` read."""
        return PolicyLossOptions(*self.clip_ranges, self.dual_clip)

    def _settle_batches(self) -> None:
        """rollout = micro-batch × accumulation × processes × mini-batches, whichever side is given."""
        per_row = self.gradient_accumulation_steps * self.world_size * self.num_mini_batches
        if self.rollout_batch_size is None:
            self.rollout_batch_size = self.per_device_train_batch_size * per_row
        check_batches(self, per_row)
        self.per_device_train_batch_size = self.episodes_per_rollout // per_row
        if self.per_device_eval_batch_size is None:
            self.per_device_eval_batch_size = math.ceil(self.episodes_per_rollout / self.world_size)


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
