"""How large a model is comes from its tensors: through adapters, packed weights and projections."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from datasets import Dataset
from peft import LoraConfig
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    OPTForSequenceClassification,
)

from hfrlhf import PolicyGradientConfig, PolicyGradientTrainer, PPOConfig, PPOTrainer, RewardConfig, RewardTrainer
from hfrlhf.models.adapters import with_adapter
from hfrlhf.models.anatomy.sizes import device_of, embeddings_of, largest, outputs_of, trunk_width
from hfrlhf.models.policy.actor_critic import ActorCritic
from hfrlhf.models.reward.scoring import last_token_scores, load_reward_model
from hfrlhf.rewards.reading import padded
from tests.conftest import word_tokenizer
from tests.models.policy.test_actor_critic import ragged_rollout, row_by_row

SIZES = {
    "vocab_size": 20,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
OPTIONS: dict[str, Any] = {"report_to": [], "disable_tqdm": True, "use_cpu": True, "save_strategy": "no"}
PROMPTS = Dataset.from_dict({"prompt": ["the film", "a good story is"] * 4})


def llama(tied: bool = False) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES, intermediate_size=32, tie_word_embeddings=tied))


def projected() -> OPTConfig:
    """As facebook/opt-350m: its hidden states are projected from 16 to 8 behind the last layer."""
    return OPTConfig(**SIZES, word_embed_proj_dim=8, ffn_dim=32, do_layer_norm_before=False, num_labels=1)


ADAPTERS: dict[str, Callable[[], LoraConfig]] = {
    "none": lambda: LoraConfig(target_modules=["q_proj"]),
    "embedding": lambda: LoraConfig(target_modules=["q_proj", "embed_tokens"]),
    "head": lambda: LoraConfig(target_modules=["q_proj", "lm_head"]),
    "both, one matrix": lambda: LoraConfig(target_modules=["embed_tokens"], ensure_weight_tying=True),
    "DoRA": lambda: LoraConfig(target_modules=["embed_tokens", "lm_head"], use_dora=True),
    "some tokens": lambda: LoraConfig(target_modules=["q_proj"], trainable_token_indices=[5, 7]),
    "a whole head": lambda: LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"]),
    "a whole embedding": lambda: LoraConfig(target_modules=["q_proj"], modules_to_save=["embed_tokens"]),
}


@pytest.fixture(params=[False, True], ids=["untied", "tied"])
def tied(request) -> bool:
    return request.param


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`", "ignore:Setting `save_embedding_layers`")
@pytest.mark.filterwarnings("ignore:`ensure_weight_tying`")
@pytest.mark.parametrize("kind", ADAPTERS)
def test_with_adapters_on_embedding_and_head_sizes_logprobs_and_gradients_are_the_models(
    kind: str, tied: bool, tmp_path: Path
) -> None:
    policy = with_adapter(llama(tied), ADAPTERS[kind]())
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:  # LoRA begins at 0, where half of its gradients are
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    lm = policy.get_base_model()
    assert (embeddings_of(policy), outputs_of(policy), trunk_width(lm)) == (20, 20, 16)
    assert device_of(policy) == torch.device("cpu")

    actor_critic, rollout = ActorCritic(policy, "V"), ragged_rollout()
    trained = actor_critic.policy_parameters()
    ours = actor_critic(rollout).logprobs
    weights = torch.randn_like(ours)
    found = torch.autograd.grad((ours * weights).sum(), trained)
    theirs = torch.zeros(())
    for row, (logprobs, _) in enumerate(row_by_row(policy, rollout, 1.0)):
        torch.testing.assert_close(ours[row, : len(logprobs)], logprobs, atol=1e-5, rtol=0)
        theirs = theirs + (logprobs * weights[row, : len(logprobs)]).sum()
    for expected, gradient in zip(torch.autograd.grad(theirs, trained), found, strict=True):
        assert expected.abs().max() > 0
        torch.testing.assert_close(gradient, expected, atol=1e-5, rtol=1e-4)

    actor_critic.save_pretrained(tmp_path)
    saved = [parameter.clone() for parameter in trained]
    with torch.no_grad():
        for parameter in trained:
            parameter.zero_()
    actor_critic.load_saved(tmp_path)
    assert all(torch.equal(*pair) for pair in zip(saved, trained, strict=True))


def test_a_head_of_packed_weights_has_as_many_outputs_as_before(base_folder: Path) -> None:
    how = BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=["nothing"])
    model = AutoModelForCausalLM.from_pretrained(base_folder, quantization_config=how)
    assert type(model.get_output_embeddings()).__name__ == "Linear4bit", "the head is not packed; this shows nothing"
    assert (embeddings_of(model), outputs_of(model), trunk_width(model)) == (20, 20, 64)


def test_an_embedding_that_was_replaced_is_as_large_as_its_weight() -> None:
    model = llama()
    embedding = model.get_input_embeddings()
    embedding.weight = torch.nn.Parameter(torch.zeros(23, 16))  # `num_embeddings` still says 20
    assert embeddings_of(model) == 23


def length(completions: list[str], **_: Any) -> list[float]:
    return [float(len(text)) for text in completions]


@pytest.mark.parametrize("critic", ["trunk", "a model of its own", "adapter", "Q"])
def test_ppo_trains_a_model_that_projects_its_last_hidden_states(critic: str, tmp_path: Path) -> None:
    model, options = OPTForCausalLM(projected()), OPTIONS | {"max_completion_length": 4, "max_steps": 1}
    more: dict[str, Any] = {}
    if critic == "a model of its own":
        more["value_model"] = OPTForSequenceClassification(projected())
    if critic == "adapter":
        more |= {"value_model": "adapter", "peft_config": LoraConfig(target_modules=["q_proj"])}
    kind: Any = (PPOTrainer, PPOConfig)
    if critic == "Q":
        kind = (PolicyGradientTrainer, PolicyGradientConfig)
        options |= {"algorithm": "q_actor_critic"}
    args = kind[1](str(tmp_path), rollout_batch_size=8, **options)
    trainer = kind[0](model, length, args, PROMPTS, processing_class=word_tokenizer(), **more)
    trainer.train()
    head = trainer.model.value_head
    assert head is None or head.weight.shape == ((20 if critic == "Q" else 1), 8)


@pytest.mark.parametrize("lora", [None, "embedding", "some tokens"])
def test_reward_models_are_made_of_projected_and_of_adapted_embeddings(lora: str | None, tmp_path: Path) -> None:
    pairs = Dataset.from_dict({"prompt": ["the film"] * 4, "chosen": ["is good"] * 4, "rejected": ["is very bad"] * 4})
    args = RewardConfig(str(tmp_path), max_steps=1, **OPTIONS)
    model = llama() if lora else OPTForCausalLM(projected())
    config = ADAPTERS[lora]() if lora else None
    trainer = RewardTrainer(model, args, pairs, processing_class=word_tokenizer(), peft_config=config)
    assert trainer.train().training_loss > 0


@pytest.mark.parametrize("lora", ["embedding", "some tokens"])
def test_a_reward_adapter_on_the_embedding_scores_alike_on_the_policys_base(lora: str, tmp_path: Path) -> None:
    """One that trained single tokens is refused: with it the policy's own adapter could not be saved."""
    base, reward, tokenizer = str(tmp_path / "base"), str(tmp_path / "reward"), word_tokenizer()
    llama().save_pretrained(base)
    pairs = Dataset.from_dict({"prompt": ["the film"] * 4, "chosen": ["is good"] * 4, "rejected": ["is very bad"] * 4})
    args = RewardConfig(reward, max_steps=2, learning_rate=0.1, **OPTIONS)
    trained = RewardTrainer(base, args, pairs, processing_class=tokenizer, peft_config=ADAPTERS[lora]())
    trained.train()
    trained.save_model()
    args = PPOConfig(str(tmp_path / "run"), rollout_batch_size=8, max_completion_length=4, **OPTIONS)
    more = {"processing_class": tokenizer, "peft_config": LoraConfig(target_modules=["v_proj"])}
    if lora == "some tokens":
        with pytest.raises(ValueError, match="also trained single tokens of its base"):
            PPOTrainer(base, reward, args, PROMPTS, **more)
        return
    trainer = PPOTrainer(base, reward, args, PROMPTS, **more)
    rollout = trainer.generate(*trainer.training_prompts(0))
    assert "reward" in trainer.model.policy.peft_config
    completions, source = trainer.describe(rollout, trainer.prompts), trainer.reward.sources[0]
    expected = last_token_scores(
        load_reward_model(reward), *padded([row.ids for row in source.reader.read(completions)])
    )
    scores = source(completions)
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=0)


def test_numbers_that_differ_from_layer_to_layer_count_by_the_largest() -> None:
    assert largest(LlamaConfig(num_key_value_heads=3), "num_key_value_heads") == 3
    assert largest(LlamaConfig(), "no_such_number") is None
    listed = LlamaConfig()
    listed.num_heads = [2, 7, 3]  # as OpenELM has it
    assert largest(listed, "num_heads") == 7


@pytest.mark.skipif(not hasattr(transformers, "Gemma4UnifiedTextConfig"), reason="no such model in this release")
def test_a_configuration_that_refuses_to_name_one_number_is_asked_layer_by_layer() -> None:
    config = transformers.Gemma4UnifiedTextConfig(num_hidden_layers=6, head_dim=8, global_head_dim=32)
    assert {layer.head_dim for layer in config.per_layer_config} == {8, 32}
    assert largest(config, "head_dim") == 32
