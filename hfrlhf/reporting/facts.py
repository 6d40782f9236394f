"""What reports read of a run: narrow faces of the trainers, which this room does not know.

A trainer is handed to a report under one of these names, and mypy sees there that it has what the report reads. All of
it is read only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sized
from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import nn
from transformers import TrainerCallback, TrainerState, TrainingArguments

from ..algorithms import Algorithm
from ..data.prompts import PromptSet
from ..experience import Prompts, Rollout
from ..models.policy.actor_critic import ActorCritic
from ..models.policy.reference import Reference
from ..rewards.completions import Completions
from ..rewards.sources import WeightedSum
from ..settings.policy_gradient import PolicyGradientConfig
from ..settings.reward import RewardConfig

# A row of a table of samples: prompt, completion, score and what else there is to show.
Sample = dict[str, Any]


class HasCallbacks(Protocol):
    """A Trainer as far as its callbacks go."""

    def pop_callback(self, callback: type[TrainerCallback]) -> TrainerCallback | None:
        """Take the callback of this class away, if there is one."""

    def add_callback(self, callback: TrainerCallback) -> None:
        """Add a callback."""


class Stop(Protocol):
    """Whether a signal has stopped a run."""

    @property
    def stopped_at(self) -> int | None:
        """The step after which it did."""


class Output(Protocol):
    """What `Trainer.train` gives back."""

    @property
    def metrics(self) -> dict[str, float]:
        """Of the whole training."""


class HasFolder(Protocol):
    """A run with a folder, in which its first process writes."""

    @property
    def args(self) -> TrainingArguments:
        """The settings."""

    def is_world_process_zero(self) -> bool:
        """Whether this process is the one that writes."""


class Logged(HasFolder, Protocol):
    """A run whose log and metrics can be saved."""

    @property
    def state(self) -> TrainerState:
        """Step and log."""

    @property
    def is_in_train(self) -> bool:
        """Whether it is training."""

    @property
    def interruption(self) -> Stop:
        """Whether a signal has stopped it."""

    def save_metrics(self, split: str, metrics: dict[str, float], combined: bool = True) -> None:
        """Write `<split>_results.json`."""

    def save_state(self) -> None:
        """Write `trainer_state.json`."""


class Planned(Protocol):
    """A policy's run as far as its length goes."""

    @property
    def args(self) -> PolicyGradientConfig:
        """The settings."""

    def planned_steps(self) -> int:
        """Optimiser steps of the whole run."""


class PolicyRun(Planned, Protocol):
    """A policy's run: what it is made of, and what it has said so far."""

    @property
    def algorithm(self) -> Algorithm:
        """Its row of `ALGORITHMS`."""

    @property
    def prompts(self) -> PromptSet:
        """What it trains on."""

    @property
    def reference(self) -> Reference:
        """π_ref."""

    @property
    def reward(self) -> WeightedSum:
        """The rewards and their weights."""

    @property
    def state(self) -> TrainerState:
        """Step and log."""

    @property
    def samples(self) -> list[Sample]:
        """A few completions of the newest rollout, with their scores."""

    @property
    def card(self) -> dict[str, Any]:
        """What a recipe knows and the model card should say: fields of `CardFacts`."""

    def unwrapped(self) -> ActorCritic:
        """Policy and critic."""


class SamplingRun(PolicyRun, Protocol):
    """A policy's run that can sample: responses, and what rewards see of them."""

    @property
    def eval_prompts(self) -> PromptSet | dict[str, PromptSet] | None:
        """What it is evaluated on."""

    def whole_model(self) -> AbstractContextManager[None]:
        """A block in which every process holds the whole policy."""

    def generate(self, prompts: Prompts, address: tuple[int, ...]) -> Rollout:
        """One response per prompt, its randomness a function of the address."""

    def describe(self, rollout: Rollout, prompts: PromptSet) -> Completions:
        """The rollout as rewards see it."""


class ComparedRun(PolicyRun, Protocol):
    """A policy's run that was sampled before and after."""

    @property
    def comparison(self) -> HasRows:
        """The samples, once there are some of both."""


class HasRows(Protocol):
    """Rows of a table."""

    @property
    def rows(self) -> list[Sample]:
        """A sample each."""


class Unwraps(Protocol):
    """accelerate's `Accelerator`, as far as it knows the model under its wrappers."""

    def unwrap_model(self, model: nn.Module) -> Any:
        """The model itself."""


class PairsRun(Protocol):
    """The training of a reward model."""

    @property
    def args(self) -> RewardConfig:
        """The settings."""

    @property
    def accelerator(self) -> Unwraps:
        """Takes the model out of its wrappers."""

    @property
    def model(self) -> nn.Module:
        """The reward model, wrapped or not."""

    @property
    def train_dataset(self) -> Sized:
        """The tokenised pairs."""

    @property
    def max_length(self) -> int:
        """Tokens of a prompt and a response together, at most."""

    @property
    def dropped(self) -> Mapping[str, int]:
        """Pairs left out as too long, by dataset."""

    def planned_steps(self) -> int:
        """Optimiser steps of the whole run."""


class JudgedPairs(PairsRun, Protocol):
    """The training of a reward model, with what it has said so far."""

    @property
    def state(self) -> TrainerState:
        """Step and log."""

    @property
    def card(self) -> dict[str, Any]:
        """What a recipe knows and the model card should say: fields of `CardFacts`."""
