"""What an algorithm does not go together with, refused at construction with what to do instead."""

from __future__ import annotations

from typing import Any

from ..algorithms import ALGORITHMS, Algorithm
from .checks import is_set
from .declarations import declarations
from .rollouts import RolloutSettings

# Which trainer knows which update.
TRAINERS = {
    "gradient": "PolicyGradientTrainer with a PolicyGradientConfig",
    "natural": "TRPOTrainer with a TRPOConfig",
    "trust_region": "TRPOTrainer with a TRPOConfig",
}


def check_algorithm(args: RolloutSettings, row: Algorithm) -> None:
    """Refuse settings that the algorithm has no use for, or that would make it another one.

    Raises:
        ValueError: the message says which, and what to do.
    """
    name = args.algorithm
    if row.update not in args.UPDATES:
        raise ValueError(f"`algorithm={name!r}` takes {row.update} steps: use {TRAINERS[row.update]}")
    epochs = row.epochs if args.num_ppo_epochs is None else args.num_ppo_epochs
    if epochs * args.num_mini_batches != 1 and not row.reuses_rollouts:
        raise ValueError(
            f"`algorithm={name!r}` is on-policy: it takes one step of the policy per rollout, not num_ppo_epochs × "
            f"num_mini_batches = {epochs} × {args.num_mini_batches}; set both to 1, or use 'ppo_clip'"
        )
    if "groups" in row.needs and args.num_generations < 2:
        raise ValueError(
            f"`algorithm={name!r}` compares the responses to one prompt, but `num_generations={args.num_generations}`; "
            "use at least 2, typically 4 to 16"
        )
    _check_readers(args, row)


def unread_settings(args: RolloutSettings, row: Algorithm) -> list[str]:
    """The settings that would do nothing: what only a critic, or an option of another Ψ or loss, reads."""
    return [name for name, declared in declarations(type(args)).items() if not _reads(row, declared.read_by)]


def _reads(row: Algorithm, read_by: str) -> bool:
    return row.critic is not None if read_by == "critic" else not read_by or read_by in row.options


def _check_readers(args: RolloutSettings, row: Algorithm) -> None:
    """Refuse settings that would do nothing."""
    for name in filter(lambda name: is_set(args, name), unread_settings(args, row)):
        read_by, said = declarations(type(args))[name].read_by, f"`{name}={getattr(args, name)!r}` would do nothing"
        if read_by == "critic":
            raise ValueError(
                f"`algorithm={args.algorithm!r}` has no critic, so {said}; leave it out, or use an algorithm with a "
                "critic, such as 'vpg' or 'ppo_clip'"
            )
        readers = [other for other, other_row in ALGORITHMS.items() if _reads(other_row, read_by)]
        raise ValueError(f"{said} in `algorithm={args.algorithm!r}`; leave it out, or use one of {', '.join(readers)}")


def check_steps(args: RolloutSettings, row: Algorithm) -> None:
    """Refuse what the batch arithmetic of the settings leaves no room for.

    Raises:
        ValueError: `target_kl` where there is no second step to stop, or a baseline over a batch of one.
    """
    if args.target_kl is not None and args.policy_steps_per_rollout == 1:
        raise ValueError(
            f"`target_kl={args.target_kl!r}` stops the later steps on a rollout, but `algorithm={args.algorithm!r}` "
            "takes only one here; leave it out, or raise `num_ppo_epochs` of an algorithm that allows it"
        )
    if "batch" in row.needs and args.episodes_per_rollout < 2:
        raise ValueError(
            f"`algorithm={args.algorithm!r}` compares the episodes of a rollout, but `rollout_batch_size="
            f"{args.episodes_per_rollout}`; use at least 2, typically 32 or more"
        )


def switched_off(args: RolloutSettings, row: Algorithm) -> dict[str, Any]:
    """Steps and stops that a class of settings has by default and the algorithm has no use for: field -> off.

    A subclass may have a warm-up of the critic by default; without a critic those rollouts would be idle.
    """
    off: dict[str, Any] = {} if row.critic else {"critic_warmup_rollouts": 0, "value_epochs": 0}
    if args.policy_steps_per_rollout == 1:
        off["target_kl"] = None
    return {name: value for name, value in off.items() if not is_set(args, name)}


def check_value_model(value_model: Any, algorithm: str, row: Algorithm) -> None:
    """Refuse a critic of its own where there is none, or where it has to be a head on the policy's trunk.

    Raises:
        ValueError: `value_model` was passed and the algorithm has no use for it.
    """
    if value_model is not None and row.critic != "V":
        has = "no critic" if row.critic is None else "its Q head on the policy's own trunk"
        raise ValueError(f"`algorithm={algorithm!r}` has {has}; leave `value_model` out, or use 'vpg' or 'ppo_clip'")
