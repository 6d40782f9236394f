"""Preference pairs: the token boundary, exactly one BOS and one EOS, what is left out, what is refused."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from datasets import Dataset, DatasetDict

from hfrlhf.data.preferences import PairCollator, encode_responses, prepare_pairs

USER, ANSWER, OTHER = (
    {"role": "user", "content": "the film"},
    {"role": "assistant", "content": "a good story"},
    {"role": "assistant", "content": "bad"},
)


def pairs(**columns: Any) -> Dataset:
    return Dataset.from_dict(columns)


def texts(n: int = 2) -> Dataset:
    return pairs(prompt=["the film"] * n, chosen=[" was good"] * n, rejected=[" is bad"] * n)


# ---- Tokens -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adds_eos", [False, True])
def test_text_is_the_prompts_tokens_then_the_completions_then_one_eos(make_tokenizer, adds_eos: bool) -> None:
    tokenizer = make_tokenizer(adds_eos=adds_eos)
    words = tokenizer.convert_tokens_to_ids(["<bos>", "the", "Ġfilm", "Ġwas", "Ġgood", "<eos>"])
    assert encode_responses(tokenizer, ["the film"], [" was good"], "text") == [words]
    # Special tokens that the text itself spells are not doubled.
    assert encode_responses(tokenizer, ["<bos>the film"], [" was good<eos>"], "text") == [words]


def test_the_boundary_is_the_policys(make_tokenizer) -> None:
    """A word that grows over the boundary is not merged: the policy would have gone on after its prompt's tokens."""
    tokenizer = make_tokenizer()
    prompt = tokenizer("the f").input_ids
    assert tokenizer("the film").input_ids[: len(prompt)] != prompt, "the words do not merge; the test shows nothing"
    (ids,) = encode_responses(tokenizer, ["the f"], ["ilm"], "text")
    assert ids[: len(prompt)] == prompt
    assert tokenizer.decode(ids[1:-1]) == "the film"


def test_no_space_appears_that_nobody_wrote(make_tokenizer) -> None:
    tokenizer = make_tokenizer(prefix_space=True)
    (ids,) = encode_responses(tokenizer, ["the film"], [", a story"], "text")
    assert tokenizer.decode(ids, skip_special_tokens=True) == " the film, a story"


def test_an_implicit_prompt_is_tokenised_whole(make_tokenizer) -> None:
    tokenizer = make_tokenizer()
    (row,) = prepare_pairs(pairs(chosen=["the film was"], rejected=["bad"]), tokenizer, 100).dataset
    expected = tokenizer("the film was").input_ids
    assert row == {"chosen_ids": [*expected, 2], "rejected_ids": [*tokenizer("bad").input_ids, 2], "length": 5}
    assert tokenizer.eos_token_id == 2 and len(expected) == 4


def test_an_empty_completion_is_a_response_too(make_tokenizer) -> None:
    tokenizer = make_tokenizer()
    assert encode_responses(tokenizer, ["the film"], [""], "text") == [[*tokenizer("the film").input_ids, 2]]


def test_blanks_at_the_end_of_a_text_stay(make_tokenizer) -> None:
    tokenizer = make_tokenizer()
    (ids,) = encode_responses(tokenizer, ["the"], [" film \n"], "text")
    assert tokenizer.decode(ids) == "<bos>the film \n<eos>"


def test_chat_goes_through_the_template_and_ends_where_the_policy_stops(make_tokenizer) -> None:
    tokenizer = make_tokenizer(chat=True, eos="<|im_end|>", bos=None)
    (ids,) = encode_responses(tokenizer, [[USER]], [[ANSWER]], "chat")
    prompt = tokenizer.apply_chat_template([USER], add_generation_prompt=True, return_dict=False)
    assert ids[: len(prompt)] == prompt
    # The template goes on with a newline, which the policy never writes.
    assert tokenizer.decode(ids[len(prompt) :]) == "a good story<|im_end|>"


@pytest.mark.parametrize("explicit", [True, False])
def test_chat_with_and_without_a_prompt_column_is_the_same(make_tokenizer, explicit: bool) -> None:
    tokenizer = make_tokenizer(chat=True, eos="<|im_end|>", bos=None)
    if explicit:
        data = pairs(prompt=[[USER]], chosen=[[ANSWER]], rejected=[[OTHER]])
    else:
        data = pairs(chosen=[[USER, ANSWER]], rejected=[[USER, OTHER]])
    (row,) = prepare_pairs(data, tokenizer, 100).dataset
    start = "<|im_start|>user\nthe film<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(row["chosen_ids"]) == f"{start}a good story<|im_end|>"
    assert tokenizer.decode(row["rejected_ids"]) == f"{start}bad<|im_end|>"


def test_a_template_without_eos_gets_one(make_tokenizer) -> None:
    """An EOS of an earlier turn is not the end."""
    tokenizer = make_tokenizer(chat=True, bos=None)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'] }}{% if not loop.last %}<eos>{% endif %}{% endfor %}"
    )
    (ids,) = encode_responses(tokenizer, [[]], [[USER, ANSWER]], "chat")
    assert tokenizer.decode(ids) == "the film<eos>a good story<eos>"


