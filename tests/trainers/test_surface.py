"""What `trainer.model` is to others, and what a second `train()` does."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from peft import LoraConfig
from transformers import AutoModelForCausalLM, EarlyStoppingCallback, pipeline

from hfrlhf import RewardTrainer
from hfrlhf.models.policy.actor_critic import ActorCritic
from hfrlhf.models.policy.surface import OF_THE_POLICY_ALONE
from tests.trainers import helpers, test_reward_trainer
from tests.trainers.helpers import load, parameters, prompts, trainer


@pytest.mark.parametrize("peft_config", [None, LoraConfig(r=2, target_modules=["q_proj"])], ids=["full", "lora"])
def test_the_model_answers_as_its_policy_does(tiny_model_folder, tmp_path, peft_config):
    built = trainer(str(tiny_model_folder), tmp_path, max_steps=1, peft_config=peft_config)
    built.train()
    model, policy = built.model, built.model.policy
    assert (model.device, model.dtype) == (torch.device("cpu"), torch.float32)
    assert model.num_parameters() == policy.num_parameters() > 0
    assert model.get_input_embeddings() is policy.get_input_embeddings()
    assert model.can_generate() and model.name_or_path == policy.name_or_path
    assert model.config is policy.config and model.generation_config is policy.generation_config
    assert built.state.total_flos > 0


def test_a_pipeline_writes_with_it(tiny_model_folder, tmp_path):
    model, tokenizer = load(tiny_model_folder)
    built = trainer(model, tmp_path, tokenizer, max_steps=1)
    built.train()
    options = {"max_new_tokens": 4, "do_sample": False}
    ours = pipeline("text-generation", model=built.model, tokenizer=tokenizer)("the film", **options)
    stock = pipeline("text-generation", model=built.model.policy, tokenizer=tokenizer)("the film", **options)
    assert ours == stock


def test_generation_settings_are_set_on_the_policy(tiny_model_folder):
    model = ActorCritic(AutoModelForCausalLM.from_pretrained(tiny_model_folder))
    settings = copy.deepcopy(model.generation_config)
    model.generation_config = settings
    assert model.policy.generation_config is settings


def test_what_is_the_policys_alone_is_not_asked_of_the_whole(tiny_model_folder):
    """The Trainer would not move a head to the device beside a quantised base, accelerate not prepare it again."""
    policy = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
    for name in (*OF_THE_POLICY_ALONE, "_is_accelerate_prepared", "_hf_peft_config_loaded", "ds_id"):
        if not isinstance(getattr(type(policy), name, None), property):
            object.__setattr__(policy, name, True)
    model = ActorCritic(policy)
    assert not [name for name in (*OF_THE_POLICY_ALONE, "_is_accelerate_prepared", "ds_id") if hasattr(model, name)]


def test_it_stays_a_module_like_any_other(tiny_model_folder):
    model = ActorCritic(AutoModelForCausalLM.from_pretrained(tiny_model_folder))
    with pytest.raises(AttributeError, match="neither ActorCritic nor its policy has 'nonsense'"):
        _ = model.nonsense
    assert not hasattr(model, "nonsense") and not hasattr(ActorCritic.__new__(ActorCritic), "device")
    model.note = 3
    assert model.note == 3 and not hasattr(model.policy, "note")
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert twin.state_dict().keys() == model.state_dict().keys() and twin.device == model.device
    assert set(dict(model.named_children())) == {"policy", "value_head"}
    prepared = Accelerator(cpu=True).prepare(model)
    assert Accelerator(cpu=True).unwrap_model(prepared) is model


def test_a_policy_that_another_trainer_prepared_is_prepared_again(tiny_model_folder, tmp_path):
    model, tokenizer = load(tiny_model_folder)
    accelerator = Accelerator(cpu=True)
    model = accelerator.prepare(model)
    assert model._is_accelerate_prepared
    trainer(model, tmp_path, tokenizer, max_steps=1, bf16=False).train()


# ---- Again --------------------------------------------------------------------------------------------------------


def test_a_second_training_goes_on_from_the_weights_as_they_are(tiny_model_folder, tmp_path):
    built = trainer(str(tiny_model_folder), tmp_path)
    start = parameters(built)
    built.train()
    once = parameters(built)
    reference = {name: p.clone() for name, p in built.reference.model.named_parameters()}
    result = built.train()
    twice = parameters(built)
    assert result.global_step == built.state.global_step == 4
    assert not torch.equal(start["policy.lm_head.weight"], once["policy.lm_head.weight"])
    assert not torch.equal(once["policy.lm_head.weight"], twice["policy.lm_head.weight"])
    assert all(torch.equal(p, reference[name]) for name, p in built.reference.model.named_parameters())
    logged = [row for row in built.state.log_history if "objective/kl" in row]
    assert len(logged) == 1 and logged[0]["objective/kl"] != 0  # the reference is where the first training began


def test_after_an_error_in_a_rollout_a_training_starts_afresh(tiny_model_folder, tmp_path):
    calls: list[int] = []

    def fails_once(completions: list[str], **_: Any) -> list[float]:
        calls.append(len(calls))
        if len(calls) == 2:
            raise OSError("a network that was down")
        return helpers.reward(completions)

    built = trainer(str(tiny_model_folder), tmp_path, reward_funcs=fails_once, max_steps=8)
    with pytest.raises(RuntimeError, match="a network that was down"):
        built.train()
    assert built.train().global_step == 8


def reward_trainer(model: Any, folder: Path, **changes: Any) -> RewardTrainer:
    args = test_reward_trainer.config(folder, **{"max_steps": 2} | changes)
    return RewardTrainer(model, args, test_reward_trainer.pairs())


def test_a_reward_model_trains_again_too(tiny_model_folder, tmp_path):
    built = reward_trainer(str(tiny_model_folder), tmp_path)
    built.train()
    once = built.model.score.weight.clone()
    assert built.train().global_step == 2
    assert not torch.equal(once, built.model.score.weight)
    assert built.reference_scores().mean().abs() < 1e-5  # normalised once more


@pytest.mark.parametrize("build", [trainer, reward_trainer])
def test_its_own_checkpoints_are_not_overwritten_by_a_second_training(tiny_model_folder, tmp_path, build):
    built = build(str(tiny_model_folder), tmp_path, save_strategy="steps", save_steps=2, max_steps=2)
    built.train()
    with pytest.raises(FileExistsError, match=r"has trained before.*`trainer\.args\.output_dir` to another folder"):
        built.train()
    built.args.max_steps = 4
    assert built.train(resume_from_checkpoint=True).global_step == 4
    built.args.output_dir, built.args.max_steps = str(tmp_path / "another"), 2
    assert built.train().global_step == 2
    assert (tmp_path / "another" / "checkpoint-2").is_dir()


def test_early_stopping_stops_a_policys_training(tiny_model_folder, tmp_path):
    built = trainer(
        *(str(tiny_model_folder), tmp_path),
        max_steps=16,
        learning_rate=0.0,
        eval_dataset=prompts(4),
        callbacks=[EarlyStoppingCallback(1)],
        eval_strategy="steps",
        eval_steps=4,
        save_strategy="steps",
        save_steps=4,
        load_best_model_at_end=True,
    )
    built.train()
    assert built.state.global_step == 8 and built.state.best_global_step == 4
