"""What a disk does to checkpoints after they were written: seen, named, and never trained on from."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from datasets import Dataset
from transformers import Trainer, TrainerCallback

from hfrlhf.runs.checkpoints import checkpoints_in, rotate
from hfrlhf.runs.folder import MANIFEST, clear_aside, damage, publish, read_manifest
from hfrlhf.runs.safe_checkpoints import CheckpointError
from tests.faults.runs import KINDS, assert_same, state_of


def remove(path: Path) -> None:
    path.unlink()


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path, bit: int | None = None) -> None:
    content = bytearray(path.read_bytes())
    bit = 4 * len(content) if bit is None else bit  # in the middle
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


FAULTS: dict[str, Callable[[Path], None]] = {"removed": remove, "truncated": truncate, "flipped": flip}


@pytest.fixture(scope="module", params=["policy", "reward"])
def done(request, tiny_model_folder, tmp_path_factory) -> Any:
    """A run of six steps with a checkpoint after each (4 ends a rollout), and what it left."""
    folder = tmp_path_factory.mktemp(request.param)
    build = KINDS[request.param]
    settings = {"max_steps": 6, "save_total_limit": None, "logging_steps": 2}
    built = build(str(tiny_model_folder), folder, **settings)
    built.train()

    def again(place: Path, **changes: Any) -> Any:
        return build(str(tiny_model_folder), place, **(settings | changes))

    return SimpleNamespace(kind=request.param, built=built, again=again, run=folder / "run", state=state_of(built))


@pytest.fixture
def copy(done, tmp_path) -> Path:
    """The first three checkpoints of that run, to be damaged, as the folder of its trainer."""
    for step in (1, 2, 3):
        shutil.copytree(done.run / f"checkpoint-{step}", tmp_path / "run" / f"checkpoint-{step}")
    before = done.built.args.output_dir
    done.built.args.output_dir = str(tmp_path / "run")
    yield tmp_path / "run"
    done.built.args.output_dir = before


def files_of(checkpoint: Path) -> list[str]:
    return sorted(path.relative_to(checkpoint).as_posix() for path in checkpoint.rglob("*") if path.is_file())


@pytest.mark.parametrize("fault", FAULTS)
def test_every_file_that_is_not_as_written_is_found(done, copy, capsys, fault):
    names = files_of(copy / "checkpoint-3")
    state = {"policy": {"rollout_state.json", "rollout_buffer.safetensors", "value_head.safetensors"}}
    state["reward"] = {"reward_state.json"}
    always = {"model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", MANIFEST}
    assert always | state[done.kind] <= set(names)
    for name in names:
        shutil.rmtree(copy / "checkpoint-3")
        shutil.copytree(done.run / "checkpoint-3", copy / "checkpoint-3")
        FAULTS[fault](copy / "checkpoint-3" / name)
        with pytest.raises(ValueError, match=rf"checkpoint-3 cannot be resumed from: .*{name}"):
            done.built.checkpoint_to_resume(str(copy / "checkpoint-3"))
        capsys.readouterr()
        assert done.built.checkpoint_to_resume(True) == str(copy / "checkpoint-2"), name
        said = capsys.readouterr().out
        assert f"skipped {copy / 'checkpoint-3'}: " in said and name in said
        assert "checkpoint-2, the newest checkpoint that is whole" in said


def test_no_bit_of_a_manifest_can_flip_unseen(done, copy):
    path = copy / "checkpoint-3" / MANIFEST
    whole = path.read_bytes()
    for bit in range(0, 8 * len(whole), 29):  # 29 and 8 share no divisor: each bit of a byte has its turn
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        with pytest.raises(ValueError, match=MANIFEST):
            read_manifest(copy / "checkpoint-3")


PARTS = ["model.safetensors", "optimizer.pt", "rng_state.pth", "STATE", "rollout_buffer.safetensors", MANIFEST]


@pytest.mark.parametrize("part", PARTS)
def test_a_run_goes_on_from_the_last_whole_checkpoint_to_the_same_end(done, copy, part):
    if done.kind == "reward" and part not in ("model.safetensors", "STATE"):
        pytest.skip("as with a policy")
    name = part.replace("STATE", done.built.STATE_FILE)
    flip(copy / "checkpoint-3" / name)
    again = done.again(copy.parent)
    again.train(resume_from_checkpoint=True)
    assert_same(done.state, state_of(again))
    assert damage(copy / "checkpoint-3") is None  # the run came by again, and replaced it


def test_where_nothing_is_whole_each_reason_is_given(done, copy):
    remove(copy / "checkpoint-1" / "scheduler.pt")
    truncate(copy / "checkpoint-2" / "optimizer.pt")
    remove(copy / "checkpoint-3" / MANIFEST)
    with pytest.raises(ValueError, match=r"no checkpoint in .* is whole") as error:
        done.again(copy.parent).train(resume_from_checkpoint=True)
    lines = str(error.value).splitlines()[1:]
    for line, words in zip(
        lines, ("-3: it has no manifest", "-2: optimizer.pt has", "-1: scheduler.pt is missing"), strict=True
    ):
        assert words in line


def test_a_checkpoint_under_another_steps_name_is_refused(done, copy):
    (copy / "checkpoint-3").rename(copy / "checkpoint-5")
    assert done.built.checkpoint_to_resume(True) == str(copy / "checkpoint-2")
    with pytest.raises(ValueError, match=f"its {MANIFEST} is of step 3"):
        done.built.checkpoint_to_resume(str(copy / "checkpoint-5"))
    (copy / "checkpoint-5").rename(copy / "kept")  # any other name is the user's own business
    assert done.built.checkpoint_to_resume(str(copy / "kept")) == str(copy / "kept")


def test_weights_alone_are_not_resumed_from(done, tmp_path):
    with pytest.warns(UserWarning, match="cannot be resumed"):
        built = done.again(tmp_path, save_only_model=True, max_steps=1)
    built.train()
    with pytest.raises(ValueError, match="save_only_model"):
        done.again(tmp_path).train(resume_from_checkpoint=True)


def test_a_stock_checkpoint_is_not_taken_silently(done, tmp_path):
    """As the Trainer itself writes it: in place, without a manifest."""
    done.built.args.output_dir, before = str(tmp_path / "run"), done.built.args.output_dir
    try:
        Trainer._save_checkpoint(done.built, done.built.model, None)
        assert (tmp_path / "run" / "checkpoint-6" / "optimizer.pt").exists()
        with pytest.raises(ValueError, match="no manifest"):
            done.built.checkpoint_to_resume(True)
    finally:
        done.built.args.output_dir = before


# ---- Rotation -----------------------------------------------------------------------------------------------------


def kept(run: Path) -> list[int]:
    return [int(path.name.split("-")[1]) for path in checkpoints_in(run)]


@pytest.mark.parametrize(
    ("limit", "damaged", "best", "left"),
    [
        (None, [], None, [3, 2, 1]),
        (2, [], None, [3, 2]),
        (1, [], None, [3]),
        (1, [], 1, [3, 1]),
        (1, [3], None, [3, 2]),
        (1, [3, 2], None, [3, 1]),
        (2, [3, 2], None, [3, 2, 1]),
        (1, [3], 1, [3, 1]),
        (1, [3, 1], 1, [3, 2, 1]),
        (1, [3, 2, 1], None, [3]),
    ],
)
def test_the_last_whole_checkpoint_is_never_deleted(done, copy, limit, damaged, best, left):
    for step in damaged:
        flip(copy / f"checkpoint-{step}" / "optimizer.pt")
    rotate(copy, limit, copy / "checkpoint-3", best and str(copy / f"checkpoint-{best}"))
    assert kept(copy) == left
    assert sorted(path.name for path in copy.iterdir()) == [f"checkpoint-{step}" for step in reversed(left)]


def test_a_run_keeps_as_many_as_it_is_told(done, tmp_path):
    built = done.again(tmp_path, save_total_limit=2)
    built.train()
    assert kept(tmp_path / "run") == [6, 5]
    assert_same(done.state, state_of(built))


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="only Linux counts what a process reads")
def test_a_deletion_does_not_read_the_new_checkpoint_once_more(tiny_model_folder, tmp_path):
    built = KINDS["policy"](str(tiny_model_folder), tmp_path, max_steps=6, save_total_limit=3)
    save, read = built._save_checkpoint, []

    def counted(*args: Any) -> None:
        before = bytes_read()
        save(*args)
        read.append(bytes_read() - before)

    built._save_checkpoint = counted
    built.train()
    newest = tmp_path / "run" / "checkpoint-6"
    size = sum(path.stat().st_size for path in newest.rglob("*") if path.is_file())
    assert read[2] >= size / 2  # what sealing reads
    assert read[5] < read[2] + size / 3, (read, size)  # as much, and not twice that, where another is deleted


def bytes_read() -> int:
    """By all threads of this process, from the cache of the system too."""
    return int(Path("/proc/self/io").read_text().split()[1])


@pytest.mark.parametrize(("fault", "left"), [("flipped", [3]), ("truncated", [3, 2])])
def test_what_was_just_sealed_is_looked_at_without_reading_it(done, copy, fault, left):
    FAULTS[fault](copy / "checkpoint-3" / "optimizer.pt")
    rotate(copy, 1, copy / "checkpoint-3", None, just_sealed=True)
    assert kept(copy) == left


class Spoil(TrainerCallback):
    """Flips a bit of the best checkpoint after the last save."""

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 3:
            flip(Path(state.best_model_checkpoint) / "model.safetensors")


@pytest.mark.parametrize("spoilt", [False, True])
def test_the_best_checkpoint_is_named_kept_and_loaded_if_it_is_whole(tiny_model_folder, tmp_path, spoilt):
    settings = {"max_steps": 3, "save_total_limit": 1, "eval_strategy": "steps", "eval_steps": 1}
    # The highest loss counts as the best, which is the first.
    settings |= {"metric_for_best_model": "loss", "greater_is_better": True, "load_best_model_at_end": True}
    evaluated = Dataset.from_dict({"chosen": ["a good film"], "rejected": ["a bad film"]})
    built = KINDS["reward"](str(tiny_model_folder), tmp_path, eval_dataset=evaluated, **settings)
    if spoilt:
        built.add_callback(Spoil())
    built.train()
    run = tmp_path / "run"
    assert kept(run) == ([3, 1] if spoilt else [1])
    assert built.state.best_model_checkpoint == (None if spoilt else str(run / "checkpoint-1"))
    for checkpoint in checkpoints_in(run):
        assert f'"{run / "checkpoint-1"}"' in (checkpoint / "trainer_state.json").read_text()
        for path in checkpoint.rglob("*.json"):
            assert "_unfinished" not in path.read_text(), path


# ---- What is left aside -------------------------------------------------------------------------------------------


def test_what_a_killed_run_left_is_put_back_or_removed(done, copy, capsys):
    """Killed between the two renames of a replacement; while writing; while deleting."""
    aside = copy / "_unfinished" / "1a2b"
    aside.mkdir(parents=True)
    (copy / "checkpoint-3").rename(aside / "replaced-checkpoint-3")
    shutil.copytree(copy / "checkpoint-2", aside / "checkpoint-4")
    (copy / "_unfinished" / "removed").mkdir()
    (copy / "checkpoint-1").rename(copy / "_unfinished" / "removed" / "checkpoint-1")
    assert done.built.checkpoint_to_resume(True) == str(copy / "checkpoint-3")
    assert "left by a run that was killed" in capsys.readouterr().out
    assert sorted(path.name for path in copy.iterdir()) == ["checkpoint-2", "checkpoint-3"]
    assert clear_aside(copy) == []


def test_a_replacement_that_fails_leaves_the_old_one(done, copy):
    with pytest.raises(OSError):
        publish(copy / "_unfinished" / "nothing-there", copy / "checkpoint-3")
    shutil.move(copy / "checkpoint-3", copy / "a")
    (copy / "checkpoint-3").mkdir()
    (copy / "checkpoint-3" / "old").touch()
    with pytest.raises(OSError):
        publish(copy / "nothing-there", copy / "checkpoint-3")
    assert (copy / "checkpoint-3" / "old").exists()


def test_a_replacement_that_cannot_even_be_undone_loses_no_checkpoint(tiny_model_folder, tmp_path):
    """Both renames onto the name fail: the old checkpoint stays aside, and the next start puts it back."""
    settings = {"max_steps": 2, "save_total_limit": None}
    built = KINDS["reward"](str(tiny_model_folder), tmp_path, **settings)
    built.train()
    run, whole = tmp_path / "run", (tmp_path / "run" / "checkpoint-2" / MANIFEST).read_bytes()
    rename = os.rename

    def and_then_blocked(source: Any, target: Any) -> None:
        rename(source, target)
        if Path(source) == run / "checkpoint-2":
            (run / "checkpoint-2").touch()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "rename", and_then_blocked)
        with pytest.raises(CheckpointError):
            built._save_checkpoint(built.model, None)
    (run / "checkpoint-2").unlink()
    assert built.checkpoint_to_resume(True) == str(run / "checkpoint-2")
    assert (run / "checkpoint-2" / MANIFEST).read_bytes() == whole


def test_a_folder_whose_only_checkpoint_lies_aside_is_not_started_in_anew(done, copy):
    """Killed between the two renames of a replacement: the folder looks empty, and is not."""
    aside = copy / "_unfinished" / "1a2b"
    aside.mkdir(parents=True)
    (copy / "checkpoint-3").rename(aside / "replaced-checkpoint-3")
    for step in (1, 2):
        shutil.rmtree(copy / f"checkpoint-{step}")
    with pytest.raises(FileExistsError, match="_unfinished/1a2b/replaced-checkpoint-3"):
        done.again(copy.parent).train()
    assert done.built.checkpoint_to_resume(True) == str(copy / "checkpoint-3")


def test_the_hub_is_given_what_has_its_final_name(done, tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(
        Trainer, "_push_from_checkpoint", lambda self, folder: given.append((folder, damage(Path(folder))))
    )
    built = done.again(tmp_path, max_steps=2)
    built.args.push_to_hub = True
    for step in (1, 2):
        built.args.max_steps = step
        built.train(resume_from_checkpoint=step == 2 or None)
    assert given == [(str(tmp_path / "run" / f"checkpoint-{step}"), None) for step in (1, 2)]
