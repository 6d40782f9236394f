"""The head of a reward model: where it is, how it begins, and why it computes in float32."""

from __future__ import annotations

import math
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from ..libraries import ModulesToSaveWrapper


class ScoreHead(nn.Linear):
    """A linear head that computes in float32 whatever the precision of its trunk.

    In bfloat16 two scores near 4 that differ by less than 0.03 are equal: pairs would tie and margins round (DETAILS
    58). Autocast is off inside for the same reason. The parameters are those of `nn.Linear`, under the same names.
    """

    def forward(self, hidden: Tensor) -> Tensor:
        """Scores [..., 1] float32 of hidden states [..., d]."""
        with torch.autocast(hidden.device.type, enabled=False):
            bias = None if self.bias is None else self.bias.float()
            return nn.functional.linear(hidden.float(), self.weight.float(), bias)


def backbone_of(model: nn.Module) -> nn.Module:
    """The transformer without its head; adapters stay in place."""
    inner = without_wrapper(model)
    # A text model whose class says the name of a larger model's part (Llama 4) has no base model by that name.
    backbone: nn.Module = inner.base_model if inner.base_model is not inner else getattr(inner, "model", inner)
    return backbone


def head_of(model: nn.Module) -> nn.Linear:
    """The head of a reward model: one output; with adapters, the active adapter's own copy.

    Raises:
        ValueError: the model has no linear `score` head with one output.
    """
    head: Any = score_module(model)
    if isinstance(head, ModulesToSaveWrapper):
        adapters = [name for name in head.modules_to_save if name in head.active_adapters]
        head = head.modules_to_save[adapters[0]] if adapters else head.original_module
    linear: nn.Linear = head
    return linear


@torch.no_grad()
def init_reward_head(model: nn.Module, seed: int) -> None:
    """Draw the head's weights from N(0, 1/√(d+1)), the second number being the standard deviation; bias 0 (SPEC §2.1).

    The draw is a function of the seed alone.
    """
    head = head_of(model)
    deviation = 1 / math.sqrt(head.weight.shape[1] + 1)
    generator = torch.Generator().manual_seed(seed)
    head.weight.copy_(torch.randn(head.weight.shape, generator=generator) * deviation)
    if head.bias is not None:
        head.bias.zero_()


def with_score_head(model: nn.Module) -> Any:
    """The model with its `score` layer computing in float32; a quantised or wrapped head is left alone."""
    head = score_module(model)
    if type(head) is nn.Linear:
        replacement = ScoreHead(
            head.in_features, head.out_features, head.bias is not None, device=head.weight.device, dtype=torch.float32
        )
        replacement.load_state_dict(head.state_dict())
        model.score = replacement.requires_grad_(head.weight.requires_grad)
    return model


def score_module(model: nn.Module) -> nn.Module:
    """The `score` layer as it is called: with adapters PEFT's wrapper, which chooses the active adapter's copy.

    Raises:
        ValueError: the model has no linear `score` head with one output.
    """
    head: Any = getattr(without_wrapper(model), "score", None)
    inner = head.original_module if isinstance(head, ModulesToSaveWrapper) else head
    if not isinstance(inner, nn.Linear) or inner.out_features != 1:
        found = "no such head" if head is None else f"{inner}"
        kind = type(without_wrapper(model)).__name__
        raise ValueError(f"a reward model has a linear head `score` with one output; {kind} has {found}")
    module: nn.Module = head
    return module


def without_wrapper(model: nn.Module) -> Any:
    """The transformers model itself, adapters in place, without PEFT's wrapper."""
    return model.get_base_model() if isinstance(model, PeftModel) else model
