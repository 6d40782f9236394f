"""Two processes train the same policy as one: the same texts, the same steps, the same numbers in the log."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel

from tests import launching
from tests.conftest import word_tokenizer
from tests.launching import torchrun

pytestmark = pytest.mark.distributed

# Steps of plain gradient descent, so that a rounding error of a gradient stays one (Adam would divide by its size).
STEADY = {"optim": "sgd", "learning_rate": 0.3, "lr_scheduler_type": "constant"}

SCRIPT = """
import json, sys
from functools import partial
from pathlib import Path
from tests.trainers.helpers import prompts, reward, trainer, training_logs
from tests.trainers.test_family import family_trainer

model, folder, changes = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
texts = []

def watching(completions):
    texts.append(completions)
    return reward(completions)

algorithm = changes.pop("algorithm", "ppo_clip")
build = trainer if algorithm == "ppo_clip" else partial(family_trainer, algorithm=algorithm)
if changes.pop("one_base", False):
    from peft import LoraConfig
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    changes |= {"peft_config": lora, "value_model": LoraConfig(r=2, target_modules=["k_proj"])}
changes = {"logging_steps": 1, "eval_dataset": prompts(3), "reward_funcs": watching, "max_steps": 8} | changes
if "prompts" in changes:
    changes["train_dataset"] = prompts(changes.pop("prompts"))
