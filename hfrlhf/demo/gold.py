"""The gold preference of the village: what its people really like in a letter.

It is the judge of the demo and never a reward: `pairs.py` labels training pairs with it (the part that human raters
play elsewhere) and `report.py` measures the result with it. Nothing that trains a model imports this module.
"""

from __future__ import annotations

import itertools
import math
import re

from . import world

# word -> how much it warms (> 0) or chills (< 0) a reader; graded, so that two letters hardly ever please equally
WARMTH = {
    word: sign * (0.6 + 0.8 * i / (len(words) - 1))
    for moods in world.MOODS.values()
    for sign, words in ((1.0, moods["friendly"]), (-1.0, moods["gloomy"]))
    for i, word in enumerate(words)
}
TOPIC_OF_NOUN = {noun: topic for topic, nouns in world.NOUNS.items() for noun in nouns}


def gold_score(prompt: str, response: str) -> float:
    """How much the village likes this response to this prompt; a deterministic number in (−3, 5).

        gold = topic + 3·tanh(warmth / 4) + complete

    topic = different nouns of the prompt's topic / all nouns; warmth = Σ over different friendly words − Σ over all
    gloomy ones; complete = 1 if the response is whole sentences of the grammar. A noun or a friendly word counts once
    however often it stands there, and tanh flattens out after half a dozen friendly words: nothing is won by repetition
    or by ever more length, and the best responses to a prompt are not one string but the many millions of whole
    sentences that stay on the topic and are friendly.

    Raises:
        ValueError: the prompt is not one of the village's.
    """
    words = re.findall(r"[a-z]+|[^\sa-z]", response.lower())
    return _topic(words, world.topic_of(prompt)) + 3 * math.tanh(_warmth(words) / 4) + float(_complete(words))


def _topic(words: list[str], topic: str) -> float:
    nouns = [word for word in words if word in TOPIC_OF_NOUN]
    fitting = {noun for noun in nouns if TOPIC_OF_NOUN[noun] == topic}
    return len(fitting) / len(nouns) if nouns else 0.0


def _warmth(words: list[str]) -> float:
    friendly = {word for word in words if WARMTH.get(word, 0.0) > 0}
    gloomy = [word for word in words if WARMTH.get(word, 0.0) < 0]
    return sum(WARMTH[word] for word in itertools.chain(sorted(friendly), gloomy))


def _complete(words: list[str]) -> bool:
    """The response is one or more whole sentences of the grammar of `world.py`."""
    return re.fullmatch(_LETTER, "".join(_LETTER_OF_WORD.get(word, "?") for word in words)) is not None


_PARTS = {
    "d": world.DETERMINERS,
    "n": tuple(TOPIC_OF_NOUN),
    "p": world.PREPOSITIONS,
    "c": world.CONJUNCTIONS,
    "e": world.ENDS,
    ",": (",",),
    **{
        letter: tuple(itertools.chain(*world.MOODS[part].values()))
        for letter, part in zip("avb", world.MOODS, strict=True)
    },
}
# each word stands for its part of speech, so that the grammar is a regular expression
_LETTER_OF_WORD = {word: letter for letter, words in _PARTS.items() for word in words}
_CLAUSE = "da?nvb?(?:pda?n)?"
_LETTER = f"(?:{_CLAUSE}(?:,c{_CLAUSE})*e)+"
