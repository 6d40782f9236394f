"""The order in which an epoch reads its rows: a function of an address, whatever was drawn or interrupted before."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch.utils.data import Sampler

from ..core.randomness import permutation
from ..models.libraries import get_length_grouped_indices


def shuffled(rows: int, address: tuple[int, ...]) -> list[int]:
    """All rows in a random order that is a function of the address."""
    return permutation(rows, address).tolist()


def grouped_by_length(lengths: Sequence[int], batch_size: int, address: tuple[int, ...]) -> list[int]:
    """A shuffled order in which rows of similar length meet in a batch; transformers' grouping, with an address.

    Args:
        lengths: of each row. batch_size: rows of a batch, over all processes. address: of the random order.
    """
    order = shuffled(len(lengths), address)
    # Its own shuffle is the same every time, so that the order before it alone decides.
    fixed = torch.Generator().manual_seed(0)
    grouped = get_length_grouped_indices([lengths[row] for row in order], batch_size, generator=fixed)
    return [order[i] for i in grouped]


def rows_left(rows: int, size: int, processes: int, process: int) -> int:
    """How many rows are left for a process's last micro-batch of an epoch; the rest of it is filled up with others.

    Args:
        rows: of an epoch. size: of a full micro-batch. processes, process: how many take turns, and whose turn it is.
    """
    together = rows % (size * processes) or size * processes
    return min(max(together - process * size, 0), size)


class EpochOrder(Sampler[int]):
    """Reads the rows in the order of the epoch that the training is in.

    The stock samplers draw from generators, and a run that resumes in the middle of an epoch skips batches of another
    order than the one it was interrupted in.

    Args:
        rows: how many. order: of an epoch, its number given. epoch: tells the number, from 0, when an epoch begins.
    """

    def __init__(self, rows: int, order: Callable[[int], list[int]], epoch: Callable[[], int]) -> None:
        self.rows, self.order, self.epoch = rows, order, epoch

    def __len__(self) -> int:
        return self.rows

    def __iter__(self) -> Iterator[int]:
        return iter(self.order(self.epoch()))
