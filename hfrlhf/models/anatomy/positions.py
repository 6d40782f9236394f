"""How many tokens a model can read: by its own table of positions where it has one, and by its configuration."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from ..reward.head import without_wrapper
from .sizes import without_adapters

# What configurations call it; the first that one has counts. `seq_length`, where a configuration has that, says how
# long the sequences of its training were (BLOOM reads longer ones), and `model_max_length` of a tokenizer is a hint.
SPELLINGS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "n_ctx", "context_length")
# What modules with a learnt vector per position are called; past their end there is nothing to look up. Relative
# positions and distances have other names.
TABLES = {
    "wpe",
    "embed_positions",
    "position_embedding",
    "position_embeddings",
    "positions_embed",
    "positional_embedding",
    "position_embed",
    "pos_embed",
    "pos_embedding",
    "pos_embeddings",
    "embed_pos",
}


def positions_of(model: nn.Module) -> int | None:
    """The most tokens that a model can read at once; None where nothing sets a limit (recurrent models, ALiBi).

    Rotary models have no table that ends, but past what their configuration says they were never trained.

    Args:
        model: plain or wrapped by PEFT. Of one that also sees or hears, only the part that reads text counts.
    """
    inner = without_wrapper(model)
    spelt = (getattr(inner.config.get_text_config(), name, None) for name in SPELLINGS)
    known = next(([value] for value in spelt if isinstance(value, int) and value > 0), [])
    return min([*known, *_tables(inner)], default=None)


def _tables(model: Any) -> Iterator[int]:
    """The lengths of the tables of positions in a model, without the rows in front that no position uses."""
    for name, module in _of_text(model, {type(model.config), type(model.config.get_text_config())}):
        table = without_adapters(module)
        if name in TABLES and isinstance(table, nn.Embedding) and table.weight.dim() == 2:
            # OPT and its kin count from 2, RoBERTa's from behind the padding's row.
            unused = getattr(table, "offset", 0) or (0 if table.padding_idx is None else table.padding_idx + 1)
            yield table.weight.shape[0] - unused


def _of_text(module: nn.Module, configs: set[type]) -> Iterator[tuple[str, nn.Module]]:
    """Every module with its name, leaving out models inside the model whose configuration is another kind's."""
    for name, child in module.named_children():
        if isinstance(child, PreTrainedModel) and type(child.config) not in configs:
            continue
        yield name, child
        yield from _of_text(child, configs)
