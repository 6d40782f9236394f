"""Numbers that go wrong: updates left out and counted, runs that stop with the batch kept and the checkpoints whole."""

from __future__ import annotations

import asyncio
import json
import time
import traceback
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from safetensors.torch import load_file

from hfrlhf import RewardConfig, RewardTrainer
from hfrlhf.experience import Experience
from hfrlhf.reporting.metrics import Metrics
from hfrlhf.runs.guard import KLTooHigh, NonFiniteUpdates, UpdateGuard
from tests.trainers.helpers import config, load, parameters, prompts, trainer, training_logs

PAIRS = Dataset.from_list([{"chosen": "the film is good", "rejected": "a bad story"}] * 8)


def reward_trainer(model, folder, **changes):
    settings = {"output_dir": str(folder / "run"), "per_device_train_batch_size": 2, "report_to": "none"}
    settings |= {"use_cpu": True, "disable_tqdm": True, "logging_steps": 1, "save_strategy": "no", "max_steps": 6}
    return RewardTrainer(str(model), RewardConfig(**settings | changes), PAIRS)


def break_losses(built, steps):
    """The loss of these optimiser steps is NaN."""
    original = built.compute_loss

    def compute_loss(*args, **kwargs):
        result = original(*args, **kwargs)
        if built.state.global_step not in steps:
            return result
        return (result[0] * float("nan"), *result[1:]) if isinstance(result, tuple) else result * float("nan")

    built.compute_loss = compute_loss


@pytest.mark.parametrize("fp16", [False, True])
def test_with_a_scaler_too_an_update_is_left_out(fp16, tmp_path):
    """A real scaler, which asserts that it has seen a gradient before it steps."""
    torch.manual_seed(0)
    model, scaler = torch.nn.Linear(3, 1), torch.amp.GradScaler("cpu", enabled=fp16)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    before = model.weight.detach().clone()
    guard = UpdateGuard(Accelerator(cpu=True), lambda: model, limit=3, fp16=fp16)
    for wrong, left_out in ((float("nan"), True), (0.0, False)):
        loss = (model(torch.ones(2, 3)) + wrong).sum()
        scaler.scale(loss).backward()
        assert guard.leaves_out(float(loss), lambda: ({}, {}), 0, tmp_path) == left_out
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        assert torch.equal(model.weight, before) == left_out


class WithAnEmptyShard(torch.nn.Module):
    """A small parameter in more pieces than it has rows: this process holds nothing of it."""

    def __init__(self):
        super().__init__()
        self.weight, self.small = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(0))


@pytest.mark.parametrize(
    ("gradient", "loss", "left_out"),
    [
        ([1.0, -2.0, 0.0], 0.5, False),
        ([1e30, 0.0, 0.0], 0.5, False),  # its square is not finite, and it is
        ([1.0, float("nan"), 0.0], 0.5, True),
        ([1.0, -float("inf"), 0.0], 0.5, True),
        ([1.0, 1.0, 1.0], float("nan"), True),
    ],
)
def test_one_number_that_is_not_finite_is_enough(tmp_path, gradient, loss, left_out):
    model = WithAnEmptyShard()
    model.weight.grad, model.small.grad = torch.tensor(gradient), torch.ones(0)
    guard = UpdateGuard(Accelerator(cpu=True), lambda: model, limit=3)
    assert guard.leaves_out(loss, lambda: ({}, {}), 7, tmp_path) == left_out
    assert (model.weight.grad is None) == left_out and guard.in_a_row == left_out


def break_gradients(model):
    """One weight's gradient is infinite, the loss is not."""
    model.get_input_embeddings().weight.register_hook(lambda gradient: gradient + float("inf"))


def test_updates_left_out_are_counted_and_a_good_one_begins_again(tiny_model_folder, tmp_path):
    built = trainer(str(tiny_model_folder), tmp_path, max_steps=8, max_skipped_updates=2, logging_steps=8)
    break_losses(built, {1, 3, 4 + 2})
    built.train()
    assert training_logs(built)[0]["skipped_updates"] == 3
    assert all(p.isfinite().all() for p in parameters(built).values())
    assert not (tmp_path / "run" / "broken_update").exists()


