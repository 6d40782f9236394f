"""The table of generators, and the one place where one of them is chosen, run, and its rollout looked at.

To add one: a file with a class that has `generate` (`contract.Generator`), and a row in `GENERATORS`, by which
`generator: NAME` chooses it. One from a user's own script needs no row: `PPOTrainer(generator=…)`.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from typing import Any

from ..experience import Prompts, Rollout
from .contract import Generator, KeepsWeights, LanguageModel, Sampling, TakesSampling, check_rollout
from .generation import TransformersGenerator

# By the setting `generator`: what makes one for a run.
GENERATORS: dict[str, Callable[[Sampling], Generator]] = {
    "transformers": TransformersGenerator.of,
}


def check_generator(given: Any, name: str) -> None:
    """Refuse what cannot sample, before any model is loaded.

    Args:
        given: the trainer's argument: None, a name of the table, or an object. name: the setting, which counts where
            the argument is None.

    Raises:
        ValueError: an unknown name.
        TypeError: an object without `generate(model, prompts, address)`, or a class itself.
    """
    chosen = name if given is None else given
    if isinstance(chosen, str):
        if chosen not in GENERATORS:
            near = difflib.get_close_matches(chosen, GENERATORS, n=1)
            known = ", ".join(map(repr, GENERATORS))
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"there is no generator {chosen!r}: choose one of {known}, or pass an object{hint}")
        return
    if isinstance(chosen, type):
        raise TypeError(
            f"`generator` is the class {chosen.__name__} itself; pass one that is made: {chosen.__name__}(…)"
        )
    if not callable(getattr(chosen, "generate", None)):
        raise TypeError(f"`generator` is {_shown(chosen)}, which has no generate(model, prompts, address) -> Rollout")
    try:
        inspect.signature(chosen.generate).bind(None, None, None)
    except TypeError as error:
        raise TypeError(
            f"`generator` is {_shown(chosen)}, whose generate{inspect.signature(chosen.generate)} cannot be called as "
            f"generate(model, prompts, address): {error}"
        ) from None


def generator_of(given: Any, name: str, sampling: Sampling) -> Generator:
    """The generator of a run: the object passed to the trainer, or the row of the table that is named.

    Args:
        given, name: as in `check_generator`, which has seen them. sampling: what the run asks of its responses.
    """
    chosen = name if given is None else given
    generator: Generator = GENERATORS[chosen](sampling) if isinstance(chosen, str) else chosen
    if isinstance(generator, TakesSampling):
        generator.set_sampling(sampling)
    return generator


def sample(
    generator: Generator, model: LanguageModel, prompts: Prompts, address: tuple[int, ...], sampling: Sampling
) -> Rollout:
    """A rollout from a generator, looked at once and brought to the CPU.

    Raises:
        TypeError, RolloutIsWrong: it is no rollout of these prompts (`contract.check_rollout`).
    """
    if isinstance(generator, KeepsWeights):
        generator.sync_weights(model)
    rollout: Any = generator.generate(model, prompts, address)
    if isinstance(rollout, Rollout):
        rollout = rollout.to("cpu")
    check_rollout(rollout, prompts.to("cpu"), sampling, type(generator).__name__)
    checked: Rollout = rollout
    return checked


def _shown(given: Any) -> str:
    return f"{given!r:.60} ({type(given).__name__})"
