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

from tests.faults.runs import STEPS, assert_same

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
    assert result["of those while replacing a checkpoint of the same step"] >= 8  # a third of them at least, by design


def steps(run: Path) -> set[int]:
    return {int(path.name.split("-")[1]) for path in run.glob("checkpoint-*")}


def kill_later(process: subprocess.Popen, run: Path, begun: int, more: int, part: float) -> bool:
    """Wait until a run has saved so many steps more, and for a part of the time of one; then kill it.

    Measured in steps, not in seconds: a fast machine, too, is killed before its last one.
    """
    began, until = None, time.monotonic() + 250
    while process.poll() is None and time.monotonic() < until:
        now = max(steps(run), default=0)
        if now > begun and began is None:
            began, first = time.perf_counter(), now
        if now >= begun + more:
            time.sleep(part * (time.perf_counter() - began) / max(now - first, 1))
            break
        time.sleep(0.002)
    process.kill()
    return process.wait() == -9


@pytest.mark.parametrize(("kind", "kills"), [("policy", 3), ("reward", 2)])
def test_a_killed_run_ends_as_the_uninterrupted_one(tiny_model_folder, tmp_path, kind, kills):
    """Each launch is killed some steps after it began: in a rollout, an update, a log or a save."""
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    whole = python("runs.py", kind, tiny_model_folder, tmp_path / "whole", log=tmp_path / "log")
    seed = random.SystemRandom().randrange(2**32)
    log, draw, died_at = tmp_path / "killed.log", random.Random(seed), []
    run = tmp_path / "killed" / "run"
    for _ in range(kills):
        begun, more, part = max(steps(run), default=0), draw.randint(2, STEPS // kills - 3), draw.uniform(0.0, 1.5)
        print(f"seed {seed}: to be killed {more} steps and {part:.2f} of one after step {begun}")  # shown on a failure
        process = python("runs.py", kind, tiny_model_folder, tmp_path / "killed", log=log)
        assert kill_later(process, run, begun, more, part), log.read_text()[-3000:]
        died_at.append(max(steps(run)))
    assert died_at[-1] < STEPS
    last = python("runs.py", kind, tiny_model_folder, tmp_path / "killed", log=log)
    assert last.wait(timeout=200) == 0, log.read_text()[-3000:]
    assert whole.wait(timeout=200) == 0, (tmp_path / "log").read_text()[-3000:]
    print(f"{kind}: killed {len(died_at)} times, with checkpoints up to step {died_at}")
    one, two = (torch.load(tmp_path / name / "state.pt", weights_only=True) for name in ("whole", "killed"))
    assert_same(one, two)
    assert steps(run) == steps(tmp_path / "whole" / "run")
