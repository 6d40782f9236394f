"""What a run leaves in its folder beside the model: samples, curves, metrics and the log, each with a switch.

    log_completions   completions.jsonl                    a few responses per log, and a table of them at the end
    save_curves       curves.png                           the log as a picture
    save_logs         trainer_state.json, …_results.json   every log, and the metrics of training and evaluation

The trainer writes them itself, whatever `save_strategy` says, and also where a run stops with an error. A resumed run
goes on with them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol, TypeVar

from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging

from ..models.libraries import name_or_path
from ..settings.reward import RewardConfig
from .comparison import Comparison
from .curves import CURVES, plot_losses
from .facts import HasCallbacks, HasFolder, Logged, Output, PairsRun, PolicyRun
from .metrics import OF_PAIRS
from .progress import show_on_bar
from .samples import COMPLETIONS, append_samples, forget_samples_after, print_samples
from .screen import say

logger = logging.get_logger(__name__)

LOG = "trainer_state.json"
RESULTS = ("train_results.json", "eval_results.json", "all_results.json")
DRAWN_TITLE = 3  # rewards that a title names

Log = Sequence[Mapping[str, float]]  # of the Trainer: `state.log_history`
TrainOutput = TypeVar("TrainOutput", bound=Output)


class LoggedPairs(Logged, PairsRun, HasCallbacks, Protocol):
    """The training of a reward model, whose log can be saved and whose bar can be changed."""

    @property
    def args(self) -> RewardConfig:
        """The settings."""


class RunFiles(TrainerCallback):
    """Writes the files of a run at the moments when there is something new to write.

    Args:
        trainer: whose run it is. draw: `plot_curves` or its like: (log history, path, title). title: of the picture.
        comparison: of responses before and after training, where the trainer samples any.
    """

    def __init__(
        self,
        trainer: Logged,
        draw: Callable[[Log, Path, str], None],
        title: Callable[[], str],
        comparison: Comparison | None = None,
    ) -> None:
        self.trainer, self.draw, self.title, self.comparison = trainer, draw, title, comparison

    @property
    def folder(self) -> Path:
        """The run's."""
        return Path(str(self.trainer.args.output_dir))

    def _wants(self, setting: str) -> bool:
        return bool(getattr(self.trainer.args, setting, False)) and self.trainer.is_world_process_zero()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Make room: a resumed run goes on where its checkpoint ends, a new one finds no old files."""
        # A run that goes on from a checkpoint finds its own files, one that begins those of another.
        if state.global_step == 0 and self.trainer.is_world_process_zero():
            put_aside(self.folder)
        if self._wants("log_completions"):
            forget_samples_after(self.folder, state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: object,
    ) -> None:
        """Keep the newest samples."""
        if self.comparison is not None and "objective/score" in (logs or {}) and self._wants("log_completions"):
            append_samples(self.folder, state.global_step, self.comparison.trainer.samples)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: object,
    ) -> None:
        """An evaluation after the training is a result; one within it is in the log."""
        if metrics and not self.trainer.is_in_train and state.global_step > 0 and self._wants("save_logs"):
            self.trainer.save_metrics("eval", dict(metrics))
            self.trainer.save_state()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Write what there is, and show how the policy's responses have changed."""
        self.write()
        stopped = self.trainer.interruption.stopped_at is not None
        if self.comparison is not None and not stopped and self.comparison.finish() and self._wants("log_completions"):
            print_samples(self.comparison.stages())

    def write(self) -> None:
        """The log and its picture, as far as the run has come."""
        if self._wants("save_logs"):
            self.folder.mkdir(parents=True, exist_ok=True)
            self.trainer.save_state()
        if self._wants("save_curves"):
            self.draw(self.trainer.state.log_history, self.folder / CURVES, self.title())

    @contextmanager
    def kept(self) -> Iterator[None]:
        """A block that trains: where it fails, what was logged so far is written all the same."""
        try:
            yield
        except Exception:
            with suppress(Exception):  # a full disk, perhaps, and the reason of the failure: that one is to be seen
                self.write()
            raise

    def results(self, output: TrainOutput) -> TrainOutput:
        """The same output of `train()`, its metrics written."""
        if self._wants("save_logs") and self.trainer.interruption.stopped_at is None:
            self.trainer.save_metrics("train", output.metrics)
        return output


def say_where_the_model_is(trainer: HasFolder) -> None:
    """The last line of a recipe: which folder the saved model is in."""
    if trainer.is_world_process_zero():
        say(f"the model is in {trainer.args.output_dir}")


def put_aside(folder: Path) -> None:
    """Move the samples, curves and logs of an earlier run that left no model here to `earlier-<n>`."""
    names = (COMPLETIONS, LOG, CURVES, *RESULTS)
    old = [folder / name for name in names if (folder / name).exists()]
    if not any(path.name in (COMPLETIONS, LOG) for path in old):
        return
    n = next(n for n in range(1, len(list(folder.iterdir())) + 2) if not (folder / f"earlier-{n}").exists())
    (folder / f"earlier-{n}").mkdir()
    for path in old:
        path.rename(folder / f"earlier-{n}" / path.name)
    logger.info(f"the files of an earlier run in {folder} are in earlier-{n} now")


def curves_title(trainer: PolicyRun) -> str:
    """Which algorithm, from which model, on which rewards."""
    rewards = [source.name for source in trainer.reward.sources]
    named = ", ".join(rewards[:DRAWN_TITLE]) + (", …" if len(rewards) > DRAWN_TITLE else "")
    method = "PPO" if trainer.args.algorithm == "ppo_clip" else trainer.args.algorithm
    return f"{method}{_origin(trainer.unwrapped().policy)} on {named}"


def files_of_pairs(trainer: LoggedPairs) -> RunFiles:
    """Those of a reward trainer, whose bar, or whose lines, show the numbers of pairs."""
    show_on_bar(trainer, OF_PAIRS)
    origin = _origin(trainer.accelerator.unwrap_model(trainer.model))
    return RunFiles(trainer, plot_losses, lambda: f"reward model{origin}")


def _origin(model: PreTrainedModel) -> str:
    name = name_or_path(model.config).replace("\\", "/").rstrip("/")
    return f" from {name.split('/')[-1]}" if name else ""
