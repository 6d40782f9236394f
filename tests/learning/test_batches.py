"""Which rows are whose: everyone gets each row once, in equal numbers and about equal tokens."""

from __future__ import annotations

import torch

from hfrlhf.learning.batches import Share, mini_batch
from hfrlhf.learning.clock import Clock


def test_micro_batches_hold_each_row_once_and_are_dealt_as_a_snake():
    lengths = torch.tensor([1, 2, 3, 4, 5, 6, 7, 8])
    dealt = [Share(process, 2, 2).micro_batches(torch.arange(8), lengths) for process in (0, 1)]
    # From the longest: 8 7 6 5 go to the four piles from left to right, 4 3 2 1 from right to left.
    assert [[lengths[rows].tolist() for rows in mine] for mine in dealt] == [[[8, 1], [7, 2]], [[6, 3], [5, 4]]]
    assert sorted(torch.cat([rows for mine in dealt for rows in mine]).tolist()) == list(range(8))


def test_micro_batches_take_the_rows_of_the_step_alone():
    lengths = torch.tensor([9, 1, 9, 2, 9, 3])
    (rows,) = Share().micro_batches(torch.tensor([1, 3, 5]), lengths)
    assert sorted(rows.tolist()) == [1, 3, 5]


def test_processes_share_rows_out_in_order():
    rows = torch.arange(5)
    assert [Share(i, 2).of(rows).tolist() for i in (0, 1)] == [[0, 1, 2], [3, 4]]


def test_an_epoch_uses_each_row_once_and_another_epoch_another_order():
    clock = Clock(policy_epochs=2, value_epochs=0, mini_batches=2, warmup_rollouts=0, episodes=8)
    parts = [mini_batch(8, clock.at(step), 2, seed=3).tolist() for step in range(8)]
    epochs = [parts[i] + parts[i + 1] for i in range(0, 8, 2)]  # two of the first rollout, two of the second
    assert all(sorted(epoch) == list(range(8)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert parts[1] == mini_batch(8, clock.at(1), 2, seed=3).tolist()  # a function of its address
    assert parts[1] != mini_batch(8, clock.at(1), 2, seed=4).tolist()
