"""What a reward source is, what it is made with, and what a run tells it.

To add a kind of source: a file with a subclass of `RewardSource`, and a row in `KINDS` of `sources.py`. What a kind
does not say, it does as the base class does; the trainers ask, and never look which kind it is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from datasets import Dataset
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from typing_extensions import Self

from ..data.prompts import PromptSet
from .completions import Completions
from .notes import RewardNotes


@dataclass(frozen=True)
class Offer:
    """What a source may be made with, beside what was passed as one of `reward_funcs`.

    Args:
        policy_tokenizer: which writes the completions' ids. tokenizer: given for this source; None where none was.
        policy: with its adapter, if it has one. max_tokens: padded tokens per forward of a model. timeout: seconds that
            a function may take; None for no limit.
    """

    policy_tokenizer: PreTrainedTokenizerBase
    tokenizer: PreTrainedTokenizerBase | None = None
    policy: PreTrainedModel | PeftModel | None = None
    max_tokens: int = 4096
    timeout: float | None = None


@dataclass(frozen=True)
class RewardRun:
    """What a run tells its reward sources before the first rollout.

    Args:
        datasets: the rows whose columns they will see, by name. notes: what functions may note beside their scores.
        together: a block in which the error of one process is every process's.
    """

    datasets: Mapping[str, Dataset]
    notes: RewardNotes
    together: Callable[[], AbstractContextManager[None]]


class RewardSource(ABC):
    """Scores completions. `name` labels its mean in the metrics.

    Class attributes: answers_again, whether asking once more costs nothing and gives the same score, so that it may be
    tried at the start and may score the samples that are compared (a function may cost money, or count its calls).
    """

    name: str
    answers_again: ClassVar[bool] = False

    @classmethod
    @abstractmethod
    def takes(cls, given: Any, offer: Offer) -> bool:
        """Whether one of `reward_funcs` is of this kind; asked in the order of the table."""

    @classmethod
    @abstractmethod
    def of(cls, given: Any, offer: Offer) -> Self:
        """The source for one of `reward_funcs` that `takes` took."""

    def rename(self, name: str) -> None:
        """Take another name, where a source before this one has the same."""
        self.name = name

    @abstractmethod
    def __call__(self, completions: Completions) -> Tensor:
        """[B] float32 scores; NaN where this source has no opinion."""

    @property
    def described(self) -> str:
        """What it is, for the report at the start."""
        return self.name

    @property
    def own_models(self) -> tuple[nn.Module, ...]:
        """Models that are in memory for it alone."""
        return ()

    def to(self, device: torch.device) -> None:
        """Bring what it computes with to the device where the run computes."""
        return

    def check_prompts(self, prompts: PromptSet, dataset: str, completion: int) -> None:
        """Refuse prompts that it could not read, before anything is trained.

        Args:
            prompts: of the dataset that is called so. completion: tokens a response may have.
        """
        return

    def join(self, run: RewardRun) -> None:
        """Hear what a run tells its sources; refuse datasets whose columns it cannot be given."""
        return

    def without_ending(self, completions: Completions, rows: Tensor) -> float | None:
        """The sum of what it would say of some rows without the ending that a response was trained to have.

        None where it reads no ending.
        """
        return None
