"""The win rate as an `evaluate` module: ties, interval, bad scores."""

from __future__ import annotations

import math

import evaluate
import pytest

from hfrlhf.evaluation.pairwise_accuracy import PairwiseAccuracy
from hfrlhf.evaluation.win_rate import WinRate, wilson_interval


def test_a_tie_counts_one_half() -> None:
    result = WinRate().compute(predictions=[2.0, 1.0, 0.0, 5.0], references=[1.0, 1.0, 3.0, -1.0])
    assert result["win_rate"] == 2.5 / 4  # win, tie, loss, win


def test_the_interval_is_wilsons() -> None:
    # 10 of 10 with z = 2: centre 1 + 4/20 = 1.2, half 2·√(4/400) = 0.2, all over 1 + 4/10 = 1.4
    assert wilson_interval(1.0, 10, z=2.0) == pytest.approx((1.0 / 1.4, 1.0))
    # 8 of 16 with z = 2: centre 0.625, half 2·√(0.25/16 + 4/1024) = 2·√0.01953125, over 1.25
    assert wilson_interval(0.5, 16, z=2.0) == pytest.approx(
        ((0.625 - 2 * math.sqrt(0.01953125)) / 1.25, (0.625 + 2 * math.sqrt(0.01953125)) / 1.25)
    )


def test_the_result_carries_its_interval() -> None:
    result = WinRate().compute(predictions=[1.0] * 9 + [0.0], references=[0.0] * 9 + [1.0])
    # Wilson's 95 % interval of 9 in 10, as statistics tables print it
    assert (result["win_rate_low"], result["win_rate_high"]) == pytest.approx((0.5958, 0.9821), abs=1e-4)


def test_a_score_that_is_not_finite_is_named() -> None:
    with pytest.raises(ValueError, match="comparison 1 has a score that is not finite"):
        WinRate().compute(predictions=[1.0, math.nan], references=[0.0, 0.0])


def test_it_combines_with_other_modules_offline() -> None:
    together = evaluate.combine([WinRate(), PairwiseAccuracy()])
    result = together.compute(predictions=[1.0, 0.0], references=[0.0, 0.0])
    assert result["win_rate"] == result["accuracy"] == 0.75