@pytest.mark.parametrize("broken", ["loss", "gradient"])
def test_too_many_in_a_row_stop_the_run_with_the_batch_kept(tiny_model_folder, tmp_path, broken):
    built = trainer(str(tiny_model_folder), tmp_path, max_steps=8, max_skipped_updates=3)
    break_losses(built, range(8)) if broken == "loss" else break_gradients(built.model.policy)
    before = parameters(built)
    with pytest.raises(NonFiniteUpdates, match=r"step 2: loss .*3 in a row.*broken_update.*learning rate"):
        built.train()
    assert all(torch.equal(before[name], p) for name, p in parameters(built).items())

    folder = tmp_path / "run" / "broken_update"
    batch, facts = (
        Experience(**load_file(folder / "batch.safetensors")),
        json.loads((folder / "facts.json").read_text()),
    )
    assert len(batch) == 4 and (facts["step"], facts["updates_in_a_row"]) == (2, 3)
    assert (facts["loss"] == "nan") == (broken == "loss")
    assert facts["grad_norm"] in ("nan", "inf") and "policy.model.embed_tokens.weight" in str(facts)
    words = [built.processing_class.decode(ids) for ids in batch.completion_lists()]
    assert facts["texts"]["completions"] == words and len(facts["texts"]["prompts"]) == 4


@pytest.mark.parametrize("broken", ["loss", "gradient"])
def test_a_reward_model_is_guarded_alike(tiny_model_folder, tmp_path, broken):
    built = reward_trainer(tiny_model_folder, tmp_path, max_skipped_updates=2, gradient_accumulation_steps=2)
    break_losses(built, range(8)) if broken == "loss" else break_gradients(built.model)
    before = {name: p.detach().clone() for name, p in built.model.named_parameters()}
    with pytest.raises(NonFiniteUpdates, match=r"step 1: .*2 in a row"):
        built.train()
    assert all(torch.equal(before[name], p) for name, p in built.model.named_parameters())
    folder = tmp_path / "run" / "broken_update"
    batch, facts = load_file(folder / "batch.safetensors"), json.loads((folder / "facts.json").read_text())
    assert batch["process 0, batch 1/input_ids"].shape[0] == 4
    assert facts["texts"]["process 0, batch 0"] == ["the film is good"] * 2 + ["a bad story"] * 2


def test_a_reward_model_goes_on_after_one_broken_batch(tiny_model_folder, tmp_path):
    built = reward_trainer(tiny_model_folder, tmp_path, max_skipped_updates=2, logging_steps=3)
    break_losses(built, {0, 2})
    built.train()
    assert [row.get("skipped_updates") for row in built.state.log_history if "loss" in row] == [2, None]
    assert built.state.global_step == 6 and all(p.isfinite().all() for p in built.model.parameters())


def test_a_log_of_numbers_that_are_not_finite_is_still_a_log():
    """fsum raises an error for inf and −inf."""
    metrics = Metrics()
    metrics.add("loss", float("inf"))
    metrics.add("loss", float("-inf"))
    metrics.add("kl", 2.0)
    drained = metrics.drain()
    assert drained["loss"] != drained["loss"] and drained["kl"] == 2.0


