"""recipes/sft.py as a user runs it: a process, local files, a local model."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).resolve().parents[2]
TEXTS = ["the film is good .", "a fine story and a good actor !", "the actor was dull", "very bad but fine ."]


def run_recipe(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "recipes" / "sft.py"), *argv],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
    )


def write_rows(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Path:
    """The output folder of a run with a YAML file and one value on top of it."""
    folder = tmp_path_factory.mktemp("sft")
    data = folder / "data"
    data.mkdir()
    write_rows(data / "train.jsonl", [{"text": text} for text in TEXTS * 4])
    write_rows(data / "test.jsonl", [{"text": text} for text in TEXTS])
    settings = {
        "model_name_or_path": str(tiny_model_folder),
        "dataset_name": str(data),
        "output_dir": str(folder / "out"),
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "max_steps": 3,
        "per_device_train_batch_size": 4,
        "logging_steps": 1,
        "eval_strategy": "steps",
        "eval_steps": 3,
        "save_strategy": "no",
        "use_cpu": True,
        "bf16": False,
    }
    (folder / "sft.yaml").write_text(yaml.safe_dump(settings))
    done = run_recipe("--config", str(folder / "sft.yaml"), "--learning_rate", "1e-5")
    assert done.returncode == 0, done.stdout + done.stderr
    for aside in ("gemm_4bit", "Loading weights", "Writing model shards", "FutureWarning"):  # of other libraries
        assert aside not in done.stderr
    return folder / "out"


def test_the_command_line_wins_over_the_yaml(trained: Path) -> None:
    history = json.loads((trained / "trainer_state.json").read_text())["log_history"]
    assert [entry["learning_rate"] for entry in history if "learning_rate" in entry] == [1e-5] * 3


def test_the_model_was_trained_and_loads(trained: Path, tiny_model_folder: Path) -> None:
    before, after = (AutoModelForCausalLM.from_pretrained(folder) for folder in (tiny_model_folder, trained))
    moved = (before.model.layers[0].mlp.up_proj.weight - after.model.layers[0].mlp.up_proj.weight).abs().max()
    assert 0 < moved < 1e-4  # three steps of Adam at 1e-5
    tokens = AutoTokenizer.from_pretrained(trained)("the film", return_tensors="pt")
    assert torch.isfinite(after(**tokens).logits).all()


def test_evaluation_is_recorded(trained: Path) -> None:
    # A random model's loss is near log(20), the uniform one's over a vocabulary of 20.
    assert abs(json.loads((trained / "eval_results.json").read_text())["eval_loss"] - 3.0) < 0.3


@pytest.mark.parametrize(
    ("options", "stop"),
    [
        (["--dataset_name", "d"], "--model_name_or_path is missing"),
        (["--model_name_or_path", "m"], "--dataset_name is missing"),
        (["--model_name_or_path", "m", "--dataset_name", "d"], "already holds a run"),
    ],
)
def test_bad_input_is_refused_at_once(
    options: list[str], stop: str, trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["sft.py", *options, "--output_dir", str(trained), "--use_cpu", "--bf16", "False"])
    with pytest.raises((SystemExit, FileExistsError), match=stop):
        runpy.run_path(str(ROOT / "recipes" / "sft.py"), run_name="__main__")
