"""What the tests of models share: a base wide enough for blocks of 64 quantised weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama wide enough for 4-bit blocks."""
    config = LlamaConfig(
        vocab_size=20, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    folder = tmp_path_factory.mktemp("base")
    model.save_pretrained(folder)
    return folder
