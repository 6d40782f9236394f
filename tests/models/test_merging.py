"""A merged model is the adapter's policy, plain: stock transformers load it, and its logits are the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

from hfrlhf import merge
from hfrlhf.models.adapters import with_adapter
from hfrlhf.models.policy.actor_critic import ActorCritic
from tests.conftest import word_tokenizer

LORA = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)


@pytest.fixture(params=[32, 4, 8], ids=["float32", "4-bit", "8-bit"])
def saved(request, base_folder, tmp_path: Path) -> tuple[Path, torch.Tensor]:
    """The folder of a policy adapter as the trainers save it, and the policy's logits."""
    word_tokenizer().save_pretrained(base_folder)
    how = {32: {}, 4: {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, 8: {"load_in_8bit": True}}[request.param]
    quantised = {"quantization_config": BitsAndBytesConfig(**how)} if how else {}
    policy = with_adapter(AutoModelForCausalLM.from_pretrained(base_folder, **quantised), LORA)
    ActorCritic(policy, None).save_pretrained(tmp_path / "policy")
    AutoTokenizer.from_pretrained(base_folder).save_pretrained(tmp_path / "policy")
    with torch.no_grad():
        return tmp_path / "policy", policy.eval()(torch.arange(3, 20)[None]).logits, request.param


def test_the_merged_model_is_plain_and_says_the_same(saved, tmp_path):
    folder, logits, bits = saved
    difference = merge(folder, tmp_path / "merged")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    assert not getattr(model.config, "quantization_config", None)
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert not any("lora" in name for name, _ in model.named_parameters())
    AutoTokenizer.from_pretrained(tmp_path / "merged")
    # 8-bit layers round what they are given, too; float32 and 4-bit layers only their weights.
    limit = {32: 1e-4, 4: 1e-3, 8: 0.1}[bits]
    found = model(torch.arange(3, 20)[None]).logits
    assert float((found - logits).abs().max()) < limit < float(logits.std())
    assert 0 <= difference < limit


def test_the_files_it_read_are_as_they_were(saved, tmp_path):
    folder, *_ = saved
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    merge(folder, tmp_path / "merged")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_nothing_is_written_over(saved, tmp_path):
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="or merge to another folder"):
        merge(saved[0], tmp_path / "merged")


def test_a_whole_model_has_nothing_to_merge(base_folder, tmp_path):
    with pytest.raises(ValueError, match="holds no adapter"):
        merge(base_folder, tmp_path / "merged")


def test_tied_embeddings_come_apart_where_the_adapter_changes_one_of_them(tmp_path):
    tokenizer = word_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "policy")
    lora = LoraConfig(r=4, target_modules=["lm_head", "q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    policy = with_adapter(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), lora)
    ActorCritic(policy, None).save_pretrained(tmp_path / "policy")
    assert merge(tmp_path / "policy", tmp_path / "merged") < 1e-4
    ids = torch.arange(3, 9)[None]
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(merged(ids).logits, policy.eval()(ids).logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "settings",
    [{"use_dora": True}, {"modules_to_save": ["lm_head"]}, {"modules_to_save": ["embed_tokens"]}, {"use_rslora": True}],
    ids=lambda settings: next(iter(settings)),
)
def test_every_kind_of_lora_is_merged(base_folder, tmp_path, settings):
    word_tokenizer().save_pretrained(tmp_path / "policy")
    options = {"r": 4, "target_modules": ["q_proj", "up_proj"], "task_type": "CAUSAL_LM", "init_lora_weights": False}
    policy = with_adapter(AutoModelForCausalLM.from_pretrained(base_folder), LoraConfig(**options | settings))
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "modules_to_save" in name:
                parameter.add_(0.1)
    ActorCritic(policy, None).save_pretrained(tmp_path / "policy")
    assert merge(tmp_path / "policy", tmp_path / "merged") < 1e-4
    ids = torch.arange(3, 9)[None]
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    with policy.disable_adapter():
        assert float((merged(ids).logits - policy(ids).logits).abs().max()) > 1e-2
    torch.testing.assert_close(merged(ids).logits, policy.eval()(ids).logits, atol=1e-4, rtol=0)


@pytest.fixture
def policy_folder(base_folder, tmp_path: Path) -> Path:
    policy = with_adapter(AutoModelForCausalLM.from_pretrained(base_folder), LORA)
    ActorCritic(policy, None).save_pretrained(tmp_path / "policy")
    return tmp_path / "policy"


def test_half_precision_halves_the_folder(policy_folder, base_folder, tmp_path):
    word_tokenizer().save_pretrained(policy_folder)
    whole = merge(policy_folder, tmp_path / "float32")
    half = merge(policy_folder, tmp_path / "bfloat16", dtype=torch.bfloat16)
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("float32", "bfloat16")]
    assert 0.45 < sizes[1] / sizes[0] < 0.55
    assert whole < 1e-4 < half < 0.1
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "bfloat16", dtype="auto").dtype == torch.bfloat16


def test_the_bases_tokenizer_does_where_none_was_saved(policy_folder, base_folder, tmp_path):
    word_tokenizer().save_pretrained(base_folder)
    merge(policy_folder, tmp_path / "merged")
    assert AutoTokenizer.from_pretrained(tmp_path / "merged").get_vocab() == word_tokenizer().get_vocab()


def test_an_adapter_without_a_base_says_what_is_missing(policy_folder, tmp_path):
    file = policy_folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": None}))
    with pytest.raises(ValueError, match=r"write the base's folder .*base_model_name_or_path"):
        merge(policy_folder, tmp_path / "merged")


def test_a_merge_that_fails_leaves_nothing(policy_folder, base_folder, tmp_path):
    word_tokenizer().save_pretrained(policy_folder)
    file = policy_folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": str(tmp_path / "gone")}))
    with pytest.raises(OSError, match="gone"):
        merge(policy_folder, tmp_path / "merged")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["policy"]
