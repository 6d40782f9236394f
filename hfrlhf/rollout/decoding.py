"""The rows of a decode loop: prompts first, then a token for every row at a time, and rows that leave.

`examination.py` finds out which of the two ways below a model is sampled in, and with which options.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache

from ..core.masking import at_least_float32
from ..experience import Prompts, left_aligned
from ..models.anatomy.forward import forward_flags
from ..models.policy.response_states import causal_lm, transformed_logits
from ..models.reward.head import backbone_of
from .contract import LanguageModel

# Prompts at least this share as long as the longest of their group are prefilled together, fewer tokens always.
SIMILAR_LENGTH, SMALL_GROUP = 3 / 4, 256


@dataclass(frozen=True)
class Decoding:
    """How a model is sampled token by token.

    Args:
        state: name under which its forward gives back what it remembers of the tokens so far (keys and values, a
            recurrent state), and takes it at the next step; None: it remembers nothing that we know of, and every step
            computes the whole sequences again.
        options: what its forward takes beside: "position_ids", "logits_to_keep".
        leaves: rows can leave the state, and parts of it be joined, because it holds nothing but keys and values.
        pads: prompts of different lengths can share a batch.
        masks_steps: padding is masked at every step; without it at the prompts alone (a recurrent state has seen its
            padding once and for all).
    """

    state: str | None
    options: tuple[str, ...] = ()
    leaves: bool = True
    pads: bool = True
    masks_steps: bool = True


class Rows(Protocol):
    """The rows in the loop."""

    def prefill(self) -> Tensor:
        """Run the prompts; [b,V] logits of the first response token."""

    def step(self, tokens: Tensor) -> Tensor:
        """Append a token [b] to every row; [b,V] logits of the next."""

    def keep(self, rows: Tensor) -> None:
        """Let only the given rows stay."""


def rows_in_loop(
    model: LanguageModel, prompts: Prompts, steps: int, decoding: Decoding, small_group: int = SMALL_GROUP
) -> Rows:
    """The rows of prompts in ascending length, to which at most `steps` tokens will be appended."""
    if decoding.state is None:
        return WholeRows(model, prompts, steps)
    return CachedRows(model, prompts, steps, decoding, small_group)


class WholeRows:
    """Every step is the forward pass of the training: whole sequences, each at the left end of its line.

    Args:
        model: causal language model, plain or wrapped by PEFT. prompts: any lengths. steps: most tokens to append.
    """

    def __init__(self, model: LanguageModel, prompts: Prompts, steps: int):
        self.lm = causal_lm(model)
        ids, self.lengths = left_aligned(prompts.input_ids, prompts.attention_mask.bool())
        self.ids = pad(ids, (0, steps))

    def prefill(self) -> Tensor:
        """[b,V] logits behind the prompts."""
        here = torch.arange(len(self.ids), device=self.ids.device)
        ids = self.ids[:, : int(self.lengths.max())]
        hidden = backbone_of(self.lm)(input_ids=ids, **forward_flags(self.lm, use_cache=False)).last_hidden_state
        return at_least_float32(transformed_logits(self.lm, hidden[here, self.lengths - 1]))

    def step(self, tokens: Tensor) -> Tensor:
        """[b,V] logits behind the tokens appended."""
        self.ids.scatter_(1, self.lengths[:, None], tokens[:, None])
        self.lengths = self.lengths + 1
        return self.prefill()

    def keep(self, rows: Tensor) -> None:
        """Let only the given rows stay."""
        self.ids, self.lengths = self.ids[rows], self.lengths[rows]


class CachedRows:
    """The rows with what the model remembers of them, their attention mask and next positions.

    Args:
        model: causal language model, plain or wrapped by PEFT. prompts: in ascending length. steps: most tokens to
            append. decoding: how. small_group: tokens below which prompts of any lengths are prefilled together.
    """

    def __init__(
        self, model: LanguageModel, prompts: Prompts, steps: int, decoding: Decoding, small_group: int = SMALL_GROUP
    ):
        self.model, self.decoding, self.small_group = model, decoding, small_group
        lengths = prompts.attention_mask.sum(-1)
        self.lengths = lengths.tolist()
        self.width = self.lengths[-1]  # columns so far; they are sorted
        self.ids = prompts.input_ids[:, -self.width :]
        self.mask = pad(prompts.attention_mask[:, -self.width :].bool(), (0, steps), value=True)
        self.padded = self.lengths[0] < self.width
        self.next_position = lengths[:, None]
        self.state: Any = None

    def prefill(self) -> Tensor:
        """Run the prompts; [b,V] logits of the first response token."""
        everyone = [slice(0, len(self.lengths))]
        groups = similar_lengths(self.lengths, self.small_group) if self.decoding.leaves else everyone
        logits, states = zip(*map(self._prefill_group, groups), strict=True)
        self.state = states[0] if len(states) == 1 else self._joined(list(states))
        return torch.cat(logits)

    def _joined(self, caches: list[Any]) -> DynamicCache:
        joined = DynamicCache(config=causal_lm(self.model).config)
        join(caches, joined, self.width)
        return joined

    def _prefill_group(self, rows: slice) -> tuple[Tensor, Any]:
        width = self.lengths[rows][-1]
        mask = self.mask[rows, self.width - width : self.width]
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        ids = self.ids[rows, self.width - width :]
        return self._forward(ids, mask if self.lengths[rows][0] < width else None, positions, {})

    def step(self, tokens: Tensor) -> Tensor:
        """Append a token to every row; [b,V] logits of the next."""
        self.width += 1
        mask = self.mask[:, : self.width] if self.padded and self.decoding.masks_steps else None
        before = {str(self.decoding.state): self.state}
        logits, self.state = self._forward(tokens[:, None], mask, self.next_position, before)
        self.next_position = self.next_position + 1
        return logits

    def keep(self, rows: Tensor) -> None:
        """Let only the given rows stay."""
        self.state.batch_select_indices(rows)
        self.mask, self.next_position = self.mask[rows], self.next_position[rows]

    def _forward(
        self, ids: Tensor, mask: Tensor | None, positions: Tensor, state: dict[str, Any]
    ) -> tuple[Tensor, Any]:
        # Left-padded rows would count their padding (DETAILS 2); of a prompt the last logits alone are needed.
        optional = {"position_ids": positions, "logits_to_keep": 1}
        options = {name: value for name, value in optional.items() if name in self.decoding.options}
        flags = forward_flags(self.model, use_cache=True)
        outputs = self.model(input_ids=ids, attention_mask=mask, **flags, **options, **state)
        return outputs.logits[:, -1], outputs[self.decoding.state]


def similar_lengths(lengths: list[int], small_group: int = SMALL_GROUP) -> list[slice]:
    """Ascending lengths cut into groups that are prefilled together with little padding, the longest first cut off."""
    groups, end = [], len(lengths)
    while end:
        begin, longest, tokens = end, lengths[end - 1], 0
        while begin and (lengths[begin - 1] >= SIMILAR_LENGTH * longest or tokens < small_group):
            begin, tokens = begin - 1, tokens + longest
        groups.append(slice(begin, end))
        end = begin
    return groups[::-1]


def join(caches: list[Any], joined: DynamicCache, width: int) -> None:
    """Put the rows of several caches below each other in an empty one, padded on the left to a common width."""
    for index in range(len(joined.layers)):
        layers: list[Any] = [cache.layers[index] for cache in caches]
        if layers[0].keys is None:  # it reads another layer's (Gemma 3n)
            continue
        keys = [pad(layer.keys, (0, 0, width - layer.keys.shape[-2], 0)) for layer in layers]
        values = [pad(layer.values, (0, 0, width - layer.values.shape[-2], 0)) for layer in layers]
        joined.update(torch.cat(keys), torch.cat(values), index)
        for layer in layers:
            layer.reset()  # frees the parts before the next layer is joined
