"""log π_ref of response tokens: the frozen policy training started from, by the cheapest exact means."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ...experience import Rollout
from ..adapters import REFERENCE_ADAPTER, adapter
from ..anatomy.dropout import disable_dropout
from ..anatomy.names import as_name
from ..anatomy.vocabulary import check_same_tokens
from ..quantization import is_quantized
from ..reward.head import backbone_of
from .loading import load_policy, naming
from .response_states import ResponseStates, causal_lm


@dataclass(frozen=True)
class Reference:
    """The reference policy π_ref of SPEC §1.

    Args:
        model: the model that is evaluated.
        source: what it is, in words, for the report at the start.
        active: context in which `model` is the reference (adapters off, another adapter).
        exact: it is the policy's own starting point, so that the KL at the start is exactly 0.
        vocabulary: how many tokens there are, as in the policy; None for as many as the model has logits for.
    """

    model: Any
    source: str
    active: Callable[[], AbstractContextManager[None]] = nullcontext
    exact: bool = True
    vocabulary: int | None = None

    def to(self, device: torch.device) -> None:
        """Bring the model to where the run computes; a quantised one is where it was loaded."""
        if not is_quantized(self.model):
            self.model.to(device)

    @torch.no_grad()
    def logprobs(self, rollout: Rollout, temperature: float) -> Tensor:
        """[B,A] log π_ref(a_t|s_t), float32, with logits divided by the sampling temperature (SPEC §1)."""
        lm = causal_lm(self.model)
        with self.active():
            states = ResponseStates.of(rollout)
            trunk = states.run(backbone_of(lm))
            logprobs, _ = states.logprobs(lm, trunk, temperature, need_entropy=False, vocabulary=self.vocabulary)
        return logprobs


def make_reference(
    policy: nn.Module,
    ref_model: Any = None,
    vocabulary: int | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Reference:
    """The reference of a policy: `ref_model` if given, adapters off or `ref` where it has adapters, else a frozen copy.

    Must be called before the policy is wrapped or trained: the copy is the policy as it is now.

    Args:
        policy: as it starts. ref_model: name, path or model of another reference. vocabulary: how many tokens there
            are (`vocabulary.py`), known by `tokenizer`; with None both have embeddings for as many.

    Raises:
        TypeError, ValueError: a ref_model that is no language model, or of another vocabulary than the policy's.
    """
    if ref_model is not None:
        with naming("ref_model", as_name(ref_model)):
            reference = load_policy(ref_model)
        check_same_tokens(reference, policy, "reference", vocabulary, tokenizer)
        return Reference(frozen(reference), "the given ref_model", exact=False, vocabulary=vocabulary)
    if isinstance(policy, PeftModel) and REFERENCE_ADAPTER in policy.peft_config:
        active = partial(adapter, policy, REFERENCE_ADAPTER)
        return Reference(policy, "frozen copy of the starting adapter", active, vocabulary=vocabulary)
    if isinstance(policy, PeftModel):
        active = partial(adapter, policy, None)
        return Reference(policy, "the policy with its adapter off", active, vocabulary=vocabulary)
    return Reference(frozen(copy.deepcopy(policy)), "frozen copy of the policy", vocabulary=vocabulary)


def frozen(model: nn.Module) -> Any:
    """The model without gradients, dropout or training mode."""
    disable_dropout(model)
    return model.requires_grad_(False).eval()
