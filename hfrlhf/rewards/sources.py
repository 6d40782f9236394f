"""Reward sources: sampled responses in, one score per response out."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import math
import runpy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import AutoTokenizer

from ..experience import Rollout, chunks_by_length, left_aligned
from ..models.dropout import disable_dropout
from ..models.loading import check_vocabulary
from ..models.reward_model import last_token_scores, load_reward_model


@dataclass(frozen=True)
class Completions:
    """What a reward source may look at.

    prompts and completions are texts, or lists of chat messages where the prompts are chats; completion_ids are the
    sampled tokens, stop token included, without padding; columns are the dataset's other columns, row by row.
    """

    rollout: Rollout
    prompts: list[Any]
    completions: list[Any]
    completion_ids: list[list[int]]
    columns: dict[str, list[Any]] = field(default_factory=dict)

    def examples(self, scores: Tensor, n: int) -> list[dict[str, Any]]:
        """The first n as rows to show or to keep."""
        rows = zip(self.prompts[:n], self.completions, scores.tolist(), strict=False)
        return [{"prompt": prompt, "completion": completion, "score": score} for prompt, completion, score in rows]


class RewardSource(Protocol):
    """Scores completions. `name` labels its mean in the metrics."""

    name: str

    def __call__(self, completions: Completions) -> Tensor:
        """[B] float32 scores; NaN where this source has no opinion."""


@dataclass
class ModelReward:
    """A reward model: the score of its last real token minus `config.reward_shift` (SPEC §2.1).

    With the policy's own vocabulary it reads the policy's token ids, exactly as sampled; with another, the text is
    decoded and encoded again with its own tokenizer and chat template (DETAILS 9).
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
        device = self.model.get_input_embeddings().weight.device
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
            rows = [self._encode(p, c) for p, c in zip(completions.prompts, completions.completions, strict=True)]
            ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
            lengths = torch.tensor([len(row) for row in rows])
        return ids, torch.arange(ids.shape[1]) < lengths[:, None]

    def _encode(self, prompt: Any, completion: Any) -> list[int]:
        if isinstance(prompt, str):
            ids = self.tokenizer(prompt + completion).input_ids
            eos = self.tokenizer.eos_token_id
            return ids if eos is None or ids[-1:] == [eos] else [*ids, eos]
        return self.tokenizer.apply_chat_template(prompt + completion, return_dict=False)


@dataclass
class FunctionReward:
    """A Python function `f(prompts, completions, completion_ids, **columns) -> list[float | None]`, sync or async.

    It is called with keywords; dataset columns come by their names. None means no opinion on that row.
    """

    function: Callable[..., Any]
    name: str

    def __call__(self, completions: Completions) -> Tensor:
        """[B] scores.

        Raises:
            TypeError, ValueError: the function returned something other than one number or None per completion.
        """
        keywords = dict(completions.columns) | {
            "prompts": completions.prompts,
            "completions": completions.completions,
            "completion_ids": completions.completion_ids,
        }
        result = self.function(**accepted(self.function, keywords))
        if inspect.isawaitable(result):
            result = asyncio.run(_wait_for(result))
        return self._checked(result, len(completions.completions))

    def _checked(self, result: Any, expected: int) -> Tensor:
        if isinstance(result, Tensor):
            result = result.tolist()
        if not isinstance(result, Sequence) or isinstance(result, str):
            raise TypeError(f"reward function {self.name!r} must return a list of numbers, got {type(result).__name__}")
        if len(result) != expected:
            raise ValueError(f"reward function {self.name!r} returned {len(result)} scores for {expected} completions")
        for index, score in enumerate(result):
            if score is not None and not is_number(score):
                raise TypeError(
                    f"reward function {self.name!r} returned {score!r} ({type(score).__name__}) for completion "
                    f"{index}; a score is a number, or None for no opinion"
                )
        return torch.tensor([math.nan if score is None else float(score) for score in result])


def is_number(score: Any) -> bool:
    """Whether a score is a number: Python's, numpy's or a tensor of one element; a bool counts as 0 or 1."""
    try:
        float(score)
    except (TypeError, ValueError):
        return False
    return not isinstance(score, str)


def accepted(function: Callable[..., Any], keywords: dict[str, Any]) -> dict[str, Any]:
    """The keywords a function takes: all of them with `**kwargs`, else those it names."""
    parameters = inspect.signature(function).parameters.values()
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        return keywords
    return {p.name: keywords[p.name] for p in parameters if p.name in keywords}


async def _wait_for(result: Any) -> Any:
    return await result


