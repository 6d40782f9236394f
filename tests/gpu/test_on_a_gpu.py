"""What only a CUDA device can show: the precisions that people train in, and that a device is not another computer.

`pytest -m gpu`, in a minute; skipped where there is no such device. Everything else of the suite is about CPUs too.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from transformers import AutoTokenizer, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

from hfrlhf.models.anatomy.precision import MISMATCH_BOUNDS
from tests.conftest import word_tokenizer
from tests.trainers.helpers import load, parameters, trainer, training_logs

# ON_CPU=1 tries the tests themselves where there is no device; what they are about is not tried then.
ON_CPU = bool(os.environ.get("ON_CPU"))
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not (ON_CPU or torch.cuda.is_available()), reason="needs a CUDA device"),
]
LORA = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama wide enough for 4-bit blocks and tensor cores."""
    tokenizer = word_tokenizer()
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 2}
    tokens = {"vocab_size": len(tokenizer), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(**sizes, **tokens, max_position_embeddings=128))
    folder = tmp_path_factory.mktemp("base")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def on_device(model: Any, folder: Path, **changes: Any) -> Any:
    return trainer(model, folder, **({"use_cpu": ON_CPU} | changes))


@pytest.mark.parametrize(("settings", "precision"), [({}, "tf32"), ({"bf16": True}, "half")])
def test_a_rollout_is_sampled_from_the_policy_that_learns(base: Path, tmp_path: Path, settings: Any, precision: str):
    """The decode loop and the training forward round apart by no more than the bound says."""
    built = on_device(str(base), tmp_path, max_completion_length=24, **settings)
    built.train()
    logs = training_logs(built)
    assert logs and built.state.global_step == 4
    assert max(log.get("policy/sampler_mismatch", 0.0) for log in logs) < MISMATCH_BOUNDS[precision]
    assert {p.device.type for p in built.model.parameters()} == {"cpu" if ON_CPU else "cuda"}


def test_a_gpu_takes_the_step_that_a_cpu_takes(base: Path, tmp_path: Path):
    """In float32: the same responses, for they are a function of addresses, and the same weights after an update."""
    settings: dict[str, Any] = {"optim": "sgd", "learning_rate": 0.1, "max_steps": 1, "num_ppo_epochs": 1}
    settings |= {"num_mini_batches": 1, "gradient_accumulation_steps": 2, "tf32": False}
    settings = {name: value for name, value in settings.items() if name != "tf32" or not ON_CPU}
    here = on_device(str(base), tmp_path / "device", **settings)
    there = trainer(str(base), tmp_path / "cpu", **{k: v for k, v in settings.items() if k != "tf32"})
    for built in (here, there):
        built.train()
    seen, expected = here.cycle.experience, there.cycle.experience
    assert torch.equal(seen.input_ids, expected.input_ids)
    torch.testing.assert_close(seen.old_logprobs, expected.old_logprobs, atol=1e-4, rtol=0)
    for name, weight in parameters(there).items():
        torch.testing.assert_close(parameters(here)[name].cpu(), weight, atol=1e-5, rtol=1e-3)


def test_adapters_learn_on_a_four_bit_base(base: Path, tmp_path: Path):
    """QLoRA: policy and critic are adapters; the base stays as it was, to the bit, through training and saving."""
    settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    built = on_device(
        str(base), tmp_path, quantization_config=settings, peft_config=LORA, value_model="adapter", bf16=True
    )
    before = {name: p.detach().clone() for name, p in built.unwrapped().named_parameters()}
    built.train()
    moved = {name for name, p in built.unwrapped().named_parameters() if not torch.equal(p, before[name])}
    assert moved and all(".default." in name or ".value." in name or "value_head" in name for name in moved), moved
    assert all(log["grad_norm"] > 0 for log in training_logs(built))
    kl = training_logs(built)[0]["objective/kl"]
    assert kl == pytest.approx(0, abs=1e-3)  # with its adapter off, the policy it starts from is the reference
    built.save_model()
    assert (tmp_path / "run" / "adapter_model.safetensors").is_file()


def test_a_model_in_bfloat16_trains_with_gradient_checkpointing(base: Path, tmp_path: Path):
    """Frozen 16-bit weights, a LoRA adapter, recomputation: what a small GPU is used with."""
    model, _ = load(base)
    built = on_device(
        model.to(torch.bfloat16),
        tmp_path,
        tokenizer=AutoTokenizer.from_pretrained(base),
        peft_config=LORA,
        gradient_checkpointing=True,
    )
    built.train()
    logs = training_logs(built)
    assert all(0 < log["grad_norm"] < float("inf") for log in logs)
    assert max(log.get("policy/sampler_mismatch", 0.0) for log in logs) < MISMATCH_BOUNDS["half"]


def test_a_resumed_run_is_the_uninterrupted_one(base: Path, tmp_path: Path):
    """The states of the device's generators and of the optimiser's moments come back with a checkpoint."""
    whole = on_device(str(base), tmp_path / "whole", save_strategy="steps", save_steps=3)
    whole.train()
    again = on_device(str(base), tmp_path / "again", max_steps=4)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "run" / "checkpoint-3"))
    for name, weight in parameters(whole).items():
        torch.testing.assert_close(parameters(again)[name], weight, atol=1e-6, rtol=1e-4)
