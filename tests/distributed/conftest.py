"""Models for trainings on several processes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.conftest import word_tokenizer


def save_llama(folder: Path, **changes: int | bool) -> Path:
    """A random Llama, wide enough for 4-bit blocks, with its tokenizer."""
    tokenizer = word_tokenizer()
    settings = {"vocab_size": len(tokenizer), "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2}
    settings |= {"num_attention_heads": 2, "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(**(settings | {"eos_token_id": 2} | changes)))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a vocabulary head of its own."""
    return save_llama(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose vocabulary head is its embedding."""
    return save_llama(tmp_path_factory.mktemp("tied"), tie_word_embeddings=True)
