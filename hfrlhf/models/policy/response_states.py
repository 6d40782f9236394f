"""The states of a rollout's response tokens, and what a language model's vocabulary head says in them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedConfig

from ...core.logprobs import head_logprobs, linear_logprobs
from ...core.masking import at_least_float32
from ...experience import Rollout, left_aligned
from ..anatomy.forward import forward_flags


def _cap(logits: Tensor, cap: float) -> Tensor:
    return cap * torch.tanh(logits / cap)


# What some architectures do to their vocabulary head's output, by the config field that says so; scales come first.
LOGIT_TRANSFORMS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "logit_scale": lambda logits, scale: logits * scale,
    "lm_head_multiplier": lambda logits, scale: logits * scale,
    "logits_scaling": lambda logits, scale: logits / scale,
    "final_logit_softcapping": _cap,
    "logits_soft_cap": _cap,
    "output_logit_soft_cap": _cap,
}


@dataclass(frozen=True)
class ResponseStates:
    """Where the states of a rollout's response tokens are, once every row is moved to the left end of its line.

    Shapes: ids [B,L] long, action_mask [B,A] bool, index [N] positions of the states s_t in the flattened [B·L] (row by
    row, N response tokens in all), last [B] positions of s_{n+1}.
    """

    ids: Tensor
    action_mask: Tensor
    index: Tensor
    last: Tensor

    @classmethod
    def of(cls, rollout: Rollout) -> ResponseStates:
        """The layout of one rollout."""
        ids, lengths = left_aligned(rollout.input_ids, rollout.attention_mask)
        rows = torch.arange(len(ids), device=ids.device) * ids.shape[1]
        first = rows + lengths - rollout.completion_lengths - 1  # the prompt's last token: state of response token 0
        steps = torch.arange(rollout.action_mask.shape[1], device=ids.device)
        index = (first[:, None] + steps)[rollout.action_mask]  # row by row, as `masked_scatter` puts them back
        return cls(ids, rollout.action_mask, index, rows + lengths - 1)

    def run(self, backbone: nn.Module) -> Tensor:
        """[B·L,d] last hidden states.

        Padding stands behind every real token: causal attention needs no mask, and the positions every architecture
        counts by itself (0, 1, 2, …) are the right ones.
        """
        hidden: Tensor = backbone(input_ids=self.ids, **forward_flags(backbone, use_cache=False)).last_hidden_state
        return hidden.flatten(0, 1)

    def logprobs(
        self, lm: nn.Module, trunk: Tensor, temperature: float, need_entropy: bool, vocabulary: int | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """[B,A] log-probs of the response tokens and the entropy of their distributions."""
        rows, targets = trunk[self.index], self.targets
        logprobs, entropy = vocabulary_logprobs(lm, rows, targets, temperature, need_entropy, vocabulary)
        return self.spread(logprobs), None if entropy is None else self.spread(entropy)

    def values(self, hidden: Tensor, head: nn.Linear, shift: float = 0.0) -> tuple[Tensor, Tensor]:
        """[B,A] values of the states, and [B] the value after the last token; float32, also in mixed precision."""
        # Under autocast the head would compute in 16 bits: a value of 10 would be rounded to steps of 1/16.
        with torch.autocast(hidden.device.type, enabled=False):
            rows = hidden[torch.cat([self.index, self.last])].to(head.weight.dtype)
            flat = at_least_float32(head(rows)).squeeze(-1) - shift
        values, bootstrap = flat.split([len(self.index), len(self.last)])
        return self.spread(values), bootstrap

    def action_values(self, trunk: Tensor, head: nn.Linear) -> Tensor:
        """[B,A] Q(s_t, a_t) of a head with one output per token of the vocabulary; only the taken ones are computed."""
        with torch.autocast(trunk.device.type, enabled=False):
            rows = trunk[self.index].to(head.weight.dtype)
            return self.spread(at_least_float32((rows * head.weight[self.targets]).sum(-1) + head.bias[self.targets]))

    def best_and_expected_values(
        self, lm: nn.Module, trunk: Tensor, head: nn.Linear, temperature: float, vocabulary: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """[B,A] max_a Q(s_t, a) and [B,A] Σ_a π(a|s_t)·Q(s_t, a), without gradient, some rows at a time."""
        best, expected = [], []
        with torch.no_grad():
            for rows in self.index.split(rows_at_a_time(head.out_features)):
                with torch.autocast(trunk.device.type, enabled=False):
                    values = at_least_float32(head(trunk[rows].to(head.weight.dtype)))[:, :vocabulary]
                policy = vocabulary_logits(lm, trunk[rows], temperature, vocabulary).softmax(-1)
                best.append(values.amax(-1))
                expected.append((policy * values).sum(-1))
        return self.spread(torch.cat(best)), self.spread(torch.cat(expected))

    @property
    def targets(self) -> Tensor:
        """[N] the response tokens a_t."""
        return self.ids.flatten()[self.index + 1]

    def spread(self, flat: Tensor) -> Tensor:
        """[N] one number per response token as [B,A], 0 at padding."""
        return torch.zeros_like(self.action_mask, dtype=flat.dtype).masked_scatter(self.action_mask, flat)


def vocabulary_logprobs(
    lm: Any,
    hidden: Tensor,
    targets: Tensor,
    temperature: float,
    need_entropy: bool = True,
    vocabulary: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Log-probs of target tokens under a model's own head, a chunk of rows at a time.

    Args:
        lm: causal language model. hidden: [N,d] last hidden states. targets: [N]. temperature: divides the logits.
        vocabulary: how many tokens there are (`models.anatomy.vocabulary`); None for as many as the head has outputs.
    """
    head = lm.get_output_embeddings()
    transforms = logit_transforms(lm.config)
    # Of a plain linear head the gradient can be written down (`core.logprob_gradients`), which saves a second pass. A
    # subclass (an adapter around the head, packed weights) computes something else than its `weight` says.
    if type(head) is nn.Linear and not transforms:
        bias = head.bias
        return linear_logprobs(hidden, head.weight, targets, temperature, bias, need_entropy, vocabulary=vocabulary)

    def logits(rows: Tensor) -> Tensor:
        return transformed_logits(lm, rows)[:, :vocabulary]

    return head_logprobs(hidden, logits, targets, temperature, need_entropy)


