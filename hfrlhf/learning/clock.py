"""Which rollout, epoch and mini-batch an optimiser step belongs to, and who learns in it: the one place that knows.

The Trainer's step counter is the only clock. With M mini-batches, E epochs of the policy and K of the critic alone:
rollout r = step // ((E + K)·M), place in its cycle k = step % ((E + K)·M), epoch and mini-batch = divmod(k, M).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

from ..experience import Experience
from ..settings.policy_gradient import PolicyGradientConfig


class Phase(Enum):
    """Who learns in an optimiser step."""

    JOINT = "policy and critic"
    CRITIC = "the critic alone: in the warm-up, in the value epochs, or where something else moves the policy"
    REST = "neither policy nor trunk, stopped by `target_kl`; a critic that is apart goes on"


@dataclass(frozen=True)
class Moment:
    """What the clock says of one optimiser step.

    Args:
        rollout: r, rollouts behind us. k: steps of this rollout's cycle behind us. epoch, mini_batch: of that cycle.
        phase: who learns. warming_up: only the critic learns yet. policy_epochs_over: the rest of the cycle is the
            critic's. is_last: no later step uses this rollout.
    """

    rollout: int
    k: int
    epoch: int
    mini_batch: int
    phase: Phase
    warming_up: bool
    policy_epochs_over: bool
    is_last: bool

    @property
    def policy_rests(self) -> bool:
        """Whether the policy stays as it is in this step."""
        return self.phase is not Phase.JOINT


@dataclass(frozen=True)
class Clock:
    """A function of the step and of the settings.

    Args:
        policy_epochs: E. value_epochs: K. mini_batches: M. warmup_rollouts: at the start, for the critic alone.
        episodes: of one rollout, over all processes.
        policy_moves: whether the optimiser moves the policy; in TRPO a search does.
    """

    policy_epochs: int
    value_epochs: int
    mini_batches: int
    warmup_rollouts: int
    episodes: int
    policy_moves: bool = True

    @classmethod
    def of(cls, args: PolicyGradientConfig, policy_moves: bool = True) -> Clock:
        """The clock of a run's settings."""
        sizes = args.value_epochs, args.num_mini_batches, args.critic_warmup_rollouts, args.episodes_per_rollout
        return cls(args.policy_steps_per_rollout // args.num_mini_batches, *sizes, policy_moves)

    @property
    def steps(self) -> int:
        """Optimiser steps that use one rollout: (E + K)·M."""
        return (self.policy_epochs + self.value_epochs) * self.mini_batches

    def at(self, step: int, stopped: bool = False) -> Moment:
        """The moment before the optimiser step that comes after `step` others.

        Args:
            stopped: whether `target_kl` has stopped the policy until the next rollout.
        """
        rollout, k = divmod(step, self.steps)
        epoch, mini_batch = divmod(k, self.mini_batches)
        warming_up, over = rollout < self.warmup_rollouts, epoch >= self.policy_epochs
        phase = Phase.REST if stopped else Phase.JOINT
        if warming_up or over or not self.policy_moves:
            phase = Phase.CRITIC
        return Moment(rollout, k, epoch, mini_batch, phase, warming_up, over, is_last=k == self.steps - 1)

    def episodes_after(self, step: int) -> int:
        """Episodes of all rollouts made so far; the one in use counts whole."""
        return math.ceil(step / self.steps) * self.episodes


@dataclass(frozen=True)
class Cycle:
    """A rollout in use: what its optimiser steps share.

    Args:
        experience: of all processes. stopped: whether `target_kl` has put the policy to rest until the next rollout.
        started: when the first update began, on the clock of time.perf_counter. spent: seconds that sampling and
            scoring took before.
    """

    experience: Experience
    stopped: bool = False
    started: float = 0.0
    spent: float = 0.0
