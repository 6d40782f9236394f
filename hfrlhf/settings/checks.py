"""The range of every number among the settings, and what is refused whatever the algorithm."""

from __future__ import annotations

import math
import warnings
from numbers import Real
from typing import Any

from ..core.kl import KL_ESTIMATORS, KL_PLACES, kl_lacks
from ..core.masking import LOSS_ITEMS
from ..experience import OLD_LOGPROBS
from ..reporting.screen import RunWarning
from .derived import default_of

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
    return bool(getattr(args, name) != default_of(args, name))


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
    weights = args.reward_weights
    weights = list(weights) if isinstance(weights, list | tuple) else [] if weights is None else [weights]
    if not all(map(_is_finite_number, weights)):
        raise ValueError(f"`reward_weights` must be finite numbers, one per reward, got {args.reward_weights!r}")
    if args.fp16 and (args.target_kl is not None or args.critic_warmup_rollouts or args.value_epochs):
        raise ValueError(
            "`fp16` cannot leave an update out, as `target_kl`, the critic's warm-up and `value_epochs` do; use `bf16`"
        )


def check_choices(args: Any) -> None:
    """Refuse words that name no row of their table.

    Raises:
        ValueError: the message lists the words.
    """
    choices = {
        "kl_estimator": (None, *KL_ESTIMATORS),
        "kl_in": tuple(KL_PLACES),
        "loss_normalization": tuple(LOSS_ITEMS),
        "old_logprobs": tuple(OLD_LOGPROBS),
    }
    for name, allowed in choices.items():
        if getattr(args, name) not in allowed:
            raise ValueError(f"`{name}` must be one of {allowed}, got {getattr(args, name)!r}")


def check_kl_settings(args: Any) -> None:
    """Refuse settings of the KL that do not go together, warn of those that seldom do.

    Raises:
        ValueError: an estimator without the gradient of the KL as a loss, or a horizon too short for the rollouts.
    """
    lacks = kl_lacks(args.estimator, args.kl_in)
    if lacks and args.kl_in == "loss":
        raise ValueError(
            f"`kl_estimator={args.estimator!r}` as a loss does not have the gradient of the KL: {lacks}; use "
            f"{KL_PLACES['loss']!r} with `kl_in='loss'`"
        )
    if lacks:
        warnings.warn(
            f"`kl_estimator={args.estimator!r}` in the {args.kl_in} is there to reproduce other work: {lacks}; "
            f"{KL_PLACES[args.kl_in]!r} has all of it",
            RunWarning,
            stacklevel=4,
        )
    if args.kl_limit is not None and args.save_total_limit == 1:
        warnings.warn(
            "`save_total_limit=1` with `kl_limit`: the one checkpoint kept may be that of a policy that has run "
            "away since the last rollout; keep two or more",
            RunWarning,
            stacklevel=4,
        )
    if args.kl_target is not None and args.episodes_per_rollout >= 5 * args.kl_horizon:
        raise ValueError(
            f"`kl_horizon={args.kl_horizon:g}` episodes is too short for rollouts of {args.rollout_batch_size}: "
            f"the coefficient could reach 0 in one update; use more than {args.episodes_per_rollout / 5:g}"
        )
