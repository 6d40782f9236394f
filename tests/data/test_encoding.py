"""Special tokens are judged by where they come from: the tokenizer's own EOS goes, the user's stays."""

from __future__ import annotations

from typing import Any

import pytest
from datasets import Dataset
from tokenizers.processors import TemplateProcessing

from hfrlhf.data.encoding import encode
from hfrlhf.data.preferences import prepare_pairs
from hfrlhf.data.prompts import prepare_prompts

BOS, EOS = "<bos>", "<eos>"


def tokens(tokenizer: Any, ids: list[int]) -> list[str]:
    return tokenizer.convert_ids_to_tokens(ids)


@pytest.mark.parametrize("adds_eos", [False, True])
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("the film", [BOS, "the", "Ġfilm"]),
        ("the film<eos>", [BOS, "the", "Ġfilm", EOS]),
        ("the film<eos><eos>", [BOS, "the", "Ġfilm", EOS, EOS]),
        ("<eos>", [BOS, EOS]),
        ("<bos>the film", [BOS, "the", "Ġfilm"]),
        ("<bos><bos>the", [BOS, BOS, "the"]),
        ("the<eos> film", [BOS, "the", EOS, "Ġfilm"]),
    ],
)
def test_what_the_user_wrote_stays_and_what_the_tokenizer_closes_with_goes(
    make_tokenizer: Any, adds_eos: bool, text: str, expected: list[str]
) -> None:
    tokenizer = make_tokenizer(adds_eos=adds_eos)
    assert (tokenizer("the film").input_ids[-1] == tokenizer.eos_token_id) == adds_eos
    assert tokens(tokenizer, encode(tokenizer, [text, "a"], True)[0]) == expected


def test_a_text_that_brings_its_special_tokens_keeps_them_all(make_tokenizer: Any) -> None:
    tokenizer = make_tokenizer(adds_eos=True)
    (ids,) = encode(tokenizer, ["<bos><bos>the film<eos>"], False)
    assert tokens(tokenizer, ids) == [BOS, BOS, "the", "Ġfilm", EOS]


@pytest.mark.parametrize("adds_eos", [False, True])
def test_one_token_that_opens_and_closes(make_tokenizer: Any, adds_eos: bool) -> None:
    """BOS and EOS are the same token: the one in front is no end, and the one behind no beginning."""
    tokenizer = make_tokenizer(eos="<end>", bos="<end>", pad="<end>", adds_eos=adds_eos)
    assert tokens(tokenizer, encode(tokenizer, ["the film"], True)[0]) == ["<end>", "the", "Ġfilm"]
    assert tokens(tokenizer, encode(tokenizer, ["the film<end>"], True)[0]) == ["<end>", "the", "Ġfilm", "<end>"]


def test_a_closing_token_that_is_no_eos_goes_too(make_tokenizer: Any) -> None:
    """As [SEP] of an encoder's tokenizer: it closes every text, and the prompt is not closed yet."""
    tokenizer = make_tokenizer(chat=True)
    opens, closes = (tokenizer.convert_tokens_to_ids(t) for t in ("<|im_start|>", "<|im_end|>"))
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A <|im_end|>", special_tokens=[("<|im_start|>", opens), ("<|im_end|>", closes)]
    )
    assert tokens(tokenizer, encode(tokenizer, ["the film"], True)[0]) == ["<|im_start|>", "the", "Ġfilm"]


@pytest.mark.parametrize("adds_eos", [False, True])
@pytest.mark.parametrize("text", ["hello there<eos>", "hello<eos> there", "<bos>hello there<eos>", "hello there"])
def test_reward_training_reads_the_prompt_that_the_policy_is_given(
    make_tokenizer: Any, adds_eos: bool, text: str
) -> None:
    tokenizer = make_tokenizer(adds_eos=adds_eos)
    prompt = prepare_prompts(Dataset.from_dict({"prompt": [text]}), tokenizer, None).ids[0]
    pairs = Dataset.from_dict({"prompt": [text], "chosen": [" good"], "rejected": [""]})
    row = prepare_pairs(pairs, tokenizer, 100).dataset[0]
    assert row["chosen_ids"] == [*prompt, *tokenizer(" good", add_special_tokens=False).input_ids, 2]
    # An EOS of the prompt does not end a response that says nothing.
    assert row["rejected_ids"] == [*prompt, 2]
    assert tokenizer.eos_token_id == 2


def test_an_eos_that_closes_a_chats_template_is_the_templates(make_tokenizer: Any) -> None:
    tokenizer = make_tokenizer(adds_eos=True)
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}:{{ m.content }}<eos>{% endfor %}"
    prompts = prepare_prompts(Dataset.from_dict({"prompt": [[{"role": "user", "content": "hi"}]]}), tokenizer, None)
    assert tokenizer.decode(prompts.ids[0]) == "user:hi<eos>"
