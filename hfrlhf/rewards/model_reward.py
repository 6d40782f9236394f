"""Reward models as a source of scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..models.anatomy.sizes import device_of
from ..models.anatomy.vocabulary import check_vocabulary
from ..models.reward.scoring import last_token_scores
from .completions import Completions
from .reading import Reader, padded, scores_of


@dataclass
class ModelReward:
    """A reward model: the score of the last token it reads (`reading.py`) minus `config.reward_shift` (SPEC §2.1)."""

    model: Any
    name: str
    tokenizer: Any
    policy_tokenizer: Any
    max_tokens: int = 4096

    def __post_init__(self) -> None:
        check_vocabulary(self.model, self.tokenizer, "reward model")
        self.reader = Reader.of(self.model, self.tokenizer, self.policy_tokenizer)

    def __call__(self, completions: Completions) -> Tensor:
        """[B] scores."""
        scores = self.scores([row.ids for row in self.reader.read(completions)])
        return scores.to(completions.rollout.input_ids.device)

    def scores(self, rows: list[list[int]]) -> Tensor:
        """[B] scores of rows of token ids, a few of similar length at a time."""
        return scores_of(rows, self.max_tokens, self._score)

    @torch.no_grad()
    def _score(self, ids: Tensor, mask: Tensor) -> Tensor:
        device = device_of(self.model)
        return last_token_scores(self.model, ids.to(device), mask.to(device))

    def _inputs(self, completions: Completions) -> tuple[Tensor, Tensor]:
        """ids [B,L] and mask [B,L], real tokens first: what is scored, to look at."""
        return padded([row.ids for row in self.reader.read(completions)])
