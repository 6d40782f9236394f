"""What reward models have in common, with weights of their own or on the policy's base."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging

from ..data.prompts import PromptSet
from ..models.reward.adapter import OWN_BASE
from .completions import Completions
from .reading import Reader, padded, scores_of
from .source import RewardSource

logger = logging.get_logger(__name__)

PROMPTS_TRIED = 32


class ModelSource(RewardSource):
    """Scores what its `reader` reads of completions; a subclass says by `score` what it gives for token ids."""

    answers_again: ClassVar[bool] = True
    reader: Reader
    max_tokens: int

    def __call__(self, completions: Completions) -> Tensor:
        """[B] scores."""
        scores = self.scores([row.ids for row in self.reader.read(completions)])
        return scores.to(completions.rollout.input_ids.device)

    def scores(self, rows: list[list[int]]) -> Tensor:
        """[B] scores of rows of token ids, a few of similar length at a time."""
        return scores_of(rows, self.max_tokens, self.score)

    @abstractmethod
    def score(self, ids: Tensor, mask: Tensor) -> Tensor:
        """[b] scores of ids [b,L] and mask [b,L], real tokens first."""

    def without_ending(self, completions: Completions, rows: Tensor) -> float:
        """The sum of the scores of some rows without the ending of its training."""
        if not len(rows):
            return 0.0
        readings = self.reader.read(completions)
        bare = [[*readings[row].prompt, *readings[row].content] or readings[row].ids for row in rows.tolist()]
        return float(self.scores(bare).double().sum())

    def check_prompts(self, prompts: PromptSet, dataset: str, completion: int) -> None:
        """Let it read some of the prompts: the longest, and some from all over the dataset.

        Raises:
            ValueError: chats, and its tokenizer has no chat template; a template that cannot render them; or more
                tokens than it has positions for.
        """
        longest = sorted(range(len(prompts.ids)), key=lambda row: -len(prompts.ids[row]))[:PROMPTS_TRIED]
        spread = torch.linspace(0, len(prompts.ids) - 1, PROMPTS_TRIED).long().tolist()
        beside = self._try_reading(prompts, dataset, sorted({*longest, *spread}))
        self._check_length(beside, completion, dataset)

    def _check_length(self, beside: int, completion: int, dataset: str) -> None:
        """Refuse what cannot be read; warn of what may not be: another tokenizer makes other tokens of a response.

        Args:
            beside: tokens of the longest prompt and of a response's ending.
        """
        most = self.reader.positions
        if most is None or beside + completion <= most:
            return
        said = (
            f"the longest prompt of the {dataset} and the ending of a response are {beside} tokens for the reward "
            f"model {self.name!r}, which has positions for {most}, and max_completion_length={completion}"
        )
        if self.reader.shares_ids or beside >= most:
            raise ValueError(f"{said}; set a lower `max_prompt_length` or `max_completion_length`")
        logger.warning(f"{said}: of responses that are too long in its tokens, the prompt's beginning will not be read")

    def _try_reading(self, prompts: PromptSet, dataset: str, rows: list[int]) -> int:
        """How many tokens the longest of some rows has beside its response: prompt and ending."""
        some = prompts.rows.select(rows)
        answer: Any = [{"role": "assistant", "content": "a"}] if prompts.is_chat else " a"
        columns = {column: some[column][:] for column in some.column_names if column != "prompt"}
        if prompts.is_chat and not self.reader.tokenizer.chat_template:
            raise ValueError(
                f"the {dataset} holds chat messages, but the tokenizer of the reward model {self.name!r} has no "
                "chat template, so that nobody can say how it was trained to read a chat: set `chat_template` of its "
                "tokenizer, and pass that as `reward_processing_classes`"
            )
        try:
            encoded = self.reader.in_training(some["prompt"][:], [answer] * len(rows), columns)
            return max(len(row.head) + len(row.tail[1:] if row.ending is None else row.ending) for row in encoded)
        except Exception as error:  # a template is a program, and may raise what it likes
            raise ValueError(
                f"the chat template of the reward model {self.name!r} cannot render the {dataset}: "
                f"{type(error).__name__}: {error}"
            ) from error

    def _inputs(self, completions: Completions) -> tuple[Tensor, Tensor]:
        """ids [B,L] and mask [B,L], real tokens first: what is scored, to look at."""
        return padded([row.ids for row in self.reader.read(completions)])


def asks_for_own_base(given: Any) -> bool:
    """Whether a reward is the name of an adapter that is to get a base of its own."""
    return isinstance(given, str) and given.startswith(OWN_BASE)


def saved_tokenizer(name: str) -> PreTrainedTokenizerBase | None:
    """The tokenizer that was saved with a model; None where it was saved without: trained with the policy's."""
    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False) if name else None
    except (OSError, ValueError):
        return None
