"""Runs on two processes resume to the bit, agree on what is whole, and are not continued by another number."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.runs import policy, reward
from tests.trainers.test_one_base import base  # noqa: F401  (a model wide enough for 4-bit blocks)

pytestmark = pytest.mark.faults

ROOT = Path(__file__).resolve().parents[2]


def torchrun(model: Path, folder: Path, *kinds: str) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    script = str(ROOT / "tests" / "faults" / "pair.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", script]
    done = subprocess.run(
        [*command, str(model), str(folder), *kinds], env=environment, capture_output=True, text=True, timeout=290
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert [done.stdout.count(f"HELD {kind}") for kind in kinds] == [2] * len(kinds)
    return done.stdout


def test_runs_on_two_processes_resume_to_the_bit(base, tmp_path):  # noqa: F811
    torchrun(base, tmp_path, "policy", "lora", "qlora", "reward")
    for kind, build in {"policy": policy, "reward": reward}.items():
        alone = build(str(base), tmp_path / kind, **({"per_device_train_batch_size": 1} if kind == "reward" else {}))
        with pytest.raises(ValueError, match="processes: 2 → 1"):
            alone.train(resume_from_checkpoint=True)


def test_two_processes_agree_on_what_is_whole(tiny_model_folder, tmp_path):
    said = torchrun(tiny_model_folder, tmp_path, "damage")
    assert said.count("the newest checkpoint that is whole") == 1, "one process speaks for all"
    assert said.count("left by a run that was killed") == 1


def test_a_disk_that_is_full_for_one_process_stops_both(tiny_model_folder, tmp_path):
    torchrun(tiny_model_folder, tmp_path, "full")


def test_nodes_with_disks_of_their_own_each_keep_whole_checkpoints(tiny_model_folder, tmp_path):
    """Two launches that meet over the network, as on two machines."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    script = [str(ROOT / "tests" / "faults" / "nodes.py"), str(tiny_model_folder), str(tmp_path)]
    meet = ["--nnodes", "2", "--nproc_per_node", "1", "--master_addr", "127.0.0.1", "--master_port", port]
    command = [sys.executable, "-m", "torch.distributed.run", *meet]
    nodes = [
        subprocess.Popen(
            [*command, "--node_rank", str(node), *script],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for node in (0, 1)
    ]
    said = [node.communicate(timeout=200)[0] for node in nodes]
    # The last line of each; how the two launchers take leave of each other is not the matter here.
    assert all(f"HELD {node}" in said[node] for node in (0, 1)), said[0][-2500:] + said[1][-2500:]
