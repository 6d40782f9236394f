"""Checkpoints of a `transformers.Trainer` that are whole or not there, and a resume that only takes whole ones.

The stock Trainer writes checkpoints in place, without a checksum, and resumes from the newest folder whatever its
state. Here its own `_save_checkpoint` writes into a folder aside; that folder is sealed and renamed (`safe_folder`),
then older ones are deleted and the Hub is served.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from torch.optim.lr_scheduler import LambdaLR
from transformers.utils import logging

from ..models.libraries import set_last_rates
from ..reporting.screen import say
from .agreement import Agreement
from .checkpoints import changed_settings, check_output_path, checkpoints_in, rotate, saved_state, step_of
from .folder import ASIDE, MANIFEST, clear_aside, damage, publish, read_manifest, seal
from .interruption import Interruption
from .lock import RunLock

logger = logging.get_logger(__name__)


class CheckpointError(RuntimeError):
    """A checkpoint could not be written; those written before are as they were."""


class SafeCheckpoints(Agreement, RunLock):
    """Mixin before `transformers.Trainer`: atomic checkpoints, and the newest whole one to resume from.

    A trainer says which file of its own belongs to a checkpoint (`STATE_FILE`, JSON with "settings") and which settings
    a resumed run must share with the one it continues (`settings()`).
    """

    STATE_FILE: str
    interruption: Interruption
    _moves: bool = True  # whether this process is the one that seals and renames on its disk

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        check_output_path(str(kwargs["args"].output_dir))
        super().__init__(*args, **kwargs)

    # ---- Saving -------------------------------------------------------------------------------------------------

    def _save_checkpoint(self: Any, model: Any, trial: Any) -> None:
        """The Trainer's checkpoint, written aside, sealed, renamed; then the rotation; then the push.

        Raises:
            CheckpointError: it could not be written (a full disk, a lost mount); training stops here, on every process,
                whichever of them failed. (DeepSpeed and FSDP exchange while they write: there the one that failed
                stops, and the launcher ends the others.)
        """
        run = Path(self._get_output_dir(trial))
        target = run / f"checkpoint-{self.state.global_step}"
        try:
            with self._written_aside(run) as staged:
                with self._noted():
                    super()._save_checkpoint(model, trial)  # type: ignore[misc]
                    self._name_best(run, staged / target.name)
                self._publish(staged / target.name, target)
        except Exception as error:
            raise CheckpointError(self._lost(target, error)) from error
        if self._moves:
            rotate(run, self.args.save_total_limit, target, self.state.best_model_checkpoint, just_sealed=True)
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(target))

    @contextmanager
    def _written_aside(self: Any, run: Path) -> Iterator[Path]:
        """A fresh folder that stands for the run's while a checkpoint is written; gone afterwards.

        Where each node has its own disk, the first process of each publishes what its node wrote. A disk is rank 0's if
        a folder whose name nobody knew before is seen on it: no cache of a network file system can answer for that.
        """
        name = self._from_all(f"{time.time_ns():x}")[0]
        staged = run / ASIDE / name  # each node may have its own output folder
        with self._noted():
            if self.is_world_process_zero():
                clear_aside(run)
                staged.mkdir(parents=True)
        self._agree()
        is_other_disk = not staged.is_dir()
        self._from_all(None)  # all have looked before anyone makes it
        self._moves = self.is_world_process_zero() or (is_other_disk and self.is_local_process_zero())
        with self._noted():
            if self._moves and is_other_disk:
                clear_aside(run)
                staged.mkdir(parents=True)
        self._agree()
        self._staged = staged
        try:
            yield staged
        finally:
            self._staged = None
            if self._moves:
                with suppress(OSError):  # what cannot be put back under its name stays aside, for the next start
                    clear_aside(run, staged.name)

    def _name_best(self: Any, run: Path, staged: Path) -> None:
        """The best checkpoint under the name it will have: the stock method saw the folder aside."""
        if not self.state.best_global_step:
            return
        best = run / f"checkpoint-{self.state.best_global_step}"
        if best.name == staged.name or best.is_dir():
            self.state.best_model_checkpoint = str(best)
        if self.args.should_save:
            self.state.save_to_json(str(staged / "trainer_state.json"))

    def _publish(self: Any, staged: Path, target: Path) -> None:
        """Seal and rename, once every process has written its files.

        Raises:
            OSError: on every process, if it failed on one.
        """
        self._agree()
        with self._noted():
            if self._moves:
                self._check_weights(staged)
                seal(staged, {"step": self.state.global_step, "processes": self.args.world_size})
                publish(staged, target)
        self._agree()

    def _check_weights(self: Any, staged: Path) -> None:
        """A node with a disk of its own may have been given no weights: transformers writes them on the first alone."""
        if self._exchanges_while_it_writes:
            return  # each process writes its own piece
        if not [*staged.glob("model*.safetensors"), *staged.glob("adapter_model.safetensors")]:
            raise OSError(
                f"no weights were written to {staged}: the nodes share no disk, and transformers writes a model's "
                "weights on the first node alone. Put `output_dir` on a disk that all nodes see (a run that trains "
                "adapters may set `save_on_each_node=True` instead)"
            )

    def _lost(self: Any, target: Path, error: Exception) -> str:
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

    def _get_output_dir(self: Any, trial: Any) -> str:
        """The run's folder; while a checkpoint is written, the one aside."""
        return str(self._staged) if self._staged else super()._get_output_dir(trial)  # type: ignore[misc]

    def _push_from_checkpoint(self: Any, checkpoint_folder: str) -> None:
        """To the Hub goes what is under its final name."""
        if self._staged is None:
            super()._push_from_checkpoint(checkpoint_folder)  # type: ignore[misc]

    def _finalize_training(self: Any, *args: Any, **kwargs: Any) -> Any:
        """The end of a run loads the best checkpoint and, with `save_total_limit=1`, keeps it alone: if it is whole.

        A run that a signal stopped is not at its end: it goes on from its last checkpoint, and loads and deletes none.
        """
        best, stopped = self.state.best_model_checkpoint, self.interruption.stopped_at is not None
        if best and not stopped and (self.args.load_best_model_at_end or self.args.save_total_limit == 1):
            reason = self._why_not(Path(best))
            if reason:
                logger.warning(
                    f"the best checkpoint {best} is not used: {reason}; the model is the one of the last step"
                )
                best = None
        self.state.best_model_checkpoint = None if stopped else best
        try:
            return super()._finalize_training(*args, **kwargs)  # type: ignore[misc]
        finally:
            self.state.best_model_checkpoint = best

    # ---- Resuming -----------------------------------------------------------------------------------------------

    def checkpoint_to_resume(self: Any, asked: str | bool | None) -> str | None:
        """The checkpoint that `train(resume_from_checkpoint=asked)` goes on from, the same on every process.

        Args:
            asked: a checkpoint's path; True for the newest whole one in the output folder; else None is returned.

        Raises:
            ValueError: on every process: there is none, the one asked for is not whole, or its run had other settings.
        """
        if not asked:
            return None
        checkpoint = self._newest_whole() if asked is True else Path(str(asked))
        if asked is not True:
            if reason := self._why_not(checkpoint):
                raise ValueError(f"{checkpoint} cannot be resumed from: {reason}")
            self._name_later_ones(checkpoint)
        for changed in self._from_all(changed_settings(checkpoint / self.STATE_FILE, self.settings())):
            if changed:
                raise ValueError(f"this run cannot continue {checkpoint} with changed {changed}")
        return str(checkpoint)

    def _newest_whole(self: Any) -> Path:
        run = Path(str(self.args.output_dir))
        with self.alone():  # another run's save in progress is no leftover
            self._clear_leftovers(run)
        names = self._from_all([path.name for path in checkpoints_in(run)])[0]
        skipped: list[str] = []
        for name in names:
            reason = self._why_not(run / name)
            if reason is None:
                if skipped and self.is_world_process_zero():
                    say("\n".join([*skipped, f"resuming from {run / name}, the newest checkpoint that is whole"]))
                return run / name
            skipped.append(f"skipped {run / name}: {reason}")
        if not skipped:
            raise ValueError(
                f"resume_from_checkpoint=True, but {str(run)!r} holds no checkpoint-<step> folder: start anew, in "
                "another `output_dir` or after removing this one"
            )
        found = "\n".join(skipped)
        raise ValueError(f"resume_from_checkpoint=True, but no checkpoint in {str(run)!r} is whole:\n{found}")

    def _name_later_ones(self: Any, checkpoint: Path) -> None:
        later = [path for path in checkpoints_in(checkpoint.parent) if step_of(path) > step_of(checkpoint) >= 0]
        if later and self.is_world_process_zero():
            say(
                f"{checkpoint.parent} also holds {', '.join(path.name for path in reversed(later))}, of later steps; "
                "this run replaces each when it comes to its step. Until then `resume_from_checkpoint=True` would take "
                "the last of them that is whole"
            )

    def _clear_leftovers(self: Any, run: Path) -> None:
        with self._noted():
            if self.is_local_process_zero() and (run / ASIDE).is_dir():
                found = clear_aside(run)
                say(f"removed from {run}, left by a run that was killed: {', '.join(found) or ASIDE}")
        self._agree()

    def _why_not(self: Any, checkpoint: Path) -> str | None:
        """Why a checkpoint cannot be resumed from, as any process sees it; None where all find it whole.

        The first process of each node reads its files (nodes may have disks of their own), the others the manifest.
        """
        reason = damage(checkpoint) if self.is_local_process_zero() else None
        said = self._from_all(reason or self._lacks(checkpoint))
        if self.args.world_size == 1:
            return said[0]
        return "; ".join(dict.fromkeys(f"process {i}: {words}" for i, words in enumerate(said) if words)) or None

    def _lacks(self: Any, checkpoint: Path) -> str | None:
        """What a whole folder is short of as a checkpoint of this trainer."""
        try:
            manifest = read_manifest(checkpoint)
        except ValueError as error:
            return str(error)
        step, processes = manifest["step"], manifest["processes"]
        if step_of(checkpoint) not in (-1, step):
            return f"its {MANIFEST} is of step {step}"
        own = f"rng_state_{self.args.process_index}.pth" if processes > 1 else "rng_state.pth"
        needed = ["trainer_state.json", self.STATE_FILE, *([own] if processes == self.args.world_size else [])]
        missing = [name for name in needed if name not in manifest["files"]]
        if not missing:
            return None
        return f"it has no {', '.join(missing)} (saved by another trainer, or with `save_only_model=True`?)"

    def _load_optimizer_and_scheduler(self: Any, checkpoint: str | None) -> None:
        """Beside optimiser and schedule: where the run is now longer or shorter, the rates of its new length."""
        super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]
        if checkpoint is None:
            return
        planned, now = saved_state(checkpoint)["max_steps"], self.state.max_steps
        if planned == now:
            return
        if self.is_world_process_zero():
            say(f"{checkpoint}: the run was planned for {planned:,} steps and goes on with the schedule of {now:,}")
        if isinstance(self.lr_scheduler, LambdaLR):
            # The optimiser came back with the old schedule's rate, which the next step would still have used.
            schedule = self.lr_scheduler
            rates = [
                f(schedule.last_epoch) * base for f, base in zip(schedule.lr_lambdas, schedule.base_lrs, strict=True)
            ]
            for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
            set_last_rates(schedule, rates)
