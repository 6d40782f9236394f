"""Which checkpoint a run goes on from: a whole one, of the same run, the same for every process."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.utils import logging

from ..reporting.screen import say
from .agreement import Agreement
from .checkpoints import changed_settings, checkpoints_in, step_of
from .folder import ASIDE, MANIFEST, clear_aside, damage, read_manifest
from .lock import RunLock

logger = logging.get_logger(__name__)


class Resuming:
    """Looks for the checkpoint to resume from; all processes take part, and come to the same.

    Args:
        agreement: the processes of the run. lock: on the output folder. state_file: the trainer's own file in a
            checkpoint, JSON with "settings".
    """

    def __init__(self, agreement: Agreement, lock: RunLock, state_file: str) -> None:
        self.agreement, self.lock, self.state_file = agreement, lock, state_file

    def checkpoint(self, asked: str | bool | None, run: Path, settings: Mapping[str, Any]) -> str | None:
        """The checkpoint that `train(resume_from_checkpoint=asked)` goes on from.

        Args:
            asked: a checkpoint's path; True for the newest whole one in the output folder; else None is returned.
            run: the output folder. settings: that the run must share with the one it continues.

        Raises:
            ValueError: on every process: there is none, the one asked for is not whole, or its run had other settings.
            FolderInUse: another process trains in the folder.
        """
        if not asked:
            return None
        checkpoint = self._newest_whole(run) if asked is True else Path(str(asked))
        if asked is not True:
            if reason := self.why_not(checkpoint):
                raise ValueError(f"{checkpoint} cannot be resumed from: {reason}")
            self._name_later_ones(checkpoint)
        # Each process has settings and files of its own, and one that stopped alone would leave the others waiting.
        for changed in self.agreement.from_all(changed_settings(checkpoint / self.state_file, settings)):
            if changed:
                raise ValueError(f"this run cannot continue {checkpoint} with changed {changed}")
        return str(checkpoint)

    def why_not(self, checkpoint: Path) -> str | None:
        """Why a checkpoint cannot be resumed from, as any process sees it; None where all find it whole.

        The first process of each node reads its files (nodes may have disks of their own), the others the manifest.
        """
        reason = damage(checkpoint) if self.agreement.is_first_of_node else None
        said = self.agreement.from_all(reason or self._lacks(checkpoint))
        if self.agreement.processes == 1:
            return said[0]
        return "; ".join(dict.fromkeys(f"process {i}: {words}" for i, words in enumerate(said) if words)) or None

    def best(self, checkpoint: str | None) -> str | None:
        """The best checkpoint, where it is whole; None, after a warning, where it is not."""
        reason = self.why_not(Path(checkpoint)) if checkpoint else None
        if reason is None:
            return checkpoint
        logger.warning(f"the best checkpoint {checkpoint} is not used: {reason}; the model is the one of the last step")
        return None

    def _newest_whole(self, run: Path) -> Path:
        with self.lock.held(run):  # another run's save in progress is no leftover
            self._clear_leftovers(run)
        # The first one's list is everyone's: a folder may come or go between two looks at it.
        names = self.agreement.from_all([path.name for path in checkpoints_in(run)])[0]
        skipped: list[str] = []
        for name in names:
            reason = self.why_not(run / name)
            if reason is None:
                if skipped:
                    found = f"resuming from {run / name}, the newest checkpoint that is whole"
                    self.agreement.say("\n".join([*skipped, found]))
                return run / name
            skipped.append(f"skipped {run / name}: {reason}")
        if not skipped:
            raise ValueError(
                f"resume_from_checkpoint=True, but {str(run)!r} holds no checkpoint-<step> folder: start anew, in "
                "another `output_dir` or after removing this one"
            )
        found = "\n".join(skipped)
        raise ValueError(f"resume_from_checkpoint=True, but no checkpoint in {str(run)!r} is whole:\n{found}")

    def _name_later_ones(self, checkpoint: Path) -> None:
        later = [path for path in checkpoints_in(checkpoint.parent) if step_of(path) > step_of(checkpoint) >= 0]
        if later:
            self.agreement.say(
                f"{checkpoint.parent} also holds {', '.join(path.name for path in reversed(later))}, of later steps; "
                "this run replaces each when it comes to its step. Until then `resume_from_checkpoint=True` would take "
                "the last of them that is whole"
            )

    def _clear_leftovers(self, run: Path) -> None:
        with self.agreement.noted():
            if self.agreement.is_first_of_node and (run / ASIDE).is_dir():
                found = clear_aside(run)
                say(f"removed from {run}, left by a run that was killed: {', '.join(found) or ASIDE}")
        self.agreement.meet()

    def _lacks(self, checkpoint: Path) -> str | None:
        """What a whole folder is short of as a checkpoint of this trainer."""
        try:
            manifest = read_manifest(checkpoint)
        except ValueError as error:
            return str(error)
        step, processes = manifest["step"], manifest["processes"]
        if step_of(checkpoint) not in (-1, step):
            return f"its {MANIFEST} is of step {step}"
        own = f"rng_state_{self.agreement.process}.pth" if processes > 1 else "rng_state.pth"
        # With another number of processes the settings differ, which says more than a missing file.
        own_files = [own] if processes == self.agreement.processes else []
        missing = [
            name for name in ("trainer_state.json", self.state_file, *own_files) if name not in manifest["files"]
        ]
        if not missing:
            return None
        return f"it has no {', '.join(missing)} (saved by another trainer, or with `save_only_model=True`?)"
