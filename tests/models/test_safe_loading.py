"""No model brings code that runs: neither beside its weights nor inside of them."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from hfrlhf import load_reward_model, merge
from hfrlhf.models.policy.loading import load_policy, load_tokenizer, load_value_model
from hfrlhf.models.policy.reference import make_reference
from hfrlhf.rewards.sources import reward_source
from tests.trainers.helpers import trainer


class Planted:
    """Pickled, it writes a file when it is read."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> Any:
        return exec, (f"open({str(self.proof)!r}, 'w').write('ran')",)


@pytest.fixture
def proof(tmp_path: Path) -> Path:
    """A file that is there once foreign code has run."""
    return tmp_path / "proof"


@pytest.fixture(scope="module")
def policy(tiny_model_folder: Path) -> Any:
    return load_policy(str(tiny_model_folder))


LOADERS = {
    "policy": lambda name, policy: load_policy(name),
    "reward model": lambda name, policy: load_reward_model(name),
    "critic": lambda name, policy: load_value_model(name, policy),
    "reference": lambda name, policy: make_reference(policy, name),
    "reward source": lambda name, policy: reward_source(name, load_tokenizer(None, policy)),
}


def with_code(folder: Path, target: Path, proof: Path, model_type: str) -> str:
    """A model that brings classes of its own, whose module writes the proof when it is imported."""
    shutil.copytree(folder, target)
    config = json.loads((target / "config.json").read_text())
    names = ["AutoConfig", "AutoModelForCausalLM", "AutoModelForSequenceClassification"]
    config |= {"model_type": model_type, "auto_map": {name: f"planted.{name}" for name in names}}
    (target / "config.json").write_text(json.dumps(config))
    (target / "planted.py").write_text(f"open({str(proof)!r}, 'w').write('ran')\n")
    return str(target)


@pytest.mark.parametrize("loader", LOADERS)
def test_code_beside_a_model_does_not_run_nor_ask(tiny_model_folder, policy, tmp_path, proof, loader, monkeypatch):
    def asked(prompt: str = "") -> str:
        raise AssertionError(f"the user was asked: {prompt}")

    monkeypatch.setattr("builtins.input", asked)
    unknown = with_code(tiny_model_folder, tmp_path / "unknown", proof, "planted")
    with pytest.raises((ValueError, OSError), match="trust_remote_code=True"):
        LOADERS[loader](unknown, policy)
    known = with_code(tiny_model_folder, tmp_path / "known", proof, "llama")
    if loader != "reward source":  # which refuses a language model
        LOADERS[loader](known, policy)
    assert not proof.exists()


def test_code_beside_a_tokenizer_does_not_run(tiny_model_folder, tmp_path, proof):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model_folder, folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {"tokenizer_class": "Planted", "auto_map": {"AutoTokenizer": ["planted.Planted", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "planted.py").write_text(f"open({str(proof)!r}, 'w').write('ran')\n")
    try:
        load_tokenizer(None, str(folder))
    except ValueError as error:
        assert "processing_class" in str(error)
    assert not proof.exists()


def pickled(folder: Path, target: Path, proof: Path, name: str, weights: str) -> str:
    """A folder whose weights are a pickle with code in it."""
    shutil.copytree(folder, target)
    (target / weights).unlink()
    (target / name).write_bytes(pickle.dumps(Planted(proof)))
    return str(target)


@pytest.mark.parametrize("loader", LOADERS)
def test_a_model_in_a_pickle_is_refused_with_the_remedy(tiny_model_folder, policy, tmp_path, proof, loader):
    name = pickled(tiny_model_folder, tmp_path / "model", proof, "pytorch_model.bin", "model.safetensors")
    with pytest.raises(ValueError, match=r"as a pickle \(pytorch_model.bin\).*only safetensors.*save_pretrained"):
        LOADERS[loader](name, policy)
    assert not proof.exists()


def test_the_remedy_works(tiny_model_folder, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model_folder, folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    load_policy(str(folder))  # with both, the safetensors are taken
    (folder / "model.safetensors").unlink()
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(tmp_path / "another")
    before, after = (load_policy(str(place)) for place in (tiny_model_folder, tmp_path / "another"))
    assert all(torch.equal(p, q) for p, q in zip(before.parameters(), after.parameters(), strict=True))


def adapter(folder: Path, target: Path, task: str) -> Path:
    lm = AutoModelForCausalLM.from_pretrained(folder)
    get_peft_model(lm, LoraConfig(r=2, target_modules=["q_proj"], task_type=task)).save_pretrained(target)
    return target


def test_an_adapter_in_a_pickle_is_refused_with_the_remedy(tiny_model_folder, tmp_path, proof):
    files = ("adapter_model.bin", "adapter_model.safetensors")
    causal = adapter(tiny_model_folder, tmp_path / "causal", "CAUSAL_LM")
    scorer = adapter(tiny_model_folder, tmp_path / "scorer", "SEQ_CLS")
    language = pickled(causal, tmp_path / "language", proof, *files)
    reward = pickled(scorer, tmp_path / "reward", proof, *files)
    adapted = load_policy(str(causal))
    attempts = [
        lambda: load_policy(language),
        lambda: make_reference(load_policy(str(tiny_model_folder)), language),
        lambda: merge(language, str(tmp_path / "merged")),
        lambda: load_reward_model(reward),
        lambda: reward_source(reward, load_tokenizer(None, str(tiny_model_folder)), policy=adapted),
    ]
    for attempt in attempts:
        with pytest.raises(ValueError, match=r"has no adapter_model.safetensors.*convert it once"):
            attempt()
    assert not proof.exists()


@pytest.mark.parametrize("file", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_code_in_a_checkpoint_does_not_run(tiny_model_folder, tmp_path, proof, file):
    settings = {"save_strategy": "steps", "save_steps": 4, "max_steps": 8}
    trainer(str(tiny_model_folder), tmp_path, **settings).train()
    checkpoint = tmp_path / "run" / "checkpoint-4"
    torch.save(Planted(proof), checkpoint / file)
    with pytest.raises(Exception):  # noqa: B017  whoever notices first
        trainer(str(tiny_model_folder), tmp_path, **settings).train(resume_from_checkpoint=str(checkpoint))
    assert not proof.exists()
    torch.load(checkpoint / file, weights_only=False)
    assert proof.exists()  # it would have
