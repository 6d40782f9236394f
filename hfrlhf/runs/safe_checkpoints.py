"""Checkpoints that are whole or not there.

The stock Trainer writes checkpoints in place, without a checksum. Here it writes into a folder aside; that folder is
sealed and renamed (`runs.folder`), then older ones are deleted and the Hub is served.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .agreement import Agreement
from .checkpoints import checkpoints_in, rotate
from .folder import ASIDE, clear_aside, damage, publish, seal


class CheckpointError(RuntimeError):
    """A checkpoint could not be written; those written before are as they were."""


class SafeCheckpoints:
    """Gives the Trainer a folder aside to write a checkpoint into, and puts what it wrote into place.

    Args:
        agreement: the processes of the run.
    """

    def __init__(self, agreement: Agreement) -> None:
        self.agreement = agreement
        self.staged: Path | None = None  # where the run's folder seems to be while a checkpoint is written
        self.moves = True  # whether this process is the one that seals and renames on its disk

    @contextmanager
    def written(self, run: Path, step: int) -> Iterator[Path]:
        """A block that writes `staged/checkpoint-<step>`; afterwards it is sealed, and under its name in the run.

        Args:
            run: the folder of the run. step: of the optimiser, for the name.

        Raises:
            CheckpointError: it could not be written (a full disk, a lost mount); on every process, whichever of them
                failed. (DeepSpeed and FSDP exchange while they write: there the one that failed stops, and the launcher
                ends the others.)
        """
        target = run / f"checkpoint-{step}"
        try:
            with self._written_aside(run) as staged:
                with self.agreement.noted():
                    yield staged / target.name
                self._publish(staged / target.name, target, step)
        except Exception as error:
            raise CheckpointError(_lost(target, error)) from error

    @contextmanager
    def noting(self) -> Iterator[None]:
        """A part of writing a checkpoint: an error waits until the other processes hear of it. Elsewhere it is raised.

        Within its save the Trainer has a barrier, at which the others would wait for the one that failed.
        """
        if self.staged is None:
            yield
            return
        with self.agreement.noted():
            yield

    def rotate(self, newest: Path, limit: int | None, best: str | None) -> None:
        """Delete the oldest checkpoints of a run beyond `limit`, after a new one was written.

        Args:
            newest: that one. limit: `save_total_limit`. best: the path of the best one, which stays.
        """
        if self.moves:
            rotate(newest.parent, limit, newest, best, just_sealed=True)

    @contextmanager
    def _written_aside(self, run: Path) -> Iterator[Path]:
        """A fresh folder that stands for the run's while a checkpoint is written; gone afterwards.

        Where each node has its own disk, the first process of each publishes what its node wrote. A disk is rank 0's if
        a folder whose name nobody knew before is seen on it: no cache of a network file system can answer for that.
        """
        name = self.agreement.from_all(f"{time.time_ns():x}")[0]
        staged = run / ASIDE / name  # each node may have its own output folder
        self._make(run, staged, self.agreement.is_first)
        is_other_disk = not staged.is_dir()
        self.agreement.from_all(None)  # all have looked before anyone makes it
        self.moves = self.agreement.is_first or (is_other_disk and self.agreement.is_first_of_node)
        self._make(run, staged, self.moves and is_other_disk)
        self.staged = staged
        try:
            yield staged
        finally:
            self.staged = None
            if self.moves:
                with suppress(OSError):  # what cannot be put back under its name stays aside, for the next start
                    clear_aside(run, staged.name)

    def _make(self, run: Path, staged: Path, is_mine: bool) -> None:
        with self.agreement.noted():
            if is_mine:
                clear_aside(run)
                staged.mkdir(parents=True)
        self.agreement.meet()

    def _publish(self, staged: Path, target: Path, step: int) -> None:
        """Seal and rename, once every process has written its files.

        Raises:
            OSError: on every process, if it failed on one.
        """
        self.agreement.meet()
        with self.agreement.noted():
            if self.moves:
                self._check_weights(staged)
                seal(staged, {"step": step, "processes": self.agreement.processes})
                publish(staged, target)
        self.agreement.meet()

    def _check_weights(self, staged: Path) -> None:
        """A node with a disk of its own may have been given no weights: transformers writes them on the first alone."""
        if self.agreement.exchanges_while_it_writes:
            return  # each process writes its own piece
        if not [*staged.glob("model*.safetensors"), *staged.glob("adapter_model.safetensors")]:
            raise OSError(
                f"no weights were written to {staged}: the nodes share no disk, and transformers writes a model's "
                "weights on the first node alone. Put `output_dir` on a disk that all nodes see (a run that trains "
                "adapters may set `save_on_each_node=True` instead)"
            )


def _lost(target: Path, error: Exception) -> str:
    whole = next((path for path in checkpoints_in(target.parent) if path != target and not damage(path)), None)
    left = (
        f"{whole} is whole: `resume_from_checkpoint=True` goes on from it"
        if whole
        else "there is none before it to go on from: start again"
    )
    return (
        f"{target} could not be written ({type(error).__name__}: {error}). Nothing half-written is left under that "
        f"name; {left}, once the cause is gone (is the disk full, the folder still there and writable?)"
    )