@dataclass
class WeightedSum:
    """score = Σ_j w_j·score_j over the sources that have an opinion on the row."""

    sources: list[RewardSource]
    weights: list[float]
    name: str = "weighted sum"

    def __call__(self, completions: Completions) -> Tensor:
        """[B] scores.

        Raises:
            ValueError: a row on which no source has an opinion.
        """
        return self.combine(self.parts(completions))

    def parts(self, completions: Completions) -> dict[str, Tensor]:
        """Each source's own scores, by its name."""
        return {source.name: source(completions) for source in self.sources}

    def combine(self, parts: dict[str, Tensor]) -> Tensor:
        """The weighted sum of the parts."""
        scores = torch.stack([part.float() for part in parts.values()])
        silent = scores.isnan().all(0)
        if silent.any():
            raise ValueError(
                f"no reward function has an opinion on completion {int(silent.nonzero()[0])}: each returned None or "
                "NaN; at least one must give a number for every completion"
            )
        weights = torch.tensor(self.weights, device=scores.device)[:, None]
        return torch.where(scores.isnan(), 0.0, scores * weights).sum(0)


def reward_source(
    reward_funcs: Any,
    policy_tokenizer: Any,
    processing_classes: Any = None,
    weights: Sequence[float] | None = None,
    max_tokens: int = 4096,
) -> WeightedSum:
    """The one source a trainer uses, from what a user passes.

    Args:
        reward_funcs: a reward model (name, path or object), a callable, or a list of them.
        policy_tokenizer: the policy's tokenizer.
        processing_classes: the reward models' tokenizers, in the order of `reward_funcs`; by default the one saved with
            the model, else the policy's.
        weights: one weight per source; 1 each by default.

    Raises:
        ValueError: no source, or another number of weights or tokenizers than sources.
        TypeError: a source that is neither model nor callable.
    """
    functions = list(reward_funcs) if isinstance(reward_funcs, list | tuple) else [reward_funcs]
    if not functions or reward_funcs is None:
        raise ValueError("`reward_funcs` is empty: pass a reward model, a Python function, or a list of them")
    tokenizers = _per_source(processing_classes, functions, "reward_processing_classes", None)
    factors = _per_source(weights, functions, "reward_weights", 1.0)
    sources = [_source(f, t, policy_tokenizer, max_tokens) for f, t in zip(functions, tokenizers, strict=True)]
    return WeightedSum(_with_distinct_names(sources), [float(w) for w in factors])


def _per_source(given: Any, functions: list[Any], what: str, default: Any) -> list[Any]:
    if given is None:
        return [default] * len(functions)
    values = list(given) if isinstance(given, list | tuple) else [given]
    if len(values) != len(functions):
        raise ValueError(f"`{what}` has {len(values)} entries for {len(functions)} reward functions; give one each")
    return values


def _source(function: Any, tokenizer: Any, policy_tokenizer: Any, max_tokens: int) -> RewardSource:
    if inspect.isroutine(function) or (callable(function) and not isinstance(function, torch.nn.Module)):
        return FunctionReward(function, str(getattr(function, "__name__", "reward")))
    if not isinstance(function, str | torch.nn.Module):
        raise TypeError(f"a reward function is a model, a path or a callable, got {type(function).__name__}")
    name = function if isinstance(function, str) else getattr(function.config, "_name_or_path", "")
    model = load_reward_model(function).requires_grad_(False).eval()
    disable_dropout(model)
    own = tokenizer or _saved_tokenizer(name) or policy_tokenizer
    return ModelReward(model, name.rstrip("/").split("/")[-1] or "reward_model", own, policy_tokenizer, max_tokens)


def reward_from_name(name: str) -> Any:
    """What a command line means by a reward: `file.py:function` or `package.module:function`, else a model's name.

    Raises:
        ValueError: the file, the module or the function does not exist.
    """
    place, colon, function = name.rpartition(":")
    if not colon or not function.isidentifier():
        return name
    try:
        if place.endswith(".py"):
            return runpy.run_path(place)[function]
        return getattr(importlib.import_module(place), function)
    except (OSError, ImportError, AttributeError, KeyError) as error:
        raise ValueError(f"no reward function {function!r} in {place!r}: {error}") from error


def _saved_tokenizer(name: str) -> Any:
    try:
        return AutoTokenizer.from_pretrained(name) if name else None
    except (OSError, ValueError):
        return None  # a model saved without its tokenizer: it was trained with the policy's


def _with_distinct_names(sources: list[Any]) -> list[Any]:
    seen: dict[str, int] = {}
    for source in sources:
        seen[source.name] = seen.get(source.name, 0) + 1
        if seen[source.name] > 1:
            source.name = f"{source.name}_{seen[source.name]}"
    return sources
