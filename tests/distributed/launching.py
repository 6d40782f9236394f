"""Several real processes on this machine, and what they left behind."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tests.launching import run_together, torchrun

WEIGHTS = (
    "model.safetensors",
    "adapter_model.safetensors",
    "value_head.safetensors",
    "value/adapter_model.safetensors",
)


def launch(*commands: Sequence[str], **variables: str) -> list[str]:
    """Run commands of python's that belong together to their end; what each said."""
    # `ACCELERATE_USE_CPU` would quietly mean no DeepSpeed.
    done = run_together(*commands, without=["ACCELERATE_USE_CPU"], timeout=290, **variables)
    return [one.stdout + one.stderr for one in done]


def run_cases(folder: Path, processes: int, cases: list[dict[str, Any]]) -> None:
    """Train every case (see worker.py), in a folder of its own."""
    file = folder / f"cases-{processes}.json"
    file.write_text(json.dumps(cases))
    launch([*torchrun(processes), str(Path(__file__).with_name("worker.py")), str(file), str(folder)])


def result(folder: Path, rank: int = 0) -> dict[str, Any]:
    """What a process saw of a case."""
    return json.loads((folder / f"result-{rank}.json").read_text())


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Everything that was saved of policy and critic, or of a reward model."""
    found = {f"{file}:{name}": t for file in WEIGHTS if (folder / file).exists() for name, t in _load(folder / file)}
    assert found, f"{folder} holds no weights"
    return found


def _load(file: Path) -> Any:
    return load_file(file).items()


def assert_same_weights(folder: Path, expected: Path, relative: float) -> None:
    """The weights in two folders differ by at most that share of each tensor's largest entry."""
    ours, theirs = weights(folder), weights(expected)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        # A head that began at 0 is a sum of terms larger than itself, and their rounding errors are theirs.
        limit = relative * max(float(tensor.abs().max()), 1e-3)
        torch.testing.assert_close(ours[name], tensor, atol=limit, rtol=0, msg=lambda m, n=name: f"{n}: {m}")
