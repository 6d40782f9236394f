"""What an algorithm does not go together with, refused at construction with what to do instead."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from ..algorithms import ALGORITHMS, Algorithm
from ..core.advantages import PSI, PsiOptions
from ..core.policy_losses import POLICY_LOSSES, PolicyLossOptions
from .checks import is_set

# What only a critic uses. A field counts as set where its value is not the default of the configuration's own class.
CRITIC_FIELDS = ("vf_coef", "value_learning_rate", "critic_warmup_rollouts", "clip_range_value", "value_epochs")

# Settings that some Ψ and losses read, and the option they read it from.
OPTION_FIELDS = {
    "gae_lambda": "gae_lambda",
    "n_step": "n_step",
    "exclude_self": "exclude_self",
    "bootstrap_truncated": "bootstrap_values",
    "clip_range": "clip_low",
    "clip_range_high": "clip_high",
    "dual_clip": "dual_clip",
    "penalty_target": "penalty_coef",
}

# Which trainer knows which update.
TRAINERS = {
    "gradient": "PolicyGradientTrainer with a PolicyGradientConfig",
    "natural": "TRPOTrainer with a TRPOConfig",
    "trust_region": "TRPOTrainer with a TRPOConfig",
}


def check_algorithm(args: Any, row: Algorithm) -> None:
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
    _check_critic(args, row)
    read = options_read(row)
    for field, option in OPTION_FIELDS.items():
        if option not in read and is_set(args, field):
            readers = [other for other, r in ALGORITHMS.items() if option in options_read(r)]
            raise ValueError(
                f"`{field}={getattr(args, field)!r}` would do nothing in `algorithm={name!r}`; leave it out, or use "
                f"one of {', '.join(readers)}"
            )


class _Watched:
    """Options that remember which of them were read."""

    def __init__(self, options: Any) -> None:
        self._options, self.read = options, set[str]()

    def __getattr__(self, name: str) -> Any:
        self.read.add(name)
        return getattr(self._options, name)


@cache
def options_read(row: Algorithm) -> frozenset[str]:
    """Which options an algorithm's Ψ and loss look at, found by letting them work on two responses of two tokens."""
    ones, rows = torch.ones(2, 2), torch.ones(2)
    tensors: dict[str, Any] = {"bootstrap_values": rows, "grad_sq_norms": rows, "best_values": ones}
    psi_options: Any = _Watched(PsiOptions(group_size=2, expected_values=ones, **tensors))
    loss_options: Any = _Watched(PolicyLossOptions())
    psi = PSI[row.psi](ones, ones, ones.bool(), psi_options)
    POLICY_LOSSES[row.loss](ones, ones, psi, loss_options)
    return frozenset(psi_options.read | loss_options.read)


def check_steps(args: Any, row: Algorithm) -> None:
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


def _check_critic(args: Any, row: Algorithm) -> None:
    for field in CRITIC_FIELDS:
        if row.critic is None and is_set(args, field):
            raise ValueError(
                f"`algorithm={args.algorithm!r}` has no critic, so `{field}={getattr(args, field)!r}` would do "
                "nothing; leave it out, or use an algorithm with a critic, such as 'vpg' or 'ppo_clip'"
            )


def switched_off(args: Any, row: Algorithm) -> dict[str, Any]:
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
