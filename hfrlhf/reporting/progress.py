"""While a run goes on: one bar with the numbers that matter, or a short line per log where bars are switched off."""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast

from tqdm.auto import tqdm
from transformers import PrinterCallback, ProgressCallback, TrainerControl, TrainerState, TrainingArguments

from .facts import HasCallbacks
from .screen import above_bars, say, write

# Narrow enough to leave room for numbers in 100 columns; the numbers come last, so that what does not fit is left out.
BAR = "{percentage:3.0f}%|{bar:10}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}]{postfix}"
FIXED = len("100%|0123456789| / [00:00<00:00], ")


class NumbersOnBar(ProgressCallback):
    """The Trainer's progress bar with the newest numbers beside it, instead of a dictionary per log.

    Args:
        shown: metric -> its name on the bar; as many as fit, from the first on.
    """

    def __init__(self, shown: dict[str, str]) -> None:
        super().__init__()
        self.shown = shown
        self.newest: dict[str, str] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Draw the bar, from where a resumed run goes on."""
        self.current_step = state.global_step
        # tqdm flushes both streams, whichever it writes to.
        closed = any(getattr(stream, "closed", False) for stream in (sys.stdout, sys.stderr))
        if state.is_world_process_zero and sys.stderr is not None and not closed:
            begun = {"total": state.max_steps, "initial": state.global_step, "file": sys.stderr}
            self.training_bar = tqdm(**begun, bar_format=BAR, ncols=_columns(), nrows=24)  # some terminals say 0

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Move on."""
        if self.training_bar is not None:
            self.training_bar.update(state.global_step - self.current_step)
            self.current_step = state.global_step

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: object,
    ) -> None:
        """Show the newest numbers."""
        self.newest |= {name: short(logs[key]) for key, name in self.shown.items() if logs and key in logs}
        numbers = [f"{name} {self.newest[name]}" for name in self.shown.values() if name in self.newest]
        if self.training_bar is not None and numbers:  # the log at the very end has none: the last ones stay
            self.training_bar.ncols = _columns()
            hours = self.training_bar.format_dict["elapsed"] > 1800  # its clock is wider then
            room = self.training_bar.ncols - FIXED - 6 * hours - 2 * len(str(state.max_steps))
            self.training_bar.set_postfix_str(", ".join(fitting(numbers, room)))

    def on_prediction_step(self, *args: object, **kwargs: object) -> None:
        """Evaluation is over in a moment; it shows no bar."""

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Leave the bar as it is, on a line of its own."""
        if self.training_bar is not None:
            self.training_bar.close()
            self.training_bar = None


def _columns() -> int:
    """The terminal's, as `COLUMNS` or the terminal says; 100 where neither does."""
    return shutil.get_terminal_size((100, 24)).columns or 100


def fitting(numbers: list[str], room: int) -> list[str]:
    """As many of the numbers, from the first on, as so many columns hold."""
    kept: list[str] = []
    for number in numbers:
        if len(", ".join([*kept, number])) >= room:
            break
        kept.append(number)
    return kept


def short(value: object) -> str:
    """A number as a person reads it: two decimals, or two digits where it is small."""
    if isinstance(value, int) or not isinstance(value, float):
        return str(value)
    return f"{value:.2f}" if value == 0 or abs(value) >= 0.01 else f"{value:.1e}"


class LinePerLog(PrinterCallback):
    """A short line for each log, instead of a dictionary of all its numbers.

    Args:
        shown: metric -> its name on the line. Logs have more: they are in `trainer_state.json`, and with the trackers.
    """

    def __init__(self, shown: dict[str, str]) -> None:
        self.shown = shown

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: object,
    ) -> None:
        """Print the line."""
        if state.is_local_process_zero and logs and (line := log_line(logs, self.shown)):
            say(f"step {state.global_step:,} of {state.max_steps:,}: {line}")


def log_line(logs: dict[str, Any], shown: dict[str, str]) -> str:
    """What a log says, in a line; nothing where there is nothing in it that a person follows."""
    if "train_runtime" in logs:
        return f"done after {logs['train_runtime']:.0f} s, mean loss {short(logs.get('train_loss', 0.0))}"
    prefix = next((name.removesuffix(key) for key in shown for name in logs if _is_evaluated(name, key)), "")
    shown = {"episode": "episode", **shown}
    numbers = [f"{name} {short(logs[prefix + key])}" for key, name in shown.items() if prefix + key in logs]
    rate = [f"learning rate {logs['learning_rate']:.1e}"] if "learning_rate" in logs else []
    of_what = prefix.removeprefix("eval_").rstrip("_")  # the name of a set of several
    begin = f"evaluation{' of ' * bool(of_what)}{of_what}: " if prefix and numbers else ""
    return begin + ", ".join([*numbers, *rate])


def _is_evaluated(name: str, key: str) -> bool:
    return name.startswith(("eval_", "test_")) and name.endswith(f"_{key}")


def show_on_bar(trainer: HasCallbacks, shown: dict[str, str]) -> None:
    """Put our bar, or our lines, in the place of the trainer's own, where it has one."""
    for theirs, ours in {ProgressCallback: NumbersOnBar, PrinterCallback: LinePerLog}.items():
        if trainer.pop_callback(theirs) is not None:
            trainer.add_callback(ours(shown))


class AboveBar:
    """A stream whose whole lines go above the bar; all else of it is as it was.

    Args:
        stream: standard output or standard error.
    """

    def __init__(self, stream: TextIO) -> None:
        self._wrapped = stream  # the name by which tqdm's own wrappers know each other
        self._line = ""

    def write(self, text: str) -> int:
        """Keep what is no whole line yet; what moves within a line (a bar) passes."""
        if "\r" in text:  # a bar, which tqdm draws over itself
            self._wrapped.write(text)
            return len(text)
        whole, newline, self._line = (self._line + text).rpartition("\n")
        if newline:
            with above_bars(self):
                self._wrapped.write(whole + newline)
        return len(text)

    def finish(self) -> None:
        """Write what is left of a line."""
        line, self._line = self._line, ""
        if line:
            write(self._wrapped, line)

    def __getattr__(self, name: str) -> object:
        return getattr(self._wrapped, name)

    def __eq__(self, other: object) -> bool:
        return _innermost(self) is _innermost(other)

    def __hash__(self) -> int:
        return hash(self._wrapped)


def _innermost(stream: object) -> object:
    while (inner := getattr(stream, "_wrapped", None)) is not None:
        stream = inner
    return stream


@contextmanager
def lines_above_bar() -> Iterator[None]:
    """Within the block, what anybody prints or warns of does not glue to the bar, as far as streams are terminals."""
    before = sys.stdout, sys.stderr
    ours = {id(stream): AboveBar(stream) for stream in before if _is_terminal(stream)}
    loggers = {handler: handler.stream for handler in _handlers() if id(handler.stream) in ours}
    sys.stdout, sys.stderr = (cast(TextIO, ours.get(id(stream), stream)) for stream in before)
    for handler, stream in loggers.items():
        handler.setStream(cast(TextIO, ours[id(stream)]))
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
        for handler, stream in loggers.items():
            handler.setStream(stream)
        for wrapped in ours.values():
            wrapped.finish()


def _handlers() -> list[logging.StreamHandler[TextIO]]:
    """Those that write to a stream they took long ago: transformers', and the root's."""
    found = [handler for name in ("transformers", None) for handler in logging.getLogger(name).handlers]
    return [handler for handler in found if type(handler) is logging.StreamHandler]


def _is_terminal(stream: TextIO | None) -> bool:
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # closed
        return False
