"""What every test shares: no network, no cache of the user's, a tiny real model on disk."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

# Before any library reads them: nothing is fetched, and caches are made for this run alone.
if "HF_HOME" not in os.environ:
    os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="hfrlhf-tests-")
    atexit.register(shutil.rmtree, os.environ["HF_HOME"], ignore_errors=True)
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of models this small a second thread makes three times the CPU time

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

WORDS = [
    "the",
    "a",
    "film",
    "story",
    "actor",
    "is",
    "was",
    "good",
    "bad",
    "fine",
    "dull",
    "and",
    "but",
    "very",
    ".",
    "!",
]


def word_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer that puts <bos> in front; pad, bos and eos are distinct."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: i for i, token in enumerate(["<pad>", "<bos>", "<eos>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<pad>", "<bos>", "<eos>", "<unk>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved random Llama of a few thousand parameters with its tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = word_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=128,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    folder = tmp_path_factory.mktemp("tiny-model")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_tokenizer(
    eos: str = "<eos>", bos: str | None = "<bos>", pad: str | None = "<pad>", adds_eos: bool = False, **options: Any
) -> PreTrainedTokenizerFast:
    """A byte-level BPE of 300 tokens, trained here; which special tokens it has and adds is up to the caller.

    `prefix_space=True` starts every text with a space, as some tokenizers do; `chat=True` gives it a chat template
    whose turns end with <|im_end|>.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=options.get("prefix_space", False))
    tokenizer.decoder = decoders.ByteLevel()
    special = dict.fromkeys(
        [t for t in (pad, bos, eos) if t] + ["<|im_start|>", "<|im_end|>"] * options.get("chat", False)
    )
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the film was a good story", "the actor is very dull and bad"] * 4, trainer)
    template = f"{bos} $A" if bos else "$A"
    ids = [(t, tokenizer.token_to_id(t)) for t in dict.fromkeys(t for t in (bos, eos) if t)]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{template} {eos}" if adds_eos else template, special_tokens=ids
    )
    names = {"eos_token": eos, "bos_token": bos, "pad_token": pad}
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **{k: v for k, v in names.items() if v})
    made.chat_template = CHAT_TEMPLATE if options.get("chat") else None
    return made


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., PreTrainedTokenizerFast]:
    """Builds real tokenizers: see `byte_tokenizer`."""
    return byte_tokenizer
