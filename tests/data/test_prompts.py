"""Prompts: what is refused and how it is said, what the policy gets to see, which prompts a rollout takes."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, DatasetDict, IterableDataset
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from hfrlhf.data.prompts import PromptSet, RolloutSampler, prepare_prompts, prompt_batch

BOS, EOS = 1, 2
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m['role'] }} : {{ m['content'] }} . {% endfor %}"
    "{% if add_generation_prompt %}assistant : {% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer(tiny_model_folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model_folder)


@pytest.fixture(scope="module")
def chat_tokenizer(tokenizer: Any) -> Any:
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def texts(*prompts: Any) -> Dataset:
    return Dataset.from_dict({"prompt": list(prompts)})


def chat(*turns: str) -> list[dict[str, str]]:
    roles = ["user", "assistant"] * len(turns)
    return [{"role": role, "content": turn} for role, turn in zip(roles, turns, strict=False)]


# ---- What the policy sees -----------------------------------------------------------------------------------------


def test_text_gets_the_tokenizers_special_tokens_and_keeps_all_columns(tokenizer: Any) -> None:
    dataset = Dataset.from_dict({"prompt": ["the film", "a very good story"], "stars": [3, 5]})
    prompts = prepare_prompts(dataset, tokenizer, 16)
    the, film = tokenizer.convert_tokens_to_ids(["the", "film"])
    assert prompts.ids[0] == [BOS, the, film]
    assert [len(ids) for ids in prompts.ids] == [3, 5]
    assert prompts.texts == ["the film", "a very good story"]
    assert prompts.rows["stars"][:] == [3, 5]
    assert (prompts.is_chat, prompts.dropped, len(prompts)) == (False, 0, 2)


def test_an_eos_that_the_tokenizer_appends_is_taken_off(tokenizer: Any) -> None:
    closing = copy.deepcopy(tokenizer)
    closing.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", BOS), ("<eos>", EOS)]
    )
    assert closing("the film").input_ids[-1] == EOS  # it does append one
    assert prepare_prompts(texts("the film"), closing, 16).ids == prepare_prompts(texts("the film"), tokenizer, 16).ids


def test_a_text_that_begins_with_bos_gets_no_second_one(tokenizer: Any) -> None:
    prompts = prepare_prompts(texts("<bos> the film"), tokenizer, 16)
    assert prompts.ids[0].count(BOS) == 1


def test_chat_ends_where_the_assistant_begins_to_speak(chat_tokenizer: Any) -> None:
    conversations = [chat("was the film good"), chat("a film", "is good", "and the actor")]
    prompts = prepare_prompts(Dataset.from_dict({"prompt": conversations}), chat_tokenizer, 64)
    assert prompts.is_chat
    assert prompts.texts[0] == "<bos>user : was the film good . assistant : "
    expected = chat_tokenizer("user : a film . assistant : is good . user : and the actor . assistant :")
    assert prompts.ids[1] == expected.input_ids
    assert prompts.ids[1].count(BOS) == 1
    assert prompts.rows[1]["prompt"] == conversations[1]


# ---- Prompts that are too long ------------------------------------------------------------------------------------


def test_long_prompts_are_left_out_whole_counted_and_told_once(
    tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = Dataset.from_dict({"prompt": ["the film", "a very good story", "a film", "but a very very bad actor"]})
    dataset = dataset.add_column("number", [0, 1, 2, 3])
    with caplog.at_level(logging.WARNING):
        prompts = prepare_prompts(dataset, tokenizer, 3)
    assert prompts.dropped == 2
    assert prompts.texts == ["the film", "a film"]
    assert prompts.rows["number"][:] == [0, 2]
    assert [record.getMessage() for record in caplog.records] == [
        "train: left out 2 of 4 prompts, longer than 3 tokens"
    ]


def test_without_a_limit_nothing_is_left_out(tokenizer: Any, caplog: pytest.LogCaptureFixture) -> None:
    prompts = prepare_prompts(texts("the film", " ".join(["film"] * 500)), tokenizer, None)
    assert [len(ids) for ids in prompts.ids] == [3, 501]
    assert caplog.records == []


def test_all_prompts_too_long(tokenizer: Any) -> None:
    with pytest.raises(
        ValueError, match=r"all 2 prompts of the eval dataset .* 2 tokens \(the shortest has 3\); raise"
    ):
        prepare_prompts(texts("the film", "a very good film"), tokenizer, 2, "eval")


# ---- Bad input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dataset", "error", "message"),
    [
        (Dataset.from_dict({"text": ["a"], "label": [1]}), ValueError, r"no column 'prompt'.*\['text', 'label'\]"),
        (Dataset.from_dict({"prompt": []}), ValueError, "the train dataset is empty"),
        (texts("a film", None), ValueError, "null in column 'prompt', row 1"),
        (texts("a film", ""), ValueError, r"empty prompt in row 1 \(''\); remove such rows"),
        (texts(" \n"), ValueError, "empty prompt in row 0"),
        (texts(3, 4), TypeError, "must hold text, or chat messages.*row 0 holds '3'"),
        (texts([], []), TypeError, r"row 0 holds '\[\]'"),
        (texts([{"role": "user"}]), TypeError, "must hold text, or chat messages"),
        (texts([{"role": "user", "content": None}]), TypeError, "must hold text, or chat messages"),
        (texts(chat("a film", "is good")), ValueError, "chat in row 0 .* ends with a message of the assistant"),
        (DatasetDict({"train": texts("a"), "test": texts("b")}), TypeError, r"several splits.*dataset\['train'\]"),
        (["a film"], TypeError, "got list; a list of rows becomes one by"),
        (None, TypeError, "got NoneType"),
        (IterableDataset.from_generator(lambda: iter([{"prompt": "a"}])), TypeError, "not streaming"),
    ],
)
def test_bad_datasets_are_refused_and_the_error_teaches(
    chat_tokenizer: Any, dataset: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        prepare_prompts(dataset, chat_tokenizer, 16)


def test_chat_without_a_template(tokenizer: Any) -> None:
    with pytest.raises(ValueError, match=r"no chat template; set `tokenizer.chat_template`"):
        prepare_prompts(texts(chat("a film")), tokenizer, 16)


def test_a_prompt_that_becomes_no_token(tokenizer: Any) -> None:
    bare = copy.deepcopy(tokenizer)
    bare.backend_tokenizer.post_processor = TemplateProcessing(single="$A", special_tokens=[])
    # A byte-order mark is no blank to Python, but nothing to this tokenizer's normalizer.
    from tokenizers.normalizers import Replace

    bare.backend_tokenizer.normalizer = Replace("\ufeff", "")
    with pytest.raises(ValueError, match="row 1 of the train dataset becomes no token at all"):
        prepare_prompts(texts("a film", "\ufeff"), bare, 16)


def test_a_limit_below_one_token(tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="max_prompt_length=0"):
        prepare_prompts(texts("a film"), tokenizer, 0)


# ---- Batches ------------------------------------------------------------------------------------------------------


def test_a_batch_is_left_padded_to_its_own_longest_row() -> None:
    prompts = PromptSet([[5, 6, 7, 8], [9], [0, 4]], ["", "", ""], texts("a", "b", "c"), False)
    batch = prompt_batch(prompts, torch.tensor([1, 2, 1]), torch.tensor([7, 8, 9]))
    assert batch.input_ids.tolist() == [[0, 9], [0, 4], [0, 9]]
    assert batch.attention_mask.tolist() == [[False, True], [True, True], [False, True]]
    assert batch.episode.tolist() == [7, 8, 9]
    assert batch.row.tolist() == [1, 2, 1]
    assert len(prompt_batch(prompts, torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.long))) == 0


# ---- Which prompts a rollout takes --------------------------------------------------------------------------------


@pytest.mark.parametrize(("num_prompts", "per_rollout"), [(10, 4), (4, 10), (6, 3), (1, 5), (7, 7)])
def test_every_prompt_comes_once_before_any_comes_again(num_prompts: int, per_rollout: int) -> None:
    sampler = RolloutSampler(num_prompts, per_rollout, seed=3)
    rollouts = [sampler.indices(r) for r in range(3 * num_prompts)]
    assert all(len(rows) == per_rollout for rows in rollouts)
    passes = torch.cat(rollouts).view(-1, num_prompts)
    assert all(one.sort().values.tolist() == list(range(num_prompts)) for one in passes)


def test_a_rollouts_prompts_depend_on_seed_and_number_alone() -> None:
    sampler = RolloutSampler(50, 8, seed=1)
    late_first = [sampler.indices(r).tolist() for r in (9, 2, 0)]
    torch.manual_seed(5)
    before = torch.get_rng_state()
    assert [RolloutSampler(50, 8, seed=1).indices(r).tolist() for r in (9, 2, 0)] == late_first
    assert torch.equal(torch.get_rng_state(), before)
    assert RolloutSampler(50, 8, seed=2).indices(9).tolist() != late_first[0]
    # One pass differs from the next.
    assert RolloutSampler(50, 50, 1).indices(0).tolist() != RolloutSampler(50, 50, 1).indices(1).tolist()


def test_a_sampler_without_prompts_is_refused() -> None:
    with pytest.raises(ValueError, match="num_prompts=0"):
        RolloutSampler(0, 4, 0)
