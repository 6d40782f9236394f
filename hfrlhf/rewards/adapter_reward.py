"""A reward model that is an adapter on the policy's own base: no second model in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..experience import Rollout, chunks_by_length
from ..models.adapters import REWARD_ADAPTER, adapter
from ..models.response_states import ResponseStates
from ..models.reward_head import backbone_of
from ..models.reward_model import evaluating
from ..models.sizes import device_of
from .completions import Completions


@dataclass
class AdapterReward:
    """The score of a response's last token under the `reward` adapter (SPEC §2.1).

        r(x, y) = w·h_last + b − shift

    It reads the policy's token ids exactly as sampled: base and vocabulary are the policy's own.

    Args:
        policy: with the adapter `reward`. name: in metrics. head: trained in float32. shift: subtracted from what
            the head says. max_tokens: padded tokens per forward.
    """

    policy: Any
    name: str
    head: nn.Linear
    shift: float
    max_tokens: int = 4096

    @torch.no_grad()
    def __call__(self, completions: Completions) -> Tensor:
        """[B] scores, a few sequences of similar length at a time."""
        rollout: Rollout = completions.rollout
        device = device_of(self.policy)
        scores = torch.zeros(len(rollout))
        with evaluating(self.policy), adapter(self.policy, REWARD_ADAPTER):
            for rows in chunks_by_length(rollout.lengths, self.max_tokens):
                states = ResponseStates.of(rollout.select(rows).to(device))
                last = states.run(backbone_of(self.policy))[states.last]
                scores[rows] = self.head.to(device)(last).squeeze(-1).float().cpu() - self.shift
        return scores.to(rollout.input_ids.device)
