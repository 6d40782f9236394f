"""What cannot be saved is repaired or refused when the trainer is made, before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaForCausalLM

from hfrlhf import PPOTrainer, RewardTrainer
from hfrlhf.models.merging import merge
from hfrlhf.models.reward.scoring import load_reward_model
from hfrlhf.models.savable import check_savable, stand_ins
from tests.conftest import word_tokenizer
from tests.trainers import helpers, test_reward_trainer
from tests.trainers.helpers import load, prompts, reward


def build(model: Any, folder: Path, tokenizer: Any = None, **changes: Any) -> PPOTrainer:
    return helpers.trainer(model, folder, tokenizer or word_tokenizer(), **{"max_steps": 1} | changes)


def build_reward(model: Any, folder: Path, tokenizer: Any = None, **changes: Any) -> RewardTrainer:
    args = test_reward_trainer.config(folder, max_steps=1)
    return RewardTrainer(model, args, test_reward_trainer.pairs(), None, tokenizer or word_tokenizer(), **changes)


def test_sampling_settings_are_saved_as_such(tiny_model_folder, tmp_path):
    model, _ = load(tiny_model_folder)
    model.generation_config.temperature, model.generation_config.top_p = 0.9, 0.6
    with pytest.warns(UserWarning, match="`do_sample=True` from now on"):
        built = build(model, tmp_path)
    built.train()
    built.save_model()
    saved = GenerationConfig.from_pretrained(tmp_path / "run")
    assert (saved.do_sample, saved.temperature, saved.top_p) == (True, 0.9, 0.6)


def test_good_generation_settings_stay_as_they_are(tiny_model_folder, tmp_path, recwarn):
    model, _ = load(tiny_model_folder)
    model.generation_config.max_new_tokens = 7
    before = model.generation_config
    build(model, tmp_path)
    assert model.generation_config is before
    assert not [w for w in recwarn if "generation settings" in str(w.message)]


def test_generation_settings_that_nothing_repairs_are_refused(tiny_model_folder, tmp_path):
    model, _ = load(tiny_model_folder)
    model.generation_config.max_new_tokens = -1
    with pytest.raises(ValueError, match=r"generation settings cannot be saved: .*max_new_tokens.*GenerationConfig"):
        build(model, tmp_path)


def test_an_adapter_is_saved_without_generation_settings_and_merged_with_repaired_ones(tiny_model_folder, tmp_path):
    base = tmp_path / "base"
    model, tokenizer = load(tiny_model_folder)
    model.save_pretrained(base)
    tokenizer.save_pretrained(base)
    (base / "generation_config.json").write_text('{"temperature": 0.5, "do_sample": false}', encoding="utf-8")
    built = helpers.trainer(str(base), tmp_path, max_steps=1, peft_config=LoraConfig(r=2, target_modules=["q_proj"]))
    built.train()
    built.save_model()
    with pytest.warns(UserWarning, match="`do_sample=True` from now on"):
        merge(tmp_path / "run", tmp_path / "merged")
    assert GenerationConfig.from_pretrained(tmp_path / "merged").do_sample is True


@pytest.mark.parametrize("construct", [build, build_reward])
def test_a_configuration_that_is_no_json_is_refused(tiny_model_folder, tmp_path, construct):
    model, _ = load(tiny_model_folder)
    model.config.mine = {1, 2}
    with pytest.raises(ValueError, match=r"the (policy|reward model) cannot be saved.*set.*JSON"):
        construct(model, tmp_path)
    assert not list((tmp_path / "run").glob("*.safetensors"))


@pytest.mark.parametrize("construct", [build, build_reward])
def test_memory_that_is_shared_without_being_declared_is_refused(tiny_model_folder, tmp_path, construct):
    model, tokenizer = load(tiny_model_folder)
    model = model if construct is build else load_reward_model(model, tokenizer, 0)  # trained in place
    layers = model.model.layers
    layers[1].mlp.up_proj.weight = layers[0].mlp.up_proj.weight
    with pytest.raises(ValueError, match=r"the (policy|reward model) cannot be saved.*shared tensors"):
        construct(model, tmp_path)


@pytest.mark.parametrize("construct", [build, build_reward])
def test_a_tokenizer_that_cannot_be_saved_is_refused(tiny_model_folder, tmp_path, construct):
    tokenizer = word_tokenizer()
    tokenizer.init_kwargs["mine"] = {1, 2}
    with pytest.raises(ValueError, match=r"the tokenizer cannot be saved.*its `save_pretrained"):
        construct(load(tiny_model_folder)[0], tmp_path, tokenizer)


def test_settings_that_are_no_json_are_refused(tiny_model_folder, tmp_path):
    settings = {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"power": torch.ones(1)}}
    with pytest.raises(ValueError, match=r"the settings and card cannot be saved.*Tensor"):
        build(load(tiny_model_folder)[0], tmp_path, **settings)


def test_a_critic_of_its_own_is_tried_too(tiny_model_folder, tmp_path):
    critic = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
    critic.config.mine = {1, 2}
    with pytest.raises(ValueError, match="the value model cannot be saved"):
        build(str(tiny_model_folder), tmp_path, value_model=critic)


@pytest.mark.parametrize("tied", [True, False])
def test_what_can_be_saved_passes_and_leaves_nothing(tiny_model_folder, tmp_path, tied, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    config = load(tiny_model_folder)[0].config
    config.tie_word_embeddings = tied
    model = LlamaForCausalLM(config)
    written: list[list[str]] = []
    check_savable(
        *({"policy": model, "critic": None}, word_tokenizer()),
        [lambda folder: written.append(sorted(path.name for path in folder.iterdir()))],
    )
    assert written == [["policy", "tokenizer.json", "tokenizer_config.json"]]
    numbers = stand_ins(model)
    assert sum(t.numel() for t in numbers.values()) == len(model.state_dict())
    assert (numbers["lm_head.weight"] is numbers["model.embed_tokens.weight"]) is tied


def test_experts_that_are_split_when_they_are_saved_pass(tmp_path):
    """Their files have other tensors than the model; a stand-in cannot be split."""
    from transformers import MixtralConfig, MixtralForCausalLM

    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = MixtralConfig(vocab_size=20, num_key_value_heads=2, num_local_experts=2, **size)
    check_savable({"policy": MixtralForCausalLM(config)}, word_tokenizer())


def test_another_trainers_prompts_and_rewards_are_untouched(tiny_model_folder, tmp_path):
    built = build(str(tiny_model_folder), tmp_path, reward_funcs=reward, train_dataset=prompts())
    assert [p.name for p in (tmp_path / "run").iterdir() if not p.name.startswith(".")] == []
    built.train()
