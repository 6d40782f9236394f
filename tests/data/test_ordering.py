"""Orders of an epoch: every row once, a function of the address, of similar lengths where that is asked."""

from __future__ import annotations

import pytest

from hfrlhf.data.ordering import EpochOrder, grouped_by_length, shuffled

LENGTHS = [(7 * i) % 31 for i in range(64)]


@pytest.mark.parametrize(
    "order", [lambda a: shuffled(64, a), lambda a: grouped_by_length(LENGTHS, 4, a)], ids=["shuffled", "grouped"]
)
def test_every_row_comes_once_and_the_address_alone_decides(order):
    assert sorted(order((3, 0))) == list(range(64))
    assert order((3, 0)) == order((3, 0))
    assert len({tuple(order(address)) for address in [(3, 0), (3, 1), (4, 0), (4, 1)]}) == 4


def spread(order: list[int]) -> int:
    """How far lengths lie apart within the batches of four, in all."""
    batches = [[LENGTHS[i] for i in order[start : start + 4]] for start in range(0, 64, 4)]
    return sum(max(batch) - min(batch) for batch in batches)


def test_grouping_brings_similar_lengths_together():
    assert 3 * spread(grouped_by_length(LENGTHS, 4, (0, 0))) < spread(shuffled(64, (0, 0)))


def test_a_loader_in_a_later_epoch_starts_with_that_epochs_order():
    now = {"epoch": 0}
    sampler = EpochOrder(64, lambda epoch: shuffled(64, (5, epoch)), lambda: now["epoch"])
    first = list(sampler)
    now["epoch"] = 2
    assert (first, list(sampler)) == (shuffled(64, (5, 0)), shuffled(64, (5, 2)))
    assert len(sampler) == 64
