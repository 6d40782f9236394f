"""Python functions as a source of scores."""

from __future__ import annotations

import asyncio
import inspect
import math
import threading
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from .completions import Completions
from .notes import RewardNotes
from .source import Offer, RewardRun, RewardSource


@dataclass
class FunctionReward(RewardSource):
    """A Python function `f(prompts, completions, completion_ids, **columns) -> list[float | None]`, sync or async.

    It is called with keywords; dataset columns come by their names, and, as with TRL, `trainer_state`, `log_extra` and
    `log_metric` (`rewards.notes`). It gets those it names, or all with `**kwargs`. None means no opinion on that row.
    """

    function: Callable[..., Any]
    name: str
    timeout: float | None = None  # seconds it may take
    around: Callable[[], AbstractContextManager[None]] = nullcontext  # entered for each call, on every process
    notes: RewardNotes | None = None  # what it may note beside its scores

    @classmethod
    def takes(cls, given: Any, offer: Offer) -> bool:
        """Anything that can be called and is no model."""
        return inspect.isroutine(given) or (callable(given) and not isinstance(given, nn.Module | type))

    @classmethod
    def of(cls, given: Any, offer: Offer) -> Self:
        """The source that calls it."""
        return cls(given, str(getattr(given, "__name__", "reward")), offer.timeout)

    def join(self, run: RewardRun) -> None:
        """Note things beside the scores, and let a failure on one process end all of them.

        Raises:
            ValueError: a column has the name of something that a function gets from the trainer, or it asks for what it
                cannot be given.
        """
        for dataset, rows in run.datasets.items():
            check_columns(self, rows.column_names, dataset)
            check_parameters(self, set(rows.column_names) - {"prompt"}, dataset)
        self.around, self.notes = run.together, run.notes

    def __call__(self, completions: Completions) -> Tensor:
        """[B] scores.

        Raises:
            TypeError, ValueError: the function returned something other than one number or None per completion.
            RuntimeError: it raised an error (which is the cause of this one).
            TimeoutError: it took longer than `timeout`.
        """
        with self.around():
            if not completions.completions:  # a process whose share is empty; a user's function need not allow for it
                return torch.zeros(0)
            keywords = dict(completions.columns) | (self.notes.keywords() if self.notes else {})
            keywords |= {
                "prompts": completions.prompts,
                "completions": completions.completions,
                "completion_ids": completions.completion_ids,
            }
            return self._checked(self._result(keywords), len(completions.completions))

    def _result(self, keywords: dict[str, Any]) -> Any:
        rows = len(keywords["completions"])

        def call() -> Any:
            result = self.function(**accepted(self.function, keywords))
            return run_async(result) if inspect.isawaitable(result) else result

        outcome = within(call, self.timeout) if self.timeout else Outcome.of(call)
        if outcome is None:
            raise TimeoutError(
                f"reward function {self.name!r} has not answered for {rows} completions within `reward_timeout="
                f"{self.timeout:g}` seconds; make it faster, give it a time limit of its own, or raise `reward_timeout`"
            )
        if outcome.error is not None:
            error = outcome.error
            raise RuntimeError(
                f"reward function {self.name!r} failed on {rows} completions with {type(error).__name__}: {error}; its "
                "own traceback is above. Let it give a score also for text it did not expect"
            ) from error
        return outcome.value

    def _checked(self, result: Any, expected: int) -> Tensor:
        if callable(getattr(result, "tolist", None)):  # a tensor, an array of numpy, a column of pandas
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


@dataclass(frozen=True)
class Outcome:
    """What a call gave: a value, or an error."""

    value: Any = None
    error: Exception | None = None

    @classmethod
    def of(cls, call: Callable[[], Any]) -> Outcome:
        """The outcome of a call."""
        try:
            return cls(value=call())
        except Exception as error:
            return cls(error=error)


def within(call: Callable[[], Any], seconds: float) -> Outcome | None:
    """The outcome of a call, or None where it takes longer: its thread is left behind, and ends with the process."""
    outcomes: list[Outcome] = []
    thread = threading.Thread(target=lambda: outcomes.append(Outcome.of(call)), daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        return None
    return outcomes[0] if outcomes else Outcome(error=RuntimeError("it ended its own thread, as sys.exit() does"))


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


def check_columns(function: FunctionReward, columns: Iterable[str], dataset: str) -> None:
    """Refuse a dataset's columns whose names are those of keywords that the function gets from the trainer.

    Raises:
        ValueError: the message names the column.
    """
    own = {"prompts", "completions", "completion_ids"} | RewardNotes(lambda: None).keywords().keys()
    for column in sorted(own & set(columns)):
        if column in accepted(function.function, {column: None}):
            raise ValueError(
                f"the {dataset} has a column {column!r}, and reward function {function.name!r} gets something else "
                f"under that name from the trainer; rename the column: dataset.rename_column({column!r}, …)"
            )


def check_parameters(function: FunctionReward, columns: Iterable[str], dataset: str) -> None:
    """Refuse a function that asks for what it cannot be given, before there is a rollout to score.

    Args:
        columns: of the dataset, each of which is passed by its name.

    Raises:
        ValueError: a parameter without a default that is neither the trainer's nor a column; or one without a name.
    """
    own = {"prompts", "completions", "completion_ids"} | RewardNotes(lambda: None).keywords().keys()
    try:
        parameters = inspect.signature(function.function).parameters.values()
    except (TypeError, ValueError):  # of some functions written in C nothing is known
        return
    nameless = [p.name for p in parameters if p.kind is inspect.Parameter.POSITIONAL_ONLY]
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    unknown = [p.name for p in named if p.default is p.empty and p.name not in own | set(columns)]
    if nameless or unknown:
        raise ValueError(
            f"reward function {function.name!r} asks for {(nameless + unknown)[0]!r}, which it cannot be given: it is "
            f"called with keywords: {', '.join(sorted(own))}, and the columns of the {dataset}, {sorted(columns)}; "
            "name its parameters so (those it has no use for go into `**_`)"
        )


def run_async(result: Awaitable[Any]) -> Any:
    """The result of an async function, also where an event loop already runs (a notebook): then in a thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(_wait_for(result))
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, _wait_for(result)).result()


async def _wait_for(result: Awaitable[Any]) -> Any:
    return await result
