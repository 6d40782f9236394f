"""Processes that have done their work end well, also where one ends a moment before the other."""

from __future__ import annotations

import pytest

from tests import launching
from tests.launching import torchrun

pytestmark = pytest.mark.distributed

SCRIPT = """
import atexit, os, sys, time
from pathlib import Path
from tests.trainers.helpers import trainer

def after_all_others():  # registered first, so called last
    import torch.distributed as dist
    print("group is there:", dist.is_initialized(), flush=True)

atexit.register(after_all_others)
built = trainer(sys.argv[1], Path(sys.argv[2]), max_steps=1, num_ppo_epochs=1, num_mini_batches=1)
built.train()
time.sleep(0.2 * int(os.environ["RANK"]))
"""


def test_the_group_is_gone_before_the_process_is(tiny_model_folder, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    done = launching.run(*torchrun(2), str(tmp_path / "script.py"), str(tiny_model_folder), str(tmp_path))
    assert done.stdout.count("group is there: False") == 2
