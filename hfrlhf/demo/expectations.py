"""What each stage of the demo should come to. A demo that shows less is a demo of something broken, and says so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Expectation:
    """A metric of a stage, the least and the most it should be, and what it says.

    `method` is the only one that is held to it; None for all.
    """

    stage: str
    metric: str
    least: float
    most: float
    meaning: str
    method: str | None = None


EVERYTHING = 1e9
# Seeds 0 to 3 of PPO (RESULTS.md): accuracy 0.78 to 0.86, win rate 0.93 to 0.97, KL 6 to 8, ended 1, distinct 0.99.
EXPECTED: tuple[Expectation, ...] = (
    Expectation("SFT", "ended_sft", 0.9, 1.0, "of the SFT model's letters that come to an end"),
    Expectation("SFT", "gold_before", 0.5, EVERYTHING, "gold of the SFT model's letters (word salad has less than 0)"),
    Expectation("reward model", "reward_accuracy", 0.65, 1.0, "of held-out pairs that it ranks rightly (chance: 0.5)"),
    Expectation("PPO", "win_rate", 0.85, 1.0, "of letters that gold likes better than the SFT model's", "PPO"),
    Expectation("PPO", "win_rate_high", 0.5, 1.0, "of letters, at most, that gold likes better than the SFT model's"),
    Expectation("PPO", "kl", 0.0, 15.0, "nats per response from the SFT model", "PPO"),
    Expectation("PPO", "ended", 0.9, 1.0, "of its letters that come to an end", "PPO"),
    Expectation("PPO", "distinct_of_sft", 0.5, EVERYTHING, "different letters, as a share of the SFT model's", "PPO"),
)


class DemoFailed(RuntimeError):
    """A stage of the demo is not what it should be."""


def shortfalls(
    metrics: Mapping[str, Any], method: str = "PPO", expected: Sequence[Expectation] = EXPECTED
) -> list[str]:
    """What is not as it should be, a line each.

    Args:
        metrics: as far as they are known; others are not looked at. method: that trained the policy.
    """
    lines = []
    for row in expected:
        if row.metric not in metrics or row.method not in (None, method):
            continue
        value = metrics[row.metric]
        if not row.least <= value <= row.most:  # so that NaN is a shortfall, too
            bound = f"at most {row.most:g}" if value > row.most else f"at least {row.least:g}"
            name = method if row.stage == "PPO" else row.stage
            lines.append(f"{name}: {value:.3g} {row.meaning}; it should be {bound}")
    return lines
