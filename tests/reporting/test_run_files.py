"""What `trainer.train()` leaves in a plain script, switch by switch, and what becomes of it after a resume."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from datasets import Dataset
from transformers import LlamaForSequenceClassification

from hfrlhf import RewardConfig, RewardTrainer
from hfrlhf.runs.guard import KLTooHigh
from hfrlhf.trainers.callbacks import CompletionsCallback, CurvesCallback
from tests.trainers.helpers import prompts, trainer, training_logs


def read(folder: Path, name: str) -> list[dict]:
    return [json.loads(row) for row in (folder / "run" / name).read_text(encoding="utf-8").splitlines()]


def files(folder: Path) -> set[str]:
    return {path.name for path in (folder / "run").iterdir() if path.is_file()} - {"_owner.json"}


def test_a_plain_script_leaves_samples_curves_log_and_metrics(tiny_model_folder, tmp_path):
    built = trainer(str(tiny_model_folder), tmp_path, max_steps=8, save_curves=True, eval_dataset=prompts(2))
    result = built.train()
    assert files(tmp_path) == {
        *("completions.jsonl", "curves.png", "trainer_state.json", "train_results.json", "all_results.json")
    }
    state = json.loads((tmp_path / "run" / "trainer_state.json").read_text())
    assert state["log_history"] == built.state.log_history and state["global_step"] == 8
    assert {row["step"] for row in read(tmp_path, "completions.jsonl")} == {4, 8}
    assert (tmp_path / "run" / "curves.png").read_bytes().startswith(b"\x89PNG")
    train = json.loads((tmp_path / "run" / "train_results.json").read_text())
    assert train["train_loss"] == result.training_loss
    evaluated = built.evaluate()
    saved = json.loads((tmp_path / "run" / "eval_results.json").read_text())
    assert saved["eval_objective/score"] == evaluated["eval_objective/score"]
    state = json.loads((tmp_path / "run" / "trainer_state.json").read_text())
    assert "eval_objective/score" in state["log_history"][-1]


SWITCHES = {"log_completions": "completions.jsonl", "save_curves": "curves.png", "save_logs": "trainer_state.json"}


@pytest.mark.parametrize("off", SWITCHES)
def test_each_has_its_switch(off, tiny_model_folder, tmp_path, capsys):
    built = trainer(str(tiny_model_folder), tmp_path, **{"save_curves": True, off: False})
    built.train()
    assert {name for name in SWITCHES.values() if name in files(tmp_path)} == set(SWITCHES.values()) - {SWITCHES[off]}
    assert ("train_results.json" in files(tmp_path)) is (off != "save_logs")
    assert ("after the last rollout" in capsys.readouterr().out) is (off != "log_completions")


def test_callbacks_that_a_script_adds_change_nothing(tiny_model_folder, tmp_path, capsys):
    built = trainer(str(tiny_model_folder), tmp_path, callbacks=[CurvesCallback()], save_curves=True)
    built.add_callback(CompletionsCallback(built))
    built.train()
    assert len(read(tmp_path, "completions.jsonl")) == 4
    assert capsys.readouterr().out.count("after the last rollout") == 4  # once for each sample
    alone = trainer(str(tiny_model_folder), tmp_path / "alone", log_completions=False, callbacks=[CurvesCallback()])
    alone.add_callback(CompletionsCallback(alone))
    alone.train()
    assert {"completions.jsonl", "curves.png"} <= files(tmp_path / "alone")
    assert capsys.readouterr().out.count("last rollout") == 4


def test_a_resumed_run_has_the_files_of_one_that_never_stopped(tiny_model_folder, tmp_path, capsys):
    settings = {"save_strategy": "steps", "save_steps": 6, "max_steps": 12, "save_only_model": False}
    whole = trainer(str(tiny_model_folder), tmp_path, **settings)
    whole.train()
    samples, compared = read(tmp_path, "completions.jsonl"), whole.comparison.rows
    assert [row["prompt"] for row in compared] == whole.prompts.texts[:4] and compared[0]["before"] != ""
    with (tmp_path / "run" / "completions.jsonl").open("a") as file:
        file.write('{"step": 12, "prom')  # a kill in the middle of a line
    again = trainer(str(tiny_model_folder), tmp_path, **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-6"))
    assert read(tmp_path, "completions.jsonl") == samples
    assert again.comparison.rows == compared  # "before" is what the run began with, not what the resume found


def test_what_an_earlier_run_left_without_a_model_is_put_aside(tiny_model_folder, tmp_path):
    for _ in range(2):
        trainer(str(tiny_model_folder), tmp_path).train()
    assert len(read(tmp_path, "completions.jsonl")) == 4
    assert {path.name for path in (tmp_path / "run" / "earlier-1").iterdir()} == {
        *("completions.jsonl", "trainer_state.json", "train_results.json", "all_results.json")
    }


def test_a_run_that_fails_leaves_its_log(tiny_model_folder, tmp_path):
    built = trainer(str(tiny_model_folder), tmp_path, max_steps=40, kl_limit=0.01, learning_rate=0.1, kl_coef=0.0)
    with pytest.raises(KLTooHigh):
        built.train()
    state = json.loads((tmp_path / "run" / "trainer_state.json").read_text())
    assert state["log_history"] == built.state.log_history != []


def test_reward_functions_are_called_for_rollouts_and_evaluations_alone(tiny_model_folder, tmp_path, capsys):
    """A call may cost money: what is sampled to be shown is not scored by functions."""
    calls: list[int] = []

    def paid(completions, **_):
        calls.append(len(completions))
        return [1.0 * len(text) for text in completions]

    settings = {"max_steps": 8, "eval_strategy": "steps", "eval_steps": 8, "per_device_eval_batch_size": 8}
    built = trainer(str(tiny_model_folder), tmp_path, reward_funcs=paid, eval_dataset=prompts(5), **settings)
    built.train()
    assert calls == [8, 8, 5]  # two rollouts, an evaluation
    assert [row["score after"] for row in built.comparison.rows] == [None] * 4
    shown = capsys.readouterr().out
    assert "after the last rollout" in shown and "score" not in shown.partition("before")[0].splitlines()[-3]


def test_a_reward_model_that_fails_on_the_last_samples_spoils_no_run(tiny_model_folder, tmp_path):
    judge = LlamaForSequenceClassification.from_pretrained(tiny_model_folder, num_labels=1)
    built = trainer(str(tiny_model_folder), tmp_path, reward_funcs=judge)

    def until_the_end(*_):
        if built.state.global_step == 4:
            raise MemoryError("no room left")

    judge.model.register_forward_pre_hook(until_the_end)
    built.train()
    assert built.state.global_step == 4
    assert [row["score after"] for row in built.comparison.rows] == [None] * 4


def test_a_reward_model_leaves_its_log_too(tiny_model_folder, tmp_path):
    rows = Dataset.from_list([{"chosen": "a good film", "rejected": "a bad film"}] * 8)
    options = {"per_device_train_batch_size": 2, "max_steps": 4, "logging_steps": 1, "save_strategy": "no"}
    args = RewardConfig(str(tmp_path / "run"), report_to="none", use_cpu=True, disable_tqdm=True, **options)
    built = RewardTrainer(str(tiny_model_folder), args, rows, eval_dataset=rows)
    built.train()
    built.evaluate()
    results = {"train_results.json", "eval_results.json", "all_results.json"}
    assert files(tmp_path) == {"curves.png", "trainer_state.json", *results}


def reward_run(model, folder, steps, **changes):
    rows = Dataset.from_list([{"chosen": "a good film", "rejected": "a bad film"}] * 4)
    options = {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "max_steps": steps}
    return RewardTrainer(str(model), RewardConfig(str(folder / "run"), **options | changes), rows)


@pytest.mark.parametrize(
    ("steps", "changes", "logged"),
    [
        (3, {}, [3]),
        (12, {}, [10]),
        (3, {"logging_steps": 2}, [2]),
        (2, {"logging_steps": 500}, [2]),
        (2, {"logging_strategy": "no"}, []),
    ],
)
def test_a_reward_model_shows_its_numbers_however_short_its_training(
    steps, changes, logged, tiny_model_folder, tmp_path
):
    built = reward_run(tiny_model_folder, tmp_path, steps, **changes)
    built.train()
    assert [row["step"] for row in built.state.log_history if "accuracy" in row] == logged
    assert ("curves.png" in files(tmp_path)) is (logged != [])


def test_where_nothing_was_logged_there_is_no_picture(tiny_model_folder, tmp_path):
    def broken(completions, **_):
        raise MemoryError("no room left")

    built = trainer(str(tiny_model_folder), tmp_path, reward_funcs=broken, save_curves=True)
    with pytest.raises(RuntimeError, match="no room left"):
        built.train()
    assert files(tmp_path) == {"trainer_state.json"}


def test_speed_and_episodes_do_not_depend_on_how_often_is_logged(tiny_model_folder, tmp_path):
    built = {}
    for every in (1, 4, 8):
        built[every] = trainer(str(tiny_model_folder), tmp_path / str(every), max_steps=16, logging_steps=every)
        built[every].train()
    episodes = {every: [row["episode"] for row in training_logs(run)] for every, run in built.items()}
    assert episodes[4] == [8, 16, 24, 32] and episodes[8] == [16, 32]
    assert episodes[1] == [8] * 4 + [16] * 4 + [24] * 4 + [32] * 4
    for every, run in built.items():
        rows = [row for row in run.state.log_history if "tokens_per_second" in row]
        assert len(rows) == {1: 4, 4: 4, 8: 2}[every]
        assert not any("tokens" in row or "seconds" in row for row in rows)
        # per rollout: never faster than its sampling and its updates alone allow
        for row in rows:
            times = row.get("time/update", 0.0)
            assert row["tokens_per_second"] < 8 * 6 / times
    whole = sum(row["tokens_per_second"] for row in built[4].state.log_history if "tokens_per_second" in row) / 4
    single = sum(row["tokens_per_second"] for row in built[1].state.log_history if "tokens_per_second" in row) / 4
    assert single < 2.5 * whole
