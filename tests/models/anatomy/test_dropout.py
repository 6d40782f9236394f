"""Dropout is off everywhere: modules, bare numbers, configurations, adapters, adapters added later."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM

from hfrlhf.models.anatomy.dropout import disable_dropout

SIZES = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


def llama() -> torch.nn.Module:
    return LlamaForCausalLM(LlamaConfig(**SIZES, intermediate_size=32, attention_dropout=0.5))


def gpt2() -> torch.nn.Module:
    rates = {"resid_pdrop": 0.5, "embd_pdrop": 0.5, "attn_pdrop": 0.5}
    return GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=16, n_layer=2, n_head=2, n_positions=32, **rates))


def opt() -> torch.nn.Module:
    """Its `layerdrop` leaves out whole layers while training."""
    return OPTForCausalLM(OPTConfig(**SIZES, ffn_dim=32, word_embed_proj_dim=16, dropout=0.5, layerdrop=0.5))


def lora() -> torch.nn.Module:
    model = get_peft_model(llama(), LoraConfig(lora_dropout=0.5, init_lora_weights=False))
    model.add_adapter("second", LoraConfig(lora_dropout=0.5, init_lora_weights=False))
    return model


def two_forwards_agree(model: torch.nn.Module) -> bool:
    model.train()
    ids = torch.arange(1, 9)[None]
    with torch.no_grad():
        return all(torch.equal(model(ids).logits, model(ids).logits) for _ in range(3))


@pytest.mark.parametrize("build", [llama, gpt2, opt, lora])
def test_training_mode_becomes_deterministic(build) -> None:
    model = build()
    assert not two_forwards_agree(model), "the model has no dropout; the test shows nothing"
    disable_dropout(model)
    assert two_forwards_agree(model)


def test_an_adapter_added_later_from_the_same_configuration_has_none() -> None:
    model = lora()
    disable_dropout(model)
    model.add_adapter("copy", model.peft_config["default"])
    model.set_adapter("copy")
    assert two_forwards_agree(model)


def test_the_configuration_says_so_and_other_numbers_stay() -> None:
    model = gpt2()
    disable_dropout(model)
    config = model.config
    assert (config.resid_pdrop, config.embd_pdrop, config.attn_pdrop) == (0, 0, 0)
    assert config.summary_first_dropout == 0
    assert (config.n_embd, config.layer_norm_epsilon) == (16, 1e-5)
