"""From what a user passes as `reward_funcs` to the one source a trainer uses: a weighted sum of sources."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.prompts import PromptSet
from ..models.policy.loading import tokenizer_of
from ..models.reward.adapter import OWN_BASE
from .adapter_reward import AdapterReward
from .completions import Completions
from .from_file import function_from
from .function_reward import FunctionReward
from .model_reward import ModelReward
from .source import Offer, RewardRun, RewardSource
from .unnamed import without_function

__all__ = [
    "KINDS",
    "Completions",
    "FunctionReward",
    "ModelReward",
    "RewardSource",
    "WeightedSum",
    "reward_from_name",
    "reward_source",
]

# What one of `reward_funcs` may be; the first kind that takes it makes the source.
KINDS: dict[str, type[RewardSource]] = {
    "an adapter on the policy's base": AdapterReward,
    "a Python function": FunctionReward,
    "a reward model": ModelReward,
}


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

    @property
    def names(self) -> list[str]:
        """What the sources are called in metrics and messages."""
        return [source.name for source in self.sources]

    @property
    def answers_again(self) -> bool:
        """Whether all of it may be asked once more than rollouts and evaluations do (`RewardSource.answers_again`)."""
        return all(source.answers_again for source in self.sources)

    def to(self, device: torch.device) -> None:
        """Bring every source to the device where the run computes."""
        for source in self.sources:
            source.to(device)

    def check_prompts(self, sets: Mapping[str, PromptSet], completion: int) -> None:
        """Refuse prompts that a source could not read, before anything is trained.

        Args:
            sets: the prompt sets, by the name of their dataset. completion: tokens a response may have.
        """
        for dataset, prompts in sets.items():
            for source in self.sources:
                source.check_prompts(prompts, dataset, completion)

    def join(self, run: RewardRun) -> None:
        """Tell every source what a run tells them."""
        for source in self.sources:
            source.join(run)

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
    policy_tokenizer: PreTrainedTokenizerBase,
    processing_classes: Any = None,
    weights: Sequence[float] | None = None,
    max_tokens: int = 4096,
    policy: PreTrainedModel | PeftModel | None = None,
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
    offer = Offer(policy_tokenizer, None, policy, max_tokens, timeout)
    pairs = zip(functions, tokenizers, strict=True)
    sources = [_source(given, replace(offer, tokenizer=tokenizer)) for given, tokenizer in pairs]
    return WeightedSum(_with_distinct_names(sources), [float(w) for w in factors])


def _per_source(given: Any, functions: list[Any], what: str, default: Any) -> list[Any]:
    if given is None:
        return [default] * len(functions)
    values = list(given) if isinstance(given, list | tuple) else [given]
    if len(values) != len(functions):
        raise ValueError(f"`{what}` has {len(values)} entries for {len(functions)} reward functions; give one each")
    return values


def _source(given: Any, offer: Offer) -> RewardSource:
    """A source of the first kind that takes what was passed."""
    if isinstance(given, type):
        raise TypeError(f"a reward function is a model, a path or a callable, got the class {given.__name__} itself")
    for kind in KINDS.values():
        if kind.takes(given, offer):
            return kind.of(given, offer)
    raise TypeError(f"a reward function is a model, a path or a callable, got {type(given).__name__}")


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


def _with_distinct_names(sources: list[RewardSource]) -> list[RewardSource]:
    seen: dict[str, int] = {}
    for source in sources:
        seen[source.name] = seen.get(source.name, 0) + 1
        if seen[source.name] > 1:
            source.rename(f"{source.name}_{seen[source.name]}")
    return sources
