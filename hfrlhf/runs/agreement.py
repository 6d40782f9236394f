"""What all processes must know before any goes on: an error of one of them ends the step for every one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from accelerate import Accelerator

from ..models.libraries import gather_object
from ..models.sharding import strategy_of
from ..reporting.screen import say

T = TypeVar("T")


class Agreement:
    """The processes of a run: what each says, and the points at which they meet, also those that failed before.

    Args:
        accelerator: which knows the processes.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self._noted_error: str | None = None  # what went wrong on this process and not all know yet

    @property
    def processes(self) -> int:
        """How many there are."""
        return int(self.accelerator.num_processes)

    @property
    def process(self) -> int:
        """Which one this is, from 0."""
        return int(self.accelerator.process_index)

    @property
    def is_first(self) -> bool:
        """Whether this is the first of all."""
        return bool(self.accelerator.is_main_process)

    @property
    def is_first_of_node(self) -> bool:
        """Whether this is the first on its machine."""
        return bool(self.accelerator.is_local_main_process)

    @property
    def exchanges_while_it_writes(self) -> bool:
        """Whether the processes talk to each other within a save, each of them writing its piece."""
        return strategy_of(self.accelerator).in_pieces

    def say(self, text: str) -> None:
        """Show it on the screen, once."""
        if self.is_first:
            say(text)

    def from_all(self, said: T) -> list[T]:
        """What each process says, in their order; all wait for all."""
        return [said] if self.processes == 1 else list(gather_object([said]))

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Keep what went wrong on this process until all have come to `meet`: the others wait for it till there."""
        try:
            yield
        except Exception as error:
            # One that fails between exchanges cannot come to the meeting point: there the launcher ends the others.
            if self.processes == 1 or self.exchanges_while_it_writes:
                raise
            self._noted_error = self._noted_error or f"process {self.process}: {error}"

    def meet(self) -> None:
        """All processes come together.

        Raises:
            OSError: on every process, if something went wrong on one.
        """
        # Forgotten here, by all alike: the next save begins without this one's error.
        said, self._noted_error = self.from_all(self._noted_error), None
        if failures := [words for words in said if words]:
            raise OSError("; ".join(failures))


@contextmanager
def together(accelerator: Accelerator) -> Iterator[None]:
    """A block in which one process's error is every process's: none is left waiting for one that has failed.

    The block itself must not communicate. A process that fails waits at its end for the others.

    Raises:
        RuntimeError: on the processes where the block went well, if it failed on another.
    """
    error: Exception | None = None
    try:
        yield
    except Exception as raised:  # not a KeyboardInterrupt or an exit: those end the process, and the launcher the rest
        error = raised
    if accelerator.num_processes > 1:
        errors = gather_object([error and f"{type(error).__name__}: {error}"])
        failed = next((rank for rank, text in enumerate(errors) if text), None)
        if error is None and failed is not None:
            raise RuntimeError(f"process {failed} failed: {errors[failed]}")
    if error is not None:
        raise error
