"""What reward functions are told and may tell beside their scores, under the keywords that TRL gives them.

def praise(completions, trainer_state, log_extra, log_metric, **columns):
    counts = [text.count("good") for text in completions]
    log_extra("praise", counts)                             # a column of the samples, one value per completion
    log_metric("praise_max", max(counts))                   # a number of the log
    return [count if trainer_state.global_step < 100 else min(count, 3) for count in counts]
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from typing import Any

from ..models.libraries import gather_object
from .completions import SAMPLE_FIELDS

# Names of numbers that a trainer logs by itself; those of a family begin alike.
LOGGED = (
    "loss",
    "grad_norm",
    "learning_rate",
    "value_learning_rate",
    "epoch",
    "step",
    "episode",
    "kl_coef",
    "tokens_per_second",
    "skipped_updates",
    "total_flos",
    "num_input_tokens_seen",
)
LOGGED_FAMILIES = ("objective/", "policy/", "value/", "reward/", "time/", "entropy/", "kl/", "eval_", "train_", "test_")


class RewardNotes:
    """The keywords `trainer_state`, `log_extra` and `log_metric`, and what came by them since `begin`.

    Args:
        state: gives the trainer's state (`global_step`, `max_steps`, `epoch`, `log_history`, …) as it is now.
    """

    def __init__(self, state: Callable[[], Any]) -> None:
        self.state = state
        self.begin()

    def begin(self) -> None:
        """Before completions are scored: nothing was noted of them yet."""
        self.columns: dict[str, list[Any]] = {}
        self.sums: dict[str, tuple[float, int]] = {}

    def keywords(self) -> dict[str, Any]:
        """What a reward function gets if it asks for it."""
        return {"trainer_state": self.state(), "log_extra": self.log_extra, "log_metric": self.log_metric}

    def log_extra(self, column: str, values: Iterable[Any]) -> None:
        """Note a value per completion; they stand in the samples (`completions.jsonl`) under that name.

        Raises:
            ValueError: the samples have a field of that name.
            TypeError: the values are one word.
        """
        if column in SAMPLE_FIELDS:
            raise ValueError(f"log_extra({column!r}, …): every sample has {column!r} already; choose another name")
        if isinstance(values, str):
            raise TypeError(f"log_extra({column!r}, …) takes a list with a value per completion, got {values!r}")
        self.columns.setdefault(str(column), []).extend(_plain(value) for value in values)

    def log_metric(self, name: str, value: float) -> None:
        """Note a number; the log shows the mean of all that were noted under that name, on all processes. NaN is none.

        Raises:
            ValueError: the trainer logs a number of that name.
            TypeError: it is no number.
        """
        if name in LOGGED or str(name).startswith(LOGGED_FAMILIES):
            raise ValueError(f"log_metric({name!r}, …): the trainer logs {name!r} itself; choose another name")
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise TypeError(f"log_metric({name!r}, …) takes a number, got {value!r}") from None
        if not math.isnan(number):
            total, count = self.sums.get(str(name), (0.0, 0))
            self.sums[str(name)] = total + number, count + 1

    def check(self, completions: int) -> None:
        """After the functions have scored that many completions.

        Raises:
            ValueError: a column has another number of values.
        """
        for column, values in self.columns.items():
            if len(values) != completions:
                raise ValueError(
                    f"log_extra({column!r}, …) was given {len(values)} values for {completions} completions; give one "
                    "each, and each column by one reward function alone"
                )

    def means(self) -> dict[str, float]:
        """Each number's mean over all processes, which all take part."""
        everyone: list[dict[str, tuple[float, int]]] = gather_object([self.sums])
        names = sorted({name for sums in everyone for name in sums})
        noted = {name: [sums[name] for sums in everyone if name in sums] for name in names}
        return {name: sum(t for t, _ in parts) / sum(n for _, n in parts) for name, parts in noted.items()}


def _plain(value: Any) -> Any:
    """A value as a line of JSON can hold it: a tensor's or an array's numbers, else as it is, else its text."""
    value = value.tolist() if hasattr(value, "tolist") else value
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return str(value)
    return value
