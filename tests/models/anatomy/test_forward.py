"""What a forward returns does not depend on the flags that a checkpoint's configuration carries."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import (
    GPT2Config,
    GPT2ForSequenceClassification,
    Llama4ForCausalLM,
    Llama4TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    MixtralConfig,
    MixtralForCausalLM,
    OpenAIGPTConfig,
    OpenAIGPTModel,
)

from hfrlhf import RewardConfig, RewardTrainer
from hfrlhf.models.anatomy.forward import UNWANTED_OUTPUTS, forward_flags
from hfrlhf.models.policy.loading import load_policy
from hfrlhf.models.policy.response_states import ResponseStates
from hfrlhf.models.reward.head import backbone_of
from hfrlhf.models.reward.scoring import last_token_scores, load_reward_model
from tests.conftest import word_tokenizer

SIZES = {
    "vocab_size": 20,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
}
IDS = torch.tensor([[1, 5, 7, 9], [1, 6, 8, 2]])


def mixtral(**flags: Any) -> MixtralForCausalLM:
    torch.manual_seed(0)
    return MixtralForCausalLM(MixtralConfig(**SIZES, num_key_value_heads=2, num_local_experts=4, **flags)).eval()


def llama(kind: Any = LlamaForCausalLM, **flags: Any) -> Any:
    torch.manual_seed(0)
    return kind(LlamaConfig(**SIZES, num_labels=1, attn_implementation="eager", **flags)).eval()


def test_a_flag_is_said_where_the_configuration_says_otherwise_and_only_there() -> None:
    assert forward_flags(llama(), use_cache=False) == {"use_cache": False}
    assert forward_flags(mixtral(output_router_logits=True), use_cache=True) == {
        "use_cache": True,
        "output_router_logits": False,
    }
    assert forward_flags(get_peft_model(llama(output_attentions=True), LoraConfig()), use_cache=False) == {
        "use_cache": False,
        "output_attentions": False,
    }


@pytest.mark.parametrize("flag", UNWANTED_OUTPUTS)
def test_with_its_flags_a_model_and_its_backbone_return_what_they_would_without(flag: str) -> None:
    plain, flagged = mixtral(attn_implementation="eager"), mixtral(attn_implementation="eager", **{flag: True})
    for model, other in ((plain, flagged), (plain.base_model, flagged.base_model)):
        expected = model(input_ids=IDS, use_cache=False)
        assert set(other(input_ids=IDS)) > set(expected), "the flag does nothing; the test shows nothing"
        found = other(input_ids=IDS, **forward_flags(other, use_cache=False))
        assert set(found) == set(expected)
        assert torch.equal(found[0], expected[0])


def test_a_model_is_given_no_flag_that_its_forward_does_not_take() -> None:
    class Strict(OpenAIGPTModel):
        def forward(self, input_ids: Any) -> Any:  # type: ignore[override]
            return super().forward(input_ids)

    model = Strict(OpenAIGPTConfig(vocab_size=20, n_embd=8, n_layer=1, n_head=1, n_positions=8, output_attentions=True))
    assert forward_flags(model, use_cache=False) == {}


def test_a_policy_whose_configuration_asks_for_tuples_is_read_by_name() -> None:
    policy, other = load_policy(llama(return_dict=False)), llama()
    states = ResponseStates(IDS, torch.ones(2, 2, dtype=torch.bool), torch.tensor([1, 2, 5, 6]), torch.tensor([3, 7]))
    assert torch.equal(states.run(policy.base_model), other.base_model(IDS).last_hidden_state.flatten(0, 1))
    assert torch.equal(policy(IDS).logits, other(IDS).logits)


@pytest.mark.parametrize("flag", [{"return_dict": False}, {"output_hidden_states": True}, {"use_cache": False}])
@pytest.mark.parametrize("kind", [LlamaForSequenceClassification, GPT2ForSequenceClassification])
def test_reward_models_score_alike_whatever_their_configuration_asks_for(kind: Any, flag: dict[str, Any]) -> None:
    def build(**flags: Any) -> Any:
        if kind is LlamaForSequenceClassification:
            return llama(kind, **flags)
        torch.manual_seed(0)
        sizes = {"vocab_size": 20, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32}
        return kind(GPT2Config(**sizes, num_labels=1, pad_token_id=0, architectures=[kind.__name__], **flags)).eval()

    expected = build()(input_ids=IDS).logits.squeeze(-1)
    found = last_token_scores(load_reward_model(build(**flag)), IDS, torch.ones_like(IDS))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("flag", [{"return_dict": False}, {"output_router_logits": True}])
def test_reward_training_takes_a_mixture_of_experts_as_its_fine_tuning_left_it(flag: dict[str, Any], tmp_path) -> None:
    pairs = Dataset.from_dict({"prompt": ["the film"] * 4, "chosen": ["is good"] * 4, "rejected": ["is very bad"] * 4})
    args = RewardConfig(str(tmp_path), max_steps=1, report_to=[], disable_tqdm=True, use_cpu=True, save_strategy="no")
    losses = []
    for model in (mixtral(), mixtral(**flag)):
        trainer = RewardTrainer(model, args, pairs, processing_class=word_tokenizer())
        losses.append(trainer.train().training_loss)
        args.output_dir = str(tmp_path / "second")
    assert losses[0] == losses[1]


def test_the_trunk_is_found_where_its_class_names_it_after_a_larger_models_part() -> None:
    experts = {"intermediate_size_mlp": 32, "num_local_experts": 2, "head_dim": 8, "num_key_value_heads": 2}
    torch.manual_seed(0)
    model = load_policy(Llama4ForCausalLM(Llama4TextConfig(**SIZES, **experts)).eval())
    assert model.base_model is model, "it has a base model of its own; the test shows nothing"
    hidden = backbone_of(model)(input_ids=IDS, **forward_flags(backbone_of(model), use_cache=False)).last_hidden_state
    torch.testing.assert_close(model.lm_head(hidden), model(IDS).logits)
