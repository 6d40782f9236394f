"""Settings of the updates: what the advantages are, and how policy and critic learn from a rollout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from transformers import TrainingArguments

from ..algorithms import ALGORITHMS, algorithm_named
from ..core.masking import LOSS_ITEMS
from ..experience import OLD_LOGPROBS
from .fields import setting


@dataclass
class UpdateSettings(TrainingArguments):
    """What `PolicyGradientConfig` says of advantages and of the optimiser's steps."""

    # The ways of updating the policy that the trainer of these settings knows.
    UPDATES: ClassVar[tuple[str, ...]] = ("gradient",)

    algorithm: str = setting("vpg", f"Row of ALGORITHMS: one of {', '.join(ALGORITHMS)}.", resumed=True, shown=True)
    gamma: float = setting(
        1.0, "Discount per token, 0 to 1. Below 1 a score counts less for long responses.", range="[0, 1]", shown=True
    )
    gae_lambda: float = setting(
        0.95,
        "GAE's λ, 0 (one-step, biased by the critic) to 1 (no bias, more variance).",
        range="[0, 1]",
        read_by="gae_lambda",
        shown=True,
    )
    bootstrap_truncated: bool = setting(
        False,
        "Value of a cut-off response's last state is the critic's, not 0.",
        read_by="bootstrap_values",
        shown=True,
    )
    whiten_advantages: bool | None = setting(
        None,
        "Centre advantages and scale them to variance 1 over the rollout. Default: as the algorithm's source does.",
        shown=True,
    )
    n_step: int = setting(
        5,
        "Tokens of reward before the critic takes over, in 'a2c'. Typical: 1 to 20.",
        range="[1, ∞)",
        whole=True,
        read_by="n_step",
        shown=True,
    )
    penalty_target: float = setting(
        0.01,
        "Nats per token of KL(old‖new) that the coefficient of 'ppo_penalty' aims at. Typical: 0.003 to 0.03.",
        range="(0, ∞)",
        read_by="penalty_coef",
        shown=True,
    )
    exclude_self: bool = setting(
        False,
        "Baselines over the batch leave an episode out of its own: unbiased, where the usual form is off by 1/m.",
        read_by="exclude_self",
        shown=True,
    )

    num_ppo_epochs: int | None = setting(
        None,
        "Passes over each rollout. Typical: 1 to 4; more than 1 needs a ratio (PPO). Default: the algorithm's.",
        range="[1, ∞)",
        whole=True,
        resumed=True,
        shown=True,
        follows=True,
    )
    value_epochs: int = setting(
        0,
        "Passes after those in which only the critic learns. Typical: 0 to 8.",
        range="[0, ∞)",
        whole=True,
        read_by="critic",
        resumed=True,
        shown=True,
        follows=True,
    )
    num_mini_batches: int = setting(
        1, "Optimiser steps per pass. Typical: 1 to 8.", range="[1, ∞)", whole=True, resumed=True, shown=True
    )
    clip_range: float = setting(
        0.2, "ε of the clipped ratio. Typical: 0.1 to 0.3.", range="(0, 1]", read_by="clip_range", shown=True
    )
    clip_range_high: float | None = setting(
        None, "Upper ε where it differs from clip_range.", range="(0, ∞)", read_by="clip_range_high", shown=True
    )
    dual_clip: float | None = setting(
        None,
        "c > 1: bounds the loss where A < 0 and the ratio is large. Typical: 3.",
        range="(1, ∞)",
        read_by="dual_clip",
        shown=True,
    )
    clip_range_value: float | None = setting(
        0.2,
        "Clip of value changes, in reward units. 0 or None: no clipping.",
        range="[0, ∞)",
        read_by="critic",
        shown=True,
    )
    vf_coef: float | None = setting(
        None,
        "Weight of the value loss. Default: 0.1 where there is a critic.",
        range="[0, ∞)",
        read_by="critic",
        shown=True,
        follows=True,
    )
    ent_coef: float = setting(
        0.0,
        "Weight of the entropy bonus (exact entropy, nats per token). Typical: 0 to 0.01.",
        range="[0, ∞)",
        shown=True,
    )
    target_kl: float | None = setting(
        None,
        "When KL(old‖new) passes 1.5 × this, the policy rests until the next rollout.",
        unit="nats per token",
        range="(0, ∞)",
    )
    value_learning_rate: float | None = setting(
        None, "Step size of the critic. Default: learning_rate.", range="[0, ∞)", read_by="critic", shown=True
    )
    critic_warmup_rollouts: int = setting(
        0,
        "Rollouts at the start in which only the critic learns.",
        range="[0, ∞)",
        whole=True,
        read_by="critic",
        follows=True,
    )
    max_tokens_per_micro_batch: int = setting(
        4096,
        "Padded tokens per forward and backward. Less memory when lower; the gradient stays the same.",
        range="[1, ∞)",
        whole=True,
    )
    max_skipped_updates: int = setting(
        10,
        "Updates in a row with a loss or gradient that is not finite, which are left out, before the run stops and "
        "writes the last one's batch to `broken_update` in output_dir. Typical: 3 to 20.",
        range="[1, ∞)",
        whole=True,
    )
    loss_normalization: str = setting(
        "tokens",
        "Losses are sums divided by all 'tokens' of the optimiser step, or by its 'episodes' (unbiased).",
        choices=LOSS_ITEMS,
        shown=True,
    )
    log_completions: bool = setting(
        True, "Keep a few responses per log in completions.jsonl, and show some before and after training."
    )
    save_curves: bool = setting(True, "Draw the log as curves.png in output_dir at the end.")
    save_logs: bool = setting(True, "Write trainer_state.json (every log) and the results' metrics at the end.")
    old_logprobs: str = setting(
        "recompute", "'recompute' with the training forward, or keep the 'sampler's.", choices=OLD_LOGPROBS
    )

    @property
    def clip_ranges(self) -> tuple[float, float]:
        """ε_low and ε_high of the clipped ratio."""
        return self.clip_range, self.clip_range if self.clip_range_high is None else self.clip_range_high

    @classmethod
    def runs(cls, algorithm: str) -> bool:
        """Whether the trainer of these settings runs the algorithm of that name."""
        return algorithm_named(algorithm).update in cls.UPDATES
