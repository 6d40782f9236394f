"""Runs on several processes that are interrupted everywhere and must end as one that was not:

torchrun --nproc_per_node 2 tests/faults/pair.py MODEL FOLDER [lora | qlora | reward | damage | full]
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from accelerate.utils import gather_object
from peft import LoraConfig
from transformers import BitsAndBytesConfig

from hfrlhf.runs.folder import damage
from hfrlhf.runs.safe_checkpoints import CheckpointError
from tests.faults.runs import KINDS, assert_same, policy, reward, state_of
from tests.faults.test_full_disk import Limit

# A rollout is used for four steps, an epoch has two rollouts: 4 and 8 are boundaries, 6 is in mid-cycle, 9 in the
# second epoch. Of the reward model's epochs of five steps 4 is in the first, 5 between, 7 in the second.
STEPS = {"policy": (4, 6, 8, 9), "reward": (4, 5, 7)}


def build(kind: str, model: str, folder: Path, **changes: Any) -> Any:
    """A new trainer of a kind of run."""
    settings: dict[str, Any] = {"max_steps": 11, "save_total_limit": None} | changes
    if "lora" in kind:
        settings["peft_config"] = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    if kind == "qlora":
        settings["quantization_config"] = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    if kind == "reward":
        return reward(model, folder, per_device_train_batch_size=1, **settings)
    return policy(model, folder, **settings)


def resumes_to_the_bit(kind: str, model: str, folder: Path) -> None:
    """From every checkpoint of interest, each into the end of the whole run, on each process."""
    whole = build(kind, model, folder)
    whole.train()
    assert whole.args.world_size == 2
    ends = state_of(whole)
    for step in STEPS["reward" if kind == "reward" else "policy"]:
        continued = build(kind, model, folder)
        continued.train(resume_from_checkpoint=str(folder / "run" / f"checkpoint-{step}"))
        assert_same(ends, state_of(continued))
        if kind != "reward":
            experience = (continued.cycle.experience, whole.cycle.experience)
            assert experience[0].input_ids.tolist() == experience[1].input_ids.tolist()


def agree_on_what_is_whole(model: str, folder: Path) -> None:
    """One process's part of a checkpoint is enough to refuse it, and both say so; nobody waits for the other."""
    built = build("policy", model, folder, max_steps=3)
    built.train()
    run, main = folder / "run", built.is_world_process_zero()
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= {path.name for path in (run / "checkpoint-3").iterdir()}
    gather_object([None])
    if main:
        (run / "checkpoint-3" / "rng_state_1.pth").unlink()
        shutil.copytree(run / "checkpoint-1", run / "_unfinished" / "1" / "checkpoint-4")
    gather_object([None])
    assert built.checkpoint_to_resume(True) == str(run / "checkpoint-2")
    assert not (run / "_unfinished").exists()
    with pytest.raises(ValueError, match=r"process 0: rng_state_1.pth is missing"):
        built.checkpoint_to_resume(str(run / "checkpoint-3"))
    gather_object([None])
    if main:
        for step in (1, 2):
            (run / f"checkpoint-{step}" / "manifest.json").unlink()
    gather_object([None])
    with pytest.raises(ValueError, match=r"no checkpoint in .* is whole"):
        built.checkpoint_to_resume(True)


def stop_together_where_one_disk_is_full(model: str, folder: Path) -> None:
    """The first process may write no large file: both hear of it, nobody waits for the other, both go on later."""
    for kind, build_kind in KINDS.items():
        limit = Limit(2, 20_000)
        built = build_kind(model, folder / kind, max_steps=3, save_total_limit=None)
        if built.is_world_process_zero():
            built.add_callback(limit)
        began = time.monotonic()
        with pytest.raises(
            CheckpointError, match=r"checkpoint-2 could not be written \(OSError: process 0: .*-1 is whole"
        ):
            built.train()
        limit.lift()
        assert time.monotonic() - began < 60
        gather_object([None])  # the first has cleared up by now
        assert not (folder / kind / "run" / "_unfinished").exists()
        again = build_kind(model, folder / kind, max_steps=3, save_total_limit=None)
        again.train(resume_from_checkpoint=True)
        assert damage(folder / kind / "run" / "checkpoint-3") is None


if __name__ == "__main__":
    place = Path(sys.argv[2])
    for asked in sys.argv[3:]:
        if asked == "damage":
            agree_on_what_is_whole(sys.argv[1], place / asked)
        elif asked == "full":
            stop_together_where_one_disk_is_full(sys.argv[1], place / asked)
        else:
            resumes_to_the_bit(asked, sys.argv[1], place / asked)
        print(f"HELD {asked}\n", end="", flush=True)  # one write: two processes share the pipe
    gather_object([None])
    # With many trainers in one process, torch's threads now and then abort it while the interpreter is taken down,
    # after all was held: it ends here instead.
    os._exit(0)
