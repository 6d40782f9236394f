"""Runs on two processes resume to the bit, agree on what is whole, and are not continued by another number."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests import launching
from tests.faults.runs import policy, reward
from tests.launching import ROOT
from tests.trainers.test_one_base import base  # noqa: F401  (a model wide enough for 4-bit blocks)

pytestmark = pytest.mark.faults


def on_two(model: Path, folder: Path, *kinds: str) -> str:
    script = str(ROOT / "tests" / "faults" / "pair.py")
    done = launching.run(*launching.torchrun(2), script, str(model), str(folder), *kinds, timeout=290)
    assert [done.stdout.count(f"HELD {kind}") for kind in kinds] == [2] * len(kinds)
    return done.stdout


def test_runs_on_two_processes_resume_to_the_bit(base, tmp_path):  # noqa: F811
    on_two(base, tmp_path, "policy", "lora", "qlora", "reward")
    for kind, build in {"policy": policy, "reward": reward}.items():
        alone = build(str(base), tmp_path / kind, **({"per_device_train_batch_size": 1} if kind == "reward" else {}))
        with pytest.raises(ValueError, match="processes: 2 → 1"):
            alone.train(resume_from_checkpoint=True)


def test_two_processes_agree_on_what_is_whole(tiny_model_folder, tmp_path):
    said = on_two(tiny_model_folder, tmp_path, "damage")
    assert said.count("the newest checkpoint that is whole") == 1, "one process speaks for all"
    assert said.count("left by a run that was killed") == 1


def test_a_disk_that_is_full_for_one_process_stops_both(tiny_model_folder, tmp_path):
    on_two(tiny_model_folder, tmp_path, "full")


def test_nodes_with_disks_of_their_own_each_keep_whole_checkpoints(tiny_model_folder, tmp_path):
    """Two launches that meet over the network, as on two machines."""
    script = [str(ROOT / "tests" / "faults" / "nodes.py"), str(tiny_model_folder), str(tmp_path)]
    meet = [
        "--nnodes",
        "2",
        "--nproc_per_node",
        "1",
        "--master_addr",
        "127.0.0.1",
        "--master_port",
        launching.free_port(),
    ]
    command = [sys.executable, "-m", "torch.distributed.run", *meet]
    nodes = [
        subprocess.Popen(
            [*command, "--node_rank", str(node), *script],
            env=launching.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for node in (0, 1)
    ]
    try:
        said = [node.communicate(timeout=200)[0] for node in nodes]
    finally:
        for node in nodes:
            launching.end(node)
    # The last line of each; how the two launchers take leave of each other is not the matter here.
    assert all(f"HELD {node}" in said[node] for node in (0, 1)), said[0][-2500:] + said[1][-2500:]
