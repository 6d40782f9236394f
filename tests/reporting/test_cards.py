"""What the card of a trained policy says: of its own data, of the same prompts before and after, of its rewards."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, LlamaForSequenceClassification

from hfrlhf import RewardConfig, RewardTrainer
from tests.trainers.helpers import prompts, reward, trainer


def card(folder: Path) -> str:
    return (folder / "run" / "README.md").read_text(encoding="utf-8")


def test_it_has_the_rewards_the_same_prompts_twice_and_one_length_of_the_run(tiny_model_folder, tmp_path):
    def brief(completions, **_):
        return [-len(text) / 100 for text in completions]

    settings = {"reward_funcs": [reward, brief], "reward_weights": [1.0, 0.5], "save_curves": True}
    built = trainer(str(tiny_model_folder), tmp_path, save_strategy="steps", save_steps=4, **settings)
    built.train()
    built.save_model()
    text = card(tmp_path)
    assert "| rewards | reward × 1, brief × 0.5 |" in text
    assert "max_steps" in text and "num_train_epochs" not in text
    assert "| prompt | before | after |" in text  # functions were called for the rollout alone
    rows = built.comparison.rows
    for row, line in zip(
        rows, re.findall(r"^\| (?:the film|a story|the actor is very|bad) \|.*$", text, re.M), strict=True
    ):
        assert line == f"| {row['prompt']} | {row['before'].strip()} | {row['after'].strip()} |"
    assert f"generate({built.prompts.texts[0]!r}, max_new_tokens=64)" in text
    assert "![curves](curves.png)" in text
    checkpoint = (tmp_path / "run" / "checkpoint-4" / "README.md").read_text(encoding="utf-8")
    assert "curves.png" not in checkpoint  # it lies beside the run's own card
    epochs = trainer(str(tiny_model_folder), tmp_path / "b", max_steps=-1, num_train_epochs=1)
    epochs.save_model()
    assert "num_train_epochs" in card(tmp_path / "b") and "max_steps" not in card(tmp_path / "b")


@pytest.mark.parametrize(
    ("length", "row"),
    [({"max_steps": 3}, "| max_steps | 3 |"), ({"num_train_epochs": 2}, "| num_train_epochs | 2 |")],
)
def test_a_reward_models_card_has_one_length_too(length, row, tiny_model_folder, tmp_path):
    pairs = Dataset.from_list([{"chosen": "a good film", "rejected": "a bad film"}] * 4)
    args = RewardConfig(str(tmp_path / "run"), report_to="none", use_cpu=True, **length)
    RewardTrainer(str(tiny_model_folder), args, pairs).save_model()
    assert [line for line in card(tmp_path).splitlines() if re.search("max_steps|num_train_epochs", line)] == [row]


def test_a_reward_model_scores_the_same_prompts_twice(tiny_model_folder, tmp_path):
    judge = LlamaForSequenceClassification.from_pretrained(tiny_model_folder, num_labels=1)
    built = trainer(str(tiny_model_folder), tmp_path, reward_funcs=judge)
    built.train()
    built.save_model()
    assert "| prompt | before | score before | after | score after |" in card(tmp_path)
    before = built.comparison.before
    for i, row in enumerate(built.comparison.rows):
        ids = before.input_ids[i][before.attention_mask[i]].tolist()
        ids += [] if before.terminated[i] else [judge.config.eos_token_id]  # as it was trained to read
        assert row["score before"] == pytest.approx(judge(torch.tensor([ids])).logits.item(), abs=1e-5)
        assert row["before"] == row["after"] or row["score before"] != row["score after"]
        assert f"| {row['score before']:.4g} |" in card(tmp_path) and f"| {row['score after']:.4g} |" in card(tmp_path)


@pytest.mark.parametrize("turns", [1, 3])
def test_a_chat_is_shown_as_a_chat_and_can_be_tried(turns, tmp_path, make_tokenizer):
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = make_tokenizer(eos="<|im_end|>", chat=True)
    tokenizer.save_pretrained(tmp_path / "model")
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": 0}
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **ids, **shape)).save_pretrained(tmp_path / "model")
    talk = [
        {"role": "user", "content": "a film?"},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "x"},
    ]
    data = Dataset.from_dict({"prompt": [talk[:turns]] * 8})
    built = trainer(
        str(tmp_path / "model"),
        tmp_path,
        train_dataset=data,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
    )
    built.train()
    built.save_model()
    text = card(tmp_path)
    assert "'role'" not in text.partition("## Samples")[2]
    assert ("| a film? |" if turns == 1 else "| user: a film?<br>assistant: yes<br>user: x |") in text
    block = re.search(r"```python\n(.*?)```", text, re.S)[1]
    assert '[-1]["content"]' in block
    shown: list[str] = []
    exec(block.replace("max_new_tokens=64", "max_new_tokens=2"), {"print": shown.append})
    assert len(shown) == 1 and isinstance(shown[0], str)
    AutoModelForCausalLM.from_pretrained(tmp_path / "run")


def test_a_long_prompt_is_no_example_where_there_is_a_shorter_one(tiny_model_folder, tmp_path):
    rows = Dataset.from_dict({"prompt": ["the film " * 60, "a story"]})
    built = trainer(str(tiny_model_folder), tmp_path, train_dataset=rows, rollout_batch_size=4)
    built.save_model()
    assert "generate('a story', max_new_tokens=64)" in card(tmp_path)
    assert prompts(1)["prompt"] == ["the film"]
