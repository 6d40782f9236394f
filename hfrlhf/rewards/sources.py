"""From what a user passes as `reward_funcs` to the one source a trainer uses: a weighted sum of sources."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoTokenizer

from ..models.anatomy.dropout import disable_dropout
from ..models.anatomy.names import as_name, is_adapter
from ..models.anatomy.positions import positions_of
from ..models.anatomy.sizes import embeddings_of
from ..models.libraries import name_or_path
from ..models.policy.loading import tokenizer_of
from ..models.reward.adapter import OWN_BASE, add_reward_adapter
from ..models.reward.scoring import load_reward_model
from .adapter_reward import AdapterReward
from .completions import Completions, RewardSource
from .from_file import function_from
from .function_reward import FunctionReward
from .model_reward import ModelReward
from .reading import Reader
from .unnamed import without_function

__all__ = [
    "Completions",
    "FunctionReward",
    "ModelReward",
    "RewardSource",
    "WeightedSum",
    "reward_from_name",
    "reward_source",
]


@dataclass
class WeightedSum:
    """score = Σ_j w_j·score_j over the sources that have an opinion on the row."""

    sources: list[RewardSource]
    weights: list[float]
    name: str = "weighted sum"

    def __call__(self, completions: Completions) -> Tensor:
        """[B] scores.

        Raises:
            ValueError: a row on which no source has an opinion, or one whose score is not finite.
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
                "NaN; at least one must give a number for every completion (0 where there is nothing to say)"
            )
        weights = torch.tensor(self.weights, device=scores.device)[:, None]
        combined = torch.where(scores.isnan(), 0.0, scores * weights).sum(0)
        _refuse_infinite(combined, parts)
        return combined


def _refuse_infinite(combined: Tensor, parts: dict[str, Tensor]) -> None:
    """One infinite score would make every whitened advantage of its rollout NaN."""
    if combined.isfinite().all():
        return
    row = int(combined.isfinite().logical_not().nonzero()[0])
    said = ", ".join(f"{name!r} gave {float(part[row])}" for name, part in parts.items())
    raise ValueError(
        f"the score of completion {row} is {float(combined[row])}: {said}; a reward must be finite (None or NaN means "
        "no opinion)"
    )


def reward_source(
    reward_funcs: Any,
    policy_tokenizer: Any,
    processing_classes: Any = None,
    weights: Sequence[float] | None = None,
    max_tokens: int = 4096,
    policy: Any = None,
    timeout: float | None = None,
) -> WeightedSum:
    """The one source a trainer uses, from what a user passes.

    Args:
        reward_funcs: a reward model (name, path or object), a callable, or a list of them.
        policy_tokenizer: the policy's tokenizer.
        processing_classes: the reward models' tokenizers, in the order of `reward_funcs`; by default the one that the
            model was trained with or that is saved with it, else the policy's.
        weights: one weight per source; 1 each by default.
        policy: where it has an adapter, a reward adapter given by its name or path is put on the same base (with
            `own:` before the name it gets a base of its own).
        timeout: seconds that a callable may take; None for no limit.

    Raises:
        ValueError: no source, another number of weights or tokenizers than sources, or a language model without a
            score head.
        TypeError: a source that is neither model nor callable.
    """
    functions = list(reward_funcs) if isinstance(reward_funcs, list | tuple) else [reward_funcs]
    if not functions or reward_funcs is None:
        raise ValueError("`reward_funcs` is empty: pass a reward model, a Python function, or a list of them")
    tokenizers = _per_source(processing_classes, functions, "reward_processing_classes", None)
    tokenizers = [given if given is None else tokenizer_of(given) for given in tokenizers]
    factors = _per_source(weights, functions, "reward_weights", 1.0)
    pairs = zip(functions, tokenizers, strict=True)
    sources = [_source(f, t, policy_tokenizer, max_tokens, policy, timeout) for f, t in pairs]
    return WeightedSum(_with_distinct_names(sources), [float(w) for w in factors])


