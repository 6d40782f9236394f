"""What a trainer accepts as policy, reference, critic and reward model, and what it refuses before it starts."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from hfrlhf.models.reward.scoring import load_reward_model
from tests.trainers.helpers import load, parameters, trainer


@pytest.fixture
def reward_folder(tiny_model_folder: Path, tmp_path: Path) -> Path:
    """A reward model with its tokenizer."""
    folder = tmp_path / "reward"
    load_reward_model(str(tiny_model_folder), seed=7).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model_folder).save_pretrained(folder)
    return folder


def small_model(folder: Path, auto: Any = AutoModelForCausalLM, **changes: Any) -> Any:
    config = AutoConfig.from_pretrained(folder)
    for name, value in changes.items():
        setattr(config, name, value)
    return auto.from_config(config)


def test_everything_may_be_a_path(tiny_model_folder, reward_folder, tmp_path):
    reference = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
    torch.nn.init.zeros_(reference.lm_head.weight)  # every token has log-probability −log 20
    reference.save_pretrained(tmp_path / "reference")
    paths = {"reward_funcs": reward_folder, "value_model": reward_folder, "ref_model": tmp_path / "reference"}
    built = trainer(tiny_model_folder, tmp_path, max_steps=2, num_mini_batches=1, **paths)
    built.train()
    experience = built.cycle.experience
    expected = torch.where(experience.action_mask, -math.log(20), 0.0)
    torch.testing.assert_close(experience.ref_logprobs, expected, atol=1e-5, rtol=0)


def test_a_half_precision_checkpoint_trains_in_float32(tiny_model_folder, tmp_path):
    """A step of 1e-5 moves the weights; in bfloat16 a weight of 1 would stay where it is."""
    lm, tokenizer = load(tiny_model_folder)
    lm.to(torch.bfloat16).save_pretrained(tmp_path / "half")
    built = trainer(str(tmp_path / "half"), tmp_path, tokenizer, learning_rate=1e-5, max_steps=1)
    before = parameters(built)
    built.train()
    name = "policy.model.norm.weight"  # ones: the next bfloat16 number is 0.4 % away
    assert before[name].dtype == torch.float32
    assert not torch.equal(parameters(built)[name], before[name])


def test_a_half_precision_model_in_memory_warns(tiny_model_folder, tmp_path):
    lm, tokenizer = load(tiny_model_folder)
    with pytest.warns(UserWarning, match="round to nothing"):
        trainer(lm.to(torch.bfloat16), tmp_path, tokenizer)


@pytest.mark.parametrize("role", ["value_model", "ref_model"])
def test_a_model_with_fewer_positions_than_needed_is_refused(tiny_model_folder, tmp_path, role):
    auto = AutoModelForSequenceClassification if role == "value_model" else AutoModelForCausalLM
    small = small_model(tiny_model_folder, auto, max_position_embeddings=8, num_labels=1)
    with pytest.raises(ValueError, match="positions for 8"):
        trainer(str(tiny_model_folder), tmp_path, max_completion_length=6, **{role: small})


def test_a_reference_of_another_vocabulary_is_refused(tiny_model_folder, tmp_path):
    with pytest.raises(ValueError, match="reference has a vocabulary of 16"):
        trainer(str(tiny_model_folder), tmp_path, ref_model=small_model(tiny_model_folder, vocab_size=16))


def test_evaluation_prompts_longer_than_the_positions_are_refused(tiny_model_folder, tmp_path):
    long = Dataset.from_dict({"prompt": ["the film", "the " * 122]})
    with pytest.raises(ValueError, match="the longest prompt has 123 tokens"):
        trainer(str(tiny_model_folder), tmp_path, eval_dataset=long)


def test_a_policy_in_which_nothing_trains_is_refused(tiny_model_folder, tmp_path):
    lm, tokenizer = load(tiny_model_folder)
    with pytest.raises(ValueError, match="nothing would train"):
        trainer(lm.requires_grad_(False), tmp_path, tokenizer)


@pytest.mark.parametrize("stop", [-1, 20])
def test_a_stop_token_outside_the_vocabulary_is_refused(tiny_model_folder, tmp_path, stop):
    with pytest.raises(ValueError, match=f"stop_token_id={stop}`"):
        trainer(str(tiny_model_folder), tmp_path, stop_token_id=stop)


def test_a_run_with_a_critic_from_an_adapter_goes_on_exactly(tiny_model_folder, tmp_path):
    """All of the merged critic trains, so all of it must be in the checkpoint."""
    base = load_reward_model(str(tiny_model_folder), seed=7)
    lora = LoraConfig(task_type="SEQ_CLS", target_modules="all-linear", r=2, init_lora_weights=False)
    with torch.random.fork_rng():
        torch.manual_seed(4)
        critic = get_peft_model(base, lora)

    def fresh() -> Any:
        options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
        return trainer(str(tiny_model_folder), tmp_path, value_model=critic, **options)

    whole = fresh()
    start = parameters(whole)
    whole.train()
    name = "value_model.model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(start[name], parameters(whole)[name])
    again = fresh()
    again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    expected = parameters(whole)
    for name, parameter in parameters(again).items():
        assert torch.equal(parameter, expected[name]), name
