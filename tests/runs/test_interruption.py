"""SIGTERM and SIGINT: the step is finished, a checkpoint saved, and the run goes on from it to the bit."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from safetensors.torch import load_file
from transformers import TrainerCallback

from hfrlhf import PPOTrainer
from hfrlhf.runs.interruption import EXIT_CODE
from tests.faults.runs import reward as reward_run
from tests.launching import environment, torchrun
from tests.trainers.helpers import config, prompts, reward, trainer
from tests.trainers.test_resume import assert_same, run

SCRIPT = """
import os, sys, time
from pathlib import Path
from transformers import TrainerCallback
from tests.trainers.helpers import reward, trainer

model, folder, seconds = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])
rank = os.environ.get("RANK", "0")

def slowly(completions):
    with open(folder / f"scored-{rank}", "a") as file:
        file.write(f"{os.getpid()}\\n")
    time.sleep(seconds)
    return reward(completions)

built = trainer(model, folder, reward_funcs=slowly, max_steps=40, num_ppo_epochs=2, num_mini_batches=1)
built.train(resume_from_checkpoint=len(sys.argv) > 4)
built.save_model()
"""


def start(model: Path, folder: Path, seconds: float, *more: str, processes: int = 1) -> subprocess.Popen:
    """A training run of forty steps, two for each rollout, in a process of its own."""
    folder.mkdir(exist_ok=True)
    (folder / "train.py").write_text(SCRIPT)
    return subprocess.Popen(
        [sys.executable, *torchrun(processes), str(folder / "train.py"), str(model), str(folder), str(seconds), *more],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for_rollouts(folder: Path, count: int, rank: int = 0) -> int:
    """Until so many rollouts were scored; the number of the process that did it."""
    file, until = folder / f"scored-{rank}", time.monotonic() + 120
    while time.monotonic() < until:
        if file.exists() and len(lines := file.read_text().split()) >= count:
            return int(lines[-1])
        time.sleep(0.02)
    raise AssertionError("no rollout was scored in two minutes")


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "run").glob("checkpoint-*"))


@pytest.mark.faults
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda n: n.name)
def test_a_stopped_run_goes_on_to_the_bit(tiny_model_folder, tmp_path, number):
    whole = start(tiny_model_folder, tmp_path / "whole", 0.0)
    assert whole.wait(timeout=200) == 0
    stopped = start(tiny_model_folder, tmp_path / "stopped", 0.2)
    wait_for_rollouts(tmp_path / "stopped", 3)
    stopped.send_signal(number)
    output, _ = stopped.communicate(timeout=60)
    assert stopped.returncode == EXIT_CODE == 75, output[-2000:]
    (last,) = checkpoints(tmp_path / "stopped")  # although save_strategy is "no"
    step = json.loads((tmp_path / "stopped/run" / last / "trainer_state.json").read_text())["global_step"]
    assert last == f"checkpoint-{step}" and 4 < step < 40
    assert f"{number.name}: finishing this step" in output and "is complete: go on with" in output
    assert "Traceback" not in output
    again = start(tiny_model_folder, tmp_path / "stopped", 0.0, "resume")
    assert again.wait(timeout=200) == 0
    for name in ("model.safetensors", "value_head.safetensors"):
        files = [(tmp_path / kind / "run" / name).read_bytes() for kind in ("whole", "stopped")]
        assert files[0] == files[1], name


@pytest.mark.faults
def test_a_second_signal_ends_it_at_once(tiny_model_folder, tmp_path):
    running = start(tiny_model_folder, tmp_path / "a", 60.0)
    wait_for_rollouts(tmp_path / "a", 1)
    running.send_signal(signal.SIGTERM)
    running.send_signal(signal.SIGTERM)  # the same one, sent on by a launcher
    time.sleep(2.5)
    assert running.poll() is None
    running.send_signal(signal.SIGTERM)
    assert running.wait(timeout=2) == -signal.SIGTERM
    assert not checkpoints(tmp_path / "a")


@pytest.mark.faults
def test_one_process_that_is_told_to_stop_stops_all_after_the_same_step(tiny_model_folder, tmp_path):
    launcher = start(tiny_model_folder, tmp_path / "two", 0.2, processes=2)
    os.kill(wait_for_rollouts(tmp_path / "two", 3, rank=1), signal.SIGTERM)
    output, _ = launcher.communicate(timeout=120)
    assert launcher.returncode != 0 and output.count("is complete: go on with") == 1
    assert "exitcode  : 75" in output or "exitcode: 75" in output, output[-3000:]
    (last,) = checkpoints(tmp_path / "two")
    assert {"rng_state_0.pth", "rng_state_1.pth", "model.safetensors"} <= {
        path.name for path in (tmp_path / "two/run" / last).iterdir()
    }
    load_file(tmp_path / "two/run" / last / "model.safetensors")


def test_a_signal_in_process_stops_after_the_step_and_the_run_goes_on(tiny_model_folder, tmp_path):
    whole = run(tiny_model_folder, tmp_path / "whole")
    seen: list[int] = []

    def scoring(completions, **_):
        seen.append(1)
        if len(seen) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return reward(completions)

    scoring.__name__ = "reward"  # its name is in the log
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stopped:
        run(tiny_model_folder, tmp_path, reward_funcs=scoring, save_strategy="no")
    assert stopped.value.code == 75 and "after step 5" in str(stopped.value)
    assert signal.getsignal(signal.SIGTERM) == before
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-5"]
    assert_same(run(tiny_model_folder, tmp_path, resume=5), whole)


class SignalIn(TrainerCallback):
    """SIGTERM to this process in the middle of a step; `then` is done to the run's folder after that step is saved."""

    def __init__(self, step: int, then: Callable[[Path], None] = lambda run: None) -> None:
        self.step, self.then = step, then

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step + 1 == self.step:
            os.kill(os.getpid(), signal.SIGTERM)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            self.then(Path(args.output_dir))


