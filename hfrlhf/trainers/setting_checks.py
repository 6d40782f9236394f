"""The range of every number among the settings, and what is refused whatever the algorithm."""

from __future__ import annotations

import math
from dataclasses import MISSING
from numbers import Real
from typing import Any

INF = float("inf")
# Numbers of things.
COUNTS = (
    *("num_ppo_epochs", "num_mini_batches", "num_generations", "max_prompt_length", "max_completion_length"),
    *("rollout_batch_size", "critic_warmup_rollouts", "max_tokens_per_micro_batch", "gradient_accumulation_steps"),
    *("max_skipped_updates", "n_step", "value_epochs", "cg_iterations", "max_backtracks"),
)
# Each number's range: low, high, and whether low itself is excluded.
RANGES = {
    "learning_rate": (0, INF, False),
    "value_learning_rate": (0, INF, False),
    "rollout_batch_size": (1, INF, False),
    "num_generations": (1, INF, False),
    "max_prompt_length": (1, INF, False),
    "max_completion_length": (1, INF, False),
    "temperature": (0, INF, True),
    "missing_eos_penalty": (0, INF, False),
    "reward_clip": (0, INF, True),
    "reward_timeout": (0, INF, True),
    "max_skipped_updates": (1, INF, False),
    "kl_coef": (0, INF, False),
    "kl_target": (0, INF, True),
    "kl_limit": (0, INF, True),
    "kl_horizon": (0, INF, True),
    "gamma": (0, 1, False),
    "gae_lambda": (0, 1, False),
    "num_ppo_epochs": (1, INF, False),
    "value_epochs": (0, INF, False),
    "n_step": (1, INF, False),
    "penalty_target": (0, INF, True),
    "max_kl": (0, INF, True),
    "cg_iterations": (1, INF, False),
    "cg_damping": (0, INF, False),
    "max_backtracks": (1, INF, False),
    "num_mini_batches": (1, INF, False),
    "clip_range": (0, 1, True),
    "clip_range_high": (0, INF, True),
    "dual_clip": (1, INF, True),
    "clip_range_value": (0, INF, False),
    "vf_coef": (0, INF, False),
    "ent_coef": (0, INF, False),
    "target_kl": (0, INF, True),
    "critic_warmup_rollouts": (0, INF, False),
    "max_tokens_per_micro_batch": (1, INF, False),
    "max_grad_norm": (0, INF, False),
    "weight_decay": (0, INF, False),
    "adam_epsilon": (0, INF, True),
    "gradient_accumulation_steps": (1, INF, False),
    "per_device_train_batch_size": (1, INF, False),
}


def is_set(args: Any, name: str) -> bool:
    """Whether a field has another value than its class has by default; a subclass may have defaults of its own."""
    declared = type(args).__dataclass_fields__[name]
    default = declared.default if declared.default_factory is MISSING else declared.default_factory()
    return bool(getattr(args, name) != default)


def _is_finite_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def check_ranges(args: Any) -> None:
    """Refuse numbers outside their range, and switches that cannot be honoured.

    Raises:
        ValueError: the message names the setting, its range and what was passed.
    """
    for name, (low, high, open_low) in RANGES.items():
        value: Any = getattr(args, name, None)
        if value is None:
            continue
        if not _is_finite_number(value):
            raise ValueError(f"`{name}` must be a finite number, got {value!r}")
        if not (low < value if open_low else low <= value) or not value <= high:
            bounds = f"{'above' if open_low else 'at least'} {low:g}" + (f", at most {high:g}" if high < INF else "")
            raise ValueError(f"`{name}` must be {bounds}, got {value!r}")
    for name in COUNTS:
        if getattr(args, name, None) is not None and not isinstance(getattr(args, name), int):
            raise ValueError(f"`{name}` must be a whole number, got {getattr(args, name)!r}")
    if not all(math.isfinite(weight) for weight in args.reward_weights or []):
        raise ValueError(f"`reward_weights` must be finite numbers, got {args.reward_weights!r}")
    if args.fp16 and (args.target_kl is not None or args.critic_warmup_rollouts or args.value_epochs):
        raise ValueError(
            "`fp16` cannot leave an update out, as `target_kl`, the critic's warm-up and `value_epochs` do; use `bf16`"
        )
    if args.remove_unused_columns:
        raise ValueError("`remove_unused_columns` must stay False: reward functions see the dataset's columns")
