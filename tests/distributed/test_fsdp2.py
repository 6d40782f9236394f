"""A policy in pieces under torch's FSDP 2 rolls out, learns and is saved as if it were whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.distributed.launching import assert_same_weights, launch, result
from tests.launching import torchrun

pytestmark = pytest.mark.distributed


KINDS = ("full", "tied", "lora", "lora-bf16")


@pytest.fixture(scope="module")
def runs(base: Path, tied: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every kind of policy, in one launch."""
    folder = tmp_path_factory.mktemp("fsdp2")
    models = [f"{kind}={tied if kind == 'tied' else base}" for kind in KINDS]
    launch([*torchrun(2), str(Path(__file__).with_name("fsdp2_worker.py")), str(folder), *models])
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_in_pieces_as_if_whole(runs: Path, kind: str) -> None:
    folder = runs / kind
    both = [result(folder, rank) for rank in (0, 1)]
    assert all(one["same_tokens"] and one["same_logprobs"] and one["in_pieces"] for one in both)
    assert [len(one["tokens"]) for one in both] == [1, 5] and both[0]["parts"] == 3  # two blocks and the root
    assert max(len(row) for row in both[0]["tokens"]) < max(len(row) for row in both[1]["tokens"])
    # In bfloat16 the two sums of the trunk's gradients are rounded apart.
    assert both[0]["gradients"] < (1e-5 if kind != "lora-bf16" else 2e-2)
    assert_same_weights(folder / "sharded", folder / "whole", 0.0)
    stock: Any = AutoPeftModelForCausalLM if kind.startswith("lora") else AutoModelForCausalLM
    file = "adapter_model" if kind.startswith("lora") else "model"
    state = stock.from_pretrained(folder / "sharded").state_dict()
    for name, tensor in load_file(folder / "sharded" / f"{file}.safetensors").items():
        place = name.replace(".weight", ".default.weight") if kind.startswith("lora") else name
        assert state[place].to(tensor.dtype).equal(tensor), name