def best_kept_alone(folder: Path, model: Path) -> Any:
    """A run whose end would keep its best checkpoint alone, which is the first: the highest loss counts as the best."""
    settings = {"save_total_limit": 1, "load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 1}
    settings |= {"metric_for_best_model": "loss", "greater_is_better": True, "max_steps": 4}
    evaluated = Dataset.from_dict({"chosen": ["a good film"], "rejected": ["a bad film"]})
    return reward_run(str(model), folder, eval_dataset=evaluated, **settings)


def test_a_stopped_run_keeps_its_last_checkpoint_beside_the_best(tiny_model_folder, tmp_path):
    """What the end of a run does for the best one would take from a stopped run what it is to go on from."""
    stopped = best_kept_alone(tmp_path, tiny_model_folder)
    stopped.add_callback(SignalIn(2))
    with pytest.raises(SystemExit, match="checkpoint-2 is complete"):
        stopped.train()
    assert checkpoints(tmp_path) == ["checkpoint-1", "checkpoint-2"]
    trained = stopped.model.state_dict()["model.layers.0.mlp.up_proj.weight"]
    saved = load_file(tmp_path / "run/checkpoint-2/model.safetensors")["model.layers.0.mlp.up_proj.weight"]
    assert trained.equal(saved), "the best one was loaded"
    again = best_kept_alone(tmp_path, tiny_model_folder)
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == 4 and checkpoints(tmp_path) == ["checkpoint-1"]


def test_a_stopped_run_does_not_name_a_checkpoint_that_is_gone(tiny_model_folder, tmp_path):
    stopped = best_kept_alone(tmp_path, tiny_model_folder)
    stopped.add_callback(SignalIn(2, then=lambda run: shutil.rmtree(run / "checkpoint-2")))
    with pytest.raises(RuntimeError, match=r"checkpoint-2 is gone"):
        stopped.train()


def test_training_in_a_thread_listens_to_no_signal(tiny_model_folder, tmp_path):
    built = trainer(str(tiny_model_folder), tmp_path, max_steps=2)
    thread = threading.Thread(target=built.train)
    thread.start()
    thread.join(60)
    assert built.state.global_step == 2


def test_the_stock_way_is_refused(tiny_model_folder, tmp_path):
    with pytest.raises(ValueError, match="middle of a step"):
        config(tmp_path, enable_jit_checkpoint=True)
    args = config(tmp_path)
    args.enable_jit_checkpoint = True
    with pytest.raises(ValueError, match="middle of a step"):
        PPOTrainer(str(tiny_model_folder), reward, args, prompts())
