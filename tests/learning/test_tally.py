"""Means over the tokens of all processes, by one reduction for all steps since the last log."""

from __future__ import annotations

import torch
from torch import Tensor

from hfrlhf.learning.clock import Clock
from hfrlhf.learning.update import MOST_WAITING, StepReport, Tally

CLOCK = Clock(policy_epochs=2, value_epochs=0, mini_batches=2, warmup_rollouts=0, episodes=8)


def of_two(calls: list[Tensor]):
    """A reduction over two processes of which the other has twice the numbers of this one."""

    def reduce(here: Tensor) -> Tensor:
        calls.append(here)
        return here + 2 * here

    return reduce


def test_one_reduction_serves_all_steps():
    tally, calls = Tally(), list[Tensor]()
    tally.add({"policy/ratio": torch.tensor(2.0), "value/loss": torch.tensor(1.0)})
    tally.add({"policy/ratio": torch.tensor(4.0), "value/loss": torch.tensor(0.0)})  # the step's second chunk
    first, second, third = map(CLOCK.at, range(3))
    tally.close(first, tokens=9, loss=0.5)
    tally.close(second, tokens=9, loss=0.25)  # nothing learnt: a loss, and no sums
    tally.add({"policy/ratio": torch.tensor(3.0), "value/loss": torch.tensor(6.0)})
    tally.close(third, tokens=3, loss=1.0)
    reports = tally.settle(of_two(calls), 2, torch.device("cpu"))
    assert reports == [
        StepReport(first, 0.75, {"policy/ratio": 2.0, "value/loss": 1 / 3}),
        StepReport(second, 0.375, {}),
        StepReport(third, 1.5, {"policy/ratio": 3.0, "value/loss": 6.0}),
    ]
    assert len(calls) == 1
    assert tally.settle(of_two(calls), 2, torch.device("cpu")) == [] and len(calls) == 1


def test_when_it_is_settled_changes_no_number():
    def run(often: bool) -> list[StepReport]:
        tally, reports = Tally(), list[StepReport]()
        for k in range(4):
            tally.add({"entropy": torch.tensor(0.1) * (k + 1)})
            tally.close(CLOCK.at(k), tokens=7, loss=0.1 * k)
            if often:
                reports += tally.settle(of_two([]), 2, torch.device("cpu"))
        return reports + tally.settle(of_two([]), 2, torch.device("cpu"))

    assert run(often=True) == run(often=False)


def test_a_run_that_never_logs_does_not_collect_its_steps():
    tally = Tally()
    for k in range(MOST_WAITING):
        assert not tally.is_full
        tally.close(CLOCK.at(k), 1, 0.0)
    assert tally.is_full
    tally.settle(of_two([]), 2, torch.device("cpu"))
    assert not tally.is_full
