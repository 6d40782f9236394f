"""The recipes' command line: YAML under options, help that fits a newcomer."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from trl import ModelConfig, SFTConfig

from hfrlhf import PPOConfig
from hfrlhf.cli.command_line import parse_command_line
from hfrlhf.cli.data_arguments import DataArguments, PolicyArguments


@dataclass
class Options:
    """A field of each kind is enough."""

    learning_rate: float = field(default=0.5, metadata={"help": "Step size. Typical: 1e-5 (e.g. for LoRA)."})
    packing: bool = field(default=False, metadata={"help": "Pack rows."})
    shuffle: bool = field(default=True, metadata={"help": "Shuffle rows."})
    name: str | None = None
    weights: list[float] | None = None
    files: list[str] = field(default_factory=list)


def parse(*argv: str) -> Options:
    (options,) = parse_command_line((Options,), argv)
    return options


@pytest.mark.parametrize("form", [["--config", "{}"], ["--config={}"]])
def test_options_win_over_the_file_and_the_file_over_defaults(form: list[str], tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("learning_rate: 1e-3\npacking: true\n")
    config = [word.format(path) for word in form]
    assert parse() == Options(0.5, False, True, None)
    assert parse(*config) == Options(1e-3, True, True, None)
    assert parse(*config, "--learning_rate", "1e-5") == Options(1e-5, True, True, None)
    assert parse("--learning_rate=2", *config, "--no_shuffle", "--name=a=b") == Options(2.0, True, False, "a=b")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("learning_rat", "did you mean learning_rate?"),  # no abbreviations either
        ("cliprange", "its name here is: clip_range"),
        ("quite_unlike", "see --help-all"),
    ],
)
def test_an_unknown_name_is_refused_with_a_hint(
    name: str, hint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(f"packing: true\n{name}: 1\n")
    for argv in (["--config", str(path)], [f"--{name}", "1"], [f"--{name}=1"]):
        with pytest.raises(SystemExit) as stop:
            parse(*argv)
        assert stop.value.code == 2
        assert f"there is no option {name!r}; {hint}" in capsys.readouterr().err


def test_checkpoints_that_are_switched_off_are_not_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "run.yaml"
    path.write_text('save_strategy: "no"\nuse_cpu: true\n')
    with pytest.raises(SystemExit):
        parse_command_line((SFTConfig,), ["--config", str(path), "--save_steps", "50"])
    assert "say `--save_strategy steps`, too" in capsys.readouterr().err
    asked = ["--config", str(path), "--save_steps", "50", "--save_strategy", "steps"]
    (args,) = parse_command_line((SFTConfig,), [*asked, "--output_dir", str(tmp_path)])
    assert args.save_steps == 50


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("files: rewards.py:good\nweights: 1", (["rewards.py:good"], [1.0])),
        ("files: [a, b]\nweights: ['1e-3', 2]", (["a", "b"], [1e-3, 2.0])),
        ("files: [no, 7]\nweights: 1e-3", (["no", "7"], [1e-3])),
        ("files: 2024-01-01\nweights:", (["2024-01-01"], None)),
    ],
)
def test_one_value_of_the_file_is_a_list_of_one(text: str, expected: object, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(text)
    options = parse("--config", str(tmp_path / "run.yaml"))
    assert (options.files, options.weights) == expected
    if options.weights:
        assert all(type(weight) is float for weight in options.weights)


@pytest.mark.parametrize("kinds", [(PolicyArguments, PPOConfig, ModelConfig), (DataArguments, SFTConfig, ModelConfig)])
def test_every_list_of_the_recipes_takes_one_value(kinds: Any, tmp_path: Path) -> None:
    """As the command line does: what it makes of the same word is what the file must give."""
    values = {"reward_weights": "2", "debug": "underflow_overflow", "include_for_metrics": None, "label_names": None}
    fixed = ["--output_dir", str(tmp_path), "--use_cpu", "--bf16", "False"]
    lists = {f.name for kind in kinds for f in dataclasses.fields(kind) if "list[" in str(f.type).lower()}
    assert "lora_target_modules" in lists
    for name in lists:
        value = values.get(name, "none" if name == "report_to" else "some-word")
        if value is None or name == "optim_target_modules":  # refused by these settings, whatever the value
            continue
        (tmp_path / "run.yaml").write_text(f"{name}: {value}\n")
        by_file = parse_command_line(kinds, ["--config", str(tmp_path / "run.yaml"), *fixed])
        by_words = parse_command_line(kinds, [f"--{name}", value, *fixed])
        found = [[getattr(record, name) for record in by if hasattr(record, name)] for by in (by_file, by_words)]
        assert found[0] == found[1] and found[0], name


def test_a_list_of_other_things_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for text, said in (("weights: [1, x]", "weights takes a list of float; it holds 'x'"), ("files: [{a: b}]", "{'a'")):
        (tmp_path / "run.yaml").write_text(text)
        with pytest.raises(SystemExit):
            parse("--config", str(tmp_path / "run.yaml"))
        assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "name", "expected"),
    [
        ("save_strategy: no", "save_strategy", "no"),
        ("eval_strategy: No", "eval_strategy", "no"),
        ("logging_strategy: 'no'", "logging_strategy", "no"),
        ("run_name: off", "run_name", "off"),
        ("run_name: 007", "run_name", "007"),
        ("packing: yes", "packing", True),
        ("shuffle_dataset: no", "shuffle_dataset", False),
        ("resume_from_checkpoint: yes", "resume_from_checkpoint", True),
        ("resume_from_checkpoint: no", "resume_from_checkpoint", None),
    ],
)
def test_words_that_yaml_reads_as_something_else(text: str, name: str, expected: object, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(text + "\n")
    argv = ["--config", str(tmp_path / "run.yaml"), "--output_dir", str(tmp_path), "--use_cpu", "--bf16", "False"]
    (args,) = parse_command_line((SFTConfig,), argv)
    assert getattr(args, name) == expected


def test_the_file_must_be_there(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse("--config", "gone.yaml")
    assert stop.value.code == 2 and "--config gone.yaml: the file does not exist" in capsys.readouterr().err


@pytest.mark.parametrize(("given", "expected"), [("True", True), ("true", True), ("runs/a/checkpoint-2",) * 2])
def test_resume_true_means_the_newest_checkpoint(given: str, expected: object, tmp_path: Path) -> None:
    argv = ["--output_dir", str(tmp_path), "--use_cpu", "--bf16", "False", "--resume_from_checkpoint", given]
    (config,) = parse_command_line((SFTConfig,), argv)
    assert config.resume_from_checkpoint is expected or config.resume_from_checkpoint == expected
    assert isinstance(config.resume_from_checkpoint, type(expected))
