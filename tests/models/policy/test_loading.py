"""Policies, critics and references from names, paths and objects: their precision, their adapters, what is refused."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2Processor,
)

from hfrlhf.models.adapters import with_adapter
from hfrlhf.models.policy.actor_critic import ActorCritic
from hfrlhf.models.policy.checks import check_positions, check_stop_token, check_trainable
from hfrlhf.models.policy.loading import load_policy, load_tokenizer, load_value_model
from hfrlhf.models.policy.reference import make_reference
from hfrlhf.models.reward.scoring import last_token_scores, load_reward_model, save_adapter_settings
from tests.models.policy.test_actor_critic import ragged_rollout

LORA = {"target_modules": "all-linear", "r": 2, "init_lora_weights": False}


@pytest.fixture
def half_folder(tiny_model_folder: Path, tmp_path: Path) -> Path:
    """The tiny model as most models are published: in bfloat16."""
    folder = tmp_path / "half"
    AutoModelForCausalLM.from_pretrained(tiny_model_folder, dtype=torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.fixture
def policy(tiny_model_folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_model_folder)


@pytest.fixture
def reward_adapter(tiny_model_folder: Path, tmp_path: Path) -> Path:
    """A reward model that is an adapter with a head of its own and a shift."""
    base = load_reward_model(str(tiny_model_folder))
    with torch.random.fork_rng():
        torch.manual_seed(4)
        model = get_peft_model(base, LoraConfig(task_type="SEQ_CLS", **LORA))
    torch.nn.init.constant_(model.get_base_model().score.modules_to_save["default"].weight, 0.5)
    model.config.reward_shift = 0.25
    model.save_pretrained(tmp_path / "adapter")
    save_adapter_settings(model, tmp_path / "adapter")
    return tmp_path / "adapter"


def quantized(folder: Path, auto: Any = AutoModelForCausalLM, **options: Any) -> Any:
    sizes = {"vocab_size": 20, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1}
    LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2)).save_pretrained(folder)
    settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
    return auto.from_pretrained(folder, quantization_config=settings, **options)


# ---- Precision ------------------------------------------------------------------------------------------------------


def test_a_policy_by_name_trains_in_float32(half_folder):
    assert AutoModelForCausalLM.from_pretrained(half_folder).dtype == torch.bfloat16  # what stock loading gives
    assert {p.dtype for p in load_policy(str(half_folder)).parameters()} == {torch.float32}
    assert load_policy(str(half_folder), dtype=torch.bfloat16).dtype == torch.bfloat16


def test_an_adapter_by_name_comes_on_a_float32_base(half_folder, tmp_path):
    base = AutoModelForCausalLM.from_pretrained(half_folder)
    get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **LORA)).save_pretrained(tmp_path / "lora")
    assert {p.dtype for p in load_policy(str(tmp_path / "lora")).parameters()} == {torch.float32}


def test_a_critic_by_name_trains_in_float32(half_folder, policy):
    critic = load_value_model(str(half_folder), policy)
    assert {p.dtype for p in critic.parameters()} == {torch.float32}


def test_a_quantised_load_keeps_its_own_precision(tmp_path):
    settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
    quantized(tmp_path)
    stock = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=settings)
    ours = load_policy(str(tmp_path), settings)
    assert ours.is_quantized
    assert [p.dtype for p in ours.parameters()] == [p.dtype for p in stock.parameters()]


def test_half_precision_weights_that_train_warn(half_folder):
    half = load_policy(AutoModelForCausalLM.from_pretrained(half_folder))
    with pytest.warns(UserWarning, match=r"policy that train are in torch.bfloat16"):
        check_trainable(half, "policy")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        check_trainable(with_adapter(half, LoraConfig(task_type="CAUSAL_LM", **LORA)), "policy")
        check_trainable(load_policy(str(half_folder)), "policy")


def test_a_policy_in_which_nothing_trains_is_refused(policy):
    with pytest.raises(ValueError, match=r"requires_grad_\(True\)"):
        check_trainable(policy.requires_grad_(False), "policy")
    check_trainable(with_adapter(policy, LoraConfig(task_type="CAUSAL_LM", **LORA)), "policy")


# ---- Names ----------------------------------------------------------------------------------------------------------


def test_paths_are_names(tiny_model_folder, policy):
    assert load_policy(tiny_model_folder).config.hidden_size == 16
    assert load_tokenizer(None, tiny_model_folder).eos_token == "<eos>"
    assert load_value_model(tiny_model_folder, policy).config.num_labels == 1


def test_an_adapter_on_the_hub_is_recognised(tiny_model_folder, policy, tmp_path):
    """A repository in the cache of the Hub's files, as a download leaves it."""
    repository = tmp_path / "models--someone--adapter"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    model = get_peft_model(policy, LoraConfig(task_type="CAUSAL_LM", **LORA))
    model.save_pretrained(repository / "snapshots" / ("0" * 40))
    loaded = load_policy("someone/adapter", cache_dir=str(tmp_path), local_files_only=True)
    assert isinstance(loaded, PeftModel)
    ids = torch.tensor([[1, 5, 6]])
    assert torch.equal(loaded.eval()(ids).logits, model.eval()(ids).logits)


