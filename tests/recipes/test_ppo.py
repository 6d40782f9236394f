"""recipes/ppo.py as a user runs it: a process, local files, a local model, a reward function in a file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).resolve().parents[2]


def run_recipe(*argv: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "recipes" / "ppo.py"), *argv],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Path:
    """A folder with prompts, a reward function and a YAML file."""
    folder = tmp_path_factory.mktemp("ppo")
    rows = [json.dumps({"prompt": prompt}) for prompt in ("the film", "a story", "the actor", "bad", "a dull film")]
    (folder / "train.jsonl").write_text("\n".join(rows) + "\n")
    (folder / "test.jsonl").write_text("\n".join(rows[:2]) + "\n")
    (folder / "mine.py").write_text("def good(completions):\n    return [text.count('good') for text in completions]\n")
    values = {
        "model_name_or_path": str(tiny_model_folder),
        "dataset_name": str(folder),
        "reward_funcs": f"{folder / 'mine.py'}:good",  # one value is a list of one
        "output_dir": str(folder / "out"),
        "rollout_batch_size": 4,
        "num_mini_batches": 2,
        "max_steps": 8,
        "max_completion_length": 5,
        "learning_rate": 1.0e-2,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
    }
    (folder / "ppo.yaml").write_text(yaml.safe_dump(values).replace("'no'", "no"))  # as people write it
    return folder / "ppo.yaml"


@pytest.fixture(scope="module")
def trained(settings: Path) -> tuple[Path, str]:
    """The output folder of a run, and what it printed."""
    done = run_recipe("--config", str(settings), "--learning_rate", "1e-5")
    assert done.returncode == 0, done.stdout + done.stderr
    return settings.parent / "out", done.stdout


def test_it_leaves_a_model_its_curves_samples_metrics_and_card(trained):
    folder, printed = trained
    AutoModelForCausalLM.from_pretrained(folder)
    assert AutoTokenizer.from_pretrained(folder).eos_token == "<eos>"
    names = {path.name for path in folder.iterdir()}
    assert {"value_head.safetensors", "curves.png", "completions.jsonl", "eval_results.json", "README.md"} <= names
    rows = [json.loads(line) for line in (folder / "completions.jsonl").read_text().splitlines()]
    assert {"step", "prompt", "completion", "score"} == set(rows[0])
    assert "8 optimiser steps" in printed and "4 epochs × 2 mini-batches of 2" in printed
    assert "first rollout" in printed and "last rollout" in printed
    assert printed.splitlines()[-1] == f"the model is in {folder}"


def test_the_command_line_wins_over_the_file(trained):
    assert json.loads((trained[0] / "training_args.json").read_text())["learning_rate"] == 1e-5


def test_a_second_run_does_not_write_over_the_first(trained, settings):
    before = (trained[0] / "model.safetensors").stat().st_mtime_ns
    again = run_recipe("--config", str(settings))
    assert again.returncode != 0 and "already holds a run" in again.stderr
    assert (trained[0] / "model.safetensors").stat().st_mtime_ns == before


def test_help_and_missing_options_speak_to_a_newcomer():
    shown = run_recipe("--help")
    assert shown.returncode == 0
    for words in ("embedded demo", "--reward_funcs", "price of one nat of KL", "--help-all"):
        assert words in shown.stdout
    assert len(shown.stdout.splitlines()) < 160
    missing = run_recipe("--output_dir", "nowhere")
    assert missing.returncode != 0 and "--model_name_or_path is missing" in missing.stderr
    old = run_recipe("--response_length", "53")
    assert old.returncode != 0 and "max_completion_length" in old.stderr


def test_every_role_an_adapter_and_the_policy_merged(settings, tmp_path):
    adapters = ["--use_peft", "--lora_target_modules", "q_proj", "v_proj", "--value_model", "adapter", "--merge"]
    done = run_recipe("--config", str(settings), "--output_dir", str(tmp_path / "out"), *adapters)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "an adapter and a head on the policy's base" in done.stdout
    assert "its logits differ by at most" in done.stdout
    AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "merged")
    assert (tmp_path / "out" / "value" / "adapter_model.safetensors").is_file()
