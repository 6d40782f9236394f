"""4-bit models: an adapter trains on them also after an evaluation, and saving does not change them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

from hfrlhf.models.quantization import is_quantized, prepare_quantized, refuse_untrainable

IDS = torch.arange(3, 13)[None]


@pytest.fixture
def quantized(tmp_path: Any) -> Any:
    sizes = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2)).save_pretrained(tmp_path)
    settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    return AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=settings)


def logits(model: Any) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        return model(IDS).logits


def adapter_gradients(model: Any) -> dict[str, torch.Tensor]:
    model.train()
    model.zero_grad()
    model(IDS).logits.logsumexp(-1).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


def test_evaluation_and_saving_change_nothing(quantized: Any) -> None:
    lora = LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", r=2, init_lora_weights=False)
    model = get_peft_model(prepare_quantized(quantized, False), lora)
    before = adapter_gradients(model)
    first = logits(model)
    model.state_dict()
    assert torch.equal(logits(model), first)
    after = adapter_gradients(model)
    assert before.keys() == after.keys() and len(before) == 28
    for name, gradient in before.items():
        assert torch.equal(gradient, after[name]), name
        assert gradient.abs().max() > 0, name


def test_a_quantised_model_without_adapter_is_refused(quantized: Any) -> None:
    assert is_quantized(quantized)
    refuse_untrainable(quantized, LoraConfig())
    with pytest.raises(ValueError, match=r"cannot be trained; pass `peft_config=LoraConfig\(...\)`"):
        refuse_untrainable(quantized, None)
