"""Which checkpoint a run goes on from: the newest that is whole, of this trainer, with the same settings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from accelerate import Accelerator

from hfrlhf.runs.agreement import Agreement
from hfrlhf.runs.folder import seal
from hfrlhf.runs.lock import RunLock
from hfrlhf.runs.resuming import Resuming

SETTINGS = {"seed": 3, "batch": 8}


@pytest.fixture
def resuming() -> Resuming:
    agreement = Agreement(Accelerator(cpu=True))
    return Resuming(agreement, RunLock(agreement), "state.json")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run with the checkpoints of three steps."""
    for step in (1, 2, 10):
        write(tmp_path / f"checkpoint-{step}", step)
    return tmp_path


def write(folder: Path, step: int, without: str = "", processes: int = 1) -> None:
    folder.mkdir(parents=True)
    files = {"state.json": {"settings": SETTINGS}, "trainer_state.json": {"global_step": step}, "rng_state.pth": {}}
    for name, content in files.items():
        if name != without:
            (folder / name).write_text(json.dumps(content), encoding="utf-8")
    seal(folder, {"step": step, "processes": processes})


def test_nothing_is_looked_for_that_was_not_asked_for(resuming, tmp_path):
    assert resuming.checkpoint(None, tmp_path, SETTINGS) is None
    assert resuming.checkpoint(False, tmp_path, SETTINGS) is None


def test_true_is_the_highest_step_that_is_whole(resuming, run, capsys):
    assert resuming.checkpoint(True, run, SETTINGS) == str(run / "checkpoint-10")
    assert capsys.readouterr().out == ""
    (run / "checkpoint-10" / "state.json").unlink()
    assert resuming.checkpoint(True, run, SETTINGS) == str(run / "checkpoint-2")
    said = capsys.readouterr().out
    assert (
        "checkpoint-10: state.json is missing" in said and "checkpoint-2, the newest checkpoint that is whole" in said
    )


def test_a_path_is_taken_and_later_ones_are_named(resuming, run, capsys):
    assert resuming.checkpoint(str(run / "checkpoint-1"), run, SETTINGS) == str(run / "checkpoint-1")
    assert "also holds checkpoint-2, checkpoint-10, of later steps" in capsys.readouterr().out
    (run / "checkpoint-1" / "rng_state.pth").unlink()
    with pytest.raises(ValueError, match=r"checkpoint-1 cannot be resumed from: rng_state.pth is missing"):
        resuming.checkpoint(str(run / "checkpoint-1"), run, SETTINGS)


def test_a_run_with_other_settings_is_not_continued(resuming, run):
    with pytest.raises(ValueError, match="with changed batch: 8 → 4"):
        resuming.checkpoint(True, run, SETTINGS | {"batch": 4})


def test_where_there_is_none_it_says_so(resuming, tmp_path):
    with pytest.raises(ValueError, match=r"holds no checkpoint-<step> folder"):
        resuming.checkpoint(True, tmp_path, SETTINGS)


@pytest.mark.parametrize(
    ("missing", "said"),
    [("state.json", "it has no state.json"), ("rng_state.pth", "it has no rng_state.pth")],
)
def test_a_whole_folder_of_another_trainer_is_none_of_ours(resuming, tmp_path, missing, said):
    write(tmp_path / "checkpoint-1", 1, without=missing)
    assert said in str(resuming.why_not(tmp_path / "checkpoint-1"))


def test_of_another_number_of_processes_the_settings_say_more_than_a_missing_file(resuming, tmp_path):
    write(tmp_path / "checkpoint-1", 1, processes=2, without="rng_state.pth")
    assert resuming.why_not(tmp_path / "checkpoint-1") is None


def test_the_best_one_is_used_if_it_is_whole(resuming, run, caplog):
    best = str(run / "checkpoint-2")
    assert resuming.best(best) == best and resuming.best(None) is None
    (run / "checkpoint-2" / "state.json").write_text("{}", encoding="utf-8")
    with caplog.at_level("WARNING", logger="hfrlhf.runs.resuming"):
        assert resuming.best(best) is None
    assert "checkpoint-2 is not used: state.json has 2 bytes" in caplog.text
