"""The frozen records that flow from stage to stage.

Legend, everywhere in this package: **B** sequences, **P** prompt length (left-padded), **A** response length
(right-padded), **T = P + A**, **V** vocabulary. A mask is True where the position counts; padded entries of every
per-token tensor are 0. `logprobs[:, t]` and `values[:, t]` belong to the state *before* response token t.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from typing_extensions import Self


@dataclass(frozen=True)
class Record:
    """A frozen bundle of tensors whose first dimension is B; a field may be None where it does not apply."""

    def __len__(self) -> int:
        return next(iter(self.tensors().values())).shape[0]

    def tensors(self) -> dict[str, Tensor]:
        """The fields that hold a tensor, by name, in order."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {name: value for name, value in fields.items() if value is not None}

    def select(self, rows: Tensor) -> Self:
        """The given rows (indices [b] or mask [B]), in the given order."""
        return dataclasses.replace(self, **{name: tensor[rows] for name, tensor in self.tensors().items()})

    def split(self, n: int) -> list[Self]:
        """Consecutive parts of n rows; the last may be smaller."""
        return [self.select(rows) for rows in torch.arange(len(self)).split(n)]

    def to(self, device: torch.device | str) -> Self:
        """The same record on another device; dtypes are kept (a cast would round old log-probs)."""
        return dataclasses.replace(self, **{name: tensor.to(device) for name, tensor in self.tensors().items()})


@dataclass(frozen=True)
class Prompts(Record):
    """Prompts of a rollout, left-padded.

    Shapes: input_ids [B,P] long, attention_mask [B,P] bool, episode [B] long (global episode index in the rollout: the
    address of its random draws), row [B] long (row of the prompt dataset).
    """

    input_ids: Tensor
    attention_mask: Tensor
    episode: Tensor
    row: Tensor


@dataclass(frozen=True)
class Rollout(Record):
    """Prompts with the responses sampled for them.

    Shapes: input_ids [B,T] long (prompt left-padded, response right-padded with 0), attention_mask [B,T] bool,
    action_mask [B,A] bool (response tokens up to and including the first stop token), terminated [B] bool (the stop
    token was produced; False means cut off by the length limit), episode [B], row [B] as in `Prompts`,
    sampler_logprobs [B,A] float32 (log-probs of the sampler at the sampling temperature).
    """

    input_ids: Tensor
    attention_mask: Tensor
    action_mask: Tensor
    terminated: Tensor
    episode: Tensor
    row: Tensor
    sampler_logprobs: Tensor

    @property
    def completion_ids(self) -> Tensor:
        """[B,A] the response tokens, 0 where padded."""
        return self.input_ids[:, self.input_ids.shape[1] - self.action_mask.shape[1] :]

    @property
    def lengths(self) -> Tensor:
        """[B] real tokens of prompt and response together."""
        return self.attention_mask.sum(-1)

    @property
    def completion_lengths(self) -> Tensor:
        """[B] response tokens, the stop token included."""
        return self.action_mask.sum(-1)

    def completion_lists(self) -> list[list[int]]:
        """The response tokens of each row, stop token included, without padding."""
        return [ids[mask].tolist() for ids, mask in zip(self.completion_ids, self.action_mask, strict=True)]

    def prompt_lists(self) -> list[list[int]]:
        """The prompt tokens of each row without padding."""
        width = self.input_ids.shape[1] - self.action_mask.shape[1]
        pairs = zip(self.input_ids[:, :width], self.attention_mask[:, :width], strict=True)
        return [ids[mask].tolist() for ids, mask in pairs]


@dataclass(frozen=True)
class EvaluatedRollout(Rollout):
    """A rollout as scored and as seen by policy, reference and critic, before any of it is combined.

    Shapes: scores [B]; parts [B,S] the opinions of the S reward sources, NaN for none; logprobs (of the training
    forward), ref_logprobs, entropy [B,A]; values [B,A] and bootstrap_values [B] (V after the last token), 0 where the
    algorithm has no critic; `values` are Q(s_t, a_t) where the critic is a Q head. Only for algorithms that need them:
    grad_sq_norms [B] ‖∇log π(τ)‖² over the trained parameters; best_values, expected_values [B,A] max_a Q(s_t, a) and
    Σ_a π(a|s_t)·Q(s_t, a). All float32, or float64 if the policy is.
    """

    scores: Tensor
    parts: Tensor
    logprobs: Tensor
    ref_logprobs: Tensor
    entropy: Tensor
    values: Tensor
    bootstrap_values: Tensor
    grad_sq_norms: Tensor | None = None
    best_values: Tensor | None = None
    expected_values: Tensor | None = None


