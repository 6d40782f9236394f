"""Prompts: a column of text or chat in, left-padded batches out, and which prompts each rollout takes."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..core.randomness import permutation
from ..experience import Prompts
from .columns import check_dataset, kind_of_column, without_format
from .encoding import encode
from .templates import check_chat_template, check_template_columns, render, template_options

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PromptSet:
    """Tokenised prompts with their rows.

    `ids[i]`, `texts[i]` and `rows[i]` belong together: the token ids, the text they encode (a chat as its template
    renders it), and the dataset's row with all its columns (a chat's messages stay in `rows[i]["prompt"]`).
    `is_chat` says which kind the prompts are, `dropped` how many were left out because they were too long.
    """

    ids: list[list[int]]
    texts: list[str]
    rows: Dataset
    is_chat: bool
    dropped: int = 0

    def __len__(self) -> int:
        return len(self.ids)


# One set of prompts, several by name, or none.
Prepared = PromptSet | dict[str, PromptSet] | None


def prompt_sets(prepared: Prepared) -> dict[str, PromptSet]:
    """The sets of prompts, by what to call them in messages."""
    if isinstance(prepared, dict):
        return {f"eval dataset {name}": prompts for name, prompts in prepared.items()}
    return {} if prepared is None else {"eval dataset": prepared}


def prepare_prompts(
    dataset: Any, tokenizer: PreTrainedTokenizerBase, max_prompt_length: int | None, name: str = "train"
) -> PromptSet:
    """Check a prompt dataset, tokenise it, leave out what is too long and say how much that was.

    Text is encoded with the special tokens that the tokenizer puts in front; chat by the tokenizer's chat template, up
    to where the assistant begins to speak.

    Args:
        dataset: column `prompt`: text, or lists of chat messages, whose template also reads the columns `tools` and
            `chat_template_kwargs`. All other columns go to the reward functions.
        tokenizer: with a chat template where the data is chat.
        max_prompt_length: tokens a prompt may have, special tokens included; None for any number.
        name: what to call the dataset in messages.

    Raises:
        TypeError: not a `datasets.Dataset`, prompts that are neither text nor chat messages, or entries of the
            template's columns that no template could take.
        ValueError: no column `prompt`, no rows, nulls, empty prompts, chats that end with the assistant, a tokenizer
            without chat template, or prompts that are all too long.
    """
    if max_prompt_length is not None and max_prompt_length < 1:
        raise ValueError(f"max_prompt_length={max_prompt_length}: a prompt has at least 1 token; None sets no limit")
    dataset = without_format(dataset)
    check_dataset(dataset, ["prompt"], "a prompt dataset has 'prompt', other columns go to the reward functions", name)
    prompts = dataset["prompt"][:]
    kind = kind_of_column(prompts, "prompt", name)
    check_chat_template(tokenizer, kind, name)
    _check_each(prompts, kind, name)
    columns = {column: dataset[column][:] for column in check_template_columns(dataset, kind, name)}
    texts, ids = _encode_prompts(tokenizer, prompts, kind, template_options(columns, len(prompts)))
    _check_not_empty(ids, name)
    kept = _short_enough(ids, max_prompt_length, name)
    return PromptSet(
        ids=[ids[i] for i in kept],
        texts=[texts[i] for i in kept],
        rows=dataset if len(kept) == len(ids) else dataset.select(kept),
        is_chat=kind == "chat",
        dropped=len(ids) - len(kept),
    )


def prompt_batch(prompts: PromptSet, rows: Tensor, episodes: Tensor) -> Prompts:
    """The given prompts as one batch, left-padded with 0 to the longest of them.

    Args:
        rows: [B] positions in the prompt set. episodes: [B] their global episode indices in the rollout.
    """
    chosen = [prompts.ids[row] for row in rows.tolist()]
    width = max(map(len, chosen), default=0)
    missing = [width - len(ids) for ids in chosen]
    # 0 is a valid id for every embedding; what is padding is told by the mask alone (DETAILS 1, 3).
    ids = torch.tensor([[0] * n + ids for n, ids in zip(missing, chosen, strict=True)], dtype=torch.long)
    mask = torch.arange(width) >= torch.tensor(missing)[:, None]
    return Prompts(ids.view(len(chosen), width), mask, episodes, rows)


@dataclass(frozen=True)
class RolloutSampler:
    """Which prompts a rollout takes: a pure function of (seed, rollout).

    The prompts are read in an endless stream of permutations, one after the other; rollout r takes the positions
    r·n … (r+1)·n − 1 of the stream. So every prompt comes once before any comes again, whatever the sizes.

    Args:
        num_prompts: prompts there are. prompts_per_rollout: n. seed: of the stream.
    """

    num_prompts: int
    prompts_per_rollout: int
    seed: int

    def __post_init__(self) -> None:
        if self.num_prompts < 1 or self.prompts_per_rollout < 1:
            raise ValueError(
                f"a rollout needs prompts: num_prompts={self.num_prompts} and prompts_per_rollout="
                f"{self.prompts_per_rollout} must be at least 1"
            )

    def indices(self, rollout: int) -> Tensor:
        """[n] positions in the prompt set of the prompts of a rollout (0, 1, 2, …)."""
        begin = rollout * self.prompts_per_rollout
        first, last = begin // self.num_prompts, (begin + self.prompts_per_rollout - 1) // self.num_prompts
        stream = torch.cat([_order_of_pass(self.num_prompts, self.seed, i) for i in range(first, last + 1)])
        return stream[begin - first * self.num_prompts :][: self.prompts_per_rollout]


@lru_cache(maxsize=4)  # a large dataset is shuffled once per pass, not once per rollout
def _order_of_pass(num_prompts: int, seed: int, number: int) -> Tensor:
    return permutation(num_prompts, (seed, number))


# ---- Checks and tokens --------------------------------------------------------------------------------------------


def _check_each(prompts: list[Any], kind: str, name: str) -> None:
    """Refuse what no response can follow: blank text, or a chat in which the assistant spoke last."""
    for row, prompt in enumerate(prompts):
        if kind == "text" and not prompt.strip():
            raise ValueError(
                f"the {name} dataset has an empty prompt in row {row} ({prompt!r}); remove such rows, e.g. "
                "`dataset.filter(lambda row: row['prompt'].strip())`"
            )
        if kind == "chat" and prompt[-1]["role"] == "assistant":
            raise ValueError(
                f"the chat in row {row} of the {name} dataset ends with a message of the assistant, which is the "
                "policy's to write; end each prompt with the user's message"
            )


def _encode_prompts(
    tokenizer: PreTrainedTokenizerBase, prompts: list[Any], kind: str, options: list[dict[str, Any]]
) -> tuple[list[str], list[list[int]]]:
    """The prompts' texts and token ids."""
    if kind == "chat":
        prompts = [render(tokenizer, chat, row, prompt=True) for chat, row in zip(prompts, options, strict=True)]
    return prompts, encode(tokenizer, prompts, special=kind == "text")  # a template writes its special tokens itself


def _check_not_empty(ids: list[list[int]], name: str) -> None:
    for row, prompt in enumerate(ids):
        if not prompt:
            raise ValueError(
                f"the prompt in row {row} of the {name} dataset becomes no token at all; remove such rows, or use a "
                "tokenizer that begins a text with a BOS token"
            )


def _short_enough(ids: list[list[int]], limit: int | None, name: str) -> list[int]:
    """The prompts within the limit. Whole prompts are left out: one cut in the middle means something else."""
    kept = [i for i, prompt in enumerate(ids) if limit is None or len(prompt) <= limit]
    if not kept:
        raise ValueError(
            f"all {len(ids):,} prompts of the {name} dataset are longer than {limit} tokens (the shortest has "
            f"{min(map(len, ids))}); raise `max_prompt_length`"
        )
    if len(kept) < len(ids):
        dropped = f"{len(ids) - len(kept):,} of {len(ids):,}"
        logger.warning("%s: left out %s prompts, longer than %s tokens", name, dropped, limit)
    return kept
