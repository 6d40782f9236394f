"""What the demo's newcomer meets: one bar per stage, none of the libraries' asides, and no waiting for idle threads."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import datasets
import torch
from transformers import ProgressCallback, Trainer
from transformers.utils import logging as transformers_logging


class NumbersOnBar(ProgressCallback):
    """The Trainer's progress bar with the newest numbers beside it, instead of a dictionary per log.

    Args:
        shown: metric -> its name on the bar.
    """

    def __init__(self, shown: dict[str, str]):
        super().__init__()
        self.shown = shown

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Show the newest numbers."""
        if self.training_bar is not None and logs:
            numbers = {name: f"{float(logs[key]):.2f}" for key, name in self.shown.items() if key in logs}
            self.training_bar.set_postfix(numbers, refresh=bool(numbers))

    def on_prediction_step(self, *args: Any, **kwargs: Any) -> None:
        """Evaluation is over in a moment; it shows no bar."""


def show_on_bar(trainer: Trainer, shown: dict[str, str]) -> None:
    """Give a trainer this bar in place of its own."""
    trainer.pop_callback(ProgressCallback)
    trainer.add_callback(NumbersOnBar(shown))


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the libraries' notices and inner bars off the screen, errors excepted; put everything back afterwards."""
    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled(), datasets.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    datasets.disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars[0]:
            transformers_logging.enable_progress_bar()
        if bars[1]:
            datasets.enable_progress_bars()


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one CPU thread, then as before.

    The matrices of a model this small are over before a second thread has woken up: measured on a busy machine with
    two cores, two threads took 4 times the CPU time and 2.6 times as long.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
