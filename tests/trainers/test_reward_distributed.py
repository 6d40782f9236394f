"""Two processes train the same reward model as one, and evaluate every pair once."""

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
from datasets import Dataset
from hfrlhf import RewardConfig, RewardTrainer

model, folder, batch = sys.argv[1], sys.argv[2], int(sys.argv[3])
rows = [{"chosen": "the " * (i % 5) + "film is good", "rejected": "a " * (i % 3) + "bad story"} for i in range(16)]
config = RewardConfig(
    output_dir=folder, per_device_train_batch_size=batch, per_device_eval_batch_size=3, gradient_accumulation_steps=2,
    learning_rate=0.1, optim="sgd", train_sampling_strategy="sequential", normalize_scores="mean_std", logging_steps=1,
    save_strategy="steps", save_steps=1, report_to="none", disable_tqdm=True, use_cpu=True,
)
trainer = RewardTrainer(model, config, Dataset.from_list(rows), eval_dataset=Dataset.from_list(rows[:11]))
trainer.train()
metrics = trainer.evaluate()
trainer.save_model()
if trainer.is_world_process_zero():
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    with open(folder + "/result.json", "w") as file:
        json.dump({"processes": trainer.args.world_size, "metrics": metrics, "logs": logs}, file)
"""


def run(tmp_path: Path, model: Path, processes: int, batch: int) -> tuple[dict, dict[str, torch.Tensor], dict]:
    """Results, weights and configuration of a run."""
    (tmp_path / "train.py").write_text(SCRIPT)
    folder = tmp_path / f"processes-{processes}"
    torchrun = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes)] if processes > 1 else []
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        [sys.executable, *torchrun, str(tmp_path / "train.py"), str(model), str(folder), str(batch)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root},
        capture_output=True,
        text=True,
        timeout=290,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    weights, config = load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())
    return json.loads((folder / "result.json").read_text()), weights, config


def test_one_and_two_processes_agree(tiny_model_folder: Path, tmp_path: Path) -> None:
    one, weights, config = run(tmp_path, tiny_model_folder, processes=1, batch=4)
    two, weights2, config2 = run(tmp_path, tiny_model_folder, processes=2, batch=2)
    assert (one["processes"], two["processes"]) == (1, 2)
    for name, tensor in weights.items():
        torch.testing.assert_close(weights2[name], tensor, atol=1e-5, rtol=0, msg=lambda m, name=name: f"{name}: {m}")
    assert config2["reward_shift"] == pytest.approx(config["reward_shift"], abs=1e-4)
    keys = [key for key in one["metrics"] if "score" in key or key in ("eval_loss", "eval_accuracy", "eval_margin")]
    assert len(keys) == 15
    assert [two["metrics"][k] for k in keys] == pytest.approx([one["metrics"][k] for k in keys], abs=1e-4)
    logged = [[log[k] for log in result["logs"] for k in ("loss", "accuracy", "margin")] for result in (one, two)]
    assert logged[0] == pytest.approx(logged[1], abs=1e-5) and len(logged[0]) == 6
