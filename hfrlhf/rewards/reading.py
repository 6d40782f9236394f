"""What a reward model reads of a response: the same tokens in PPO, in evaluation and in the demo as in its training.

    prompt (as its own tokenizer and chat template write it) · content · the ending of its training

The ending closes every response, also one that was cut off at the length limit; the policy's stop token, which may be
another, is no content. The content is the policy's own tokens, exactly as sampled, wherever they mean to the reward
model what they mean to the policy. That is not concluded from settings but seen, row by row: the text is rendered and
encoded as in training, and where the policy's tokens stand at the same place of the same text, they are taken instead.
Hence neither a template nor a BOS, an ending, or blanks that a template trims can differ unnoticed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from ..data.responses import Encoded, encode_parts
from ..data.templates import template_options
from ..data.written import content, written
from ..experience import chunks_by_length
from ..models.anatomy.positions import positions_of
from ..models.anatomy.sizes import embeddings_of
from ..models.reward.scoring import ends_with_eos
from .completions import Completions

logger = logging.get_logger(__name__)


@dataclass
class Reader:
    """Turns completions into the token ids that a reward model scores.

    Args:
        tokenizer: the reward model's, with its chat template. policy_tokenizer: which wrote the completions' ids.
        vocabulary: number of the reward model's embeddings; no id beyond reaches it.
        eos: whether it was trained on responses that end with EOS, as ours and TRL's are.
        positions: how many tokens it can read; of a longer row the beginning is left out.
    """

    tokenizer: PreTrainedTokenizerBase
    policy_tokenizer: PreTrainedTokenizerBase
    vocabulary: int
    eos: bool = True
    positions: int | None = None
    known: set[int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        vocab, policy_vocab = self.tokenizer.get_vocab(), self.policy_tokenizer.get_vocab()
        self.known = {i for i in vocab.values() if i < self.vocabulary}
        self.shares_ids = policy_vocab.items() <= vocab.items()  # it may have more, a pad token of its own say

    @classmethod
    def of(
        cls,
        model: PreTrainedModel | PeftModel,
        tokenizer: PreTrainedTokenizerBase,
        policy_tokenizer: PreTrainedTokenizerBase,
    ) -> Reader:
        """The reader of a reward model."""
        eos, positions = ends_with_eos(model.config), positions_of(model)
        return cls(tokenizer, policy_tokenizer, embeddings_of(model), eos, positions)

    def read(self, completions: Completions) -> list[Reading]:
        """What is read of each row."""
        rows = self.in_training(completions.prompts, completions.completions, completions.columns)
        readings = [Reading(*self._known(row.head, *_split(row))) for row in rows]
        if not self.shares_ids:
            return [self._fitting(reading) for reading in readings]
        ended = completions.rollout.terminated.tolist()
        own = self._known(*content(self.policy_tokenizer, completions.completion_ids, ended))
        for i in self._in_the_same_place(rows, completions.rollout.prompt_lists(), own):
            readings[i] = Reading(readings[i].prompt, own[i], readings[i].ending)
        return [self._fitting(reading) for reading in readings]

    def _fitting(self, reading: Reading) -> Reading:
        """The same where the model has positions for it, else its end: the score is read at the last token."""
        over = len(reading.ids) - (self.positions or len(reading.ids))
        if over <= 0:
            return reading
        logger.warning_once(
            f"a response is {len(reading.ids)} tokens long for a reward model that has positions for {self.positions}: "
            "of such ones the beginning of the prompt is not read (said once); lower `max_completion_length` or "
            "`max_prompt_length`"
        )
        prompt, rest = reading.prompt[over:], max(0, over - len(reading.prompt))
        return Reading(prompt, reading.content[rest:], reading.ending)

    def _known(self, *parts: list[int]) -> list[list[int]]:
        """The parts without ids that the reward model has no embedding, or its tokenizer no token for."""
        return [[token for token in ids if token in self.known] for ids in parts]

    def in_training(
        self, prompts: Sequence[Any], completions: Sequence[Any], columns: Mapping[str, Sequence[Any]]
    ) -> list[Encoded]:
        """Texts or chats as reward training would encode them.

        Args:
            columns: of the dataset; those that a chat template reads are used.
        """
        kind = "chat" if prompts and not isinstance(prompts[0], str) else "text"
        options = template_options(columns, len(prompts)) if kind == "chat" else None
        return encode_parts(self.tokenizer, prompts, completions, kind, options, self.eos)

    def _in_the_same_place(self, rows: list[Encoded], prompts: list[list[int]], own: list[list[int]]) -> list[int]:
        """The rows in which the policy's own tokens say, between the same prompt and a known ending, the same text."""
        there = [i for i, row in enumerate(rows) if row.head == prompts[i] and _is_known(row)]
        # The policy may spell a text in other tokens than its tokenizer would.
        heads, middles, mine = ([part[i] for i in there] for part in (prompts, [_split(row)[0] for row in rows], own))
        texts = (written(self.tokenizer, heads, ids) for ids in (middles, mine))
        return [i for i, expected, text in zip(there, *texts, strict=True) if expected == text]


@dataclass(frozen=True)
class Reading:
    """Token ids of a response as a reward model reads it, in three parts."""

    prompt: list[int]
    content: list[int]
    ending: list[int]

    @property
    def ids(self) -> list[int]:
        """All of it."""
        return [*self.prompt, *self.content, *self.ending]


def _is_known(row: Encoded) -> bool:
    """Whether it is known where the ending begins: not where a token reaches over that place."""
    return row.ending is not None and row.tail[len(row.tail) - len(row.ending) :] == row.ending


def _split(row: Encoded) -> tuple[list[int], list[int]]:
    """What follows the prompt, and the ending; of one that is not known its last token, the EOS."""
    begins = len(row.tail) - (len(row.ending or []) if _is_known(row) else 1)
    return row.tail[:begins], row.tail[begins:]


def scores_of(rows: Sequence[Sequence[int]], max_tokens: int, score: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """[B] float32 scores of rows of token ids, a few of similar length at a time.

    Args:
        max_tokens: padded tokens per call. score: of ids [b,L] and mask [b,L], real tokens first.
    """
    if not rows:  # a process whose share is empty
        return torch.zeros(0)
    ids, mask = padded(rows)
    scores = torch.zeros(len(rows))
    for part in chunks_by_length(mask.sum(-1), max_tokens):
        width = int(mask[part].sum(-1).max())
        scores[part] = score(ids[part, :width], mask[part, :width]).float().cpu()
    return scores


def padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """ids [B,L] and mask [B,L] of rows of token ids, real tokens first."""
    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row, dtype=torch.long) for row in rows], batch_first=True)
    return ids, torch.arange(ids.shape[1]) < lengths[:, None]