def test_a_template_that_rewrites_its_beginning_is_rendered_whole(make_tokenizer) -> None:
    tokenizer = make_tokenizer(chat=True, bos=None)
    tokenizer.chat_template = "{{ messages|length }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    (ids,) = encode_responses(tokenizer, [[USER]], [[ANSWER]], "chat")
    assert tokenizer.decode(ids) == "2the filma good story<eos>"


# ---- Lengths, margins, batches ------------------------------------------------------------------------------------


def test_pairs_with_a_side_too_long_are_left_out_counted_and_reported(make_tokenizer, caplog) -> None:
    tokenizer = make_tokenizer()
    # "the film" is 2 tokens, 4 with BOS and EOS; each more is one word more.
    data = pairs(
        chosen=["the film", "the film was good", "the film"],
        rejected=["the", "the", "the film is bad"],
        margin=[1, 2, 3],
    )
    with caplog.at_level(logging.WARNING):
        prepared = prepare_pairs(data, tokenizer, 4, "eval")
    assert prepared.dropped == 2
    assert prepared.dataset["length"][:] == [4] and prepared.dataset["margin"][:] == [1]
    assert "eval: left out 2 of 3 pairs, longer than 4 tokens" in caplog.text


def test_nothing_is_reported_when_nothing_is_left_out(make_tokenizer, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        assert prepare_pairs(texts(), make_tokenizer(), 100).dropped == 0
    assert "left out" not in caplog.text


def test_a_batch_has_the_chosen_rows_first_and_padding_on_the_right() -> None:
    rows = [
        {"chosen_ids": [5, 6], "rejected_ids": [7], "length": 2, "margin": 0.5},
        {"chosen_ids": [8], "rejected_ids": [5, 6, 7], "length": 3, "margin": 2},
    ]
    batch = PairCollator(pad_token_id=9)(rows)
    assert batch["input_ids"].tolist() == [[5, 6, 9], [8, 9, 9], [7, 9, 9], [5, 6, 7]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0], [1, 0, 0], [1, 0, 0], [1, 1, 1]]
    assert torch.equal(batch["margin"], torch.tensor([0.5, 2.0]))
    assert "margin" not in PairCollator(9)([{k: v for k, v in row.items() if k != "margin"} for row in rows])


# ---- Bad input ----------------------------------------------------------------------------------------------------

GOOD = ["good"]
BAD_DATA = [
    ("missing columns", pairs(text=["x"]), ValueError, r"no column 'chosen' and no column 'rejected'.*\['text'\]"),
    ("missing rejected", pairs(chosen=GOOD), ValueError, r"no column 'rejected'; .*this one has \['chosen'\]"),
    ("empty", pairs(chosen=[], rejected=[]), ValueError, "the train dataset is empty"),
    ("null", pairs(chosen=["a", None], rejected=["b", "c"]), ValueError, "a null in column 'chosen', row 1"),
    ("all null", pairs(chosen=[None], rejected=[None]), ValueError, "a null in column 'chosen', row 0"),
    ("numbers", pairs(chosen=[1], rejected=[2]), TypeError, r"'chosen' .* must hold text.*row 0 holds '1' \(int\)"),
    ("lists of text", pairs(chosen=[["a"]], rejected=[["b"]]), TypeError, "must hold text, or chat messages"),
    (
        "message without content",
        pairs(chosen=[[{"role": "user", "content": None}]], rejected=[[USER]]),
        TypeError,
        "'chosen' .* must hold text, or chat messages",
    ),
    (
        "text and chat",
        pairs(prompt=["the film"], chosen=[[ANSWER]], rejected=[[OTHER]]),
        TypeError,
        "do not match.*remove the column 'prompt'",
    ),
    ("null prompt", pairs(prompt=[None], chosen=GOOD, rejected=GOOD), ValueError, "a null in column 'prompt', row 0"),
    ("negative margin", pairs(chosen=GOOD, rejected=GOOD, margin=[-1.0]), ValueError, "at least 0 .*row 0 holds -1"),
    ("null margin", pairs(chosen=GOOD, rejected=GOOD, margin=[None]), ValueError, "row 0 holds None"),
    ("margin as text", pairs(chosen=GOOD, rejected=GOOD, margin=["1"]), ValueError, "row 0 holds '1'"),
    ("splits", DatasetDict(train=texts()), TypeError, r"several splits, \['train'\]; pass one"),
    ("stream", texts().to_iterable_dataset(), TypeError, "not streaming.*IterableDataset"),
    ("list", [{"chosen": "a", "rejected": "b"}], TypeError, r"datasets\.Dataset.*got list"),
    ("chat without template", pairs(chosen=[[ANSWER]], rejected=[[OTHER]]), ValueError, "no chat template"),
    ("all too long", texts(), ValueError, r"all 2 pairs .* longer than 5 tokens \(the shortest has 6\).*`max_length`"),
]


@pytest.mark.parametrize(("data", "error", "message"), [case[1:] for case in BAD_DATA], ids=[c[0] for c in BAD_DATA])
def test_bad_data_is_refused_with_what_it_is(make_tokenizer, data: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        prepare_pairs(data, make_tokenizer(), 5)


def test_a_tokenizer_without_eos_is_refused(make_tokenizer) -> None:
    tokenizer = make_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="no EOS token"):
        prepare_pairs(texts(), tokenizer, 100)
