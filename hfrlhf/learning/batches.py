"""Which rows are whose: of the prompts in a rollout, of an experience in an optimiser step, of a step on a process.

Everything is a function of an address (seed, use, rollout, …), so that a resumed run reads the same prompts, draws the
same tokens and shuffles alike, whatever the number of processes.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..core.randomness import permutation
from .clock import Moment

# The second word of every address, so that no two uses share their random numbers.
SAMPLING, SHUFFLING, EVALUATION, COMPARISON = 1, 2, 3, 4


@dataclass(frozen=True)
class Share:
    """What of the work is this process's.

    Args:
        process: its number. processes: how many there are. accumulation: micro-batches of an optimiser step on each.
    """

    process: int = 0
    processes: int = 1
    accumulation: int = 1

    def of(self, rows: Tensor) -> Tensor:
        """A consecutive part of some rows, about as many for everyone."""
        return rows.tensor_split(self.processes)[self.process]

    def micro_batches(self, rows: Tensor, lengths: Tensor) -> list[Tensor]:
        """This process's micro-batches of a step: equal numbers of rows, about equal numbers of tokens for everyone.

        Args:
            rows: [m] of the step, a multiple of processes × accumulation. lengths: [B] real tokens of each row.
        """
        piles = self.processes * self.accumulation
        dealt = rows[lengths[rows].argsort(descending=True, stable=True)].view(-1, piles)
        dealt[1::2] = dealt[1::2].flip(1)  # there and back again, as cards are dealt in a snake
        first = self.process * self.accumulation
        return [dealt[:, first + i] for i in range(self.accumulation)]


def mini_batch(episodes: int, moment: Moment, mini_batches: int, seed: int) -> Tensor:
    """[m] rows of the experience that an optimiser step uses: a part of its epoch's permutation."""
    order = permutation(episodes, (seed, SHUFFLING, moment.rollout, moment.epoch))
    return order.chunk(mini_batches)[moment.mini_batch]
