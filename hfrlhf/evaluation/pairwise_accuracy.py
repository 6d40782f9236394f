"""How often a reward model prefers the chosen response, as a module of `evaluate`, and how its scores are spread."""

from __future__ import annotations

import datasets
import evaluate
import numpy
import torch
from torch import Tensor

from ..core.preference_losses import pairwise_accuracy

_DESCRIPTION = """\
Pairwise accuracy of a reward model: the share of pairs whose chosen response scores higher than the rejected one; a tie
counts one half.
"""

_INPUTS = """
Args:
    predictions: scores of the chosen responses.
    references: scores of the rejected responses, in the same order.
Returns:
    accuracy: between 0 and 1; 0.5 is chance.
"""

# The quantiles of a score distribution that are reported, by metric name.
QUANTILES = {"p05": 0.05, "p50": 0.5, "p95": 0.95}


class PairwiseAccuracy(evaluate.Metric):
    """The share of pairs whose chosen response scores higher, ties ½ (SPEC §2.1).

    `PairwiseAccuracy().compute(predictions=chosen_scores, references=rejected_scores)["accuracy"]`; it works without a
    network, alone and in `evaluate.combine`.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features(
                {"predictions": datasets.Value("float64"), "references": datasets.Value("float64")}
            ),
        )

    def _compute(self, predictions: list[float], references: list[float]) -> dict[str, float]:
        chosen, rejected = (torch.tensor(x, dtype=torch.float64) for x in (predictions, references))
        return {"accuracy": float(pairwise_accuracy(chosen, rejected))}


def score_metrics(chosen: Tensor, rejected: Tensor) -> dict[str, float]:
    """What a reward model says about pairs: accuracy, margin and how its scores are spread, under stable names.

    `accuracy`; `margin` (mean of r_w − r_l); `score_mean` and `score_std` of all responses; and for each side
    `chosen_score_…` and `rejected_score_…` with `mean`, `std`, `p05`, `p50`, `p95`. Standard deviations divide by the
    count. Every pair counts the same, whatever batch it was in.

    Shapes: chosen, rejected [pairs], at least one pair; reward units.
    """
    metric = PairwiseAccuracy(keep_in_memory=True)
    result = metric.compute(predictions=chosen.double().tolist(), references=rejected.double().tolist())
    metrics = {"accuracy": result["accuracy"], "margin": float((chosen.double() - rejected.double()).mean())}
    metrics |= _moments("score", torch.cat([chosen, rejected]))
    for side, scores in (("chosen_score", chosen), ("rejected_score", rejected)):
        metrics |= _moments(side, scores) | _quantiles(side, scores)
    return metrics


def _moments(name: str, scores: Tensor) -> dict[str, float]:
    scores = scores.double()
    return {f"{name}_mean": float(scores.mean()), f"{name}_std": float(scores.std(correction=0))}


def _quantiles(name: str, scores: Tensor) -> dict[str, float]:
    values = numpy.quantile(scores.double().numpy(), list(QUANTILES.values()))  # torch's refuses 16 million and more
    return {f"{name}_{label}": float(value) for label, value in zip(QUANTILES, values, strict=True)}
