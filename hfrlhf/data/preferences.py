"""Preference pairs: columns `chosen` and `rejected` in, token ids and padded batches out.

A response is tokenised at the boundary the policy will meet when it writes one: the prompt's own tokens first, then the
rest, then EOS. The reward model thus reads in training what it will read when it scores samples (DETAILS 8).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

from .columns import check_chat_template, check_dataset, encode, kind_of_column, without_eos

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


def prepare_pairs(dataset: Any, tokenizer: Any, max_length: int, name: str = "train") -> Pairs:
    """Check a preference dataset, tokenise it, leave out what is too long and say how much that was.

    Args:
        dataset: columns `chosen` and `rejected`: responses to the column `prompt`, or prompt and response together
            where there is no such column; text, or lists of chat messages. Optional `margin`: at least 0, reward units.
        tokenizer: with an EOS token, and a chat template where the data is chat.
        max_length: tokens a side may have, EOS included.
        name: what to call the dataset in messages.

    Raises:
        TypeError: not a `datasets.Dataset`, or entries that are neither text nor chat messages.
        ValueError: missing columns, no rows, nulls, bad margins, a tokenizer without EOS or chat template, or pairs
            that are all too long.
    """
    kind = check_pairs(dataset, name)
    check_tokenizer(tokenizer, kind, name)
    columns = [c for c in ("prompt", "chosen", "rejected", "margin") if c in dataset.column_names]
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


def encode_responses(tokenizer: Any, prompts: Sequence[Any], completions: Sequence[Any], kind: str) -> list[list[int]]:
    """Token ids of prompts and their completions, ending with exactly one EOS.

    Args:
        prompts, completions: texts (kind "text"; an empty prompt where the completion holds everything) or lists of
            chat messages (kind "chat").
    """
    rendered = [RENDERERS[kind](tokenizer, p, c) for p, c in zip(prompts, completions, strict=True)]
    heads, wholes = [head for head, _ in rendered], [head + tail for head, tail in rendered]
    special = kind == "text"  # a chat template writes its special tokens itself
    head_ids = [without_eos(tokenizer, ids) for ids in encode(tokenizer, heads, special)]
    whole_ids = encode(tokenizer, wholes, special)
    joined = []
    for (_, tail), head, whole in zip(rendered, head_ids, whole_ids, strict=True):
        # Where the prompt's tokens open the whole text, the rest is what a policy would write. Where a word grew over
        # the boundary it is not, and the completion is tokenised by itself. (Doing that always would give a
        # tokenizer that starts every text with a space one that nobody wrote.)
        is_prefix = whole[: len(head)] == head
        joined.append(whole if is_prefix else head + encode(tokenizer, [tail], special=False)[0])
    return [_closed(tokenizer, ids) for ids in joined]


def _render_text(tokenizer: Any, prompt: str, completion: str) -> tuple[str, str]:
    return prompt, completion


def _render_chat(tokenizer: Any, prompt: list[Any], completion: list[Any]) -> tuple[str, str]:
    whole = tokenizer.apply_chat_template([*prompt, *completion], tokenize=False)
    head = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True) if prompt else ""
    # Some templates write a finished conversation otherwise than its beginning; then there is no boundary to keep.
    return (head, whole[len(head) :]) if whole.startswith(head) else ("", whole)


RENDERERS: dict[str, Callable[[Any, Any, Any], tuple[str, str]]] = {"text": _render_text, "chat": _render_chat}


def _closed(tokenizer: Any, ids: list[int]) -> list[int]:
    """The ids up to one EOS: appended if absent, cut after it where only blanks or another EOS follow.

    Chat templates write a newline after the end-of-turn token; a policy stops at the token itself.
    """
    eos = tokenizer.eos_token_id
    if eos is None:  # a scorer from elsewhere; our own data is refused without one
        return ids
    end = len(ids)
    while end and (ids[end - 1] == eos or not tokenizer.decode(ids[end - 1 : end]).strip()):
        end -= 1
    return [*ids[:end], eos] if eos in ids[end:] else [*ids, eos]


def _tokenise(batch: Mapping[str, list[Any]], tokenizer: Any, kind: str) -> dict[str, list[Any]]:
    nothing: Any = "" if kind == "text" else []
    prompts = batch.get("prompt") or [nothing] * len(batch["chosen"])
    chosen, rejected = (encode_responses(tokenizer, prompts, batch[side], kind) for side in ("chosen", "rejected"))
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


def check_tokenizer(tokenizer: Any, kind: str, name: str) -> None:
    """Refuse a tokenizer that cannot end a sequence or render a chat.

    Raises:
        ValueError: no EOS token; chat data and no chat template.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no EOS token, with which every response ends; set `tokenizer.eos_token`")
    check_chat_template(tokenizer, kind, name)
