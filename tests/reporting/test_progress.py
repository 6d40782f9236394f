"""What a person sees while a run goes on: one bar that fits, or a line per log."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import shlex
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from hfrlhf.reporting.metrics import OF_PAIRS, short_names
from hfrlhf.reporting.progress import fitting, log_line, short
from tests.trainers.helpers import prompts, trainer

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import sys, warnings
from pathlib import Path
from tests.trainers.helpers import reward, trainer

def talks(completions, **_):
    print("a user's own line")
    warnings.warn("a user's own warning")
    return reward(completions)

trainer(sys.argv[1], Path(sys.argv[2]), reward_funcs=talks, disable_tqdm=False, max_steps=12).train()
"""


def on_a_terminal(columns: int, *command: str) -> str:
    """What a command shows on a terminal of so many columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    kept = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    environment = kept | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "TERM": "xterm"}
    running = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, close_fds=True)
    os.close(theirs)
    shown = b""
    while True:
        try:
            chunk = os.read(ours, 65536)
        except OSError:  # Linux' way to say that the other end is closed
            chunk = b""
        if not chunk:
            break
        shown += chunk
    os.close(ours)
    assert running.wait(timeout=60) == 0, shown.decode(errors="replace")[-3000:]
    return shown.decode()


def test_a_terminal_of_100_columns_shows_one_clean_bar(tiny_model_folder, tmp_path):
    shown = on_a_terminal(100, sys.executable, "-c", SCRIPT, str(tiny_model_folder), str(tmp_path))
    lines = [re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", line).replace("\r", "\n") for line in shown.split("\n")]
    seen = [part.rstrip() for line in lines for part in line.split("\n") if part.strip()]
    bars = [line for line in seen if "|" in line and "/12 [" in line]
    assert max(map(len, bars)) <= 100
    assert any(re.search(r"100%.*12/12 \[.*score .*KL .*ended .*entropy .*length", line) for line in bars), bars
    for own in ("first rollout: KL to the reference", "a user's own line"):
        assert [line for line in seen if own in line and not line.startswith(own)] == []  # glued to nothing
    assert not any("Loading weights" in line or "Writing model shards" in line for line in seen)
    assert not any("%|" in line and "transformers]" in line for line in seen)
    assert not any(line.startswith("{") for line in seen)


def test_a_warning_glues_to_no_bar_where_the_output_goes_to_a_file(tiny_model_folder, tmp_path):
    words = [sys.executable, "-c", SCRIPT, str(tiny_model_folder), str(tmp_path)]
    shown = on_a_terminal(100, "sh", "-c", f"{shlex.join(words)} > {shlex.quote(str(tmp_path / 'output.txt'))}")
    assert "a user's own line" not in shown and "a user's own line" in (tmp_path / "output.txt").read_text()
    plain = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", shown)
    told = [line for line in re.split("[\r\n]+", plain) if "a user's own warning" in line]
    assert told and not any("%|" in line for line in told)


def test_without_bars_a_log_is_a_short_line(tiny_model_folder, tmp_path, capsys):
    built = trainer(str(tiny_model_folder), tmp_path, eval_dataset=prompts(2), max_steps=8, log_completions=False)
    built.train()
    built.evaluate()
    lines = capsys.readouterr().out.splitlines()
    logs = [line for line in lines if line.startswith("step ")]
    assert [line.split(",")[0] for line in logs[:2]] == ["step 4 of 8: episode 8", "step 8 of 8: episode 16"]
    assert all(re.search(r"score -?\d+\.\d\d, KL .*learning rate \d", line) for line in logs[:2])
    assert logs[2].startswith("step 8 of 8: done after") and logs[3].startswith("step 8 of 8: evaluation: score ")
    assert len(logs) == 4 and max(map(len, logs)) <= 160


@pytest.mark.parametrize("name", ["stdout", "stderr"])
@pytest.mark.parametrize("closed", [True, False])
def test_a_closed_or_missing_stream_shows_no_bar(name, closed, tiny_model_folder, tmp_path, monkeypatch):
    stream = io.StringIO()
    stream.close()
    monkeypatch.setattr(sys, name, stream if closed else None)
    built = trainer(str(tiny_model_folder), tmp_path, disable_tqdm=False)
    built.train()
    assert built.state.global_step == 4


def test_lines_of_reward_models_and_of_strange_logs():
    log = {"loss": 0.61234, "accuracy": 0.5, "margin": 0.001, "learning_rate": 1e-5, "epoch": 1.0}
    assert log_line(log, OF_PAIRS) == "loss 0.61, accuracy 0.50, margin 1.0e-03, learning rate 1.0e-05"
    assert log_line({"eval_loss": 0.5, "eval_accuracy": 1.0}, OF_PAIRS) == "evaluation: loss 0.50, accuracy 1.00"
    assert log_line({"eval_short_objective/score": 0.5}, short_names()) == "evaluation of short: score 0.50"
    assert log_line({"epoch": 1.0}, short_names()) == ""
    assert short(3) == "3" and short(0.0) == "0.00" and short(float("nan")) == "nan"


@pytest.mark.parametrize(("room", "kept"), [(3, 0), (10, 1), (20, 2), (100, 3)])
def test_what_does_not_fit_beside_the_bar_is_left_out(room, kept):
    numbers = ["score 0.5", "KL 1.25", "ended 1.00"]
    assert fitting(numbers, room) == numbers[:kept]
