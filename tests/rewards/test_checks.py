"""What a run looks at in its rewards: that they can be read, what the ending changes, and that they say something."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

from hfrlhf.models.reward.scoring import load_reward_model
from hfrlhf.rewards.checks import logger
from tests.conftest import CHAT_TEMPLATE, byte_tokenizer
from tests.trainers.helpers import load, trainer

CHAT = Dataset.from_dict({"prompt": [[{"role": "user", "content": text}] for text in ("the film", "a story")] * 4})


@pytest.fixture
def reward_folder(tiny_model_folder: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "rater"
    load_reward_model(str(tiny_model_folder), seed=7).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model_folder).save_pretrained(folder)
    return folder


def chat_model(tiny_model_folder: Path) -> tuple[Any, Any]:
    model, tokenizer = load(tiny_model_folder)
    tokenizer.chat_template = CHAT_TEMPLATE
    return model, tokenizer


# ---- Before the first rollout -------------------------------------------------------------------------------------


def other_reward_model() -> tuple[Any, Any]:
    """One whose vocabulary is not the policy's."""
    tokenizer = byte_tokenizer()
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return LlamaForSequenceClassification(LlamaConfig(vocab_size=300, num_labels=1, **sizes)), tokenizer


def test_a_reward_model_that_cannot_render_chats_is_refused(tiny_model_folder, tmp_path):
    model, tokenizer = chat_model(tiny_model_folder)
    rater, theirs = other_reward_model()
    theirs.save_pretrained(tmp_path / "rater")
    rater.save_pretrained(tmp_path / "rater")
    given = {"reward_funcs": str(tmp_path / "rater"), "train_dataset": CHAT}
    with pytest.raises(ValueError, match=r"the train dataset holds chat .* reward model 'rater' has no chat template"):
        trainer(model, tmp_path, tokenizer, **given)
    theirs.chat_template = "{{ raise_exception('no users here') }}"
    theirs.save_pretrained(tmp_path / "rater")
    with pytest.raises(ValueError, match=r"of the reward model 'rater' cannot render the train .*no users here"):
        trainer(model, tmp_path, tokenizer, **given)


def test_the_policys_template_is_not_taken_for_a_reward_models(tiny_model_folder, reward_folder, tmp_path):
    """Not with the policy's own vocabulary either: nobody says that it was trained on chats so rendered."""
    model, tokenizer = chat_model(tiny_model_folder)
    given = {"reward_funcs": str(reward_folder), "train_dataset": CHAT}
    with pytest.raises(ValueError, match=r"no chat template.*`reward_processing_classes`"):
        trainer(model, tmp_path, tokenizer, **given)
    trainer(model, tmp_path, tokenizer, **given, reward_processing_classes=tokenizer)  # now somebody does


# ---- The first rollout --------------------------------------------------------------------------------------------

NOTE = (
    r"first rollout: (\d+) of 8 responses were cut off .*; rater .* scores them (\S+) on average \((\S+) without it\), "
    r"those that ended (\S+?)(;.*)?$"
)


def test_what_the_ending_changes_is_said_once(tiny_model_folder, reward_folder, tmp_path, capsys):
    built = trainer(str(tiny_model_folder), tmp_path, max_steps=8, reward_funcs=str(reward_folder))
    rollouts, original = [], built.reward.parts

    def parts(completions: Any) -> Any:
        rollouts.append(completions.rollout)
        return original(completions)

    built.reward.parts = parts
    built.train()
    assert len(rollouts) >= 2
    ((cut, ended, bare, others, advice),) = re.findall(NOTE, capsys.readouterr().out, re.M)
    first = rollouts[0]
    rows = [p + c for p, c in zip(first.prompt_lists(), first.completion_lists(), strict=True)]
    whole = [row for row, done in zip(rows, first.terminated.tolist(), strict=True) if done]
    rows = [row for row, done in zip(rows, first.terminated.tolist(), strict=True) if not done]
    assert len(rows) == int(cut) > 0 and len(whole) > 0
    rater = load_reward_model(str(reward_folder)).eval()
    with torch.no_grad():
        read = {"ended": [[*row, 2] for row in rows], "bare": rows, "others": whole}
        means = {k: sum(float(rater(torch.tensor([row])).logits) for row in v) / len(v) for k, v in read.items()}
    assert {"ended": float(ended), "bare": float(bare), "others": float(others)} == pytest.approx(means, abs=0.0051)
    assert ("`missing_eos_penalty`" in advice) == (means["ended"] >= means["others"])


def test_where_nothing_was_cut_off_nothing_is_said(tiny_model_folder, reward_folder, tmp_path, capsys):
    model, tokenizer = load(tiny_model_folder)
    hidden = model.get_output_embeddings().weight
    with torch.no_grad():
        hidden.zero_()  # every token is as likely as the next, and of 100 tokens one is the end
    built = trainer(model, tmp_path, tokenizer, max_steps=1, max_completion_length=110, reward_funcs=str(reward_folder))
    built.train()
    out = capsys.readouterr().out
    assert "first rollout: KL" in out and "cut off" not in out


# ---- Scores that are all the same ---------------------------------------------------------------------------------


def deaf(completions: list[str], **_: Any) -> list[float]:
    return [float(text.count("brilliant")) for text in completions]


def test_a_reward_that_says_the_same_of_everything_is_named_once_with_an_example(
    tiny_model_folder, tmp_path, caplog, monkeypatch
):
    monkeypatch.setattr(logger, "propagate", True)
    built = trainer(str(tiny_model_folder), tmp_path, max_steps=8, reward_funcs=[deaf, lambda completions: range(8)])
    with caplog.at_level(logging.WARNING):
        built.train()
    said = [record.getMessage() for record in caplog.records if "the same score" in record.getMessage()]
    assert len(said) == 1
    assert "the reward deaf gives all 8 responses of a rollout the same score, 0" in said[0]
    (example,) = re.findall(r"completions it got: '(.*)'$", said[0])
    assert set(example.split()) <= set(built.processing_class.get_vocab())


def test_the_example_shows_that_a_chats_completion_is_a_message(tiny_model_folder, tmp_path, caplog, monkeypatch):
    def counts_in_a_list(completions: list[Any], **_: Any) -> list[float]:
        return [completion.count("please") - 0.01 * len(completion) for completion in completions]

    monkeypatch.setattr(logger, "propagate", True)
    model, tokenizer = chat_model(tiny_model_folder)
    built = trainer(model, tmp_path, tokenizer, max_steps=1, reward_funcs=counts_in_a_list, train_dataset=CHAT)
    with caplog.at_level(logging.WARNING):
        built.train()
    assert "One of the completions it got: [{'role': 'assistant', 'content': " in caplog.text