def test_a_kl_above_the_limit_stops_the_run_and_leaves_the_checkpoints(tiny_model_folder, tmp_path):
    settings = {"max_steps": 12, "save_strategy": "steps", "save_steps": 2, "kl_coef": 0.0}
    settings |= {"rollout_batch_size": 64, "learning_rate": 3e-2, "lr_scheduler_type": "constant"}
    free = trainer(str(tiny_model_folder), tmp_path / "free", **settings)
    free.train()
    kls = [row["objective/kl"] for row in training_logs(free)]
    assert kls[0] == pytest.approx(0, abs=1e-6) and kls[1] < kls[2]

    built = trainer(str(tiny_model_folder), tmp_path, kl_limit=(kls[1] + kls[2]) / 2, **settings)
    with pytest.raises(
        KLTooHigh, match=rf"step 8: the policy is {kls[2]:.4g} nats per response.*Go on from checkpoint-4, the newest"
    ):
        built.train()
    kept = {path.name for path in (tmp_path / "run").glob("checkpoint-*")}
    assert kept == {"checkpoint-2", "checkpoint-4", "checkpoint-6", "checkpoint-8"}
    assert not (tmp_path / "run" / "model.safetensors").exists()

    # With a higher limit the run goes on from there, to where the free one came.
    again = trainer(str(tiny_model_folder), tmp_path, kl_limit=2 * kls[2], **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-4"))
    assert all(torch.equal(p, parameters(free)[name]) for name, p in parameters(again).items())


# ---- Reward functions ---------------------------------------------------------------------------------------------


def raising(completions, number):
    return [{"a": 1.0}[str(n)] for n in number]


def test_a_reward_function_that_raises_is_named_and_its_own_error_kept(tiny_model_folder, tmp_path):
    built = trainer(str(tiny_model_folder), tmp_path, reward_funcs=raising)
    with pytest.raises(RuntimeError, match="reward function 'raising' failed on 8 completions with KeyError") as caught:
        built.train()
    cause = caught.value.__cause__
    assert isinstance(cause, KeyError)
    assert "raising" in [frame.name for frame in traceback.extract_tb(cause.__traceback__)]


def slow(completions):
    time.sleep(30)


async def slow_async(completions):
    await asyncio.sleep(30)


async def slow_though_async(completions):
    time.sleep(30)


@pytest.mark.parametrize("function", [slow, slow_async, slow_though_async])
def test_a_reward_function_that_hangs(tiny_model_folder, tmp_path, function):
    built = trainer(str(tiny_model_folder), tmp_path, reward_funcs=function, reward_timeout=0.2)
    began = time.monotonic()
    with pytest.raises(TimeoutError, match=f"'{function.__name__}' has not answered for 8 completions within .*=0.2"):
        built.train()
    assert time.monotonic() - began < 10


def leaving(completions):
    raise SystemExit


def test_within_its_time_a_reward_function_is_as_without(tiny_model_folder, tmp_path):
    logs = []
    for i, changes in enumerate([{}, {"reward_timeout": 60.0}]):
        built = trainer(str(tiny_model_folder), tmp_path / str(i), **changes)
        built.train()
        logs.append(training_logs(built))
    assert logs[0] == logs[1]
    with pytest.raises(RuntimeError, match="'raising' failed on 8 completions with KeyError"):
        trainer(str(tiny_model_folder), tmp_path, reward_funcs=raising, reward_timeout=60.0).train()
    with pytest.raises(RuntimeError, match=r"'leaving' failed .*ended its own thread"):
        trainer(str(tiny_model_folder), tmp_path, reward_funcs=leaving, reward_timeout=60.0).train()


def without_opinion(completions):
    return [None] * len(completions)


def test_a_source_without_any_opinion_has_no_mean(tiny_model_folder, tmp_path):
    def length(completions):
        return [float(len(text)) for text in completions]

    built = trainer(str(tiny_model_folder), tmp_path, reward_funcs=[length, without_opinion])
    built.train()
    row = training_logs(built)[0]
    assert row["reward/length"] == row["objective/score"] and "reward/without_opinion" not in row


# ---- Empty responses, long prompts ----------------------------------------------------------------------------------


def test_responses_that_are_all_empty(tiny_model_folder, tmp_path):
    """The policy stops at once, always: every text is empty, every score the same, and nothing is divided by 0."""
    lm, tokenizer = load(tiny_model_folder)
    with torch.no_grad():
        first = int(lm(**tokenizer(["the film"], return_tensors="pt")).logits[0, -1].argmax())
    data = Dataset.from_dict({"prompt": ["the film"] * 4})
    settings = {"temperature": 1e-3, "stop_token_id": first, "learning_rate": 1e-4, "whiten_rewards": True}
    built = trainer(lm, tmp_path, tokenizer, train_dataset=data, normalize_scores=True, logging_steps=1, **settings)
    built.train()
    assert built.cycle.experience.completion_lists() == [[first]] * 8
    logs = training_logs(built)
    assert len(logs) == 4 and not any("skipped_updates" in row for row in logs)
    assert all(value == value and abs(value) < float("inf") for row in logs for value in row.values())
    assert all(p.isfinite().all() for p in parameters(built).values())


def test_long_prompts_are_left_out_counted_and_reported(tiny_model_folder, tmp_path, capsys):
    data = Dataset.from_dict({"prompt": ["the film", "a very very very very good story"]})
    built = trainer(str(tiny_model_folder), tmp_path, train_dataset=data, max_prompt_length=4, max_steps=1)
    built.train()
    assert (len(built.prompts), built.prompts.dropped) == (1, 1)
    assert "1 prompt (1 longer than 4 tokens left out)" in capsys.readouterr().out
    built.save_model()
    assert "prompts left out as too long | 1" in Path(built.args.output_dir, "README.md").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_skipped_updates": 0}, "max_skipped_updates"),
        ({"max_skipped_updates": 1.5}, "whole number"),
        ({"reward_timeout": 0.0}, "reward_timeout"),
        ({"kl_limit": 0.0}, "kl_limit"),
        ({"kl_limit": float("nan")}, "kl_limit"),
    ],
)
def test_limits_that_make_no_sense(tiny_model_folder, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        trainer(str(tiny_model_folder), tmp_path, train_dataset=prompts(), **changes)


def test_a_limit_that_one_checkpoint_cannot_serve_warns(tmp_path):
    with pytest.warns(UserWarning, match="keep two or more"):
        config(tmp_path, kl_limit=1.0, save_total_limit=1)


def test_a_reward_trainers_limit(tmp_path):
    with pytest.raises(ValueError, match="max_skipped_updates"):
        RewardConfig(output_dir=str(tmp_path), max_skipped_updates=0)