built = build(str(model), folder, **changes)
rollouts, original = [], built.after_rollout
built.after_rollout = lambda seen: (rollouts.append(seen.completion_lists()), original(seen))[1]
built.train()
evaluated = built.evaluate()
built.save_model()
rank = built.args.process_index
result = {"rollouts": rollouts, "texts": texts, "logs": training_logs(built), "evaluated": evaluated}
Path(folder, f"result-{rank}.json").write_text(json.dumps(result))
"""


def run(tmp_path: Path, model: Path, processes: int, changes: dict) -> tuple[list[dict], dict[str, torch.Tensor]]:
    """What each process saw, and the weights of policy and critic."""
    folder = tmp_path / f"processes-{processes}"
    folder.mkdir(parents=True)
    (tmp_path / "train.py").write_text(SCRIPT)
    launching.run(*torchrun(processes), str(tmp_path / "train.py"), str(model), str(folder), json.dumps(changes))
    names = ["model.safetensors", "adapter_model.safetensors", "value_head.safetensors"]
    files = [folder / "run" / name for name in [*names, "value/adapter_model.safetensors"]]
    weights = {name: tensor for file in files if file.exists() for name, tensor in load_file(file).items()}
    return [json.loads((folder / f"result-{i}.json").read_text()) for i in range(processes)], weights


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"max_tokens_per_micro_batch": 1, "ent_coef": 0.05},
        {"target_kl": 1e-3, "num_ppo_epochs": 4, "num_mini_batches": 1},
        {"normalize_scores": True, "whiten_rewards": True, "kl_target": 0.5, "kl_horizon": 80, "num_generations": 2},
        {"one_base": True},
        {"one_base": True, "gradient_checkpointing": True},
        {"algorithm": "trpo", "value_epochs": 1},
        {"algorithm": "ppo_penalty", "penalty_target": 1e-3},
        {"algorithm": "reinforce_minimal_variance"},
        {"algorithm": "expected_baseline_actor_critic", "value_learning_rate": 3.0},
        {"algorithm": "rloo", "num_generations": 8},  # the one group of each rollout lies on both processes
    ],
    ids=lambda c: c.get("algorithm") or ", ".join(c) or "plain",
)
def test_one_and_two_processes_agree(tiny_model_folder: Path, tmp_path: Path, changes: dict) -> None:
    changes = STEADY | changes
    (one,), weights = run(tmp_path, tiny_model_folder, 1, changes)
    two, weights2 = run(tmp_path, tiny_model_folder, 2, changes)

    start = load_file(tiny_model_folder / "model.safetensors")
    moved = [w - start[name] if name in start else w for name, w in weights.items() if "lora_A" not in name]
    assert max(float(change.abs().max()) for change in moved) > 1e-2  # a head and LoRA's B start from 0
    assert_same_weights(weights2, weights)

    assert two[0]["rollouts"] == two[1]["rollouts"] == one["rollouts"] and len(one["rollouts"]) > 1
    # Each process scores its own half of a rollout, and its share of three evaluation prompts.
    for halves, whole in zip(zip(two[0]["texts"], two[1]["texts"], strict=True), one["texts"], strict=True):
        assert halves[0] + halves[1] == whole
    assert [len(r["texts"][-1]) for r in (*two, one)] == [2, 1, 3]

    assert len(one["logs"]) == 8
    if changes.get("algorithm") == "trpo":
        assert [row["policy/step_fraction"] for row in one["logs"] if "policy/step_fraction" in row].count(0.0) < 4
    for row, row2 in zip(one["logs"], two[0]["logs"], strict=True):
        assert row2 == pytest.approx(row, rel=1e-4, abs=1e-5)
    assert scores_only(two[0]["evaluated"]) == pytest.approx(scores_only(one["evaluated"]), rel=1e-4, abs=1e-5)
    if "target_kl" in changes:
        assert any("policy/stopped_at" in row for row in one["logs"])


def assert_same_weights(weights: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert weights.keys() == expected.keys()
    for name, tensor in expected.items():
        limit = 1e-5 * float(tensor.abs().max())
        torch.testing.assert_close(weights[name], tensor, atol=limit, rtol=0, msg=lambda m, name=name: f"{name}: {m}")


def test_however_a_mini_batch_is_cut_the_run_is_the_same(tiny_model_folder: Path, tmp_path: Path) -> None:
    """A mini-batch of eight, as 8×1, 2×4 and 1×8 on one process, as 2×2 and 1×4 on each of two."""
    changes = STEADY | {"num_mini_batches": 1, "num_ppo_epochs": 2, "max_steps": 4}
    (whole,), weights = run(tmp_path / "whole", tiny_model_folder, 1, changes)
    for processes, accumulation in ((1, 4), (1, 8), (2, 2), (2, 4)):
        changes |= {"gradient_accumulation_steps": accumulation}
        seen, found = run(tmp_path / f"{processes}-{accumulation}", tiny_model_folder, processes, changes)
        assert seen[0]["rollouts"] == whole["rollouts"] and len(whole["rollouts"]) == 2
        assert_same_weights(found, weights)


def ending_at_once(folder: Path, odds: float) -> Path:
    """A language model whose next token is nearly always EOS, whatever came before."""
    tokenizer = word_tokenizer()
    sizes = {"vocab_size": len(tokenizer), "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64}
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(**sizes, tie_word_embeddings=False, eos_token_id=2, bos_token_id=1))
    with torch.no_grad():
        model.transformer.ln_f.bias[0] = 5.0
        model.lm_head.weight[:, 0] = 0.0
        model.lm_head.weight[tokenizer.eos_token_id, 0] = odds / 5
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_empty_responses_of_a_whole_process_and_an_odd_number_of_prompts(tmp_path: Path) -> None:
    model = ending_at_once(tmp_path / "model", odds=3.4)
    changes = STEADY | {"prompts": 11, "rollout_batch_size": 4, "num_mini_batches": 2, "whiten_rewards": True}
    (one,), weights = run(tmp_path, model, 1, changes)
    two, weights2 = run(tmp_path, model, 2, changes)
    assert two[0]["rollouts"] == one["rollouts"] and len(one["rollouts"]) == 2
    empty = [[len(ids) == 1 for ids in rollout] for rollout in one["rollouts"]]
    assert any(all(e[:2]) or all(e[2:]) for e in empty) and not all(map(all, empty))
    assert_same_weights(weights2, weights)


def scores_only(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if name.startswith("eval_objective/")}
