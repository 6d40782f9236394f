"""A run that is told to stop: it finishes its step, saves a checkpoint, and leaves with a code that says so.

transformers has `enable_jit_checkpoint` for this. It knows SIGTERM alone, saves before the optimiser has stepped, so
that half a step is lost, and each process decides for itself; here every process stops after the same whole step.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .launcher import is_alive, say_after, waiting_launcher

# EX_TEMPFAIL of sysexits.h: not done, nothing is lost, run it again with `resume_from_checkpoint=True`.
EXIT_CODE = 75
SIGNALS = (signal.SIGTERM, signal.SIGINT)
# One Ctrl-C reaches a process twice under torchrun: from the terminal and from the launcher.
SAME_SIGNAL_SECONDS = 2.0


class Interrupted(SystemExit):
    """Training was stopped by a signal, and its checkpoint is complete; as an exit it has the code 75."""

    def __init__(self, message: str) -> None:
        super().__init__(EXIT_CODE)
        self.message = message

    def __str__(self) -> str:
        return self.message


def say_at_the_end(message: str) -> None:
    """As the last words, also after a launcher that has something to say of the exit code."""
    launcher = waiting_launcher()
    if launcher is None or not say_after(launcher, f"\n{message}\n"):
        _say(message)


def _say(text: str) -> None:
    """Past every buffer: a handler may run in the middle of another write."""
    with suppress(OSError):
        os.write(2, f"\n{text}\n".encode(errors="replace"))


class Interruption(TrainerCallback):
    """A callback, and the context of `train()`, in which SIGTERM and SIGINT mean an orderly end.

    A second signal, more than two seconds after the first, ends the process at once.

    Args:
        args: settings of the run, with its folder. accelerator: of the run, all of whose processes are stopped,
            whichever of them got the signal.

    Raises:
        ValueError: `enable_jit_checkpoint`, which would answer the same signal in its own way.
    """

    def __init__(self, args: TrainingArguments, accelerator: Accelerator) -> None:
        if getattr(args, "enable_jit_checkpoint", False):
            raise ValueError(
                "`enable_jit_checkpoint=True` would save in the middle of a step; leave it off: at SIGTERM and SIGINT "
                "this trainer finishes the step, saves, and exits"
            )
        self.args, self.accelerator = args, accelerator
        self.received: int | None = None  # the signal, once there was one
        self.since = 0.0
        self.stopped_at: int | None = None  # the step whose checkpoint is the last
        self.before: dict[int, Any] = {}
        self.launcher: int | None = None  # the process that waits for this one
        self.can_resume = True  # whether the script knows how to go on from a checkpoint

    def say_nothing_of_resuming(self) -> None:
        """For a script that cannot go on from a checkpoint: how to is no word of its end."""
        self.can_resume = False

    def __enter__(self) -> None:
        """Listen; in another thread than the main one Python allows no handlers."""
        self.received = self.stopped_at = None
        self.launcher = waiting_launcher()
        if threading.current_thread() is threading.main_thread():
            self.before = {number: signal.signal(number, self._on_signal) for number in SIGNALS}

    def __exit__(self, kind: type[BaseException] | None, *error: Any) -> None:
        """Put back the handlers that were there before; after a stop, say how to go on.

        Raises:
            Interrupted: a signal stopped the run.
            RuntimeError: so it did, and the checkpoint is not there.
        """
        for number, handler in self.before.items():
            signal.signal(number, handler)
        self.before = {}
        if kind is None and self.stopped_at is not None:
            self._leave()

    def _leave(self) -> None:
        folder = Path(str(self.args.output_dir), f"checkpoint-{self.stopped_at}")
        how = "go on with `resume_from_checkpoint=True` (recipes: `--resume_from_checkpoint True`)"
        if self.args.save_only_model:
            how = "it has the weights alone (`save_only_model=True`), a run cannot be resumed from it"
        message = (
            f"stopped by a signal after step {self.stopped_at}; {folder} is complete: {how} (exit code {EXIT_CODE})"
        )
        if self.accelerator.is_main_process:
            if not folder.is_dir():
                raise RuntimeError(
                    f"stopped by a signal after step {self.stopped_at}, but its checkpoint {folder} is gone: something "
                    "else deletes there. `resume_from_checkpoint=True` goes on from the newest that is left"
                )
            if self.can_resume:
                say_at_the_end(message)
        raise Interrupted(message)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.received is None:
            self.received, self.since = number, time.monotonic()
            _say(
                f"{signal.Signals(number).name}: finishing this step, then saving; once more (kill {os.getpid()}) ends "
                "it at once"
            )
        elif time.monotonic() - self.since > SAME_SIGNAL_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """After a whole step: if any process was told to stop, all save and stop."""
        if self._any_process_was_told():
            control.should_save = control.should_training_stop = True
            self.stopped_at = state.global_step

    def _any_process_was_told(self) -> bool:
        # A launcher that has ended tells nothing any more, and nobody would see what becomes of this process.
        here = self.received is not None or (self.launcher is not None and not is_alive(self.launcher))
        if self.accelerator.num_processes == 1:
            return here
        told = torch.tensor(float(here), device=self.accelerator.device)
        return bool(self.accelerator.reduce(told, "sum") > 0)
