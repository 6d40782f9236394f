"""Reward models as a source of scores."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from typing_extensions import Self

from ..models.anatomy.dropout import disable_dropout
from ..models.anatomy.names import as_name
from ..models.anatomy.sizes import device_of
from ..models.anatomy.vocabulary import check_vocabulary
from ..models.libraries import name_or_path
from ..models.quantization import is_quantized
from ..models.reward.adapter import OWN_BASE
from ..models.reward.scoring import last_token_scores, load_reward_model
from .model_source import ModelSource, asks_for_own_base, saved_tokenizer
from .reading import Reader
from .source import Offer


@dataclass
class ModelReward(ModelSource):
    """A reward model: the score of the last token it reads (`reading.py`) minus `config.reward_shift` (SPEC §2.1)."""

    model: PreTrainedModel | PeftModel
    name: str
    tokenizer: PreTrainedTokenizerBase
    policy_tokenizer: PreTrainedTokenizerBase
    max_tokens: int = 4096

    def __post_init__(self) -> None:
        check_vocabulary(self.model, self.tokenizer, "reward model")
        self.reader = Reader.of(self.model, self.tokenizer, self.policy_tokenizer)

    @classmethod
    def takes(cls, given: Any, offer: Offer) -> bool:
        """A model, or a model's name or path (`own:` before it: an adapter with a base of its own)."""
        return asks_for_own_base(given) or isinstance(as_name(given), str | nn.Module)

    @classmethod
    def of(cls, given: Any, offer: Offer) -> Self:
        """Load it, and its tokenizer: the one given, else of its training, else saved with it, else the policy's.

        Raises:
            ValueError: a language model without a score head.
        """
        given = as_name(given.removeprefix(OWN_BASE) if asks_for_own_base(given) else given)
        name = given if isinstance(given, str) else name_or_path(given.config)
        model, is_new_head = load_reward_model(given, return_new_head=True)
        if is_new_head:
            raise ValueError(
                f"{name or type(given).__name__} is a language model: it has no trained score head, and a new one "
                "gives random scores; train a reward model from it with RewardTrainer (or recipes/reward.py) and pass "
                "that"
            )
        disable_dropout(model.requires_grad_(False).eval())
        # The saved one is looked for last: where another was passed, it may not even be readable here.
        known = offer.tokenizer or getattr(model, "trained_with", None)
        tokenizer = known or saved_tokenizer(name) or offer.policy_tokenizer
        return cls(model, Path(name).name or "reward_model", tokenizer, offer.policy_tokenizer, offer.max_tokens)

    @property
    def own_models(self) -> tuple[nn.Module, ...]:
        """The reward model."""
        return (self.model,)

    def to(self, device: torch.device) -> None:
        """Bring the model there; a quantised one is where it was loaded."""
        if not is_quantized(self.model):
            model: Any = self.model  # whose own `to` has the wrong type, and refuses where its parts are spread
            model.to(device)

    @torch.no_grad()
    def score(self, ids: Tensor, mask: Tensor) -> Tensor:
        """[b] scores of ids [b,L] and mask [b,L], real tokens first."""
        device = device_of(self.model)
        return last_token_scores(self.model, ids.to(device), mask.to(device))
