"""What is looked at in the rewards of a rollout: what the ending of a response is to them, and that they speak."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from transformers.utils import logging

from ..reporting.plain_text import printable
from .completions import Completions
from .source import RewardSource

logger = logging.get_logger(__name__)

RESPONSES_TRIED = 64  # per process: a mean that is off by a point shows in as many


def ending_note(
    sources: Sequence[RewardSource],
    completions: Completions,
    parts: Tensor,
    penalty: float | None,
    total: Callable[[Sequence[float]], Sequence[float]],
) -> str:
    """What each reward model says of responses that were cut off: with the ending, without it, beside those that ended.

    It has seen no response without the ending: where the two numbers are far apart, what it would say of one is chance.
    Where it likes those that were cut off no less than the others, nothing in it asks the policy to end. All processes
    take part; nothing is said where no response was cut off.

    Args:
        parts: [B,S] the scores of the S sources. penalty: `missing_eos_penalty`. total: sums of numbers over processes.
    """
    ended = completions.rollout.terminated
    tried = ended.logical_not().nonzero().flatten()[:RESPONSES_TRIED]
    lines = []
    for source, scores in zip(sources, parts.T.double(), strict=True):
        bare = source.without_ending(completions, tried)
        if bare is not None:
            sums = [float(scores[tried].sum()), bare, float(scores[ended].sum())]
            lines += _told(source.name, total([*sums, len(tried), int(ended.sum()), int((~ended).sum())]), penalty)
    return "\n".join(lines)


def _told(name: str, sums: Sequence[float], penalty: float | None) -> list[str]:
    """The line of one reward model.

    Args:
        sums: of the scores of responses that were cut off, as they are read and without the ending, and of those that
            ended; then how many of either were summed, and how many were cut off.
    """
    cut, bare, whole, tried, ended, number = sums
    if not tried:
        return []
    line = (
        f"first rollout: {number:.0f} of {number + ended:.0f} responses were cut off at the length limit; {name} reads "
        f"them with the ending it was trained with, and scores them {cut / tried:.2f} on average "
        f"({bare / tried:.2f} without it)"
    )
    if not ended:
        return [line]
    asks = "; nothing in that asks the policy to end: `missing_eos_penalty` does" if not penalty else ""
    return [f"{line}, those that ended {whole / ended:.2f}{asks if cut / tried >= whole / ended else ''}"]


class EqualScores:
    """Says once of each reward that it gave every response of a rollout the same score: from it nothing is learnt.

    Such a reward may be right (a riddle that nobody solved yet), or look for something that is never there.
    """

    def __init__(self) -> None:
        self.told: set[str] = set()

    def look(self, names: Sequence[str], parts: Tensor, samples: Sequence[Mapping[str, Any]], speaks: bool) -> None:
        """Look at a new rollout.

        Args:
            names: of the S sources. parts: [B,S] their scores, over all processes. samples: some of the rollout's rows.
            speaks: whether this process is the one that says it.
        """
        for name, scores in zip(names, parts.T, strict=True):
            given = scores[~scores.isnan()]
            if len(given) > 1 and bool((given == given[0]).all()) and name not in self.told:
                self.told.add(name)
                if speaks:
                    self._tell(name, given, samples)

    def _tell(self, name: str, scores: Tensor, samples: Sequence[Mapping[str, Any]]) -> None:
        example = printable(repr(samples[0]["completion"])[:200]) if samples else "none"
        logger.warning(
            f"the reward {name} gives all {len(scores)} responses of a rollout the same score, {float(scores[0]):g}: "
            "there is nothing to learn from it (said once). Is it looking for something that is not there? One of the "
            f"completions it got: {example}"
        )
