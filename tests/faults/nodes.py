"""One process of two that share no disk, as two nodes do:   python tests/faults/nodes.py MODEL FOLDER"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import pytest
from accelerate.utils import gather_object
from peft import LoraConfig

from hfrlhf.runs.folder import damage
from hfrlhf.runs.safe_checkpoints import CheckpointError
from tests.faults.runs import assert_same, policy, state_of

model, own = sys.argv[1], Path(sys.argv[2], f"disk-{os.environ['GROUP_RANK']}")
with pytest.raises(CheckpointError, match=r"process 1: no weights .* the nodes share no disk"):
    policy(model, own / "full", max_steps=1, save_on_each_node=True).train()
lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
settings = {"max_steps": 5, "save_on_each_node": True, "save_total_limit": 2, "peft_config": lora}
whole = policy(model, own, **settings)
whole.train()
assert (whole.args.world_size, whole.args.local_process_index) == (2, 0)
run, me = own / "run", whole.args.process_index
assert sorted(path.name for path in run.iterdir() if path.is_dir()) == ["checkpoint-4", "checkpoint-5"]
assert damage(run / "checkpoint-5") is None
assert (run / "checkpoint-5" / f"rng_state_{me}.pth").exists()
assert not (run / "checkpoint-5" / f"rng_state_{1 - me}.pth").exists()

gather_object([None])
if me == 1:  # on one disk the newest is spoilt: all take the one before
    (run / "checkpoint-5" / "optimizer.pt").unlink()
gather_object([None])
with pytest.raises(ValueError, match=r"process 1: optimizer.pt is missing"):
    whole.checkpoint_to_resume(str(run / "checkpoint-5"))
continued = policy(model, own, **settings)
continued.train(resume_from_checkpoint=True)
assert_same(state_of(whole), state_of(continued))
assert damage(run / "checkpoint-5") is None
gather_object([None])
if me == 1:  # a disk that lost everything
    shutil.rmtree(run)
gather_object([None])
with pytest.raises(ValueError, match="there is no such folder"):
    continued.checkpoint_to_resume(True)
gather_object([None])
print(f"HELD {me}\n", end="", flush=True)
