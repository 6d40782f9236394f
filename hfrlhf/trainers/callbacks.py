"""What a person watches: a bar with reward and KL, sampled completions, and the curves of the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from transformers import ProgressCallback, TrainerCallback

from ..hub.plain_text import printable

# What the bar and the curves show: metric, short name, and what it is measured in.
WATCHED = {
    "objective/score": ("score", "reward-model score"),
    "objective/kl": ("KL", "nats per response"),
    "objective/ended": ("ended", "share of responses with a stop token"),
    "objective/entropy": ("entropy", "nats per token"),
    "objective/response_length": ("length", "tokens"),
    "value/explained_variance": ("critic", "explained share of the returns' variance"),
}


class NumbersOnBar(ProgressCallback):
    """The Trainer's progress bar with the newest numbers beside it, instead of a dictionary per log.

    Args:
        shown: metric -> its name on the bar.
    """

    def __init__(self, shown: dict[str, str]) -> None:
        super().__init__()
        self.shown = shown

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Show the newest numbers."""
        if self.training_bar is not None and logs:
            numbers = {name: f"{float(logs[key]):.2f}" for key, name in self.shown.items() if key in logs}
            if numbers:  # the log at the very end has none, and would wipe out the last ones
                self.training_bar.set_postfix(numbers)

    def on_prediction_step(self, *args: Any, **kwargs: Any) -> None:
        """Evaluation is over in a moment; it shows no bar."""


def show_on_bar(trainer: Any, shown: dict[str, str]) -> None:
    """Put this bar in the place of the trainer's own, where it has one."""
    if trainer.pop_callback(ProgressCallback) is not None:
        trainer.add_callback(NumbersOnBar(shown))


class CycleEnd(TrainerCallback):
    """Tells the trainer when a rollout has had its last optimiser step, before anything is logged or saved.

    Args:
        trainer: whose `after_cycle` is called.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The step counter has moved on: at 0 in the next cycle, the last one is over."""
        if self.trainer.step_in_cycle == 0:
            self.trainer.after_cycle()


class CompletionsCallback(TrainerCallback):
    """Keeps sampled completions in `completions.jsonl` and prints the first and the last of them as a table.

    Args:
        trainer: whose `samples` are kept.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.first: list[dict[str, Any]] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After a resume, forget what the run wrote beyond its checkpoint: it is about to be written again."""
        path = Path(args.output_dir) / "completions.jsonl"
        if state.is_world_process_zero and path.exists():
            rows = path.read_text(encoding="utf-8").splitlines(keepends=True)
            whole = [row for row in rows if row.endswith("\n")]  # a killed run may have written half of its last one
            kept = path.with_suffix(".kept")
            kept.write_text(
                "".join(row for row in whole if json.loads(row)["step"] <= state.global_step), encoding="utf-8"
            )
            kept.replace(path)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        """Append the newest samples."""
        if not state.is_world_process_zero or not logs or "objective/score" not in logs:
            return
        self.first = self.first or self.trainer.samples
        path = Path(args.output_dir) / "completions.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps({"step": state.global_step} | row) + "\n" for row in self.trainer.samples)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Print how it began and how it ended."""
        if state.is_world_process_zero and self.first:
            print_samples({"first rollout": self.first, "last rollout": self.trainer.samples})


def print_samples(stages: dict[str, list[dict[str, Any]]]) -> None:
    """A table of samples with their scores, a block for each stage."""
    table = Table("", "prompt", "completion", "score")
    for stage, rows in stages.items():
        for row in rows:
            table.add_row(stage, _shown(row["prompt"]), _shown(row["completion"]), f"{row['score']:.2f}")
        table.add_section()
    Console().print(table)


def _shown(text: Any) -> str:
    """As it was written: no markup of rich, no control sequence of a terminal."""
    return escape(printable(str(text)))


class CurvesCallback(TrainerCallback):
    """Writes `curves.png` into the output folder at the end of training: the watched metrics against episodes."""

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Draw the log history."""
        if state.is_world_process_zero:
            plot_curves(state.log_history, Path(args.output_dir) / "curves.png")


def plot_curves(history: list[dict[str, float]], path: Path, title: str = "") -> None:
    """One panel per watched metric against the episodes seen.

    Args:
        history: the Trainer's `state.log_history`. path: PNG to write. title: above the panels.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = [row for row in history if "objective/score" in row]
    watched = {name: words for name, words in WATCHED.items() if any(name in row for row in rows)}
    figure, axes = plt.subplots(2, 3, figsize=(11, 5.5), constrained_layout=True)
    for axis in axes.flat[len(watched) :]:
        axis.set_axis_off()  # no critic, nothing to show of it
    for axis, (name, (short, unit)) in zip(axes.flat, watched.items(), strict=False):
        axis.plot([row["episode"] for row in rows], [row.get(name) for row in rows], color="#2b6cb0", linewidth=1.5)
        axis.set_title(short, fontsize=10)
        if name == "objective/ended":
            axis.set_ylim(0, 1.03)  # a share: zoomed in, one response in a hundred would look like a crash
        axis.set_ylabel(unit, fontsize=8)
        axis.set_xlabel("episodes", fontsize=8)
        axis.grid(alpha=0.25)
    figure.suptitle(title)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
