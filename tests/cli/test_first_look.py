"""Help and slips of the command line: at once, in our words, a line each, before torch is loaded."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from hfrlhf.cli.data_arguments import POLICY_NEEDS, POLICY_PAGE, POLICY_PLACES
from hfrlhf.cli.first_look import first_look, value_given
from hfrlhf.rewards.sources import reward_from_name

ROOT = Path(__file__).resolve().parents[2]
PLACES = [*POLICY_PLACES, "hfrlhf.settings.policy_gradient:PPOConfig"]
ENOUGH = ["--model_name_or_path", "owner/model", "--dataset_name", "prompts", "--reward_funcs", "owner/reward"]


def look(*argv: str) -> None:
    first_look("What it does.", POLICY_PAGE, PLACES, POLICY_NEEDS, argv)


def refusals(capsys: pytest.CaptureFixture[str], *argv: str) -> list[str]:
    with pytest.raises(SystemExit) as stop:
        look(*argv)
    assert stop.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert all(line.startswith("error: ") for line in lines)
    return [line.removeprefix("error: ") for line in lines]


@pytest.mark.parametrize(
    "more",
    [
        [],
        ["--learning_rate", "1e-5", "--max-steps=3", "--bf16", "--no_log_completions", "--kl_coef=-1"],
        ["--reward_weights", "1", "-0.5", "--report_to", "none", "--save_steps", "0.5", "--lora_r=8"],
        ["--resume_from_checkpoint", "True", "--logging_steps", "1", "--bf16", "false", "--optim", "adamw_torch"],
    ],
)
def test_what_is_right_passes(more):
    look(*ENOUGH, *more)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--learning_rat", "1"], "there is no option 'learning_rat'; did you mean learning_rate?"),
        (["--response_length", "5"], "there is no option 'response_length'; its name here is: max_completion_length"),
        (["--quite_unlike"], "there is no option 'quite_unlike'; see --help-all"),
        (["--learning_rate", "fast"], "--learning_rate must be a number, got 'fast'"),
        (["--max_steps", "1.5"], "--max_steps must be a whole number, got '1.5'"),
        (["--bf16", "maybe"], "--bf16 must be true or false, got 'maybe'"),
        (["--dtype", "float8"], "--dtype must be one of auto, bfloat16, float16, float32; got 'float8'"),
        (["--seed"], "--seed needs a value"),
        (["--seed", "1", "2"], "--seed takes one value, got 1 2"),
    ],
)
def test_a_slip_is_a_line(more, said, capsys):
    assert refusals(capsys, *ENOUGH, *more) == [said]


def test_all_slips_are_said_at_once(capsys):
    assert len(refusals(capsys, *ENOUGH, "--foo", "1", "--seed", "x", "--bar=2")) == 3
    (stray,) = refusals(capsys, "stray", *ENOUGH)
    assert stray.startswith("'stray' belongs to no option")
    missing = refusals(capsys, "--seed", "1")
    assert [line.split(" ")[0] for line in missing] == [f"--{name}" for name in POLICY_NEEDS]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "the file does not exist (looked from"),
        ("- a\n- b\n", "must hold `name: value` lines; it holds a list"),
        ("a: [1\n", "line 2: no YAML that could be read"),
        ("just words", "must hold `name: value` lines; it holds a str"),
    ],
)
def test_a_file_of_settings_that_is_none(text, said, tmp_path, capsys):
    if text is not None:
        (tmp_path / "run.yaml").write_text(text)
    for form in (["--config", str(tmp_path / "run.yaml")], [f"--config={tmp_path / 'run.yaml'}"]):
        (line,) = refusals(capsys, *form)
        assert line.startswith(f"--config {tmp_path / 'run.yaml'}") and said in line


def test_settings_of_the_file_are_looked_at_too(tmp_path, capsys):
    (tmp_path / "run.yaml").write_text("learning_rate: fast\nnum_mini_batch: 3\nmax_steps: 1e-3\nseed: 4\n")
    lines = refusals(capsys, *ENOUGH, "--config", str(tmp_path / "run.yaml"))
    assert lines == [
        "there is no option 'num_mini_batch'; did you mean num_mini_batches?",
        "learning_rate must be a number, got 'fast'",
        "max_steps must be a whole number, got '1e-3'",
    ]


@pytest.mark.parametrize("name", ["../gone/model", "/gone/model", "runs/gone", "a/b/c", "gone.jsonl"])
def test_paths_that_lead_nowhere(name, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for option in ("model_name_or_path", "dataset_name", "reward_funcs", "value_model"):
        words = [*ENOUGH, "--value_model", "adapter"]
        words[words.index(f"--{option}") + 1] = name
        (line,) = refusals(capsys, *words)
        assert line.startswith(f"{option}: there is no '{name}' (looked from {tmp_path}); give ")
    (tmp_path / "mine.py").write_text("x = 1")
    look(*ENOUGH[:-1], "mine.py:f")
    assert "there is no 'gone.py'" in refusals(capsys, *ENOUGH[:-1], "gone.py:f")[0]


@pytest.mark.parametrize("file", sorted((ROOT / "recipes" / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_shipped_configurations_are_right_but_for_what_does_not_come_with_them(file, tmp_path, monkeypatch, capsys):
    """Elsewhere than here nothing of `../shared` and `runs` is there: said at once, with what to put in its place."""
    monkeypatch.chdir(tmp_path)
    settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    if "reward_funcs" not in settings:
        pytest.skip("of another recipe; tried there")
    words = [] if "dataset_name" in settings else ["--dataset_name", "prompts"]
    lines = refusals(capsys, "--config", str(file), *words)
    assert all("names what does not come with it: put" in line for line in lines)
    assert {line.partition(":")[0] for line in lines} <= {"model_name_or_path", "dataset_name", "reward_funcs"}


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ("ppo", ["--help"]),
        ("ppo", ["--help-all"]),
        ("reward", ["-h"]),
        ("sft", ["--help"]),
        ("policy_gradient", ["--algorithm", "trpo", "--help"]),
        ("ppo", ["--config", "recipes/configs/ppo_qlora.yaml", "--lerning_rate", "3"]),
    ],
)
def test_it_is_answered_before_torch_is_loaded(recipe, words):
    """0.1 s of CPU time instead of 6; the bound is wide for busy machines."""
    program = (
        f"import runpy, sys; sys.argv = ['{recipe}.py', *{words!r}]\n"
        f"try: runpy.run_path('recipes/{recipe}.py', run_name='__main__')\n"
        "except SystemExit as stop: code = stop.code\n"
        "import resource; print(resource.getrusage(resource.RUSAGE_SELF).ru_utime < 2, code,"
        " [name for name in ('torch', 'transformers', 'trl') if name in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True)
    last = done.stdout.splitlines()[-1]
    assert last == f"True {2 if '--config' in words else 0} []", done.stdout[-500:] + done.stderr[-2000:]
    assert "deprecated" not in done.stdout.lower() or "--help-all" in words
    assert "default: None" not in done.stdout


def test_help_shows_what_really_holds(capsys):
    with pytest.raises(SystemExit):
        look("--help")
    page = " ".join(capsys.readouterr().out.split())
    for words in (
        "Passes over each rollout. (default: 4)",
        "(default: 0.1 where there is a critic)",
        "(default: 8 per process: per_device_train_batch_size ×",
        "Step size of the critic. (default: learning_rate)",
        "--gae_lambda X GAE's λ",
    ):
        assert words in page
    assert "None" not in page and "--gradient_checkpointing_kwargs" not in page


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("rew.py", "def good(c): ...\ndef _own(): ...\ndef bad(c): ...\n", "FUNCTION; it has good, bad"),
        ("./rew.py", "import os\ndef only(c): ...\n", "only; it has only"),
        ("./rew.py:", "def good(c): ...\ndef bad(c): ...\n", "FUNCTION; it has good, bad"),
        ("rew.py", "no python at all", "FUNCTION"),
        ("rew.py", "x = 1", "FUNCTION"),
    ],
)
def test_a_file_of_rewards_needs_the_name_of_one(name, text, said, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rew.py").write_text(text)
    (tmp_path / "run.yaml").write_text(f"reward_funcs: '{name}'\n")
    expected = f"'{name}' names no function: write {name.rstrip(':')}:{said}"
    assert refusals(capsys, *ENOUGH[:-1], name) == [f"reward_funcs: {expected}"]
    assert refusals(capsys, *ENOUGH[:-2], "--config", "run.yaml") == [f"reward_funcs: {expected}"]
    assert refusals(capsys, *ENOUGH[:-1], "rew.py:a-b")[0].startswith("reward_funcs: 'rew.py:a-b' names 'a-b', which")
    assert refusals(capsys, *ENOUGH[:-1], "gone.py")[0].startswith("reward_funcs: there is no 'gone.py'")
    with pytest.raises(ValueError, match=re.escape(expected)):
        reward_from_name(name)
    look(*ENOUGH[:-1], "rew.py:good", "owner/reward")


@pytest.mark.parametrize(
    "settings", ["policy_gradient:PPOConfig", "policy_gradient:PolicyGradientConfig", "reward:RewardConfig"]
)
def test_the_whole_help_leaves_nothing_open_and_says_nothing_twice(settings, capsys):
    with pytest.raises(SystemExit):
        first_look("What it does.", {}, [*POLICY_PLACES, f"hfrlhf.settings.{settings}"], (), ["--help-all"])
    page = " ".join(capsys.readouterr().out.split())
    assert "…" not in page
    assert re.findall(r"Default: ([^()]+)\. \(default: \1\)", page) == []
    assert "--resume_from_checkpoint X `True` for the newest checkpoint" in page


def test_the_whole_help_says_ranges_and_words(capsys):
    with pytest.raises(SystemExit):
        look("--help-all")
    page = " ".join(capsys.readouterr().out.split())
    assert (
        "--gae_lambda X GAE's λ, 0 (one-step, biased by the critic) to 1 (no bias, more variance). (at least 0, "
        in page
    )
    assert "Typical: 3. (above 1)" in page and "--kl_in reward | loss Where the KL enters" in page
    assert "--max_prompt_length X Tokens. Longer prompts" in page


def test_a_word_that_is_none_of_its_setting(capsys):
    assert refusals(capsys, *ENOUGH, "--kl_in", "nowhere") == ["--kl_in must be one of reward, loss; got 'nowhere'"]


@pytest.mark.parametrize("argv", [["--algorithm"], ["--algorithm", "--help"], ["--algorithm="]])
def test_an_option_without_its_value_says_so(argv):
    with pytest.raises(SystemExit, match="--algorithm needs a value"):
        value_given("algorithm", argv)
