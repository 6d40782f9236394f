"""One run at a time in an output folder."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hfrlhf.runs.lock import OWNER, FolderInUse, claim, release
from tests.trainers.helpers import trainer

HOLDER = """
import sys, time
from filelock import lock_descriptor
file = open(sys.argv[1], "w")
assert lock_descriptor(file.fileno(), blocking=False)
file.write(' {"host": "node-7", "pid": 4711}')
file.flush()
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path):
    """Another process that holds the folder, as a run does that still writes its last checkpoint."""
    (tmp_path / "run" / "_unfinished" / "1a2b" / "checkpoint-4").mkdir(parents=True)
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "run" / OWNER)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_run_is_refused_and_takes_nothing_until_the_first_is_dead(tiny_model_folder, tmp_path, holder):
    built = trainer(str(tiny_model_folder), tmp_path, max_steps=1)
    saving = tmp_path / "run" / "_unfinished" / "1a2b" / "checkpoint-4"
    for resume in (None, True):
        with pytest.raises(FolderInUse, match=r"node-7.*4711"):
            built.train(resume_from_checkpoint=resume)
    with pytest.raises(FolderInUse):
        built.checkpoint_to_resume(True)
    assert saving.is_dir()
    holder.kill()
    holder.wait()
    built.train()
    assert not (tmp_path / "run" / OWNER).exists()


def test_an_owner_that_has_not_said_who_it_is_is_respected_all_the_same(tmp_path):
    handle = claim(tmp_path)
    assert handle is not None
    os.ftruncate(handle, 0)  # as on a full disk
    with pytest.raises(FolderInUse, match="it has not said which"):
        claim(tmp_path)
    release(tmp_path, handle)


def test_a_folder_that_cannot_be_claimed_is_used_with_a_warning(tmp_path, caplog):
    (tmp_path / OWNER).mkdir()  # nothing that could be locked
    with caplog.at_level("WARNING", logger="hfrlhf.runs.lock"):
        assert claim(tmp_path) is None
    assert "nothing keeps a second run out of it" in caplog.text


def test_a_claim_ends_with_its_release(tmp_path):
    handle = claim(tmp_path)
    with pytest.raises(FolderInUse, match=str(os.getpid())):
        claim(tmp_path)
    assert handle is not None
    release(tmp_path, handle)
    again = claim(tmp_path)
    assert again is not None
    release(tmp_path, again)
