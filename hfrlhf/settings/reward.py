"""Settings of the reward trainer: what `TrainingArguments` has, and seven fields more."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from transformers import TrainingArguments

from ..reporting.screen import RunWarning
from .checks import check_length, check_numbers, check_words
from .declarations import derived, plain, unset_settings, without_derived
from .fields import documented, setting
from .inherited import FOLLOWED_BY_REWARD, REWARD_REFUSED, check_accelerator_config, check_inherited
from .launch import check_launch
from .old_names import REWARD_SETTINGS
from .unknown_names import refuse_unknown


@documented
@dataclass
class RewardConfig(TrainingArguments):
    """Settings of `RewardTrainer`; every field says default, unit, typical range and effect in its help text.

    Raises:
        TypeError: names that are no fields (the message gives each one's name here, or the nearest).
        ValueError: a value outside its range, or a field of `TrainingArguments` that means nothing here.
    """

    # Other defaults than TrainingArguments.
    learning_rate: float = setting(
        1e-5,
        "Step size. Typical: 5e-6 to 2e-5 (billions of weights), 1e-4 to 1e-3 (LoRA, or models of a few million).",
        refusal="must be at least 0 and finite, got {}",
    )
    num_train_epochs: float = setting(1.0, "Passes over the pairs. Reward models overfit after the first or second.")
    per_device_train_batch_size: int = setting(
        8, "Pairs per forward and backward of each process.", resumed=True, shown=True
    )
    gradient_accumulation_steps: int = setting(
        1, "Micro-batches per optimiser step. More for a larger batch in the same memory.", shown=True
    )
    train_sampling_strategy: str = setting(
        "group_by_length",
        "'group_by_length' puts pairs of similar length into one batch (less padding, faster); 'random' does not.",
        resumed=True,
    )
    logging_steps: float = setting(
        10, "Optimiser steps between logs; a shorter run logs at its end. Below 1: a share of the run's steps."
    )
    logging_nan_inf_filter: bool = setting(False, "Hide NaN losses from the log. Off: a NaN should be seen.")

    max_length: int | None = setting(
        1024,
        "Tokens of prompt and response together, at most the model's own limit. Pairs with a longer side are left out, "
        "counted and reported. None: the model's limit.",
        range="[1, ∞)",
        whole=True,
        refusal="must be a whole number of tokens of at least 1, got {}",
        resumed=True,
        shown=True,
    )
    center_rewards_coefficient: float = setting(
        0.0,
        "c of the penalty c·(r_chosen + r_rejected)², which keeps scores around 0. Typical: 0 (off) to 0.01.",
        range="[0, ∞)",
        refusal="must be at least 0 and finite, got {}",
        shown=True,
    )
    label_smoothing: float = setting(
        0.0,
        "Assumed share of wrong labels, 0 to below 0.5. Typical: 0 (off) to 0.2. Bounds the scores on noisy pairs.",
        range="[0, 0.5)",
        refusal="is the assumed share of wrong labels, at least 0 and below 0.5, got {}; at 0.5 the labels would say "
        "nothing",
        shown=True,
    )
    normalize_scores: str | None = setting(
        "mean",
        "After training, shift the scores so that chosen responses have mean 0 ('mean'), also scale them to variance 1 "
        "('mean_std'), or leave them ('none').",
        choices=("mean", "mean_std", "none", None),
        refusal="must be 'mean', 'mean_std' or 'none', got {}",
        shown=True,
    )

    save_curves: bool = setting(True, "Draw the log as curves.png in output_dir at the end.")
    save_logs: bool = setting(True, "Write trainer_state.json (every log) and the results' metrics at the end.")
    max_skipped_updates: int = setting(
        10,
        "Updates in a row with a loss or gradient that is not finite, which are left out, before the run stops and "
        "writes the last one's batch to `broken_update` in output_dir. Typical: 3 to 20.",
        range="[1, ∞)",
        whole=True,
    )

    ELSEWHERE: ClassVar[Mapping[str, str]] = REWARD_SETTINGS

    def __new__(cls, *args: Any, **kwargs: Any) -> RewardConfig:
        """Refuse unknown names before dataclass's own, less helpful, error."""
        refuse_unknown(kwargs, cls.__init__, cls.ELSEWHERE, cls.__name__)
        return super().__new__(cls)

    def __post_init__(self) -> None:
        vars(self).update(without_derived(self))
        unset = unset_settings(self)
        check_inherited(self, FOLLOWED_BY_REWARD, REWARD_REFUSED, "RewardTrainer")
        check_words(self)
        check_numbers(self)
        check_length(self)
        if self.normalize_scores == "none":
            self.normalize_scores = None
        super().__post_init__()  # type: ignore[no-untyped-call]
        check_accelerator_config(self, "RewardTrainer")
        vars(self).update(derived(self, unset))
        check_launch(self)
        if self.save_only_model:
            warnings.warn(
                "`save_only_model=True`: a run cannot be resumed from such checkpoints", RunWarning, stacklevel=3
            )

    def to_dict(self) -> dict[str, Any]:
        """The fields and their values, as numbers, words and lists."""
        values: dict[str, Any] = super().to_dict()  # type: ignore[no-untyped-call]
        return {name: plain(value) for name, value in values.items()}
