"""What a trainer hands to the Python functions among its reward sources."""

from __future__ import annotations

from functools import partial
from typing import Any

from ..rewards.function_reward import FunctionReward, check_columns, check_parameters
from ..rewards.notes import RewardNotes
from ..runs.agreement import together


def hand_over(trainer: Any, datasets: dict[str, Any]) -> RewardNotes:
    """Let functions note things beside their scores, and let one that fails on one process end all of them.

    Args:
        datasets: the rows that they will see, by name.

    Raises:
        ValueError: a column has the name of something that a function gets from the trainer.
    """
    notes = RewardNotes(lambda: trainer.state)  # a resume puts another state in its place
    for function in trainer.reward.sources:
        if isinstance(function, FunctionReward):
            for name, rows in datasets.items():
                check_columns(function, rows.column_names, name)
                check_parameters(function, set(rows.column_names) - {"prompt"}, name)
            function.around, function.notes = partial(together, trainer.accelerator), notes
    return notes
