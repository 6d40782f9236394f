"""Disks that take no more, and paths that never did: training stops with the reason, what was saved stays good."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

from hfrlhf.runs.checkpoints import checkpoints_in
from hfrlhf.runs.folder import damage
from hfrlhf.runs.safe_checkpoints import CheckpointError
from tests.faults.runs import KINDS, assert_same, state_of

SETTINGS = {"max_steps": 4, "save_total_limit": None}


class Limit(TrainerCallback):
    """From a step on no file may grow past a size, as `ulimit -f` does it: the write itself fails."""

    def __init__(self, step: int, size: int) -> None:
        self.step, self.size = step, size
        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.before[1]))

    def lift(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)


def stopped_clearly(built: Any, run: Path) -> list[int]:
    """Train into the full disk; the steps that were saved whole before."""
    with pytest.raises(CheckpointError) as error:
        built.train()
    said = str(error.value)
    steps = [int(path.name.split("-")[1]) for path in checkpoints_in(run)]
    assert f"checkpoint-{steps[0] + 1} could not be written" in said and "is the disk full" in said
    assert f"checkpoint-{steps[0]} is whole" in said
    assert all(damage(path) is None for path in checkpoints_in(run))
    assert not (run / "_unfinished").exists()
    return steps


@pytest.fixture(scope="module")
def whole(tiny_model_folder, tmp_path_factory) -> dict[str, Any]:
    """Where each kind of run ends that nothing stops."""
    ends = {}
    for kind, build in KINDS.items():
        built = build(str(tiny_model_folder), tmp_path_factory.mktemp(kind), **SETTINGS | {"save_strategy": "no"})
        built.train()
        ends[kind] = state_of(built)
    return ends


def goes_on_to_the_same_end(kind: str, model: Path, folder: Path, whole: dict[str, Any]) -> None:
    again = KINDS[kind](str(model), folder, **SETTINGS)
    again.train(resume_from_checkpoint=True)
    assert_same(whole[kind], state_of(again))


# The model's file has 25 kB, the optimiser's 67 kB: one or the other is too large.
@pytest.mark.parametrize(("kind", "size"), [("policy", 20_000), ("policy", 30_000), ("reward", 20_000)])
def test_a_file_that_cannot_be_written_stops_the_run(tiny_model_folder, tmp_path, whole, kind, size):
    limit = Limit(3, size)
    built = KINDS[kind](str(tiny_model_folder), tmp_path, **SETTINGS)
    built.add_callback(limit)
    try:
        steps = stopped_clearly(built, tmp_path / "run")
    finally:
        limit.lift()
    assert steps == [2, 1]
    goes_on_to_the_same_end(kind, tiny_model_folder, tmp_path, whole)


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of 600 kB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("nothing may be mounted here; the file-size limit stands in for it")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_stops_the_run_and_room_lets_it_go_on(tiny_model_folder, small_disk, whole):
    built = KINDS["policy"](str(tiny_model_folder), small_disk, **SETTINGS)
    assert len(stopped_clearly(built, small_disk / "run")) >= 1
    subprocess.run(["mount", "-o", "remount,size=60m", str(small_disk)], check=True)
    goes_on_to_the_same_end("policy", tiny_model_folder, small_disk, whole)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("below", ["", "run", "run/of/today"])
def test_a_path_under_a_file_is_refused_before_training(tiny_model_folder, tmp_path, kind, below):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(NotADirectoryError, match="is a file" if not below else "lies under .*file.*, which is a file"):
        KINDS[kind](str(tiny_model_folder), tmp_path, output_dir=str(tmp_path / "file" / below))
    assert (tmp_path / "file").read_text() == "not a folder"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_refused_before_training(tiny_model_folder, tmp_path):
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(PermissionError, match="nothing can be written"):
        KINDS["policy"](str(tiny_model_folder), tmp_path, output_dir=str(tmp_path / "closed" / "run"))


def test_a_disk_that_is_read_only_is_refused_before_training(tiny_model_folder, small_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(PermissionError, match="nothing can be written"):
        KINDS["policy"](str(tiny_model_folder), small_disk)
