"""Two processes train the same policy as one: the same texts, the same steps, the same numbers in the log."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

pytestmark = pytest.mark.distributed

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
    (tmp_path / "train.py").write_text(SCRIPT)
    folder = tmp_path / f"processes-{processes}"
    folder.mkdir()
    torchrun = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes)] if processes > 1 else []
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        [sys.executable, *torchrun, str(tmp_path / "train.py"), str(model), str(folder), json.dumps(changes)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root},
        capture_output=True,
        text=True,
        timeout=290,
    )
    assert done.returncode == 0, done.stderr[-3000:]
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
    # Steps of plain gradient descent, so that a rounding error of a gradient stays one (Adam would divide by its size).
    changes = {"optim": "sgd", "learning_rate": 0.3, "lr_scheduler_type": "constant"} | changes
    (one,), weights = run(tmp_path, tiny_model_folder, 1, changes)
    two, weights2 = run(tmp_path, tiny_model_folder, 2, changes)

    start = load_file(tiny_model_folder / "model.safetensors")
    moved = [w - start[name] if name in start else w for name, w in weights.items() if "lora_A" not in name]
    assert max(float(change.abs().max()) for change in moved) > 1e-2  # a head and LoRA's B start from 0
    for name, tensor in weights.items():
        limit = 1e-5 * float(tensor.abs().max())
        torch.testing.assert_close(weights2[name], tensor, atol=limit, rtol=0, msg=lambda m, name=name: f"{name}: {m}")

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


def scores_only(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if name.startswith("eval_objective/")}
