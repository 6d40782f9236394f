"""What a generator is, what it is asked for, and what it has to give back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from ..experience import Prompts, Rollout

# A causal language model of transformers, plain or wrapped by PEFT.
LanguageModel: TypeAlias = PreTrainedModel | PeftModel


@dataclass(frozen=True)
class Sampling:
    """What a run asks of its responses.

    Args:
        max_completion_length: A, tokens a response may have, the stop token included.
        temperature: divides the logits.
        stop_token_id: token that ends a response; None if only the length does.
        vocabulary: how many tokens there are to draw from (`models.anatomy.vocabulary`); None for as many as the model
            has logits for.
    """

    max_completion_length: int
    temperature: float = 1.0
    stop_token_id: int | None = None
    vocabulary: int | None = None


class Generator(Protocol):
    """A backend that samples responses: prompts in, a `Rollout` out."""

    def generate(self, model: LanguageModel, prompts: Prompts, address: tuple[int, ...]) -> Rollout:
        """One response per prompt from the model, random only in the address and the prompts' episodes.

        Args:
            model: the policy as it is now, in eval mode, whole on this process. prompts: P columns, on the model's
            device. address: of the random numbers: (seed, use, rollout). Another address is another draw.

        Returns:
            the rows in the order of the prompts; `sampler_logprobs` are the log-probs by which each token was drawn, at
            the sampling temperature (Shapes: see `Rollout`).
        """
        ...


@runtime_checkable
class TakesSampling(Protocol):
    """A generator that wants to know what the run asks for."""

    def set_sampling(self, sampling: Sampling) -> None:
        """Called once, when the trainer is made."""
        ...


@runtime_checkable
class KeepsWeights(Protocol):
    """A generator with weights of its own, an engine's say."""

    def sync_weights(self, model: LanguageModel) -> None:
        """Called before each `generate`, with the model that it will get: its weights may have changed."""
        ...


class RolloutIsWrong(ValueError):
    """A generator gave back something other than one response to each prompt."""


def check_rollout(rollout: Any, prompts: Prompts, sampling: Sampling, owner: str) -> None:
    """Refuse what is no rollout of these prompts, before anything is computed from it.

    Args:
        owner: the generator's class, for the message.

    Raises:
        TypeError: it is no `Rollout`.
        RolloutIsWrong: shapes, dtypes, masks, prompts, stop tokens or log-probs are not what `Rollout` says; the
            message names the field, the row, and what should be there.
    """
    if not isinstance(rollout, Rollout):
        raise TypeError(f"{owner}.generate must return a hfrlhf.experience.Rollout, got {type(rollout).__name__}")
    for complaint in (_of_shapes, _of_dtypes, _of_prompts, _of_masks, _of_stops, _of_logprobs):
        said = complaint(rollout, prompts, sampling)
        if said:
            raise RolloutIsWrong(f"{owner}.generate gave back a rollout that is none of these prompts: {said}")


def _of_shapes(rollout: Rollout, prompts: Prompts, sampling: Sampling) -> str:
    (rows, width), response = prompts.input_ids.shape, rollout.action_mask.shape[-1]
    if response > sampling.max_completion_length:
        return f"responses of {response} tokens with max_completion_length={sampling.max_completion_length}"
    whole, tokens = (rows, width + response), (rows, response)
    expected: dict[str, tuple[int, ...]] = {
        "input_ids": whole,
        "attention_mask": whole,
        "action_mask": tokens,
        "sampler_logprobs": tokens,
        "terminated": (rows,),
        "episode": (rows,),
        "row": (rows,),
    }
    for name, shape in expected.items():
        found = tuple(getattr(rollout, name).shape)
        if found != shape:
            return (
                f"`{name}` has the shape {list(found)}, and {rows} prompts of {width} columns with responses of "
                f"{response} make {list(shape)}"
            )
    return ""


def _of_dtypes(rollout: Rollout, prompts: Prompts, sampling: Sampling) -> str:
    whole, truth, real = (torch.int64,), (torch.bool,), (torch.float32, torch.float64)
    expected: dict[str, tuple[torch.dtype, ...]] = {
        "input_ids": whole,
        "attention_mask": truth,
        "action_mask": truth,
        "sampler_logprobs": real,
        "terminated": truth,
        "episode": whole,
        "row": whole,
    }
    for name, allowed in expected.items():
        found = getattr(rollout, name).dtype
        if found not in allowed:
            return f"`{name}` is {found}, and has to be {allowed[0]}"
    return ""


def _of_prompts(rollout: Rollout, prompts: Prompts, sampling: Sampling) -> str:
    width = prompts.input_ids.shape[1]
    mask = prompts.attention_mask.bool()
    same = (rollout.attention_mask[:, :width] == mask) & ((rollout.input_ids[:, :width] == prompts.input_ids) | ~mask)
    if not same.all():
        return f"row {_first(~same)} does not begin with its prompt, left-padded as it was given"
    for name in ("episode", "row"):
        other = getattr(rollout, name) != getattr(prompts, name)
        if other.any():
            row = _first(other)
            found, given = int(getattr(rollout, name)[row]), int(getattr(prompts, name)[row])
            return f"`{name}` of row {row} is {found} and not {given}: rows stay in the order of their prompts"
    return ""


def _of_masks(rollout: Rollout, prompts: Prompts, sampling: Sampling) -> str:
    mask, width = rollout.action_mask, prompts.input_ids.shape[1]
    other = mask != rollout.attention_mask[:, width:]
    if other.any():
        return f"`action_mask` and the response's part of `attention_mask` differ in row {_first(other)}"
    holes = mask[:, 1:] & ~mask[:, :-1]
    empty = ~mask.any(-1) if len(mask) else mask.new_zeros(0)
    if holes.any() or empty.any():
        row = _first(holes) if holes.any() else _first(empty)
        return f"the response of row {row} is empty or has holes; a response is at least one token, then padding"
    outside = (rollout.input_ids < 0) | (rollout.input_ids >= (sampling.vocabulary or torch.inf))
    outside = outside[:, width:] & mask
    if outside.any():
        return f"row {_first(outside)} has a token id outside the {sampling.vocabulary} that there are to draw from"
    return ""


def _of_stops(rollout: Rollout, prompts: Prompts, sampling: Sampling) -> str:
    stop, mask = sampling.stop_token_id, rollout.action_mask
    stops = (rollout.completion_ids == stop) & mask if stop is not None else torch.zeros_like(mask)
    after = stops[:, :-1] & mask[:, 1:]
    if after.any():
        return f"the response of row {_first(after)} goes on behind the stop token {stop}"
    wrong = rollout.terminated != stops.any(-1)
    if wrong.any():
        row = _first(wrong)
        return (
            f"`terminated` of row {row} is {bool(rollout.terminated[row])}, and its response does "
            f"{'not ' * (not stops[row].any())}end with the stop token {stop}"
        )
    return ""


def _of_logprobs(rollout: Rollout, prompts: Prompts, sampling: Sampling) -> str:
    logprobs, mask = rollout.sampler_logprobs, rollout.action_mask
    wrong = mask & ~(logprobs <= 0)  # NaN too
    wrong |= mask & ~logprobs.isfinite()
    if wrong.any():
        row = _first(wrong)
        return f"`sampler_logprobs` of row {row} has {float(logprobs[row][wrong[row]][0])}, which is no log-prob"
    padded = ~mask & (logprobs != 0)
    return f"`sampler_logprobs` of row {_first(padded)} is not 0 where the response is padded" if padded.any() else ""


def _first(wrong: Tensor) -> int:
    """The first row with a True in it."""
    return int(wrong.nonzero()[0][0])
