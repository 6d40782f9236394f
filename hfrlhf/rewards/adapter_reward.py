"""A reward model that is an adapter on the policy's own base: no second model in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..models.adapters import REWARD_ADAPTER, adapter
from ..models.anatomy.sizes import device_of
from ..models.reward.head import backbone_of
from ..models.reward.scoring import evaluating, last_states
from .completions import Completions
from .reading import Reader, padded, scores_of


@dataclass
class AdapterReward:
    """The score of the last token that the `reward` adapter reads (SPEC §2.1, `reading.py`).

        r(x, y) = w·h_last + b − shift

    Args:
        policy: with the adapter `reward`. name: in metrics. head: trained in float32. shift: subtracted from what
            the head says. reader: of its tokenizer. max_tokens: padded tokens per forward.
    """

    policy: Any
    name: str
    head: nn.Linear
    shift: float
    reader: Reader
    max_tokens: int = 4096

    def __call__(self, completions: Completions) -> Tensor:
        """[B] scores."""
        scores = self.scores([row.ids for row in self.reader.read(completions)])
        return scores.to(completions.rollout.input_ids.device)

    def scores(self, rows: list[list[int]]) -> Tensor:
        """[B] scores of rows of token ids, a few of similar length at a time."""
        with evaluating(self.policy), adapter(self.policy, REWARD_ADAPTER):
            return scores_of(rows, self.max_tokens, self._score)

    @torch.no_grad()
    def _score(self, ids: Tensor, mask: Tensor) -> Tensor:
        device = device_of(self.policy)
        last = last_states(backbone_of(self.policy), ids.to(device), mask.to(device))
        return self.head.to(device)(last).squeeze(-1).float() - self.shift

    def _inputs(self, completions: Completions) -> tuple[Tensor, Tensor]:
        """ids [B,L] and mask [B,L], real tokens first: what is scored, to look at."""
        return padded([row.ids for row in self.reader.read(completions)])
