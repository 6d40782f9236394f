"""What all processes must know before any goes on: an error of one of them ends the save on every one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from ..models.libraries import gather_object


class Agreement:
    """Mixin before `transformers.Trainer`: the steps of a save at which processes meet, met by one that failed, too."""

    _staged: Path | None = None  # where the run's folder seems to be while a checkpoint is written
    _noted_error: str | None = None  # what went wrong on this process and not all know yet

    @contextmanager
    def _noted(self: Any) -> Iterator[None]:
        """Keep what went wrong on this process until all have come to `_agree`: the others wait for it till there."""
        try:
            yield
        except Exception as error:
            if self.args.world_size == 1 or self._exchanges_while_it_writes:
                raise
            self._noted_error = self._noted_error or f"process {self.args.process_index}: {error}"

    def _agree(self: Any) -> None:
        """All processes meet.

        Raises:
            OSError: on every process, if something went wrong on one.
        """
        said, self._noted_error = self._from_all(self._noted_error), None
        if failures := [words for words in said if words]:
            raise OSError("; ".join(failures))

    def save_model(self: Any, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As in the stock Trainer; within a checkpoint an error waits until the other processes hear of it."""
        with self._noted() if self._staged else nullcontext():
            super().save_model(output_dir, _internal_call)  # type: ignore[misc]

    def _save_optimizer_and_scheduler(self: Any, output_dir: str) -> None:
        with self._noted():
            super()._save_optimizer_and_scheduler(output_dir)  # type: ignore[misc]

    def _save_scaler(self: Any, output_dir: str) -> None:
        with self._noted():
            super()._save_scaler(output_dir)  # type: ignore[misc]

    def _save_rng_state(self: Any, output_dir: str) -> None:
        with self._noted():
            super()._save_rng_state(output_dir)  # type: ignore[misc]

    @property
    def _exchanges_while_it_writes(self: Any) -> bool:
        return bool(self.strategy.in_pieces)

    def _from_all(self: Any, said: Any) -> list[Any]:
        """What each process says, in their order; all wait for all."""
        return [said] if self.args.world_size == 1 else gather_object([said])