def test_a_reference_by_name_is_loaded(tiny_model_folder, policy):
    rollout = ragged_rollout()
    with torch.no_grad():
        policy.lm_head.weight.mul_(2)
    stock = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
    for name in (str(tiny_model_folder), tiny_model_folder):
        reference = make_reference(policy, name)
        assert not reference.exact and not any(p.requires_grad for p in reference.model.parameters())
        expected = ActorCritic(stock, None)(rollout).logprobs
        torch.testing.assert_close(reference.logprobs(rollout, 1.0), expected, atol=1e-5, rtol=0)


def test_a_reference_of_another_vocabulary_is_refused(tiny_model_folder, policy):
    config = AutoConfig.from_pretrained(tiny_model_folder)
    config.vocab_size = 24
    with pytest.raises(ValueError, match="the reference has a vocabulary of 24, the policy one of 20"):
        make_reference(policy, AutoModelForCausalLM.from_config(config))


def test_a_critic_as_an_adapter_needs_one_of_the_policys(policy):
    with pytest.raises(ValueError, match="peft_config=LoraConfig"):
        load_value_model("adapter", policy)


# ---- A critic from an adapter ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("by_name", [True, False])
def test_a_critic_from_an_adapter_is_merged(reward_adapter, policy, tmp_path, by_name):
    """It says what the reward model says, all of it trains, and what is saved is all of it."""
    model = load_reward_model(str(reward_adapter))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    ids = torch.tensor([[1, 5, 6, 2]])
    expected = last_token_scores(model, ids, torch.ones_like(ids))
    critic = load_value_model(str(reward_adapter) if by_name else model, policy)
    assert not isinstance(critic, PeftModel) and all(p.requires_grad for p in critic.parameters())
    torch.testing.assert_close(last_token_scores(critic, ids, torch.ones_like(ids)), expected, atol=1e-6, rtol=0)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())  # the original is left alone

    with torch.no_grad():
        for parameter in critic.parameters():  # as if everything had trained
            parameter.add_(0.125)
    saved = ActorCritic(policy, critic)
    saved.save_pretrained(tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(policy.config._name_or_path)
    loaded = ActorCritic(again, load_value_model(str(reward_adapter), again))
    loaded.load_saved(tmp_path / "saved")
    theirs = dict(loaded.named_parameters())
    for name, parameter in saved.named_parameters():
        assert torch.equal(parameter, theirs[name]), name


def test_a_quantised_critic_is_refused(policy, tmp_path):
    critic = quantized(tmp_path, AutoModelForSequenceClassification, num_labels=1)
    for given in (critic, get_peft_model(critic, LoraConfig(task_type="SEQ_CLS", **LORA))):
        with pytest.raises(ValueError, match="value model is quantised"):
            load_value_model(given, policy)


# ---- Lengths and tokens ---------------------------------------------------------------------------------------------


def test_every_model_needs_the_positions(policy):
    sizes = {"vocab_size": 20, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    small = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, max_position_embeddings=32))
    check_positions({"policy": policy, "reference": small, "value model": "V"}, 20, 12)
    with pytest.raises(ValueError, match="the reference has positions for 32; set `max_prompt_length=19`"):
        check_positions({"policy": policy, "reference": small, "value model": None}, 20, 13)


@pytest.mark.parametrize("stop", [-1, 20, 10_000])
def test_a_stop_token_outside_the_vocabulary_is_refused(tiny_model_folder, policy, stop):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_folder)
    check_stop_token(19, tokenizer, policy)
    with pytest.raises(ValueError, match=f"stop_token_id={stop}` is no token"):
        check_stop_token(stop, tokenizer, policy)


def test_a_stop_token_the_model_does_not_know_is_refused(tiny_model_folder, policy):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<stop>"]})
    with pytest.raises(ValueError, match="the model's to 19"):
        check_stop_token(20, tokenizer, policy)


@pytest.mark.parametrize("name", ["runs/nope/deeper", "./nope", "/nope", "tests/nope"])
def test_a_folder_that_is_not_there_is_not_looked_for_on_the_hub(name):
    with pytest.raises(FileNotFoundError, match="no folder"):
        load_policy(name)
    with pytest.raises(FileNotFoundError, match="no folder"):
        load_reward_model(name)


# ---- Tokenizers -----------------------------------------------------------------------------------------------------


def test_of_a_processor_the_tokenizer_and_the_template_are_taken(make_tokenizer):
    tokenizer = make_tokenizer()
    processor = Wav2Vec2Processor(Wav2Vec2FeatureExtractor(), tokenizer)
    assert load_tokenizer(processor, None) is processor.tokenizer
    processor.chat_template = "{{ messages[0].content }}"
    taken = load_tokenizer(processor, None)
    assert taken.chat_template == processor.chat_template
    assert taken.get_vocab() == tokenizer.get_vocab() and processor.tokenizer.chat_template is None


@pytest.mark.parametrize("given", [Wav2Vec2FeatureExtractor(), "my-model", object()])
def test_what_is_no_tokenizer_is_refused(given):
    with pytest.raises(
        TypeError, match=f"must be a tokenizer, or a processor that has one, got {type(given).__name__}"
    ):
        load_tokenizer(given, None)