# Which log-probs of a rollout are those of π_old, by the setting `old_logprobs`.
OLD_LOGPROBS = {"recompute": "logprobs", "sampler": "sampler_logprobs"}


@dataclass(frozen=True)
class Experience(Rollout):
    """A rollout with everything the update needs; fixed for all epochs of its PPO cycle.

    Shapes: old_logprobs, ref_logprobs, values, rewards, advantages, returns [B,A] float32; scores [B] float32.
    `values` and `returns` are 0 where the algorithm has no critic. kl [B] is Σ_t k1 to the reference when the rollout
    was made, nats per response: the one that the log shows and β follows; None in an experience that no trainer made.
    """

    scores: Tensor
    old_logprobs: Tensor
    ref_logprobs: Tensor
    values: Tensor
    rewards: Tensor
    advantages: Tensor
    returns: Tensor
    kl: Tensor | None = None


SomeRecord = TypeVar("SomeRecord", bound=Record)


def concatenate(records: Iterable[SomeRecord]) -> SomeRecord:
    """One record from several of the same type, padded to their common width.

    Prompts are padded on the left, responses on the right, so that the widths P and A grow separately.

    Raises:
        ValueError: no record was given, or a field is a tensor in one record and None in another.
    """
    records = list(records)
    if not records:
        raise ValueError("concatenate() needs at least one record, got none")
    if len({tuple(record.tensors()) for record in records}) > 1:
        raise ValueError("concatenate() needs records with the same fields; one has None where another has a tensor")
    common = tuple(max(widths) for widths in zip(*map(_widths, records), strict=True))
    parts = [_widen(record, common) for record in records]
    fields: dict[str, Any] = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return dataclasses.replace(records[0], **fields)


# Laid out along prompt and response together, or along neither; every other [B,·] tensor along the response.
_WHOLE, _NEITHER = {"input_ids", "attention_mask"}, {"parts"}


def _widths(record: Any) -> tuple[int, int]:
    """(P, A); A is 0 for prompts alone."""
    response = record.action_mask.shape[1] if isinstance(record, Rollout) else 0
    return record.input_ids.shape[1] - response, response


def _widen(record: Record, common: tuple[int, ...]) -> dict[str, Tensor]:
    """The record's tensors padded with 0 to common widths (P, A)."""
    left, right = (wide - own for wide, own in zip(common, _widths(record), strict=True))
    fields = record.tensors()
    for name, tensor in fields.items():
        if tensor.ndim == 2 and name not in _NEITHER:
            fields[name] = torch.nn.functional.pad(tensor, (left if name in _WHOLE else 0, right))
    return fields


def left_aligned(input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Each row's real tokens moved to the left end, trimmed to the longest row.

    Args:
        input_ids: [B,T] long. attention_mask: [B,T] bool, True at real tokens, wherever they are.

    Returns:
        ids [B,L] long, 0 behind the last real token (a valid id for every embedding), and lengths [B].
    """
    lengths = attention_mask.sum(-1)
    longest = int(lengths.max()) if len(lengths) else 0
    order = attention_mask.logical_not().to(torch.uint8).sort(dim=1, stable=True).indices[:, :longest]
    return torch.where(attention_mask, input_ids, 0).gather(1, order), lengths


def chunks_by_length(lengths: Tensor, max_tokens: int) -> list[Tensor]:
    """Rows sorted by length and cut into chunks of at most max_tokens padded tokens each (one row at least).

    Args:
        lengths: [B] real tokens of each row. max_tokens: budget of rows × longest row.

    Returns:
        index tensors that together hold every row once.
    """
    order = lengths.argsort(descending=True, stable=True)
    chunks, start = [], 0
    while start < len(order):
        rows = max(1, max_tokens // max(1, int(lengths[order[start]])))
        chunks.append(order[start : start + rows])
        start += rows
    return chunks
