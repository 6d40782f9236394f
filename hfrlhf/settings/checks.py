"""Values that are refused whatever the algorithm: outside what their setting declares, or against one another."""

from __future__ import annotations

import math
import warnings
from numbers import Integral, Real
from typing import Any

from transformers import TrainingArguments

from ..core.kl import KL_PLACES, kl_lacks
from ..reporting.screen import RunWarning
from .declarations import declarations, default_of
from .fields import Interval, Setting
from .rollouts import RolloutSettings


def is_set(args: TrainingArguments, name: str) -> bool:
    """Whether a field has another value than its class has by default; a subclass may have defaults of its own."""
    return bool(getattr(args, name) != default_of(args, name))


def _is_finite_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def check_numbers(args: TrainingArguments) -> None:
    """Refuse numbers outside the range that their setting declares.

    Raises:
        ValueError: the message names the setting, its range and what was passed.
    """
    for name, declared in declarations(type(args)).items():
        value: Any = getattr(args, name)
        if value is None or not (declared.range or declared.whole):
            continue
        wrong = _what_is_wrong(value, declared)
        if wrong:
            raise ValueError(f"`{name}` " + (declared.refusal or f"must be {wrong}, got {{}}").format(repr(value)))


def _what_is_wrong(value: Any, declared: Setting) -> str:
    """What a number should be and is not; empty where it is."""
    if not _is_finite_number(value):
        return "a finite number"
    if declared.range and value not in Interval(declared.range):
        return str(Interval(declared.range))
    # Of ours, numbers of things are counted with; those of transformers may be written with a point, as in YAML.
    is_whole = isinstance(value, Integral) if declared.text else value % 1 == 0
    return "a whole number" if declared.whole and not is_whole else ""


def check_words(args: TrainingArguments) -> None:
    """Refuse words that are none of those that their setting declares.

    Raises:
        ValueError: the message lists the words.
    """
    for name, declared in declarations(type(args)).items():
        value, words = getattr(args, name), tuple(declared.choices)
        if type(args).__dataclass_fields__[name].default is None and None not in words:
            words = (None, *words)
        if declared.choices and value not in words:
            raise ValueError(
                f"`{name}` " + (declared.refusal or f"must be one of {words}, got {{}}").format(repr(value))
            )


def check_rewards_and_precision(args: RolloutSettings) -> None:
    """Refuse weights that are no numbers, and float16 where updates are left out.

    Raises:
        ValueError: the message says what to set instead.
    """
    weights = args.reward_weights
    weights = list(weights) if isinstance(weights, list | tuple) else [] if weights is None else [weights]
    if not all(map(_is_finite_number, weights)):
        raise ValueError(f"`reward_weights` must be finite numbers, one per reward, got {args.reward_weights!r}")
    if args.fp16 and (args.target_kl is not None or args.critic_warmup_rollouts or args.value_epochs):
        raise ValueError(
            "`fp16` cannot leave an update out, as `target_kl`, the critic's warm-up and `value_epochs` do; use `bf16`"
        )


def check_length(args: TrainingArguments) -> None:
    """Refuse a run of no length.

    Raises:
        ValueError: neither `max_steps` nor `num_train_epochs` says how long to train.
    """
    if args.max_steps == 0 or args.max_steps < -1:
        raise ValueError(
            f"`max_steps` must be at least 1, or -1 for as many as `num_train_epochs` gives, got {args.max_steps!r}"
        )
    if args.max_steps < 0 and args.num_train_epochs <= 0:
        raise ValueError(
            f"`num_train_epochs={args.num_train_epochs!r}` trains nothing; set it above 0, or `max_steps` to at least 1"
        )


def check_kl_settings(args: RolloutSettings) -> None:
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


def batch_sizes(args: RolloutSettings) -> dict[str, int]:
    """rollout = micro-batch × accumulation × processes × mini-batches, whichever side is given.

    Raises:
        ValueError: the product does not hold; the message says which sizes would do.
    """
    given = args.rollout_batch_size
    size = args.per_device_train_batch_size * args.episodes_per_row if given is None else given
    check_batches(args, size)
    evaluated: int | None = args.per_device_eval_batch_size
    return {
        "rollout_batch_size": size,
        "per_device_train_batch_size": size // args.episodes_per_row,
        "per_device_eval_batch_size": math.ceil(size / args.world_size) if evaluated is None else evaluated,
    }


def check_batches(args: RolloutSettings, size: int) -> None:
    """Refuse batch sizes whose product does not hold.

    Args:
        args: settings. size: episodes of a rollout.

    Raises:
        ValueError: the message says which sizes would do.
    """
    per_row = args.episodes_per_row
    if size % args.num_mini_batches:
        fitting = [m for m in range(1, size + 1) if size % m == 0]
        nearest = sorted(fitting, key=lambda m: abs(m - args.num_mini_batches))[:2]
        raise ValueError(
            f"`num_mini_batches={args.num_mini_batches}` does not divide the rollout of {size} sequences; use "
            f"{' or '.join(map(str, sorted(nearest)))}, or another `rollout_batch_size`"
        )
    if size % per_row:
        raise ValueError(
            f"`rollout_batch_size={size}` is not a multiple of {per_row} = gradient_accumulation_steps "
            f"{args.gradient_accumulation_steps} × processes {args.world_size} × num_mini_batches "
            f"{args.num_mini_batches}; use {per_row * max(1, size // per_row)} or {per_row * (size // per_row + 1)}"
        )
    given = args.per_device_train_batch_size
    if is_set(args, "per_device_train_batch_size") and given != size // per_row:
        raise ValueError(
            f"`rollout_batch_size={size}` and `per_device_train_batch_size={given}` disagree: the latter would "
            f"have to be {size // per_row}; give one of the two"
        )
    if size % args.num_generations:
        raise ValueError(
            f"`num_generations={args.num_generations}` does not divide the rollout of {size} sequences; each "
            "prompt has that many responses"
        )
