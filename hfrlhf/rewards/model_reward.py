"""Reward models as a source of scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..data.preferences import encode_responses
from ..experience import chunks_by_length, left_aligned
from ..models.checks import check_vocabulary
from ..models.reward_model import last_token_scores
from ..models.sizes import device_of
from .completions import Completions


@dataclass
class ModelReward:
    """A reward model: the score of its last real token minus `config.reward_shift` (SPEC §2.1).

    With the policy's own vocabulary it reads the policy's token ids, exactly as sampled; with another, the text is
    decoded and encoded again with its own tokenizer and chat template (DETAILS 9), its EOS standing for a stop token.
    """

    model: Any
    name: str
    tokenizer: Any
    policy_tokenizer: Any
    max_tokens: int = 4096

    def __post_init__(self) -> None:
        self.reads_ids = self.tokenizer.get_vocab() == self.policy_tokenizer.get_vocab()
        check_vocabulary(self.model, self.tokenizer, "reward model")

    @torch.no_grad()
    def __call__(self, completions: Completions) -> Tensor:
        """[B] scores, a few sequences of similar length at a time."""
        if not completions.completions:  # a process whose share is empty
            return torch.zeros(0)
        device = device_of(self.model)
        ids, mask = self._inputs(completions)
        scores = torch.zeros(len(ids), device=device)
        for rows in chunks_by_length(mask.sum(-1), self.max_tokens):
            width = int(mask[rows].sum(-1).max())
            part = (ids[rows, :width].to(device), mask[rows, :width].to(device))
            scores[rows.to(device)] = last_token_scores(self.model, *part)
        return scores.to(completions.rollout.input_ids.device)

    def _inputs(self, completions: Completions) -> tuple[Tensor, Tensor]:
        """ids [B,L] and mask [B,L], real tokens first."""
        if self.reads_ids:
            ids, lengths = left_aligned(completions.rollout.input_ids, completions.rollout.attention_mask)
        else:
            kind = "text" if isinstance(completions.prompts[0], str) else "chat"
            rows = encode_responses(self.tokenizer, completions.prompts, completions.completions, kind)
            terminated = completions.rollout.terminated.tolist()
            rows = [self._cut_off(row, ended) for row, ended in zip(rows, terminated, strict=True)]
            ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
            lengths = torch.tensor([len(row) for row in rows])
        return ids, torch.arange(ids.shape[1]) < lengths[:, None]

    def _cut_off(self, ids: list[int], terminated: bool) -> list[int]:
        """The ids without their EOS where the policy did not stop: a truncated response must not look finished."""
        return ids[:-1] if not terminated and ids[-1:] == [self.tokenizer.eos_token_id] else ids
