"""Pairwise accuracy as a module of `evaluate`, without a network, and the score distribution."""

from __future__ import annotations

import evaluate
import pytest
import torch

from hfrlhf.evaluation.pairwise_accuracy import PairwiseAccuracy, score_metrics


def test_ties_count_one_half() -> None:
    # right, wrong, tie, right: (1 + 0 + ½ + 1) / 4
    result = PairwiseAccuracy().compute(predictions=[2.0, -1.0, 0.5, 3.0], references=[1.0, 0.0, 0.5, -3.0])
    assert result == {"accuracy": 0.625}


def test_it_takes_batches_and_combines_with_other_modules() -> None:
    metric = PairwiseAccuracy()
    metric.add_batch(predictions=[1.0, 1.0, 1.0], references=[0.0, 0.0, 2.0])
    metric.add_batch(predictions=[1.0], references=[2.0])
    assert metric.compute() == {"accuracy": 0.5}
    both = evaluate.combine([PairwiseAccuracy(), PairwiseAccuracy()])
    assert set(both.compute(predictions=[1.0], references=[0.0]).values()) == {1.0}


def test_scores_are_described_under_stable_names() -> None:
    metrics = score_metrics(torch.tensor([0.0, 2.0, 4.0]), torch.tensor([1.0, 1.0, 1.0]))
    # chosen: mean 2, variance (4+0+4)/3; rejected: constant 1; all six: mean 1.5, variance (2.25+0.25+6.25+3·0.25)/6
    expected = {
        "accuracy": 2 / 3,
        "margin": 1.0,
        "score_mean": 1.5,
        "score_std": (9.5 / 6) ** 0.5,
        "chosen_score_mean": 2.0,
        "chosen_score_std": (8 / 3) ** 0.5,
        "chosen_score_p05": 0.2,  # a tenth of the way from 0 to 2
        "chosen_score_p50": 2.0,
        "chosen_score_p95": 3.8,
        "rejected_score_mean": 1.0,
        "rejected_score_std": 0.0,
        "rejected_score_p05": 1.0,
        "rejected_score_p50": 1.0,
        "rejected_score_p95": 1.0,
    }
    assert metrics == pytest.approx(expected)
