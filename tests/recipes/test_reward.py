"""recipes/reward.py as a user runs it: a process, local files, a local model; and its configurations."""

from __future__ import annotations

import dataclasses
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from trl import ModelConfig

from hfrlhf.data.loading import load_splits
from hfrlhf.data.preferences import prepare_pairs
from hfrlhf.settings.reward import RewardConfig

ROOT = Path(__file__).resolve().parents[2]
RECIPE = ROOT / "recipes" / "reward.py"
CONFIGS = sorted((ROOT / "recipes" / "configs").glob("reward_*.yaml"))
SHARED = ROOT.parent / "shared"
ROWS = [
    {"prompt": "the film", "chosen": " is good .", "rejected": " is bad ."},
    {"prompt": "a very fine actor", "chosen": " and a good story !", "rejected": " but"},
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Path:
    """The output folder of a run with an adapter, a YAML file and one value on top of it."""
    folder = tmp_path_factory.mktemp("reward")
    for split, rows in (("train", ROWS * 8), ("test", ROWS)):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {
        "model_name_or_path": str(tiny_model_folder),
        "dataset_name": str(folder),
        "output_dir": str(folder / "out"),
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "num_train_epochs": 3,
        "logging_steps": 1,
        "save_strategy": "no",
        "use_cpu": True,
    }
    (folder / "reward.yaml").write_text(yaml.safe_dump(settings))
    done = subprocess.run(
        [sys.executable, str(RECIPE), "--config", str(folder / "reward.yaml"), "--learning_rate", "2e-2"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == f"the model is in {folder / 'out'}"
    return folder / "out"


def test_it_trains_evaluates_and_saves_a_model_that_loads(trained: Path) -> None:
    history = json.loads((trained / "trainer_state.json").read_text())["log_history"]
    assert {entry["learning_rate"] for entry in history if "learning_rate" in entry} == {2e-2}
    assert json.loads((trained / "eval_results.json").read_text())["eval_accuracy"] == 1.0
    model = AutoModelForSequenceClassification.from_pretrained(trained)
    tokenizer = AutoTokenizer.from_pretrained(trained)
    texts = [row["prompt"] + row[side] + "<eos>" for row in ROWS for side in ("chosen", "rejected")]
    with torch.no_grad():
        scores = (
            model(**tokenizer(texts, padding=True, return_tensors="pt")).logits.squeeze(-1) - model.config.reward_shift
        )
    assert scores[0] > scores[1] and scores[2] > scores[3]
    assert abs(float(scores[::2].mean())) < 1e-5  # the chosen responses, which are those of the training data


def run_here(monkeypatch: pytest.MonkeyPatch, *argv: str) -> None:
    monkeypatch.setattr(sys, "argv", ["reward.py", *argv])
    runpy.run_path(str(RECIPE), run_name="__main__")


@pytest.mark.parametrize(
    ("options", "stop"),
    [
        (["--dataset_name", "d"], "--model_name_or_path is missing"),
        (["--model_name_or_path", "m"], "--dataset_name is missing"),
        (["--model_name_or_path", "m", "--dataset_name", "d"], "already holds a run"),
    ],
)
def test_bad_input_is_refused_at_once(options: list[str], stop: str, trained: Path, monkeypatch) -> None:
    with pytest.raises((SystemExit, FileExistsError), match=stop):
        run_here(monkeypatch, *options, "--output_dir", str(trained), "--use_cpu")


def test_help_fits_a_newcomer(monkeypatch, capsys) -> None:
    with pytest.raises(SystemExit):
        run_here(monkeypatch, "--help")
    text = capsys.readouterr().out
    assert text.count("\n") < 110
    for word in ("recipes/configs/reward_reviews.yaml", "--label_smoothing", "--dataset_name", "--push_to_hub"):
        assert word in text


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_configuration_says_how_it_was_run_and_holds_valid_settings(path: Path, tmp_path: Path) -> None:
    text = path.read_text()
    header = [line for line in text.splitlines() if line.startswith("#")]
    for word in ("Hardware:", f"recipes/reward.py --config recipes/configs/{path.name}", "Time:", "Result:"):
        assert any(word in line for line in header), word
    settings = yaml.safe_load(text)
    given = {name: settings.pop(name) for name in ("model_name_or_path", "dataset_name")}
    assert all(not Path(value).is_absolute() for value in given.values())
    of_model = {field.name for field in dataclasses.fields(ModelConfig)} - {"dtype"}
    ModelConfig(**{name: settings.pop(name) for name in of_model & settings.keys()})
    RewardConfig(**settings | {"output_dir": str(tmp_path)})


@pytest.mark.skipif(not SHARED.is_dir(), reason="no ../shared beside the repository")
def test_the_data_of_the_configurations_is_read_as_the_policy_writes_it() -> None:
    tokenizer = AutoTokenizer.from_pretrained(SHARED / "models" / "reviews-sft")
    reviews = load_splits(str(SHARED / "data" / "reviews-preference"))
    assert {name: len(rows) for name, rows in reviews.items()} == {"train": 6000, "test": 600}
    first: Dataset = reviews["test"].select(range(50))
    for row, ids in zip(first, prepare_pairs(first, tokenizer, 256).dataset, strict=True):
        prompt = tokenizer(row["prompt"]).input_ids
        for side in ("chosen", "rejected"):
            tokens = ids[f"{side}_ids"]
            assert tokens[: len(prompt)] == prompt and tokens.count(1) == tokens.count(2) == 1 and tokens[-1] == 2
    dialogues = load_splits(str(SHARED / "data" / "hh-harmless"))["test"]
    lengths = [max(len(tokenizer(row[side]).input_ids) + 1 for side in ("chosen", "rejected")) for row in dialogues]
    assert prepare_pairs(dialogues, tokenizer, 256, "test").dropped == sum(length > 256 for length in lengths) > 0
