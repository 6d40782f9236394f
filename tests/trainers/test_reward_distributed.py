"""Two processes train the same reward model as one, and evaluate every pair once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests import launching
from tests.launching import torchrun

pytestmark = pytest.mark.distributed

SCRIPT = """
import json, sys
from datasets import Dataset
from hfrlhf import RewardConfig, RewardTrainer

model, folder, batch = sys.argv[1], sys.argv[2], int(sys.argv[3])
for number, order in json.loads(sys.argv[4]):
    sides = [("the " * (i % 5) + "film is good", "a " * (i % 3) + "bad story") for i in range(number)]
    rows = [{"chosen": c, "rejected": r, "margin": i / 8} for i, (c, r) in enumerate(sides)]
    own = f"{folder}/{number}-{order}"
    config = RewardConfig(
        output_dir=own, per_device_train_batch_size=batch, per_device_eval_batch_size=3, gradient_accumulation_steps=2,
        learning_rate=0.1, optim="sgd", train_sampling_strategy=order, normalize_scores="mean_std",
        logging_steps=3 if order == "random" else 1,  # of four steps, so that the last is in train_loss only
        save_strategy="steps", save_steps=1, report_to="none", disable_tqdm=True, use_cpu=True, num_train_epochs=2,
    )
    trainer = RewardTrainer(model, config, Dataset.from_list(rows), eval_dataset=Dataset.from_list(rows[:11]))
    steps, original = [], trainer.get_batch_samples

    def watched(*args):
        batches, pairs = original(*args)
        steps.append(int(pairs))
        return batches, pairs

    trainer.get_batch_samples = watched
    train_loss = trainer.train().training_loss
    metrics = trainer.evaluate(), trainer.evaluate(Dataset.from_list(rows[:1]))
    scored = len(trainer.predict(Dataset.from_list(rows[:7])).predictions)
    trainer.save_model()
    if trainer.is_world_process_zero():
        logs = [entry for entry in trainer.state.log_history if "loss" in entry]
        result = {"processes": trainer.args.world_size, "metrics": metrics, "logs": logs, "train_loss": train_loss}
        with open(own + "/result.json", "w") as file:
            json.dump(result | {"steps": steps, "scored": scored}, file)
"""
# With 11 pairs a process has one and the other two in the last micro-batch, with 9 one has none, with 3 it is the
# only micro-batch.
CASES = {(16, "sequential"): [8, 8], (11, "sequential"): [8, 3], (9, "random"): [8, 1], (11, "group_by_length"): [8, 3]}
CASES |= {(13, "random"): [8, 5], (3, "sequential"): [3], (1, "sequential"): [1]}
NAMES = [f"{pairs}-{order}" for pairs, order in CASES]
LOGGED = ("loss", "accuracy", "margin")


@pytest.fixture(scope="module")
def runs(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All cases on one process in micro-batches of 4, and on two in such of 2."""
    place = tmp_path_factory.mktemp("reward")
    (place / "train.py").write_text(SCRIPT)
    for processes in (1, 2):
        given = [str(place / "train.py"), str(tiny_model_folder), str(place / f"processes-{processes}")]
        launching.run(*torchrun(processes), *given, str(4 // processes), json.dumps(list(CASES)))
    return place


def left_by(runs: Path, processes: int, name: str) -> tuple[dict, dict[str, torch.Tensor], dict]:
    """Results, weights and configuration of a run."""
    folder = runs / f"processes-{processes}" / name
    weights, config = load_file(folder / "model.safetensors"), json.loads((folder / "config.json").read_text())
    return json.loads((folder / "result.json").read_text()), weights, config


@pytest.mark.parametrize(("name", "steps"), list(zip(NAMES, CASES.values(), strict=True)), ids=NAMES)
def test_one_and_two_processes_agree(runs: Path, name: str, steps: list[int]) -> None:
    one, weights, config = left_by(runs, 1, name)
    two, weights2, config2 = left_by(runs, 2, name)
    assert (one["processes"], two["processes"]) == (1, 2)
    assert one["steps"] == two["steps"] == steps * 2, "pairs of each optimiser step, in two epochs"
    for key, tensor in weights.items():
        # A head that began at 0 is a sum of terms larger than itself, and their rounding errors are theirs.
        limit = 1e-5 * max(float(tensor.abs().max()), 1e-3)
        torch.testing.assert_close(weights2[key], tensor, atol=limit, rtol=0, msg=lambda m, key=key: f"{key}: {m}")
    assert config2["reward_shift"] == pytest.approx(config["reward_shift"], abs=1e-4)
    assert two["train_loss"] == pytest.approx(one["train_loss"], rel=1e-5, abs=1e-5)
    for row, row1 in zip(two["logs"], one["logs"], strict=True):
        assert [row[k] for k in LOGGED] == pytest.approx([row1[k] for k in LOGGED], rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_one_and_two_processes_evaluate_every_pair_once(runs: Path, name: str) -> None:
    one, two = (left_by(runs, processes, name)[0] for processes in (1, 2))
    assert one["scored"] == two["scored"] == min(7, int(name.split("-")[0]))
    for metrics1, metrics2 in zip(one["metrics"], two["metrics"], strict=True):
        keys = [key for key in metrics1 if "score" in key or key in ("eval_loss", "eval_accuracy", "eval_margin")]
        assert len(keys) == 15
        assert [metrics2[k] for k in keys] == pytest.approx([metrics1[k] for k in keys], rel=1e-5, abs=1e-4)
