"""Ctrl-C under launchers, as a terminal sends it: the checkpoint is whole, and how to go on is the last line."""

from __future__ import annotations

import os
import pty
import shutil
import signal
import subprocess
import sys
from functools import partial

import pytest

from hfrlhf.runs.folder import damage
from tests.launching import environment, torchrun

pytestmark = pytest.mark.faults

SCRIPT = """
import sys, time
from pathlib import Path
from tests.trainers.helpers import reward, trainer

def slowly(completions, **_):
    time.sleep(0.5)
    return reward(completions)

settings = {"max_steps": 200, "num_ppo_epochs": 1, "num_mini_batches": 1}
trainer(sys.argv[1], Path(sys.argv[2]), reward_funcs=slowly, **settings).train()
"""
LAUNCHERS = {
    "python": [sys.executable],
    "accelerate launch": [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "1"],
    "torchrun": [sys.executable, *torchrun(2)],
}


def shown_until_the_end(screen: int, until: str = "") -> str:
    """What comes to a terminal until a text has come, or until nobody holds it any more."""
    shown = b""
    while not until or until.encode() not in shown:
        try:
            chunk = os.read(screen, 65536)
        except OSError:
            break
        if not chunk:
            break
        shown += chunk
    return shown.decode(errors="replace")


@pytest.mark.parametrize(
    ("launcher", "whole_group"),
    [("python", True), ("accelerate launch", True), ("accelerate launch", False), ("torchrun", True)],
)
def test_how_to_go_on_is_the_last_that_is_seen(launcher, whole_group, tiny_model_folder, tmp_path):
    (tmp_path / "train.py").write_text(SCRIPT)
    ours, theirs = pty.openpty()
    given = environment(ACCELERATE_USE_CPU="true")
    command = [*LAUNCHERS[launcher], str(tmp_path / "train.py"), str(tiny_model_folder), str(tmp_path)]
    terminal = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
    listen = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a job in the background would ignore it
    running = subprocess.Popen(command, env=given, start_new_session=True, preexec_fn=listen, **terminal)
    os.close(theirs)
    shown_until_the_end(ours, until="step 2 of")
    (os.killpg if whole_group else os.kill)(running.pid, signal.SIGINT)
    last = [line for line in shown_until_the_end(ours).splitlines() if line.strip()]
    running.wait(timeout=60)
    os.close(ours)
    assert "is complete: go on with `resume_from_checkpoint=True`" in last[-1], last[-5:]
    assert sum("is complete: go on with" in line for line in last) == 1
    assert running.returncode == 75 if launcher == "python" else running.returncode != 0  # a launcher's own
    (checkpoint,) = (tmp_path / "run").glob("checkpoint-*")
    assert damage(checkpoint) is None
    shutil.rmtree(tmp_path / "run")
