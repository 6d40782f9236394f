"""A village that writes letters: the words, the grammar, the prompts, the tokenizer and the shape of the tiny model.

    From Ada to Bruno, about the harbour in spring: The old boat rests gladly, and our gull sings near the pier.

A prompt names two people, a topic and a season. A letter is a few clauses of the grammar

    letter  →  clause (joint clause)* end          clause  →  noun-phrase verb [adverb] [preposition noun-phrase]
    joint   →  "," conjunction  |  end               noun-phrase  →  determiner [adjective] noun
    end     →  "."  |  "!"

whose verbs, adverbs and adjectives are friendly, plain or gloomy, and whose nouns belong to a topic. The letters of
this world (what the SFT model learns) are of all moods, wander off their topic, and now and then break off in
mid-sentence. What makes a letter a *good* one is not said here but in `hfrlhf.demo.gold`.

Every draw is a function of its address (seed, what is drawn, row); nothing is read from a global generator.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaConfig, PreTrainedTokenizerFast

from ..core.randomness import permutation, uniforms

NOUNS: dict[str, tuple[str, ...]] = {
    "harbour": ("boat", "pier", "sailor", "anchor", "gull", "lighthouse", "net", "tide"),
    "garden": ("rose", "hedge", "gardener", "spade", "robin", "pond", "tulip", "fence"),
    "kitchen": ("kettle", "stove", "cook", "spoon", "cat", "cupboard", "loaf", "pan"),
    "market": ("stall", "basket", "trader", "coin", "pigeon", "awning", "melon", "cart"),
    "forest": ("oak", "path", "ranger", "axe", "owl", "cabin", "fern", "stream"),
    "school": ("desk", "bell", "teacher", "pencil", "hamster", "library", "map", "lesson"),
    "station": ("train", "platform", "porter", "ticket", "sparrow", "tunnel", "signal", "trunk"),
    "farm": ("tractor", "barn", "farmer", "bucket", "goat", "orchard", "plough", "haystack"),
}
NAMES = (
    "Ada",
    "Bruno",
    "Clara",
    "Dario",
    "Edith",
    "Felix",
    "Greta",
    "Hugo",
    "Ines",
    "Jonas",
    "Kira",
    "Leo",
    "Mira",
    "Nils",
    "Olga",
    "Pavel",
    "Quentin",
    "Rosa",
    "Stefan",
    "Tilda",
    "Ulla",
    "Viktor",
    "Wanda",
    "Yara",
)
SEASONS = ("spring", "summer", "autumn", "winter")
DETERMINERS = ("the", "this", "that", "our", "your", "my")
PREPOSITIONS = ("near", "behind", "beside", "under", "with", "past")
CONJUNCTIONS = ("and", "but", "while")
ENDS = (".", "!")
# part of speech -> mood -> words
MOODS: dict[str, dict[str, tuple[str, ...]]] = {
    "adjective": {
        "friendly": ("kind", "bright", "cheerful", "cosy", "gentle", "golden", "lovely", "merry", "sunny", "warm"),
        "plain": ("brown", "large", "new", "old", "quiet", "round", "small", "tall", "wooden", "young"),
        "gloomy": ("bitter", "bleak", "broken", "cold", "cruel", "dreary", "grim", "lonely", "rotten", "sad"),
    },
    "verb": {
        "friendly": ("blooms", "dances", "glows", "helps", "laughs", "shines", "sings", "smiles"),
        "plain": ("leans", "moves", "rests", "sits", "stands", "stays", "turns", "waits"),
        "gloomy": ("breaks", "crumbles", "fades", "falls", "groans", "sinks", "suffers", "weeps"),
    },
    "adverb": {
        "friendly": ("fondly", "gladly", "happily", "joyfully", "kindly", "sweetly"),
        "plain": ("again", "calmly", "now", "often", "slowly", "today"),
        "gloomy": ("angrily", "badly", "coldly", "grimly", "hopelessly", "sadly"),
    },
}
# mood of the writer -> (how often, chance of a friendly, plain, gloomy word)
WRITERS: dict[str, tuple[float, tuple[float, float, float]]] = {
    "friendly": (0.3, (0.55, 0.30, 0.15)),
    "even": (0.4, (0.25, 0.50, 0.25)),
    "gloomy": (0.3, (0.15, 0.30, 0.55)),
}
ON_TOPIC = 0.7  # chance that a noun of a letter belongs to the letter's topic
BREAKS_OFF = 0.1  # chance that a letter ends in mid-sentence
CLAUSES = {1: 0.25, 2: 0.5, 3: 0.25}  # how many clauses a letter has, and how often
MAX_COMPLETION_LENGTH = (
    40  # tokens; the longest letter has 3 clauses of 9 words, 2 joints of 2 tokens, an end and <eos>: 33
)
SPECIAL_TOKENS = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}

T = TypeVar("T")
_PROMPTS, _LETTERS = 1, 2  # the second word of an address: what is drawn
_MOST_DRAWS = 96  # random numbers a letter can need: 3 clauses of at most 23, and 8 more


@dataclass(frozen=True)
class Splits:
    """Prompts of the three training stages and of the test; no prompt is in two of them."""

    sft: tuple[str, ...]
    pairs: tuple[str, ...]
    ppo: tuple[str, ...]
    test: tuple[str, ...]


def make_splits(seed: int, sft: int, pairs: int, ppo: int, test: int) -> Splits:
    """The given numbers of prompts for each stage, all different.

    Raises:
        ValueError: the village doesn't have that many prompts.
    """
    sizes = {"sft": sft, "pairs": pairs, "ppo": ppo, "test": test}
    everything = all_prompts()
    if sum(sizes.values()) > len(everything):
        raise ValueError(f"the village has {len(everything)} prompts, {sum(sizes.values())} were asked for: {sizes}")
    stream = iter(permutation(len(everything), (seed, _PROMPTS)).tolist())
    parts = {name: tuple(everything[i] for i in itertools.islice(stream, n)) for name, n in sizes.items()}
    return Splits(**parts)


def all_prompts() -> list[str]:
    """Every prompt of the village, in a fixed order."""
    people = itertools.permutations(NAMES, 2)
    return [prompt_text(a, b, topic, season) for (a, b), topic, season in itertools.product(people, NOUNS, SEASONS)]


def prompt_text(sender: str, receiver: str, topic: str, season: str) -> str:
    """The opening that a letter continues."""
    return f"From {sender} to {receiver}, about the {topic} in {season}:"


def topic_of(prompt: str) -> str:
    """The topic a prompt names: the word after "about the".

    Raises:
        ValueError: the text is not a prompt of the village.
    """
    _, found, rest = prompt.partition(" about the ")
    topic = rest.partition(" ")[0]
    if not found or topic not in NOUNS:
        raise ValueError(f"{prompt!r} is not a prompt of the village, such as {all_prompts()[0]!r}")
    return topic


def write_letters(prompts: Sequence[str], seed: int) -> list[str]:
    """A letter for each prompt as the village writes it: letter i is a function of (prompt i, seed, i).

    A letter begins with a space, as text after a colon does.
    """
    draws = uniforms((seed, _LETTERS), torch.arange(len(prompts)), _MOST_DRAWS).tolist()
    return [typeset(_letter(topic_of(prompt), iter(row))) for prompt, row in zip(prompts, draws, strict=True)]


def typeset(words: list[str]) -> str:
    """Words and punctuation marks as text: sentences begin with a capital, a space stands before every word."""
    text, capital = "", True
    for word in words:
        text += word if word in ",.!" else " " + (word.capitalize() if capital else word)
        capital = word in ENDS
    return text


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word (with the space before it) and per punctuation mark, `<bos>` in front; decoding is exact."""
    vocabulary = {token: i for i, token in enumerate([*SPECIAL_TOKENS.values(), *_surface_forms()])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=SPECIAL_TOKENS["unk_token"]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?[A-Za-z]+|[.,:!]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    bos = SPECIAL_TOKENS["bos_token"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A $B:1", special_tokens=[(bos, vocabulary[bos])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **SPECIAL_TOKENS, padding_side="left", clean_up_tokenization_spaces=False
    )


def model_config(tokenizer: PreTrainedTokenizerFast, **shape: Any) -> LlamaConfig:
    """A Llama of the given shape (`hidden_size`, `num_hidden_layers`, …) for this vocabulary."""
    ids = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    return LlamaConfig(vocab_size=len(tokenizer), **ids, **shape)


def _surface_forms() -> list[str]:
    """Every token of the village's texts, in a fixed order: only the first word of a text stands without a space."""
    words = [*NAMES, "to", "about", "in", *NOUNS, *SEASONS, *itertools.chain(*NOUNS.values())]
    words += [*DETERMINERS, *(d.capitalize() for d in DETERMINERS), *PREPOSITIONS, *CONJUNCTIONS]
    words += [word for moods in MOODS.values() for mood in moods.values() for word in mood]
    return ["From", *",.!:", *(f" {word}" for word in words)]


def _letter(topic: str, draws: Iterator[float]) -> list[str]:
    """clause (joint clause)* end, in the mood of one writer; sometimes cut short."""
    writer = _pick(draws, list(WRITERS), [often for often, _ in WRITERS.values()])
    chances = WRITERS[writer][1]
    words: list[str] = []
    for _ in range(_pick(draws, list(CLAUSES), list(CLAUSES.values()))):
        words += [*_joint(draws, words), *_clause(draws, topic, chances)]
    words.append(_pick(draws, ENDS, (0.8, 0.2)))
    breaks_off, where = next(draws) < BREAKS_OFF, next(draws)
    return words[: 2 + int(where * (len(words) - 2))] if breaks_off else words


def _joint(draws: Iterator[float], words: list[str]) -> list[str]:
    """What stands before the next clause: nothing, a comma and a conjunction, or the end of a sentence."""
    if not words:
        return []
    return [",", _pick(draws, CONJUNCTIONS)] if next(draws) < 0.6 else ["."]


def _clause(draws: Iterator[float], topic: str, chances: Sequence[float]) -> list[str]:
    """noun-phrase verb [adverb] [preposition noun-phrase]"""
    words = [*_noun_phrase(draws, topic, chances), _moody(draws, "verb", chances)]
    if next(draws) < 0.5:
        words.append(_moody(draws, "adverb", chances))
    if next(draws) < 0.6:
        words += [_pick(draws, PREPOSITIONS), *_noun_phrase(draws, topic, chances)]
    return words


def _noun_phrase(draws: Iterator[float], topic: str, chances: Sequence[float]) -> list[str]:
    """determiner [adjective] noun"""
    adjective = [_moody(draws, "adjective", chances)] if next(draws) < 0.7 else []
    subject = topic if next(draws) < ON_TOPIC else _pick(draws, [other for other in NOUNS if other != topic])
    return [_pick(draws, DETERMINERS), *adjective, _pick(draws, NOUNS[subject])]


def _moody(draws: Iterator[float], part: str, chances: Sequence[float]) -> str:
    """A word of this part of speech, its mood drawn with the writer's chances (friendly, plain, gloomy)."""
    return _pick(draws, MOODS[part][_pick(draws, list(MOODS[part]), chances)])


def _pick(draws: Iterator[float], options: Sequence[T], chances: Sequence[float] | None = None) -> T:
    """The option that the next random number falls on."""
    edges = list(itertools.accumulate(chances or [1 / len(options)] * len(options)))
    return options[min(bisect.bisect(edges, next(draws)), len(options) - 1)]
