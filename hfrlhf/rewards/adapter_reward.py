"""A reward model that is an adapter on the policy's own base: no second model in memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from typing_extensions import Self

from ..models.adapters import REWARD_ADAPTER, adapter
from ..models.anatomy.names import as_name, is_adapter
from ..models.anatomy.positions import positions_of
from ..models.anatomy.sizes import device_of, embeddings_of
from ..models.reward.adapter import OWN_BASE, add_reward_adapter
from ..models.reward.head import backbone_of
from ..models.reward.scoring import evaluating, last_states
from .model_source import ModelSource, asks_for_own_base, saved_tokenizer
from .reading import Reader, scores_of
from .source import Offer


@dataclass
class AdapterReward(ModelSource):
    """The score of the last token that the `reward` adapter reads (SPEC §2.1, `reading.py`).

        r(x, y) = w·h_last + b − shift

    Args:
        policy: with the adapter `reward`. name: in metrics. head: trained in float32. shift: subtracted from what
            the head says. reader: of its tokenizer. max_tokens: padded tokens per forward.
    """

    policy: PeftModel
    name: str
    head: nn.Linear
    shift: float
    reader: Reader
    max_tokens: int = 4096

    @classmethod
    def takes(cls, given: Any, offer: Offer) -> bool:
        """The name or path of an adapter, where the policy has one too and no base of its own is asked for."""
        if not isinstance(offer.policy, PeftModel) or asks_for_own_base(given):
            return False
        name = as_name(given)
        return isinstance(name, str) and is_adapter(name, {})

    @classmethod
    def of(cls, given: Any, offer: Offer) -> Self:
        """Put it on the policy's base.

        Raises:
            ValueError: a tokenizer of another vocabulary was given for it.
        """
        name, policy, theirs = as_name(given), offer.policy, offer.policy_tokenizer
        assert isinstance(policy, PeftModel)  # as `takes` has seen
        if offer.tokenizer is not None and offer.tokenizer.get_vocab() != theirs.get_vocab():
            raise ValueError(
                f"the reward adapter {name} shares the policy's base and reads the policy's own token ids, but "
                "`reward_processing_classes` gives it a tokenizer with another vocabulary; leave that out, or pass "
                f"`{OWN_BASE}{name}` to load the adapter with a base of its own"
            )
        role = add_reward_adapter(policy, name)
        own = offer.tokenizer or saved_tokenizer(name) or theirs
        reader = Reader(own, theirs, embeddings_of(policy), role.ends_with_eos, positions_of(policy))
        return cls(policy, Path(name).name, role.head, role.shift, reader, offer.max_tokens)

    @property
    def described(self) -> str:
        """Its name, and that it shares the base."""
        return f"{self.name} (an adapter on the policy's base)"

    def scores(self, rows: list[list[int]]) -> Tensor:
        """[B] scores of rows of token ids, a few of similar length at a time."""
        with evaluating(self.policy), adapter(self.policy, REWARD_ADAPTER):
            return scores_of(rows, self.max_tokens, self.score)

    @torch.no_grad()
    def score(self, ids: Tensor, mask: Tensor) -> Tensor:
        """[b] scores of ids [b,L] and mask [b,L], real tokens first; within `scores`."""
        device = device_of(self.policy)
        last = last_states(backbone_of(self.policy), ids.to(device), mask.to(device))
        scores: Tensor = self.head.to(device)(last)
        return scores.squeeze(-1).float() - self.shift
