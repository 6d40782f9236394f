"""Settings of the policy-gradient trainers: what `TrainingArguments` has, and about thirty fields more.

The arithmetic of batches, in sequences:

    rollout_batch_size = per_device_train_batch_size × gradient_accumulation_steps × processes × num_mini_batches
    optimiser steps per rollout = (num_ppo_epochs + value_epochs) × num_mini_batches
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from transformers import TrainingArguments

from ..algorithms import ALGORITHMS, Algorithm, algorithm_named
from ..core.kl import KL_ESTIMATORS, KL_PLACES
from ..core.policy_losses import PolicyLossOptions
from ..reporting.screen import RunWarning
from .algorithm_checks import check_algorithm, check_steps, switched_off
from .checks import check_choices, check_kl_settings, check_ranges, is_set
from .derived import forget_derived, mark_derived, plain
from .inherited import (
    FOLLOWED,
    POLICY_REFUSED,
    check_accelerator_config,
    check_inherited,
    check_inherited_numbers,
    settle_best_metric,
)
from .launch import check_launch
from .old_names import POLICY_SETTINGS
from .reward import RewardConfig
from .unknown_names import refuse_unknown

__all__ = ["PPOConfig", "PolicyGradientConfig", "RewardConfig", "TRPOConfig"]


def described(default: Any, text: str) -> Any:
    """A dataclass field with its `--help` text."""
    return field(default=default, metadata={"help": text})


@dataclass
class PolicyGradientConfig(TrainingArguments):
    """Settings of `PolicyGradientTrainer`; every field says default, unit, typical range and effect in its help text.

    Raises:
        TypeError: names that are no fields (the message gives each one's name here, or the nearest).
        ValueError: a value outside its range, or batch sizes whose product does not hold.
    """

    # Other defaults than TrainingArguments: those of the N+ implementation details (arXiv 2403.17031).
    learning_rate: float = described(
        3e-6, "Step size of the policy. Typical: 1e-6 to 1e-5 (full), 1e-5 to 1e-4 (LoRA)."
    )
    adam_epsilon: float = described(1e-5, "Adam's epsilon. 1e-5 as in the original PPO; 1e-8 makes early steps larger.")
    logging_steps: float | None = described(None, "Optimiser steps between logs. Default: one per rollout.")  # type: ignore[assignment]
    logging_nan_inf_filter: bool = described(False, "Hide NaN losses from the log. Off: a NaN should be seen.")
    remove_unused_columns: bool = described(False, "Must stay off: reward functions see every column of the dataset.")
    per_device_eval_batch_size: int | None = described(  # type: ignore[assignment]
        None, "Evaluation prompts sampled at a time. Default: as many as a process samples for a rollout."
    )

    algorithm: str = described("vpg", f"Row of ALGORITHMS: one of {', '.join(ALGORITHMS)}.")
    n_step: int = described(5, "Tokens of reward before the critic takes over, in 'a2c'. Typical: 1 to 20.")
    penalty_target: float = described(
        0.01, "Nats per token of KL(old‖new) that the coefficient of 'ppo_penalty' aims at. Typical: 0.003 to 0.03."
    )
    exclude_self: bool = described(
        False, "Baselines over the batch leave an episode out of its own: unbiased, where the usual form is off by 1/m."
    )
    rollout_batch_size: int | None = described(
        None,
        "Episodes per rollout over all processes. Default: per_device_train_batch_size × gradient_accumulation_steps × "
        "processes × num_mini_batches. If set, per_device_train_batch_size follows from it.",
    )
    generator: str = described(
        "transformers", "Who samples the responses: a row of rollout/generators.py. An object of yours: `generator=`."
    )
    num_generations: int = described(1, "Responses sampled per prompt. More than 1 for baselines over a group.")
    max_prompt_length: int | None = described(512, "Tokens. Longer prompts are left out, counted and reported.")
    max_completion_length: int = described(128, "Tokens. A response is cut off here if no stop token came.")
    temperature: float = described(1.0, "Sampling temperature, also in every log-prob. Typical: 0.7 to 1.0.")
    stop_token_id: int | None = described(None, "Token that ends a response. Default: the tokenizer's EOS.")

    missing_eos_penalty: float | None = described(None, "Subtracted from the score of a cut-off response. Typical: 1.")
    reward_clip: float | None = described(None, "Scores are clipped to ± this. Typical: 5 to 10. Default: no clipping.")
    reward_weights: list[float] | None = described(None, "One weight per reward function. Default: 1 each.")
    reward_timeout: float | None = described(
        None,
        "Seconds a reward function may take for one rollout before the run stops. It then runs in a thread of its own, "
        "where `signal` does not work. Typical: 600. Default: no limit.",
    )
    normalize_scores: bool = described(False, "Divide scores by a running standard deviation, after a running mean.")
    kl_coef: float = described(0.05, "β, price of one nat of KL to the reference in score units. Typical: 0.01 to 0.2.")
    kl_estimator: str | None = described(
        None,
        f"One of {', '.join(KL_ESTIMATORS)}. Default: "
        + ", ".join(f"{estimator} in the {place}" for place, estimator in KL_PLACES.items())
        + ": the ones with the gradient of the KL.",
    )
    kl_in: str = described(
        "reward",
        "Where the KL enters: 'reward' (per token, as in RLHF: the whole gradient) or 'loss' (each state's own KL, "
        "without how earlier tokens lead to that state).",
    )
    kl_target: float | None = described(None, "Nats per response. If set, kl_coef adapts to hold it. Typical: 3 to 10.")
    kl_limit: float | None = described(
        None,
        "Nats per response. Where a rollout's mean KL to the reference passes this, the run stops and saves nothing "
        "more. Typical: 5 to 10 × what you expect. Default: no limit.",
    )
    kl_horizon: float = described(10_000, "Episodes over which the adaptive coefficient reacts.")
    whiten_rewards: bool = described(False, "Scale per-token rewards to variance 1, keeping their mean.")

    gamma: float = described(1.0, "Discount per token, 0 to 1. Below 1 a score counts less for long responses.")
    gae_lambda: float = described(0.95, "GAE's λ, 0 (one-step, biased by the critic) to 1 (no bias, more variance).")
    bootstrap_truncated: bool = described(False, "Value of a cut-off response's last state is the critic's, not 0.")
    whiten_advantages: bool | None = described(
        None,
        "Centre advantages and scale them to variance 1 over the rollout. Default: as the algorithm's source does.",
    )

    num_ppo_epochs: int | None = described(
        None, "Passes over each rollout. Typical: 1 to 4; more than 1 needs a ratio (PPO). Default: the algorithm's."
    )
    value_epochs: int = described(0, "Passes after those in which only the critic learns. Typical: 0 to 8.")
    num_mini_batches: int = described(1, "Optimiser steps per pass. Typical: 1 to 8.")
    clip_range: float = described(0.2, "ε of the clipped ratio. Typical: 0.1 to 0.3.")
    clip_range_high: float | None = described(None, "Upper ε where it differs from clip_range.")
    dual_clip: float | None = described(None, "c > 1: bounds the loss where A < 0 and the ratio is large. Typical: 3.")
    clip_range_value: float | None = described(0.2, "Clip of value changes, in reward units. 0 or None: no clipping.")
    vf_coef: float | None = described(None, "Weight of the value loss. Default: 0.1 where there is a critic.")
    ent_coef: float = described(0.0, "Weight of the entropy bonus (exact entropy, nats per token). Typical: 0 to 0.01.")
    target_kl: float | None = described(
        None, "Nats per token. When KL(old‖new) passes 1.5 × this, the policy rests until the next rollout."
    )
    value_learning_rate: float | None = described(None, "Step size of the critic. Default: learning_rate.")
    critic_warmup_rollouts: int = described(0, "Rollouts at the start in which only the critic learns.")
    max_tokens_per_micro_batch: int = described(
        4096, "Padded tokens per forward and backward. Less memory when lower; the gradient stays the same."
    )
    max_skipped_updates: int = described(
        10,
        "Updates in a row with a loss or gradient that is not finite, which are left out, before the run stops and "
        "writes the last one's batch to `broken_update` in output_dir. Typical: 3 to 20.",
    )
    loss_normalization: str = described(
        "tokens", "Losses are sums divided by all 'tokens' of the optimiser step, or by its 'episodes' (unbiased)."
    )
    log_completions: bool = described(
        True, "Keep a few responses per log in completions.jsonl, and show some before and after training."
    )
    save_curves: bool = described(True, "Draw the log as curves.png in output_dir at the end.")
    save_logs: bool = described(True, "Write trainer_state.json (every log) and the results' metrics at the end.")
    old_logprobs: str = described("recompute", "'recompute' with the training forward, or keep the 'sampler's.")

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
        check_inherited_numbers(self)
        check_ranges(self)
        check_algorithm(self, algorithm_named(self.algorithm))
        self._take_from(algorithm_named(self.algorithm))
        check_choices(self)
        if self.logging_steps is None:
            self.logging_steps = self.steps_per_rollout
        settle_best_metric(self, "objective/score", lower_is_better=("kl",))
        super().__post_init__()
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
        return {name: plain(value) for name, value in super().to_dict().items()}

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
        self._check_divides(per_row)
        self.per_device_train_batch_size = self.episodes_per_rollout // per_row
        if self.per_device_eval_batch_size is None:
            self.per_device_eval_batch_size = math.ceil(self.episodes_per_rollout / self.world_size)

    def _check_divides(self, per_row: int) -> None:
        size = self.episodes_per_rollout
        if size % self.num_mini_batches:
            fitting = [m for m in range(1, size + 1) if size % m == 0]
            nearest = sorted(fitting, key=lambda m: abs(m - self.num_mini_batches))[:2]
            raise ValueError(
                f"`num_mini_batches={self.num_mini_batches}` does not divide the rollout of {size} sequences; use "
                f"{' or '.join(map(str, sorted(nearest)))}, or another `rollout_batch_size`"
            )
        if size % per_row:
            raise ValueError(
                f"`rollout_batch_size={size}` is not a multiple of {per_row} = gradient_accumulation_steps "
                f"{self.gradient_accumulation_steps} × processes {self.world_size} × num_mini_batches "
                f"{self.num_mini_batches}; use {per_row * max(1, size // per_row)} or {per_row * (size // per_row + 1)}"
            )
        given = self.per_device_train_batch_size
        if is_set(self, "per_device_train_batch_size") and given != size // per_row:
            raise ValueError(
                f"`rollout_batch_size={size}` and `per_device_train_batch_size={given}` disagree: the latter would "
                f"have to be {size // per_row}; give one of the two"
            )
        if size % self.num_generations:
            raise ValueError(
                f"`num_generations={self.num_generations}` does not divide the rollout of {size} sequences; each "
                "prompt has that many responses"
            )


@dataclass
class PPOConfig(PolicyGradientConfig):
    """Settings of `PPOTrainer`: PPO with GAE and a clipped ratio or an adaptive penalty (SPEC §6.3, 6.4, 4.3).

    Raises:
        ValueError: beside what `PolicyGradientConfig` refuses: another algorithm than PPO.
    """

    algorithm: str = described("ppo_clip", "'ppo_clip', or 'ppo_penalty': an adaptive penalty in the clip's place.")

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


@dataclass
class TRPOConfig(PolicyGradientConfig):
    """Settings of `TRPOTrainer`: one step of the policy per rollout, as long as the trust region allows (SPEC §6.8).

    The policy has no learning rate; `learning_rate` (or `value_learning_rate`) is the critic's.

    Raises:
        ValueError: beside what `PolicyGradientConfig` refuses: more than one step of the policy per rollout, or terms
            that are no part of TRPO's surrogate (entropy bonus, KL as a loss, `target_kl`).
    """

    UPDATES: ClassVar[tuple[str, ...]] = ("natural", "trust_region")

    algorithm: str = described("trpo", "'trpo', or 'natural_policy_gradient': the same without the line search.")
    learning_rate: float = described(
        1e-4, "Step size of the critic. Typical: 1e-5 (a model of its own) to 1e-3 (a head on the policy's trunk)."
    )
    max_kl: float = described(
        0.01, "δ, nats per token: how far a step may move the policy; less, the more damping. Typical: 0.001 to 0.05."
    )
    cg_iterations: int = described(10, "Fisher-vector products per step. Typical: 5 to 20.")
    cg_damping: float = described(0.1, "Added to the Fisher matrix's diagonal. Higher: steadier, nearer the gradient.")
    max_backtracks: int = described(10, "Steps tried, each 0.8 × the last; if none will do, the policy stays.")
    value_epochs: int = described(4, "Passes in which only the critic learns, after the policy's step.")

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
