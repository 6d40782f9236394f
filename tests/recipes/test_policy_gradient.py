"""recipes/policy_gradient.py as a user runs it: a process, local files, a local model, a reward function in a file."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from transformers import AutoModelForCausalLM

from hfrlhf.algorithms import ALGORITHMS, algorithm_table
from hfrlhf.cli.command_line import parse_command_line, print_table, value_given
from hfrlhf.settings.policy_gradient import PolicyGradientConfig
from hfrlhf.trainers.family import family_of

ROOT = Path(__file__).resolve().parents[2]


def run_recipe(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "recipes" / "policy_gradient.py"), *argv],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
    )


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, tiny_model_folder: Path) -> Path:
    """A folder with prompts, a reward function and a YAML file that names an algorithm."""
    folder = tmp_path_factory.mktemp("family")
    rows = [json.dumps({"prompt": prompt}) for prompt in ("the film", "a story", "the actor", "bad")]
    (folder / "train.jsonl").write_text("\n".join(rows) + "\n")
    (folder / "mine.py").write_text("def good(completions):\n    return [text.count('good') for text in completions]\n")
    values = {
        "algorithm": "rloo",
        "model_name_or_path": str(tiny_model_folder),
        "dataset_name": str(folder),
        "reward_funcs": [f"{folder / 'mine.py'}:good"],
        "rollout_batch_size": 8,
        "num_generations": 2,
        "max_steps": 4,
        "max_completion_length": 5,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
    }
    (folder / "family.yaml").write_text(yaml.safe_dump(values))
    return folder / "family.yaml"


@pytest.mark.parametrize(
    ("options", "algorithm"),
    [([], "rloo"), (["--algorithm=trpo", "--max_kl", "0.02", "--value_epochs", "1"], "trpo")],
    ids=["named in the file", "named on the command line, with a trainer of its own"],
)
def test_it_trains_with_the_named_algorithm(settings, tmp_path, options, algorithm):
    done = run_recipe("--config", str(settings), "--output_dir", str(tmp_path / "out"), *options)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert f"{algorithm} on 4 prompts" in done.stdout
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    saved = json.loads((tmp_path / "out" / "training_args.json").read_text())
    assert saved["algorithm"] == algorithm and saved.get("max_kl") == (0.02 if algorithm == "trpo" else None)
    assert algorithm in (tmp_path / "out" / "README.md").read_text()


def test_an_unknown_algorithm_lists_the_names_and_the_nearest():
    done = run_recipe("--algorithm", "tpro")
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert "did you mean 'trpo'?" in done.stderr and "reinforce_minimal_variance" in done.stderr


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--algorithm", "rloo", "--num_generations", "1"], "compares the responses to one prompt"),
        (["rloo"], "not used"),
    ],
)
def test_what_cannot_work_is_said_in_a_line(argv, message, capsys):
    with pytest.raises(SystemExit):
        parse_command_line((PolicyGradientConfig,), argv)
    assert message in capsys.readouterr().err


def test_a_narrow_terminal_cuts_no_name(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("rich.console.Console.is_terminal", True)
    print_table(algorithm_table())
    printed = capsys.readouterr().out
    assert all(name in printed for name in ALGORITHMS)


def test_the_help_of_trpo_has_its_settings():
    shown = run_recipe("--algorithm", "trpo", "--help").stdout
    assert "--max_kl" in shown and "--cg_damping" in shown and "--value_epochs" in shown


@pytest.mark.parametrize("argv", [["--algorithm"], ["--algorithm", "--help"], ["--algorithm="]])
def test_an_option_without_its_value_says_so(argv):
    with pytest.raises(SystemExit, match="--algorithm needs a value"):
        value_given("algorithm", argv)


def test_the_command_line_wins_over_the_file(settings):
    assert value_given("algorithm", ["--config", str(settings)]) == "rloo"
    assert value_given("algorithm", ["--config", str(settings), "--algorithm", "trpo"]) == "trpo"
    assert value_given("algorithm", [f"--config={settings}", "--algorithm=a2c"]) == "a2c"
    assert value_given("algorithm", ["--seed", "1"]) is None


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_configuration_of_the_readme_suits_every_algorithm(algorithm, tmp_path):
    values = yaml.safe_load((ROOT / "recipes" / "configs" / "family_reviews.yaml").read_text())
    config, _ = family_of(algorithm)
    names = {field.name for field in dataclasses.fields(config)}
    groups = {"num_generations": 4} if "groups" in ALGORITHMS[algorithm].needs else {}
    settings = {name: value for name, value in values.items() if name in names}
    built = config(**settings | groups | {"algorithm": algorithm, "output_dir": str(tmp_path)})
    assert built.num_ppo_epochs == ALGORITHMS[algorithm].epochs and built.num_mini_batches == 1
