"""A trainer's own state, in a checkpoint and back."""

from __future__ import annotations

import torch

from hfrlhf.runs.state import ExtraState, read_state, write_state


def test_what_is_written_is_read(tmp_path):
    files = tmp_path / "state.json", tmp_path / "tensors.safetensors"
    half = torch.arange(6).view(2, 3).T / 7  # in an order of its own, which the file does not know
    write_state(ExtraState({"steps": [1, 2], "stopped": False}, {"half": half}), *files)
    read = read_state(*files)
    assert read.facts == {"steps": [1, 2], "stopped": False}
    assert read.tensors.keys() == {"half"} and torch.equal(read.tensors["half"], half)


def test_without_tensors_there_is_no_file_of_them(tmp_path):
    files = tmp_path / "state.json", tmp_path / "tensors.safetensors"
    write_state(ExtraState({"steps": []}), *files)
    assert not files[1].exists() and read_state(*files).tensors == {}
