"""ZeRO-2 and ZeRO-3 train what DDP and one process train, and leave behind what stock transformers and peft load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, BitsAndBytesConfig

from hfrlhf import RewardConfig, RewardTrainer
from tests.distributed.launching import assert_same_weights, result, run_cases, weights

pytest.importorskip("deepspeed", reason="deepspeed is not installed: pip install -e '.[test]'")
pytestmark = pytest.mark.distributed

STAGES = {"ddp": 0, "zero2": 2, "zero3": 3}
ZERO = ("zero2", "zero3")
# Steps of plain gradient descent, so that a rounding error of a gradient stays one (Adam would divide by its size).
SGD = {"optim": "sgd", "learning_rate": 0.1, "lr_scheduler_type": "constant"}
# Chunks of 20 tokens: the processes have different numbers of them. Adam, two rates that decay, two micro-batches.
RAGGED = {"max_tokens_per_micro_batch": 20, "gradient_accumulation_steps": 2, "num_mini_batches": 1, "ent_coef": 0.05}
RAGGED |= {"learning_rate": 1e-3, "value_learning_rate": 3e-3, "weight_decay": 0.1, "max_steps": 4}
STOP = {"adapter": True, "target_kl": 1e-4, "num_ppo_epochs": 3, "num_mini_batches": 1, "max_steps": 3}
STOP |= {"save_strategy": "steps", "save_steps": 1}
# After a warm-up Adam is where it was before, its count of steps too, which its first ones are divided by.
WARMED = {"critic_warmup_rollouts": 1, "learning_rate": 1e-3, "value_learning_rate": 3e-2, "num_mini_batches": 1}
SAVED = {"save_strategy": "steps", "save_steps": 3, "kl_target": 0.5, "kl_horizon": 80, "max_steps": 6}


@pytest.fixture(scope="module")
def runs(base: Path, tied: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every training below, in two launches."""
    folder = tmp_path_factory.mktemp("zero")
    reward = reward_adapter(base, folder / "reward-adapter")
    one_base = SGD | {"adapter": True, "bits": 4, "reward_funcs": str(reward)}
    everywhere = {"sgd": SGD, "ragged": RAGGED, "qlora": one_base, "tied": SGD | {"model": str(tied), "max_steps": 4}}
    everywhere |= {"warmed": WARMED | {"max_steps": 4}}
    # Of 11 pairs 3 are left for the last step: all of them one process's, or, in smaller micro-batches, two and one.
    everywhere |= {"rm": {"kind": "reward"}, "rm-lora": {"kind": "reward", "adapter": True}}
    everywhere |= {"rm-parts": {"kind": "reward", "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}}
    sharded = {
        "warmup": {"critic_warmup_rollouts": 2},
        "stop": STOP,
        "broken": {"broken_step": 1, "max_steps": 2} | SGD,
    }
    sharded["broken"] |= {"save_strategy": "steps", "save_steps": 1}
    sharded |= {"saved": SAVED, "saved-qlora": SAVED | one_base}
    for name in ("saved", "saved-qlora"):
        sharded[f"resumed-{name}"] = sharded[name] | {"save_strategy": "no"}
    cases = []
    for strategy, stage in STAGES.items():
        for name, changes in (everywhere | (sharded if stage else {})).items():
            case: dict[str, Any] = {"name": f"{strategy}/{name}", "stage": stage, "model": str(base)} | changes
            if name.startswith("resumed-"):
                case["resume"] = str(folder / strategy / name.removeprefix("resumed-") / "run" / "checkpoint-3")
            if case.get("kind"):
                case["per_device_train_batch_size"] = case.get("per_device_train_batch_size", 8) // 2
            cases.append(case)
    own = {"optimizer": {"type": "AdamW", "params": {"lr": 1e-3}}}
    cases.append({"name": "zero2/own-optimizer", "stage": 2, "model": str(base), "deepspeed": own})
    run_cases(folder, 2, cases)
    run_cases(folder, 1, [{"name": f"one/{name}", "model": str(base)} | c for name, c in everywhere.items()])
    return folder


def reward_adapter(base: Path, folder: Path) -> Path:
    """A reward adapter on the 4-bit base, after two steps of training."""
    from datasets import Dataset

    pairs = Dataset.from_dict({"chosen": ["the film is good", "a fine story"] * 8, "rejected": ["bad", "dull !"] * 8})
    args = RewardConfig(
        str(folder), max_steps=2, learning_rate=1e-2, use_cpu=True, report_to="none", save_strategy="no"
    )
    quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    lora = LoraConfig(r=3, target_modules=["o_proj", "up_proj"])
    built = RewardTrainer(str(base), args, pairs, peft_config=lora, quantization_config=quantization)
    built.train()
    built.save_model()
    return folder


def moved(folder: Path, start: dict[str, torch.Tensor]) -> float:
    """The largest change of any weight that was saved; what is not in `start` began at 0 (a head, LoRA's B)."""
    now = {name.partition(":")[2]: w for name, w in weights(folder).items() if "lora_A" not in name}
    return max(float((w - start[name] if name in start else w).abs().max()) for name, w in now.items())


@pytest.mark.parametrize("name", ["sgd", "ragged", "warmed", "qlora", "tied", "rm", "rm-lora", "rm-parts"])
@pytest.mark.parametrize("strategy", list(STAGES))
def test_every_strategy_trains_what_one_process_trains(runs: Path, base: Path, strategy: str, name: str) -> None:
    ours, one = runs / strategy / name, runs / "one" / name
    seen, expected = [result(ours, rank) for rank in (0, 1)], result(one)
    assert seen[0]["strategy"] == {"ddp": "MULTI_CPU"}.get(strategy, "DEEPSPEED") and expected["strategy"] == "NO"
    assert moved(one / "run", load_file(base / "model.safetensors")) > 1e-3
    assert_same_weights(ours / "run", one / "run", 1e-5)
    assert seen[0].get("rollouts") == seen[1].get("rollouts") == expected.get("rollouts")
    assert len(seen[0]["logs"]) == len(expected["logs"]) > 1
    for row, row1 in zip(seen[0]["logs"], expected["logs"], strict=True):
        assert row == pytest.approx(row1, rel=1e-3, abs=1e-4)
    for key, value in expected["evaluated"].items():
        if "runtime" not in key and "per_second" not in key:
            assert seen[0]["evaluated"][key] == pytest.approx(value, rel=1e-3, abs=1e-4), key


@pytest.mark.parametrize("strategy", ZERO)
def test_processes_with_different_numbers_of_chunks_do_not_wait_for_ever(runs: Path, strategy: str) -> None:
    mine, theirs = (result(runs / strategy / "ragged", rank)["chunks"] for rank in (0, 1))
    assert len(mine) == len(theirs) and mine != theirs


@pytest.mark.parametrize("strategy", ZERO)
def test_the_warm_up_leaves_every_byte_of_the_policy(runs: Path, base: Path, strategy: str) -> None:
    saved = runs / strategy / "warmup" / "run"
    start = load_file(base / "model.safetensors")
    for name, tensor in load_file(saved / "model.safetensors").items():
        assert torch.equal(tensor, start[name]), name
    assert float(load_file(saved / "value_head.safetensors")["weight"].abs().max()) > 0


@pytest.mark.parametrize("strategy", ZERO)
def test_target_kl_leaves_every_byte_of_the_policy_and_the_critic_goes_on(runs: Path, strategy: str) -> None:
    run = runs / strategy / "stop"
    logs = result(run)["logs"]
    stopped = [int(row["policy/stopped_at"]) for row in logs if "policy/stopped_at" in row]
    assert stopped == [1]
    before, after = (run / "run" / f"checkpoint-{step}" for step in (1, 3))
    policy, critic = "adapter_model.safetensors", "value/adapter_model.safetensors"
    assert all(torch.equal(w, load_file(after / policy)[name]) for name, w in load_file(before / policy).items())
    assert any(not torch.equal(w, load_file(after / critic)[name]) for name, w in load_file(before / critic).items())


@pytest.mark.parametrize("strategy", ZERO)
def test_a_gradient_that_is_not_finite_is_skipped_on_every_process(runs: Path, strategy: str) -> None:
    run = runs / strategy / "broken"
    assert_same_weights(run / "run" / "checkpoint-2", run / "run" / "checkpoint-1", 0.0)
    assert [row.get("skipped_updates") for row in result(run)["logs"]] == [None, 1.0]


@pytest.mark.parametrize("name", ["saved", "saved-qlora"])
@pytest.mark.parametrize("strategy", ZERO)
def test_a_run_resumed_in_mid_cycle_is_the_uninterrupted_one(runs: Path, strategy: str, name: str) -> None:
    whole, resumed = runs / strategy / name, runs / strategy / f"resumed-{name}"
    assert_same_weights(resumed / "run", whole / "run", 0.0)
    assert result(resumed)["rollouts"] == result(whole)["rollouts"][1:]
    assert result(resumed)["logs"] == result(whole)["logs"]


@pytest.mark.parametrize("strategy", ZERO)
def test_what_is_saved_loads_with_stock_libraries(runs: Path, base: Path, tied: Path, strategy: str) -> None:
    for name in ("sgd", "tied"):
        folder = runs / strategy / name / "run"
        loaded: Any = AutoModelForCausalLM.from_pretrained(folder)
        file = load_file(folder / "model.safetensors")
        assert {k for k in loaded.state_dict() if k not in file} <= {"lm_head.weight"}
        assert sum(p.numel() for p in loaded.parameters()) == sum(t.numel() for t in file.values())
        assert all(torch.equal(loaded.state_dict()[key], tensor) for key, tensor in file.items())
    folder = runs / strategy / "qlora" / "run"
    peft = AutoPeftModelForCausalLM.from_pretrained(folder)
    file = load_file(folder / "adapter_model.safetensors")
    assert len(file) == 8 and max(float(t.abs().max()) for k, t in file.items() if "lora_B" in k) > 0
    state = peft.state_dict()
    assert all(torch.equal(state[k.replace(".weight", ".default.weight")], t) for k, t in file.items())
    scorer: Any = AutoModelForSequenceClassification.from_pretrained(runs / strategy / "rm" / "run", num_labels=1)
    head = load_file(runs / strategy / "rm" / "run" / "model.safetensors")["score.weight"]
    assert torch.equal(scorer.score.weight, head)


def test_an_optimiser_of_deepspeeds_own_is_refused(runs: Path) -> None:
    assert "separate learning rates" in result(runs / "zero2" / "own-optimizer")["error"]
