"""Callbacks of the trainers, and those that a script may add; what they show and draw is in `hfrlhf.reporting`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from transformers import IntervalStrategy, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..reporting.curves import CURVES, plot_curves
from ..reporting.facts import PolicyRun, Sample
from ..reporting.metrics import WATCHED
from ..reporting.progress import LinePerLog, NumbersOnBar, show_on_bar
from ..reporting.samples import append_samples, forget_samples_after, print_samples

__all__ = [
    "WATCHED",
    "CompletionsCallback",
    "CurvesCallback",
    "LastStepLog",
    "LinePerLog",
    "NumbersOnBar",
    "StepEnd",
    "plot_curves",
    "print_samples",
    "show_on_bar",
]


class StepEnd(TrainerCallback):
    """Tells when an optimiser step is over, before anything is logged or saved.

    Args:
        after_step: called then; the step counter has moved on.
    """

    def __init__(self, after_step: Callable[[], None]) -> None:
        self.after_step = after_step

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Tell."""
        self.after_step()


class LastStepLog(TrainerCallback):
    """Has the last step logged where none has been: a run shorter than `logging_steps` shows its numbers, too."""

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Ask for a log at the end, unless logs are switched off or come with the epochs."""
        by_steps = args.logging_strategy == IntervalStrategy.STEPS
        if by_steps and state.global_step >= state.max_steps and not any("loss" in row for row in state.log_history):
            control.should_log = True


class CompletionsCallback(TrainerCallback):
    """Keeps sampled completions in `completions.jsonl` and prints the first and the last of them as a table.

    The trainer does so itself unless `log_completions=False`; beside it this callback does nothing.

    Args:
        trainer: whose `samples` are kept.
    """

    def __init__(self, trainer: PolicyRun) -> None:
        self.trainer = trainer
        self.first: list[Sample] = []

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """After a resume, forget what the run wrote beyond its checkpoint: it is about to be written again."""
        if state.is_world_process_zero and not _does(args, "log_completions"):
            forget_samples_after(Path(str(args.output_dir)), state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: object,
    ) -> None:
        """Append the newest samples."""
        if not state.is_world_process_zero or _does(args, "log_completions") or "objective/score" not in (logs or {}):
            return
        self.first = self.first or self.trainer.samples
        append_samples(Path(str(args.output_dir)), state.global_step, self.trainer.samples)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Print how it began and how it ended."""
        if state.is_world_process_zero and self.first:
            print_samples({"first rollout": self.first, "last rollout": self.trainer.samples})


class CurvesCallback(TrainerCallback):
    """Writes `curves.png` into the output folder at the end of training: the watched metrics against episodes.

    The trainer does so itself unless `save_curves=False`; beside it this callback does nothing.
    """

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Draw the log history."""
        if state.is_world_process_zero and not _does(args, "save_curves"):
            plot_curves(state.log_history, Path(str(args.output_dir)) / CURVES)


def _does(args: TrainingArguments, setting: str) -> bool:
    """Whether the trainer does by itself what a callback is for."""
    return bool(getattr(args, setting, False))
