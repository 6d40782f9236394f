"""Preference pairs: columns `chosen` and `rejected` in, token ids and padded batches out.

How a response is written as tokens is said in `responses.py`: the reward model reads in training what it will read when
it scores samples (DETAILS 8).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from .columns import check_dataset, kind_of_column, without_format
from .responses import encode_responses
from .templates import check_chat_template, check_template_columns, template_options

logger = logging.getLogger(__name__)

PURPOSE = "a preference dataset has 'chosen' and 'rejected', optionally 'prompt' and 'margin'"
IDS = ("chosen_ids", "rejected_ids")
REPEATED = "repeated"  # in a batch whose one pair is read for company only: it has no part in loss or metrics


@dataclass(frozen=True)
class Pairs:
    """Tokenised pairs: a dataset with `chosen_ids`, `rejected_ids`, `length` (of the longer side) and, where the data
    has one, `margin`; `dropped` counts the pairs left out because a side was too long."""

    dataset: Dataset
    dropped: int = 0


def prepare_pairs(dataset: Any, tokenizer: PreTrainedTokenizerBase, max_length: int, name: str = "train") -> Pairs:
    """Check a preference dataset, tokenise it, leave out what is too long and say how much that was.

    Args:
        dataset: columns `chosen` and `rejected`: responses to the column `prompt`, or prompt and response together
            where there is no such column; text, or lists of chat messages, whose template also reads the columns
            `tools` and `chat_template_kwargs`. Optional `margin`: at least 0, reward units.
        tokenizer: with an EOS token, and a chat template where the data is chat.
        max_length: tokens a side may have, EOS included.
        name: what to call the dataset in messages.

    Raises:
        TypeError: not a `datasets.Dataset`, or entries that are neither text nor chat messages.
        ValueError: missing columns, no rows, nulls, bad margins, a tokenizer without EOS or chat template, or pairs
            that are all too long.
    """
    dataset = without_format(dataset)
    kind = check_pairs(dataset, name)
    check_tokenizer(tokenizer, kind, name)
    template_columns = check_template_columns(dataset, kind, name)
    columns = [c for c in ("prompt", "chosen", "rejected", "margin", *template_columns) if c in dataset.column_names]
    tokenised = dataset.select_columns(columns).map(
        _tokenise,
        batched=True,
        remove_columns=[c for c in columns if c != "margin"],
        fn_kwargs={"tokenizer": tokenizer, "kind": kind},
        desc=f"Tokenizing {name} pairs",
        load_from_cache_file=False,  # the cache does not see a change of this file
    )
    lengths = tokenised["length"][:]
    kept = [row for row, length in enumerate(lengths) if length <= max_length]
    if not kept:
        raise ValueError(
            f"all {len(lengths):,} pairs of the {name} dataset are longer than {max_length} tokens (the shortest has "
            f"{min(lengths)}); raise `max_length`, or use a model that reads longer sequences"
        )
    dropped = len(lengths) - len(kept)
    if dropped:
        logger.warning(
            "%s: left out %s of %s pairs, longer than %d tokens", name, f"{dropped:,}", f"{len(lengths):,}", max_length
        )
    return Pairs(tokenised.select(kept) if dropped else tokenised, dropped)


# ---- Tokens -------------------------------------------------------------------------------------------------------


def _tokenise(batch: Mapping[str, list[Any]], tokenizer: PreTrainedTokenizerBase, kind: str) -> dict[str, list[Any]]:
    nothing: Any = "" if kind == "text" else []
    prompts = batch.get("prompt") or [nothing] * len(batch["chosen"])
    options = template_options(batch, len(prompts)) if kind == "chat" else None
    chosen, rejected = (
        encode_responses(tokenizer, prompts, batch[side], kind, options) for side in ("chosen", "rejected")
    )
    lengths = [max(len(c), len(r)) for c, r in zip(chosen, rejected, strict=True)]
    return {"chosen_ids": chosen, "rejected_ids": rejected, "length": lengths}


# ---- Batches ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PairCollator:
    """Pairs to one right-padded batch, the chosen responses first: one forward scores both sides (DETAILS 59).

    Shapes: n pairs -> input_ids, attention_mask [2n, L] long; margin [n] float32 where the data has one.
    """

    pad_token_id: int

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """The batch of some rows of `Pairs.dataset`."""
        batch = pad_right([row[side] for side in IDS for row in features], self.pad_token_id)
        if "margin" in features[0]:
            batch["margin"] = torch.tensor([row["margin"] for row in features], dtype=torch.float32)
        return batch


def batch_size(batch: Mapping[str, Tensor]) -> int:
    """Pairs of a batch of `PairCollator`."""
    return len(batch["input_ids"]) // 2


def counted_pairs(batch: Mapping[str, Tensor]) -> int:
    """Those that have a part in loss and metrics."""
    return 0 if REPEATED in batch else batch_size(batch)


def first_pairs(batch: dict[str, Tensor], pairs: int) -> dict[str, Tensor]:
    """The first pairs of a batch of `PairCollator`; for none of them one that is marked `REPEATED`.

    A process without pairs of its own still makes its forward and backward, which the others' gradients wait for.
    """
    if pairs == batch_size(batch):
        return batch
    kept = max(pairs, 1)
    cut = {name: tensor[:kept] for name, tensor in batch.items()}
    for name in ("input_ids", "attention_mask"):
        cut[name] = torch.cat([side[:kept] for side in batch[name].chunk(2)])
    return cut if pairs else cut | {REPEATED: torch.tensor(True)}


def pad_right(rows: Sequence[Sequence[int]], pad_token_id: int) -> dict[str, Tensor]:
    """Rows of token ids as `input_ids` and `attention_mask` [B,L] long, padded on the right."""
    width = max(map(len, rows))
    return {
        "input_ids": torch.tensor([[*row, *[pad_token_id] * (width - len(row))] for row in rows]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows]),
    }


# ---- Checks -------------------------------------------------------------------------------------------------------


def check_pairs(dataset: Any, name: str) -> str:
    """The kind of a preference dataset, "text" or "chat".

    Raises:
        TypeError, ValueError: as `prepare_pairs` says.
    """
    check_dataset(dataset, ["chosen", "rejected"], PURPOSE, name)
    if "margin" in dataset.column_names:
        _check_margins(dataset["margin"][:], name)
    columns = [column for column in ("prompt", "chosen", "rejected") if column in dataset.column_names]
    kinds = {column: kind_of_column(dataset[column][:], column, name) for column in columns}
    if len(set(kinds.values())) > 1:
        raise TypeError(
            f"the columns of the {name} dataset do not match: {kinds}; give all as text or all as chat messages (where "
            "'chosen' and 'rejected' already hold the prompt, remove the column 'prompt')"
        )
    return kinds["chosen"]


def _check_margins(values: list[Any], name: str) -> None:
    for row, value in enumerate(values):
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value) or value < 0:
            raise ValueError(
                f"column 'margin' of the {name} dataset holds numbers of at least 0 (in reward units); row {row} holds "
                f"{value!r}"
            )


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, kind: str, name: str) -> None:
    """Refuse a tokenizer that cannot end a sequence or render a chat.

    Raises:
        ValueError: no EOS token; chat data and no chat template.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no EOS token, with which every response ends; set `tokenizer.eos_token`")
    check_chat_template(tokenizer, kind, name)
