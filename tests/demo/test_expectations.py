"""A demo whose stages are not what they should be says so, ends with an error, and keeps its files."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hfrlhf.demo import run
from hfrlhf.demo.expectations import EXPECTED, DemoFailed, shortfalls
from tests.demo.test_run import small_settings

ROOT = Path(__file__).resolve().parents[2]
GOOD = {
    "ended_sft": 1.0, "gold_before": 1.3, "reward_accuracy": 0.82, "win_rate": 0.95, "win_rate_high": 0.97, "kl": 6.6,
    "ended": 1.0, "distinct_of_sft": 1.0,
}  # fmt: skip


def test_the_table_holds_a_good_demo_for_good_and_each_shortfall_for_one():
    assert {row.metric for row in EXPECTED} == set(GOOD)
    assert shortfalls(GOOD) == [] and shortfalls({}) == []
    bad = {"ended_sft": 0.5, "gold_before": -0.2, "reward_accuracy": 0.486, "win_rate": 0.678, "win_rate_high": 0.4}
    bad |= {"kl": 22.0, "ended": 0.02, "distinct_of_sft": 0.01}
    for name, value in bad.items():
        (line,) = shortfalls(GOOD | {name: value})
        assert f"{value:.3g} " in line and "it should be at " in line
        assert len(shortfalls(GOOD | {name: math.nan})) == 1
    assert shortfalls({"reward_accuracy": 0.486}) == [
        "reward model: 0.486 of held-out pairs that it ranks rightly (chance: 0.5); it should be at least 0.65"
    ]
    assert shortfalls(GOOD | {"win_rate": 0.6, "kl": 20.0}, "rloo") == []  # what PPO promises


def test_a_demo_that_falls_short_keeps_its_files_and_ends_with_an_error(tmp_path, monkeypatch, capsys):
    settings = small_settings()  # far too short a training
    monkeypatch.setattr(run, "load_settings", lambda: settings)
    with pytest.raises(DemoFailed, match=r"the demo is not what it should be; its files are in .*\n  SFT: "):
        run.run_demo(tmp_path / "demo")
    assert {"sft", "reward_model", "policy", "curves.png", "metrics.json", "README.md"} <= {
        path.name for path in (tmp_path / "demo").iterdir()
    }
    assert "      ! reward model: 0." in capsys.readouterr().out


@pytest.mark.faults
def test_ctrl_c_in_the_demo_says_what_is_kept(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    running = subprocess.Popen(
        [sys.executable, str(ROOT / "recipes/ppo.py")], cwd=tmp_path, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background ignores it
    )  # fmt: skip
    shown = ""
    while "[3/5]" not in shown:
        shown += running.stdout.read(1)
    running.send_signal(2)
    rest, _ = running.communicate(timeout=120)
    assert running.returncode == 75, rest[-2000:]
    assert "Traceback" not in rest and "resume" not in rest
    assert "the models of the stages that were over are kept" in rest and "/sft)" in rest