def vocabulary_logits(lm: nn.Module, hidden: Tensor, temperature: float, vocabulary: int | None = None) -> Tensor:
    """[n,V] logits / temperature of hidden states [n,d], float32 or wider. For few rows, or where all V are needed.

    Args:
        vocabulary: V, how many tokens there are; None for as many as the head has outputs.
    """
    return at_least_float32(transformed_logits(lm, hidden)[:, :vocabulary]) / temperature


def transformed_logits(lm: Any, hidden: Tensor) -> Tensor:
    """[n,V] the output of the model's own head, with what the architecture then does to it."""
    logits: Tensor = lm.get_output_embeddings()(hidden)
    for apply, constant in logit_transforms(lm.config):
        logits = apply(logits, constant)
    return logits


def rows_at_a_time(vocabulary: int) -> int:
    """How many rows of logits [n,V] to hold at once: 64 MiB of float32."""
    return max(1, 2**24 // vocabulary)


def logit_transforms(config: PreTrainedConfig) -> list[tuple[Callable[[Tensor, float], Tensor], float]]:
    """The architecture's own changes to its logits (soft-capping, scaling) as (function, constant) pairs."""
    found = [(apply, getattr(config, field, None)) for field, apply in LOGIT_TRANSFORMS.items()]
    return [(apply, constant) for apply, constant in found if constant not in (None, 1, 1.0)]


def causal_lm(policy: nn.Module) -> Any:
    """The causal language model itself, with its adapters in place but without PEFT's wrapper."""
    return policy.get_base_model() if isinstance(policy, PeftModel) else policy
