"""Runs killed by SIGKILL, at random moments of a save and at random moments of training: nothing is ever lost."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.faults.runs import assert_same

pytestmark = pytest.mark.faults

ROOT = Path(__file__).resolve().parents[2]


def python(script: str, *arguments: object, log: Path) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "tests" / "faults" / script), *map(str, arguments)]
    with log.open("a") as output:
        return subprocess.Popen(command, env=environment, stdout=output, stderr=output)


@pytest.mark.parametrize("kind", ["policy", "reward"])
def test_a_kill_in_a_save_leaves_one_whole_state_or_the_other(tiny_model_folder, tmp_path, kind):
    """`savers.py` holds every promise after every kill; here: that enough of them fell inside a save."""
    log = tmp_path / "log"
    done = python("savers.py", kind, tiny_model_folder, tmp_path, 30, log=log)
    assert done.wait(timeout=280) == 0, log.read_text()[-3000:]
    result = json.loads(log.read_text().rpartition("RESULT ")[2].splitlines()[0])
    print(kind, result)
    assert result["kills inside a save"] == 30
    assert result["of those while replacing a checkpoint of the same step"] >= 5


def steps(run: Path) -> set[int]:
    return {int(path.name.split("-")[1]) for path in run.glob("checkpoint-*")}


@pytest.mark.parametrize(("kind", "launches", "kills"), [("policy", 4, 3), ("reward", 3, 2)])
def test_a_killed_run_ends_as_the_uninterrupted_one(tiny_model_folder, tmp_path, kind, launches, kills):
    """Each launch is killed up to 0.8 s after its first checkpoint: in a rollout, an update, a log or a save."""
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    whole = python("runs.py", kind, tiny_model_folder, tmp_path / "whole", log=tmp_path / "log")
    log, draw, died_at = tmp_path / "killed.log", random.Random(), []
    run = tmp_path / "killed" / "run"
    for _ in range(launches):
        begun = max(steps(run), default=0)
        process = python("runs.py", kind, tiny_model_folder, tmp_path / "killed", log=log)
        while process.poll() is None and max(steps(run), default=0) <= begun:
            time.sleep(0.01)
        time.sleep(draw.uniform(0.0, 0.8))
        process.kill()
        if process.wait() == 0:
            break  # a fast machine: the run ended before
        assert process.returncode == -9, log.read_text()[-3000:]
        died_at.append(max(steps(run)))
    assert len(died_at) >= kills
    last = python("runs.py", kind, tiny_model_folder, tmp_path / "killed", log=log)
    assert last.wait(timeout=200) == 0, log.read_text()[-3000:]
    assert whole.wait(timeout=200) == 0, (tmp_path / "log").read_text()[-3000:]
    print(f"{kind}: killed {len(died_at)} times, with checkpoints up to step {died_at}")
    one, two = (torch.load(tmp_path / name / "state.pt", weights_only=True) for name in ("whole", "killed"))
    assert_same(one, two)
    assert steps(run) == steps(tmp_path / "whole" / "run")
