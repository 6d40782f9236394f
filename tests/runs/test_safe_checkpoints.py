"""A folder is under its name when it is whole, and not before; no Trainer takes part."""

from __future__ import annotations

from pathlib import Path

import pytest
from accelerate import Accelerator

from hfrlhf.runs.agreement import Agreement
from hfrlhf.runs.folder import damage
from hfrlhf.runs.safe_checkpoints import CheckpointError, SafeCheckpoints


@pytest.fixture
def checkpoints() -> SafeCheckpoints:
    return SafeCheckpoints(Agreement(Accelerator(cpu=True)))


def fill(staged: Path, text: str = "weights") -> None:
    staged.mkdir(exist_ok=True)
    (staged / "model.safetensors").write_text(text, encoding="utf-8")


def names(run: Path) -> list[str]:
    return sorted(path.name for path in run.iterdir())


def test_what_is_written_has_its_name_only_when_it_is_whole(checkpoints, tmp_path):
    with checkpoints.written(tmp_path, 3) as staged:
        fill(staged)
        assert checkpoints.staged == staged.parent
        assert names(tmp_path) == ["_unfinished"] and staged.name == "checkpoint-3"
    assert checkpoints.staged is None
    assert names(tmp_path) == ["checkpoint-3"] and damage(tmp_path / "checkpoint-3") is None


def test_a_second_one_of_a_step_replaces_the_first(checkpoints, tmp_path):
    for text in ("first", "second"):
        with checkpoints.written(tmp_path, 3) as staged:
            fill(staged, text)
    assert (tmp_path / "checkpoint-3" / "model.safetensors").read_text(encoding="utf-8") == "second"
    assert names(tmp_path) == ["checkpoint-3"]


def test_an_error_leaves_nothing_but_what_was_there(checkpoints, tmp_path):
    with checkpoints.written(tmp_path, 3) as staged:
        fill(staged)
    message = r"checkpoint-4 could not be written \(OSError: no room\).*checkpoint-3 is whole"
    with pytest.raises(CheckpointError, match=message), checkpoints.written(tmp_path, 4) as staged:
        fill(staged)
        raise OSError("no room")
    assert names(tmp_path) == ["checkpoint-3"] and checkpoints.staged is None


def test_a_folder_without_weights_is_no_checkpoint(checkpoints, tmp_path):
    with pytest.raises(CheckpointError, match="no weights were written"), checkpoints.written(tmp_path, 1) as staged:
        staged.mkdir()
    assert names(tmp_path) == []


def test_the_oldest_are_deleted_and_the_best_one_stays(checkpoints, tmp_path):
    for step in (1, 2, 3, 4):
        with checkpoints.written(tmp_path, step) as staged:
            fill(staged)
    checkpoints.rotate(tmp_path / "checkpoint-4", 2, str(tmp_path / "checkpoint-1"))
    assert names(tmp_path) == ["checkpoint-1", "checkpoint-4"]


def test_elsewhere_than_in_a_checkpoint_an_error_is_raised_at_once(checkpoints):
    with pytest.raises(OSError, match="gone"), checkpoints.noting():
        raise OSError("gone")
