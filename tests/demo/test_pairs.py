"""The raters of the demo: noisy, but of the gold preference's opinion."""

from __future__ import annotations

import math

import pytest

from hfrlhf.demo.pairs import label_pairs

PROMPT = "From Ada to Bruno, about the harbour in spring:"
BETTER, WORSE = " The boat rests.", " The boat rests near the rose."  # gold 2 and 1.5, see test_gold.py


def test_raters_without_noise_follow_gold() -> None:
    pairs = label_pairs([PROMPT, PROMPT], [BETTER, WORSE], [WORSE, BETTER], temperature=1e-6, seed=0)
    assert pairs[:] == {"prompt": [PROMPT] * 2, "chosen": [BETTER] * 2, "rejected": [WORSE] * 2}


def test_noise_is_bradley_terrys() -> None:
    # gold differs by 0.5, so at temperature 0.5/ln 3 the better one is preferred with σ(ln 3) = 3/4
    n = 4000
    pairs = label_pairs([PROMPT] * n, [BETTER] * n, [WORSE] * n, temperature=0.5 / math.log(3), seed=0)
    share = sum(chosen == BETTER for chosen in pairs["chosen"]) / n
    assert share == pytest.approx(0.75, abs=4 * math.sqrt(0.75 * 0.25 / n))


def test_labels_are_a_function_of_the_seed() -> None:
    n = 50
    first, again, other = (label_pairs([PROMPT] * n, [BETTER] * n, [WORSE] * n, 1.0, seed)[:] for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_equal_responses_make_no_pair() -> None:
    pairs = label_pairs([PROMPT, PROMPT], [BETTER, BETTER], [BETTER, WORSE], temperature=1e-6, seed=0)
    assert len(pairs) == 1
