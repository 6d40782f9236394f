"""What reward functions are told and may note beside their scores, under TRL's keywords."""

from __future__ import annotations

import json
import math

import numpy
import pytest
import torch

from hfrlhf.rewards.notes import RewardNotes
from hfrlhf.trainers.callbacks import CompletionsCallback
from tests.launching import run, torchrun
from tests.trainers.helpers import prompts, trainer, training_logs, whole_log

ONE_STEP = {"num_ppo_epochs": 1, "num_mini_batches": 1}


def lengths(completions, log_extra, log_metric, trainer_state):
    """Scores that follow the clock, and notes of every kind."""
    counts = [len(text.split()) for text in completions]
    log_extra("words", counts)
    log_extra("odd", torch.tensor(counts) % 2 == 1)
    log_extra("what", [numpy.float32(0.5) if i % 2 else {1, 2} for i in range(len(counts))])
    log_metric("words_max", max(counts))
    log_metric("step_seen", torch.tensor(float(trainer_state.global_step)))
    log_metric("nothing_yet", math.nan)
    return [float(trainer_state.global_step)] * len(completions)


async def later(completions, log_metric, **_):
    log_metric("words_max", 0)
    return [0.0] * len(completions)


def test_notes_reach_samples_and_log(tiny_model_folder, tmp_path):
    changes = ONE_STEP | {"max_steps": 4, "logging_steps": 2}
    built = trainer(str(tiny_model_folder), tmp_path, reward_funcs=[lengths, later], **changes)
    built.add_callback(CompletionsCallback(built))
    built.train()
    rows = [json.loads(line) for line in (tmp_path / "run" / "completions.jsonl").read_text().splitlines()]
    assert len(rows) == 8
    for i, row in enumerate(rows):
        assert row["words"] == len(row["completion"].split()) and row["odd"] is (row["words"] % 2 == 1)
        assert row["what"] == (0.5 if i % 2 else "{1, 2}")
    for i, log in enumerate(training_logs(built)):
        assert log["objective/score"] == log["step_seen"] == 2 * i + 0.5  # rollouts at steps 0 and 1, 2 and 3
        assert 0 < log["words_max"] <= 3 and "nothing_yet" not in log  # of two rollouts, each the mean of max and 0


def test_an_evaluation_has_its_own(tiny_model_folder, tmp_path):
    built = trainer(
        str(tiny_model_folder), tmp_path, reward_funcs=lengths, eval_dataset=prompts(4), max_steps=2, **ONE_STEP
    )
    assert built.evaluate()["eval_words_max"] == whole_log(built)[0]["eval_words_max"] > 0
    built.train()
    assert all("eval_words_max" not in row and "words_max" in row for row in training_logs(built))


def test_the_state_is_the_one_in_use_after_a_resume(tiny_model_folder, tmp_path):
    settings = ONE_STEP | {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    whole = trainer(str(tiny_model_folder), tmp_path, reward_funcs=lengths, **settings)
    whole.train()
    resumed = trainer(str(tiny_model_folder), tmp_path, reward_funcs=lengths, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))
    assert whole_log(resumed) == whole_log(whole)


def scores_with(note):
    def function(completions, **kwargs):
        note(len(completions), **kwargs)
        return [0.0] * len(completions)

    return function


@pytest.mark.parametrize(
    ("note", "said"),
    [
        (
            lambda n, log_extra, **_: log_extra("a", [1] * (n - 1)),
            r"log_extra\('a', …\) was given 7 values for 8",
        ),
        (lambda n, log_extra, **_: log_extra("score", [1] * n), "every sample has 'score' already"),
        (lambda n, log_extra, **_: log_extra("a", "word"), "takes a list with a value per completion, got 'word'"),
        (lambda n, log_metric, **_: log_metric("loss", 1), "the trainer logs 'loss' itself"),
        (lambda n, log_metric, **_: log_metric("objective/kl", 1), "the trainer logs 'objective/kl' itself"),
        (lambda n, log_metric, **_: log_metric("a", [1, 2]), r"takes a number, got \[1, 2\]"),
    ],
)
def test_notes_that_would_be_lost_are_refused(tiny_model_folder, tmp_path, note, said):
    built = trainer(str(tiny_model_folder), tmp_path, reward_funcs=scores_with(note))
    with pytest.raises((RuntimeError, ValueError), match=said):
        built.train()


def test_what_the_trainer_says_itself_is_taken(tiny_model_folder, tmp_path):
    """Every number of a run's log, and every field of its samples."""
    built = trainer(
        str(tiny_model_folder), tmp_path, kl_in="loss", ent_coef=0.1, target_kl=1e-9, eval_dataset=prompts(4)
    )
    built.train()
    built.evaluate()
    notes = RewardNotes(lambda: None)
    said = {name for row in built.state.log_history for name in row}
    assert len(said) > 30 and {"policy/stopped_at", "eval_objective/score", "train_loss"} <= said
    for name in said:
        with pytest.raises(ValueError, match="the trainer logs"):
            notes.log_metric(name, 1.0)
    for field in built.samples[0]:
        with pytest.raises(ValueError, match="every sample has"):
            notes.log_extra(field, [1.0])


@pytest.mark.parametrize("column", ["trainer_state", "log_extra", "log_metric", "completions", "completion_ids"])
def test_a_column_of_the_same_name_is_refused_where_it_would_be_hidden(tiny_model_folder, tmp_path, column):
    rows = prompts().rename_column("number", column)
    with pytest.raises(ValueError, match=rf"train dataset has a column '{column}'.*'function'.*rename the column"):
        trainer(str(tiny_model_folder), tmp_path, train_dataset=rows, reward_funcs=scores_with(lambda n, **_: None))
    with pytest.raises(ValueError, match=f"eval dataset has a column '{column}'"):
        trainer(str(tiny_model_folder), tmp_path, eval_dataset=rows, reward_funcs=scores_with(lambda n, **_: None))
    trainer(str(tiny_model_folder), tmp_path, train_dataset=rows, reward_funcs=lambda prompts: [0.0] * len(prompts))


TWO = """
import sys, torch
from tests.trainers.helpers import load, prompts, trainer, training_logs
from pathlib import Path

def reward(completions, log_metric, log_extra, **_):
    rank = torch.distributed.get_rank()
    for value in range(1 + rank):  # one note here, two there: the mean is over notes, not over processes
        log_metric("rank", rank)
    if rank:
        log_metric("only_there", 3.0)
    log_extra("rank", [rank] * len(completions))
    return [0.0] * len(completions)

built = trainer(sys.argv[1], Path(sys.argv[2]), reward_funcs=reward, max_steps=1, num_ppo_epochs=1, num_mini_batches=1)
built.train()
if built.is_world_process_zero():
    (row,) = training_logs(built)
    assert abs(row["rank"] - 2 / 3) < 1e-9 and row["only_there"] == 3.0, row
    assert [sample["rank"] for sample in built.samples] == [0] * 4
    print("notes of two processes")
"""


@pytest.mark.distributed
def test_numbers_are_means_over_what_all_processes_noted(tiny_model_folder, tmp_path):
    script = tmp_path / "two.py"
    script.write_text(TWO)
    assert "notes of two processes" in run(*torchrun(2), str(script), str(tiny_model_folder), str(tmp_path)).stdout