def _per_source(given: Any, functions: list[Any], what: str, default: Any) -> list[Any]:
    if given is None:
        return [default] * len(functions)
    values = list(given) if isinstance(given, list | tuple) else [given]
    if len(values) != len(functions):
        raise ValueError(f"`{what}` has {len(values)} entries for {len(functions)} reward functions; give one each")
    return values


def _source(
    function: Any, tokenizer: Any, policy_tokenizer: Any, max_tokens: int, policy: Any, timeout: float | None
) -> RewardSource:
    own_base = isinstance(function, str) and function.startswith(OWN_BASE)
    function = as_name(function.removeprefix(OWN_BASE) if own_base else function)
    if isinstance(policy, PeftModel) and not own_base and isinstance(function, str) and is_adapter(function, {}):
        _refuse_other_tokenizer(function, tokenizer, policy_tokenizer)
        role = add_reward_adapter(policy, function)
        own = tokenizer or _saved_tokenizer(function) or policy_tokenizer
        reader = Reader(own, policy_tokenizer, embeddings_of(policy), role.ends_with_eos, positions_of(policy))
        return AdapterReward(policy, Path(function).name, role.head, role.shift, reader, max_tokens)
    if isinstance(function, type):
        raise TypeError(f"a reward function is a model, a path or a callable, got the class {function.__name__} itself")
    if inspect.isroutine(function) or (callable(function) and not isinstance(function, torch.nn.Module)):
        return FunctionReward(function, str(getattr(function, "__name__", "reward")), timeout)
    if not isinstance(function, str | torch.nn.Module):
        raise TypeError(f"a reward function is a model, a path or a callable, got {type(function).__name__}")
    name = function if isinstance(function, str) else name_or_path(function.config)
    model, is_new_head = load_reward_model(function, return_new_head=True)
    if is_new_head:
        raise ValueError(
            f"{name or type(function).__name__} is a language model: it has no trained score head, and a new one gives "
            "random scores; train a reward model from it with RewardTrainer (or recipes/reward.py) and pass that"
        )
    disable_dropout(model.requires_grad_(False).eval())
    own = tokenizer or getattr(model, "trained_with", None) or _saved_tokenizer(name) or policy_tokenizer
    return ModelReward(model, Path(name).name or "reward_model", own, policy_tokenizer, max_tokens)


def _refuse_other_tokenizer(name: str, tokenizer: Any, policy_tokenizer: Any) -> None:
    """On the policy's base there is one vocabulary."""
    if tokenizer is not None and tokenizer.get_vocab() != policy_tokenizer.get_vocab():
        raise ValueError(
            f"the reward adapter {name} shares the policy's base and reads the policy's own token ids, but "
            "`reward_processing_classes` gives it a tokenizer with another vocabulary; leave that out, or pass "
            f"`{OWN_BASE}{name}` to load the adapter with a base of its own"
        )


def reward_from_name(name: str) -> Any:
    """What a command line means by a reward: `file.py:function` or `package.module:function`, else a model's name.

    A name that begins with `own:` is a reward adapter to be loaded with a base of its own.

    Raises:
        ValueError: a FILE.py without a function's name; else as `from_file.function_from`.
    """
    said = without_function(name)
    if said:
        raise ValueError(f"reward_funcs: {said}")
    place, colon, function = name.rpartition(":")
    if name.startswith(OWN_BASE) or not colon or not function.isidentifier():
        return name
    return function_from(place, function)


def _saved_tokenizer(name: str) -> Any:
    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False) if name else None
    except (OSError, ValueError):
        return None  # a model saved without its tokenizer: it was trained with the policy's


def _with_distinct_names(sources: list[Any]) -> list[Any]:
    seen: dict[str, int] = {}
    for source in sources:
        seen[source.name] = seen.get(source.name, 0) + 1
        if seen[source.name] > 1:
            source.name = f"{source.name}_{seen[source.name]}"
    return sources
