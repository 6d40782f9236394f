"""The demo's world: disjoint prompts, letters of the grammar, an exact tokenizer, a model of the right size."""

from __future__ import annotations

import dataclasses
import itertools

import pytest

from hfrlhf.demo import world
from hfrlhf.demo.gold import gold_score

PROMPT = "From Ada to Bruno, about the harbour in spring:"


def test_no_prompt_is_in_two_splits() -> None:
    splits = world.make_splits(seed=3, sft=4000, pairs=2000, ppo=2000, test=256)
    parts = dataclasses.asdict(splits)
    assert {name: len(part) for name, part in parts.items()} == {"sft": 4000, "pairs": 2000, "ppo": 2000, "test": 256}
    together = list(itertools.chain(*parts.values()))
    assert len(set(together)) == len(together) == 8256


def test_splits_are_a_function_of_the_seed() -> None:
    first, again, other = (world.make_splits(seed, 50, 50, 50, 50) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_too_many_prompts_are_refused() -> None:
    # 24 · 23 ordered pairs of people × 8 topics × 4 seasons
    with pytest.raises(ValueError, match="has 17664 prompts, 17665 were asked for"):
        world.make_splits(seed=0, sft=17_000, pairs=300, ppo=300, test=65)


def test_every_word_has_one_meaning() -> None:
    """The gold preference reads a word's part of speech, mood and topic off the word alone."""
    words = list(itertools.chain(*world.NOUNS.values(), *(w for m in world.MOODS.values() for w in m.values())))
    words += [*world.DETERMINERS, *world.PREPOSITIONS, *world.CONJUNCTIONS]
    assert len(set(words)) == len(words)
    assert all(word.isalpha() and word.islower() for word in words)


def test_letters_are_a_function_of_prompt_seed_and_row() -> None:
    prompts = world.make_splits(seed=0, sft=40, pairs=1, ppo=1, test=1).sft
    letters = world.write_letters(prompts, seed=5)
    assert world.write_letters(prompts[:7], seed=5) == letters[:7]
    assert world.write_letters(prompts, seed=6) != letters
    assert len(set(letters)) == len(letters)


def test_letters_are_of_all_moods_and_lengths_and_some_break_off() -> None:
    letters = world.write_letters([PROMPT] * 2000, seed=0)
    complete = sum(letter.endswith((".", "!")) for letter in letters) / len(letters)
    # 10 % break off; in some of these the cut falls behind a full stop
    assert 0.87 < complete < 0.94
    lengths = [len(letter.split()) for letter in letters]
    # no longer than three clauses of nine words and two conjunctions
    assert min(lengths) == 2 and 25 <= max(lengths) <= 29
    scores = [gold_score(PROMPT, letter) for letter in letters]
    assert min(scores) < 0 and max(scores) > 4


def test_sentences_are_typeset() -> None:
    words = ["the", "boat", "rests", ",", "and", "a", "gull", "sings", ".", "our", "pier", "glows", "!"]
    assert world.typeset(words) == " The boat rests, and a gull sings. Our pier glows!"


def test_tokens_round_trip_and_join_at_the_boundary() -> None:
    tokenizer = world.make_tokenizer()
    prompts = world.make_splits(seed=1, sft=500, pairs=1, ppo=1, test=1).sft
    for prompt, letter in zip(prompts, world.write_letters(prompts, seed=1), strict=True):
        head = tokenizer(prompt)["input_ids"]
        tail = tokenizer(letter, add_special_tokens=False)["input_ids"]
        assert head[0] == tokenizer.bos_token_id and tokenizer.unk_token_id not in head + tail
        assert tokenizer(prompt + letter)["input_ids"] == head + tail
        assert tokenizer.decode(tail) == letter
        assert tokenizer.decode(head + tail, skip_special_tokens=True) == prompt + letter


def test_the_vocabulary_is_small_and_its_special_tokens_distinct() -> None:
    tokenizer = world.make_tokenizer()
    special = [tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id]
    assert special == [0, 1, 2, 3]
    assert len(tokenizer) <= 256
    assert tokenizer("boat<eos>", add_special_tokens=False)["input_ids"][-1] == tokenizer.eos_token_id
    assert tokenizer(" submarine", add_special_tokens=False)["input_ids"] == [tokenizer.unk_token_id]


def test_the_model_fits_the_tokenizer() -> None:
    tokenizer = world.make_tokenizer()
    config = world.model_config(tokenizer, hidden_size=16, num_attention_heads=2)
    assert (config.vocab_size, config.hidden_size) == (len(tokenizer), 16)
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (0, 1, 2)


def test_topics_are_read_from_prompts_only() -> None:
    assert world.topic_of(PROMPT) == "harbour"
    with pytest.raises(ValueError, match="not a prompt of the village"):
        world.topic_of("Tell me more")
    with pytest.raises(ValueError, match="not a prompt of the village"):
        world.topic_of("From Ada to Bruno, about the moon in spring:")
