"""Printing never ends a run: any encoding, a closed stream, none at all, a pipe that nobody reads."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tqdm.auto import tqdm

from hfrlhf.reporting.samples import as_text, print_samples
from hfrlhf.reporting.screen import say, showable

ROOT = Path(__file__).resolve().parents[2]
ENCODINGS = ("ascii", "cp1252", "latin-1", "gbk", "shift_jis", "koi8-r", "utf-16", "utf-8")
TEXT = "score → 1.5 × π_θ, der große Film 🙂 漢字"


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_encoding_takes_every_text(encoding, monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    say(TEXT)
    print_samples({"first": [{"prompt": TEXT, "completion": "\ud800 [bold]", "score": 0.5}]})
    printed = raw.getvalue().decode(encoding)
    assert "score" in printed and "der gro" in printed and "0.50" in printed and "[bold]" in printed


def test_what_is_lacking_is_said_in_other_signs():
    assert showable("a → b × c", "ascii") == "a -> b x c"
    assert showable("Größe", "ascii") == r"Gr\xf6\xdfe"
    assert showable("Größe 🙂", "cp1252") == r"Größe \U0001f642"
    assert showable("Größe", "no such encoding") == r"Gr\xf6\xdfe"
    assert showable(TEXT, "utf-8") == TEXT and showable(TEXT, None) == TEXT


def test_a_stream_that_is_closed_or_missing_is_no_error(monkeypatch):
    closed = io.StringIO()
    closed.close()
    for stream in (closed, None):
        monkeypatch.setattr(sys, "stdout", stream)
        say("a line")
        print_samples({"first": [{"prompt": "a", "completion": "b", "score": 1.0}]})


def test_a_pipe_that_nobody_reads_is_no_error():
    program = "from hfrlhf.reporting.screen import say\nfor i in range(20000): say('a line of some length')\n"
    program += "import sys; sys.stderr.write('went on')"
    command = f'"{sys.executable}" -c "{program}" | head -n 1'
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout == "a line of some length\n" and "went on" in done.stderr


def test_a_line_does_not_glue_to_a_bar(monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setattr(sys, "stderr", screen)
    with tqdm(total=2, file=screen, ncols=40) as bar:
        bar.update()
        say("a line")
    shown = [line.split("\r")[-1] for line in screen.getvalue().split("\n")]
    assert "a line" in shown


def test_a_chat_is_shown_as_a_chat():
    assert as_text("plain") == "plain"
    assert as_text([{"role": "user", "content": "hello"}]) == "hello"
    turns = [{"role": "system", "content": "be kind"}, {"role": "user", "content": [{"type": "text", "text": "hi"}]}]
    assert as_text(turns) == "system: be kind\nuser: hi"
    assert as_text([{"role": "assistant", "content": None, "tool_calls": []}]) == ""


SCRIPT = """
import sys
from pathlib import Path
from datasets import Dataset
from tests.trainers.helpers import trainer

rows = Dataset.from_dict({"prompt": ["der große Film 🙂", "漢字 film"] * 6})
settings = {"train_dataset": rows, "save_strategy": "steps", "save_steps": 4}

def größe(completions, **_):
    return [float(len(completion)) for completion in completions]

built = trainer(sys.argv[1], Path(sys.argv[2]), eval_dataset=rows.select(range(2)), reward_funcs=[größe], **settings)
built.train()
built.evaluate()
built.save_model()
trainer(sys.argv[1], Path(sys.argv[2]), reward_funcs=[größe], max_steps=8, **settings).train(True)
"""


@pytest.mark.parametrize("encoding", ["ascii:strict", "cp1252:strict"])
def test_a_run_with_such_a_standard_output_comes_to_its_end(encoding, tiny_model_folder, tmp_path):
    """The start report, the first rollout, lines per log, the table, the files: prompts with letters of all kinds."""
    (tmp_path / "train.py").write_text(SCRIPT, encoding="utf-8")
    environment = {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, "-X", "utf8=0", str(tmp_path / "train.py"), str(tiny_model_folder), str(tmp_path)],
        env={**os.environ, **environment},
        capture_output=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-3000:]
    assert b"first rollout" in done.stdout and b"after the last rollout" in done.stdout
    rows = (tmp_path / "run" / "completions.jsonl").read_text(encoding="utf-8")
    assert len(rows.splitlines()) == 8
