"""The rows of a decode loop: prefill without padding to speak of, one step for all rows, rows that leave."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from ..experience import Prompts

# Prompts at least this share as long as the longest of their group are prefilled together, fewer tokens always.
SIMILAR_LENGTH, SMALL_GROUP = 3 / 4, 256


class DecodingBatch:
    """The rows in the loop with their KV cache, attention mask and next positions.

    Args:
        model: causal language model, plain or wrapped by PEFT.
        prompts: in ascending length.
        max_completion_length: most tokens that will be appended.
    """

    def __init__(self, model: Any, prompts: Prompts, max_completion_length: int):
        self.model = model
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.config = base.config
        accepted = inspect.signature(base.forward).parameters
        self.takes_positions = "position_ids" in accepted
        self.options = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
        self.cache_name = "past_key_values" if "past_key_values" in accepted else "cache_params"
        lengths = prompts.attention_mask.sum(-1)
        self.lengths = lengths.tolist()
        self.width = self.lengths[-1]  # columns so far; they are sorted
        self.ids = prompts.input_ids[:, -self.width :]
        self.mask = pad(prompts.attention_mask[:, -self.width :].bool(), (0, max_completion_length), value=True)
        self.padded = self.lengths[0] < self.width
        self.next_position = lengths[:, None]
        self.cache = DynamicCache(config=self.config)
        # Other kinds of cache (linear attention, say) can neither lose rows nor be joined.
        self.flexible = {type(layer) for layer in self.cache.layers} <= {DynamicLayer, DynamicSlidingWindowLayer}

    def prefill(self) -> Tensor:
        """Run the prompts; [b,V] logits of the first response token."""
        groups = similar_lengths(self.lengths) if self.flexible else [slice(0, len(self.lengths))]
        caches = [self.cache] if len(groups) == 1 else [DynamicCache(config=self.config) for _ in groups]
        logits = torch.cat([self._prefill_group(rows, cache) for rows, cache in zip(groups, caches, strict=True)])
        if len(caches) > 1:
            join(caches, self.cache, self.width)
        return logits

    def _prefill_group(self, rows: slice, cache: DynamicCache) -> Tensor:
        width = self.lengths[rows][-1]
        mask = self.mask[rows, self.width - width : self.width]
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        ids = self.ids[rows, self.width - width :]
        return self._forward(ids, mask if self.lengths[rows][0] < width else None, positions, cache)

    def step(self, tokens: Tensor) -> Tensor:
        """Append a token to every row; [b,V] logits of the next."""
        self.width += 1
        # A recurrent model has seen its padding once and for all.
        mask = self.mask[:, : self.width] if self.padded and self.cache_name == "past_key_values" else None
        logits = self._forward(tokens[:, None], mask, self.next_position, self.cache)
        self.next_position = self.next_position + 1
        return logits

    def keep(self, rows: Tensor) -> None:
        """Let only the given rows stay."""
        self.cache.batch_select_indices(rows)
        self.mask, self.next_position = self.mask[rows], self.next_position[rows]

    def _forward(self, ids: Tensor, mask: Tensor | None, positions: Tensor, cache: DynamicCache) -> Tensor:
        # The cache is asked for here, whatever config.use_cache and gradient checkpointing have set (DETAILS 29).
        options = self.options | {self.cache_name: cache, "use_cache": True}
        if self.takes_positions:
            options["position_ids"] = positions  # left-padded rows would count their padding (DETAILS 2)
        return self.model(input_ids=ids, attention_mask=mask, **options).logits[:, -1]


def similar_lengths(lengths: list[int]) -> list[slice]:
    """Ascending lengths cut into groups that are prefilled together with little padding, the longest first cut off."""
    groups, end = [], len(lengths)
    while end:
        begin, longest, tokens = end, lengths[end - 1], 0
        while begin and (lengths[begin - 1] >= SIMILAR_LENGTH * longest or tokens < SMALL_GROUP):
            begin, tokens = begin - 1, tokens + longest
        groups.append(slice(begin, end))
        end = begin
    return groups[::-1]


def join(caches: list[DynamicCache], joined: DynamicCache, width: int) -> None:
    """Put the rows of several caches below each other in an empty one, padded on the left to a common width."""
    for index in range(len(joined.layers)):
        layers: list[Any] = [cache.layers[index] for cache in caches]
        keys = [pad(layer.keys, (0, 0, width - layer.keys.shape[-2], 0)) for layer in layers]
        values = [pad(layer.values, (0, 0, width - layer.values.shape[-2], 0)) for layer in layers]
        joined.update(torch.cat(keys), torch.cat(values), index)
        for layer in layers:
            layer.reset()  # frees the parts before the next layer is joined
