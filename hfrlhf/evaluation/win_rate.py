"""How often one policy's responses are preferred to another's, as a module of `evaluate`."""

from __future__ import annotations

import math

import datasets
import evaluate

_DESCRIPTION = """\
Win rate: the share of prompts on which the policy's response scores higher than the baseline's response to the same
prompt; a tie counts one half. With Wilson's 95 % interval.
"""

_INPUTS = """
Args:
    predictions: scores of the policy's responses.
    references: scores of the baseline's responses to the same prompts, in the same order.
Returns:
    win_rate: between 0 and 1; 0.5 is no difference.
    win_rate_low, win_rate_high: Wilson's 95 % interval of it.
"""

NORMAL_QUANTILE = 1.959964  # of 0.975: two-sided 95 %


class WinRate(evaluate.Metric):
    """The share of comparisons that the policy wins, ties ½, with Wilson's 95 % interval.

    `WinRate().compute(predictions=policy_scores, references=baseline_scores)["win_rate"]`; it works without a network,
    alone and in `evaluate.combine`.
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
        pairs = list(zip(predictions, references, strict=True))
        bad = next((i for i, pair in enumerate(pairs) if not all(map(math.isfinite, pair))), None)
        if bad is not None:
            raise ValueError(f"comparison {bad} has a score that is not finite: {pairs[bad]}")
        wins = sum(1.0 if ours > theirs else 0.5 if ours == theirs else 0.0 for ours, theirs in pairs)
        low, high = wilson_interval(wins / len(pairs), len(pairs))
        return {"win_rate": wins / len(pairs), "win_rate_low": low, "win_rate_high": high}


def wilson_interval(share: float, n: int, z: float = NORMAL_QUANTILE) -> tuple[float, float]:
    """The interval of shares p that a share of n trials is compatible with (Wilson 1927).

        (share + z²/2n ± z·√(share·(1 − share)/n + z²/4n²)) / (1 + z²/n)

    Args:
        share: observed, 0 to 1. n: trials, at least 1. z: quantile of the normal distribution.
    """
    centre = share + z * z / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return (centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)
