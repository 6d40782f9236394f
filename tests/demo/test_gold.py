"""The gold preference on letters whose score can be worked out by hand."""

from __future__ import annotations

import math

import pytest

from hfrlhf.demo import world
from hfrlhf.demo.gold import WARMTH, gold_score

PROMPT = "From Ada to Bruno, about the harbour in spring:"

# gold = topic + 3·tanh(warmth / 4) + complete; "kind" and "bitter", first of their lists, weigh 0.6 and −0.6
BY_HAND = [
    (" The boat rests.", 1 + 0 + 1),
    (" The boat rests! Our pier waits.", 1 + 0 + 1),
    (" The rose rests.", 0 + 0 + 1),  # a garden's noun
    (" The boat rests near the rose.", 0.5 + 0 + 1),
    (" The boat rests near the boat.", 0.5 + 0 + 1),  # the same noun again doesn't count
    (" The boat rests", 1 + 0 + 0),  # no end
    (" The boat the rests.", 1 + 0 + 0),  # no grammar
    (" The kind boat rests.", 1 + 3 * math.tanh(0.15) + 1),
    (" The kind boat rests with the kind sailor.", 1 + 3 * math.tanh(0.15) + 1),  # the same friendly word again neither
    (" The bitter boat rests.", 1 - 3 * math.tanh(0.15) + 1),
    (" The bitter boat rests with the bitter sailor.", 1 - 3 * math.tanh(0.3) + 1),  # but gloom adds up
    ("", 0),
    (" kind kind kind", 3 * math.tanh(0.15)),
    (" Submarine.", 0),
]


@pytest.mark.parametrize(("response", "expected"), BY_HAND)
def test_scores_by_hand(response: str, expected: float) -> None:
    assert gold_score(PROMPT, response) == pytest.approx(expected)


def test_the_prompt_decides_what_is_on_topic() -> None:
    letter = " The boat rests near the pier."
    assert gold_score(PROMPT, letter) - gold_score(PROMPT.replace("harbour", "garden"), letter) == 1


def test_the_order_of_good_and_bad_letters() -> None:
    worst_to_best = [
        " The bitter rose weeps sadly near",
        " The bitter rose weeps sadly near the broken stove.",
        " The old rose waits near the stove.",
        " The old boat waits near the pier.",
        " The golden boat waits near the pier.",
        " The golden boat glows near the pier, and our gull sings gladly.",
    ]
    scores = [gold_score(PROMPT, letter) for letter in worst_to_best]
    assert scores == sorted(scores) and len(set(scores)) == len(scores)


def test_the_best_letters_are_many() -> None:
    """Nearly the highest score is reached by letters with no content word in common: no one string wins."""
    letters = [
        " The sunny boat shines sweetly near our warm pier, and that merry sailor smiles happily.",
        " My lovely gull laughs kindly under this golden lighthouse, while your cosy net sings joyfully.",
    ]
    assert not set(letters[0].split()[1:]) & set(letters[1].split()[1:])
    assert all(gold_score(PROMPT, letter) > 4.5 for letter in letters)


def test_every_mood_word_has_its_sign() -> None:
    for moods in world.MOODS.values():
        assert all(0.6 <= WARMTH[word] <= 1.4 for word in moods["friendly"])
        assert all(-1.4 <= WARMTH[word] <= -0.6 for word in moods["gloomy"])
        assert not WARMTH.keys() & set(moods["plain"])
