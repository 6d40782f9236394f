"""What goes wrong on one process alone happens to all: the same updates are left out, and nobody is left waiting."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import launching
from tests.launching import torchrun

pytestmark = pytest.mark.distributed

SCRIPT = """
import json, sys, time
from pathlib import Path
import torch
from datasets import Dataset
from hfrlhf import RewardConfig, RewardTrainer
from tests.trainers.helpers import parameters, reward, trainer, training_logs

folder, model = Path(sys.argv[1]), sys.argv[2]
common = {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "save_strategy": "no", "logging_steps": 1}
said = {}

def attempt(name, build, prepare=lambda built: None):
    built = build()
    prepare(built)
    began = time.monotonic()
    try:
        built.train()
        logs = [row.get("skipped_updates", 0) for row in built.state.log_history if "loss" in row]
        digest = [float(p.double().abs().sum()) for p in built.model.parameters()]
        said[name] = {"skipped": logs, "parameters": digest}
    except (RuntimeError, ValueError, TimeoutError) as error:
        said[name] = {"error": str(error), "seconds": time.monotonic() - began}

def rank_of(built):
    return built.args.process_index

def broken_on_one(steps):
    def prepare(built):
        original = built.compute_loss
        def compute_loss(*args, **kwargs):
            result = original(*args, **kwargs)
            loss = result[0] if isinstance(result, tuple) else result
            loss = loss * float("nan") if rank_of(built) == 1 and built.state.global_step in steps else loss
            return (loss, *result[1:]) if isinstance(result, tuple) else loss
        built.compute_loss = compute_loss
    return prepare

def broken_shard(built):
    "A gradient of the second process breaks after the processes have exchanged theirs, as a shard of it can."
    original = built.end_of_step
    def end_of_step(loss):
        if rank_of(built) == 1 and built.state.global_step == 1:
            next(p for p in built.model.parameters() if p.grad is not None).grad.fill_(float("inf"))
        return original(loss)
    built.end_of_step = end_of_step

def judge(wrong):
    def judging(completions):
        import os
        return wrong(completions) if os.environ["RANK"] == "1" else reward(completions)
    return judging

def raising(completions):
    raise KeyError("a")

def hanging(completions):
    time.sleep(60)

def ppo(name, **changes):
    return lambda: trainer(model, folder / name, **{"logging_steps": 1} | changes)

def pairs(name, **changes):
    rows = [{"chosen": "the film is good", "rejected": "a bad story"}] * 8
    config = RewardConfig(str(folder / name), per_device_train_batch_size=2, max_steps=4, **common | changes)
    return lambda: RewardTrainer(model, config, Dataset.from_list(rows))

attempt("ppo", ppo("ppo"), broken_on_one({1}))
attempt("a shard", ppo("shard"), broken_shard)
attempt("ppo stops", ppo("stop", max_skipped_updates=2), broken_on_one({1, 2}))
attempt("reward", pairs("reward"), broken_on_one({2}))
attempt("reward stops", pairs("reward-stop", max_skipped_updates=1), broken_on_one({2}))
attempt("raises", ppo("raises", reward_funcs=judge(raising)))
attempt("hangs", ppo("hangs", reward_funcs=judge(hanging), reward_timeout=1.0))
attempt("wrong", ppo("wrong", reward_funcs=judge(lambda completions: [1.0])))
attempt("silent", ppo("silent", reward_funcs=judge(lambda completions: [None] * len(completions))))

class Fails:
    def generate(self, model, prompts, address):
        raise RuntimeError("the engine is gone")

def failing_generator(built):
    if rank_of(built) == 1:
        built.generator = Fails()

attempt("engine", ppo("engine"), failing_generator)
Path(folder, f"said-{torch.distributed.get_rank()}.json").write_text(json.dumps(said))
"""


@pytest.fixture(scope="module")
def said(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, dict, Path]:
    """What the two processes said of each attempt, and where they wrote."""
    folder = tmp_path_factory.mktemp("health")
    (folder / "script.py").write_text(SCRIPT)
    launching.run(*torchrun(2), str(folder / "script.py"), str(folder), str(tiny_model_folder))
    first, second = (json.loads((folder / f"said-{rank}.json").read_text()) for rank in (0, 1))
    return first, second, folder


@pytest.mark.parametrize(
    ("name", "skipped"), [("ppo", [0, 1, 0, 0]), ("a shard", [0, 1, 0, 0]), ("reward", [0, 0, 1, 0])]
)
def test_an_update_that_is_broken_on_one_process_is_left_out_on_both(said, name, skipped):
    first, second, _ = said
    assert first[name]["skipped"] == skipped
    assert first[name]["parameters"] == second[name]["parameters"]
    assert all(value == value for value in first[name]["parameters"])


@pytest.mark.parametrize(("name", "step", "rows"), [("ppo stops", 2, 4), ("reward stops", 2, 8)])
def test_both_stop_and_one_writes_the_batch_of_both(said, name, step, rows):
    first, second, folder = said
    assert first[name]["error"] == second[name]["error"] and f"step {step}: loss nan" in first[name]["error"]
    place = folder / ("stop/run" if name == "ppo stops" else "reward-stop") / "broken_update"
    facts = json.loads((place / "facts.json").read_text())
    assert sum(map(len, facts["texts"].values())) == rows * (2 if name == "ppo stops" else 1)
    assert sorted(path.name for path in place.iterdir()) == ["batch.safetensors", "facts.json"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("raises", "reward function 'judging' failed on 4 completions with KeyError"),
        ("hangs", "reward function 'judging' has not answered for 4 completions"),
        ("wrong", "reward function 'judging' returned 1 scores for 4 completions"),
        ("silent", "no reward function has an opinion on completion 0"),
        ("engine", "the engine is gone"),
    ],
)
def test_a_reward_or_generator_that_fails_on_one_process_fails_on_both(said, name, message):
    first, second, _ = said
    assert second[name]["error"].startswith(message)
    assert first[name]["error"].startswith("process 1 failed: ") and message in first[name]["error"]
    assert first[name]["seconds"] < 30
