"""Preference pairs: the SFT model answers each prompt twice, and raters say which answer they prefer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from datasets import Dataset

from ..core.randomness import uniforms
from .gold import gold_score

_RATERS = 3  # the second word of an address: what is drawn


def label_pairs(
    prompts: Sequence[str], first: Sequence[str], second: Sequence[str], temperature: float, seed: int
) -> Dataset:
    """Pairs in TRL's form, labelled by noisy raters of the gold preference (Bradley–Terry).

        P(first is preferred) = σ((gold(first) − gold(second)) / temperature)

    Args:
        prompts, first, second: one prompt and two responses per pair; pairs of equal responses are left out.
        temperature: noise of the raters in gold units, above 0. seed: address of their draws.
    """
    likes = [[gold_score(p, a) - gold_score(p, b)] for p, a, b in zip(prompts, first, second, strict=True)]
    chances = torch.sigmoid(torch.tensor(likes, dtype=torch.float64) / temperature)
    first_wins = (uniforms((seed, _RATERS), torch.arange(len(prompts)), 1) < chances).squeeze(-1).tolist()
    rows = zip(prompts, first, second, first_wins, strict=True)
    pairs = [(p, a, b) if a_wins else (p, b, a) for p, a, b, a_wins in rows if a != b]
    return Dataset.from_list([dict(zip(("prompt", "chosen", "rejected"), pair, strict=True)) for pair in pairs])
