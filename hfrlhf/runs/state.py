"""What a checkpoint holds beside model, optimiser and generators: a trainer's own state, as JSON and tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor


@dataclass(frozen=True)
class ExtraState:
    """A trainer's own state, between its memory and a checkpoint.

    Args:
        facts: what JSON can hold. tensors: what it should not, by name; on the CPU or not.
    """

    facts: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)


def write_state(state: ExtraState, facts_file: Path, tensors_file: Path) -> None:
    """Write the facts, and the tensors where there are any."""
    facts_file.write_text(json.dumps(dict(state.facts), indent=1), encoding="utf-8")
    if state.tensors:
        save_file({name: tensor.contiguous() for name, tensor in state.tensors.items()}, tensors_file)


def read_state(facts_file: Path, tensors_file: Path) -> ExtraState:
    """What `write_state` wrote."""
    tensors = load_file(tensors_file) if tensors_file.is_file() else {}
    return ExtraState(json.loads(facts_file.read_text(encoding="utf-8")), tensors)
