"""Texts to token ids: which special tokens a tokenizer adds of itself, and which of them belong.

A special token is judged by where it comes from, not by where it stands: one that the tokenizer adds at the end of
every text goes (no prompt is over before its response), one that the user wrote there stays.
"""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

_PROBE = "a"


def encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], special: bool) -> list[list[int]]:
    """Token ids of texts that are not over yet: what the tokenizer puts in front of a text, and nothing behind it.

    Args:
        special: whether the tokenizer opens the text (plain text), or the text brings its special tokens itself (a chat
            as its template renders it). A text that already begins with BOS gets no second one.
    """
    plain = _ids(tokenizer, texts, False)
    if not special:
        return plain
    opening = _opening(tokenizer)
    if opening is None:
        return [_open(tokenizer, *pair) for pair in zip(_ids(tokenizer, texts, True), plain, strict=True)]
    bos = tokenizer.bos_token_id
    ends_with_bos = bos is not None and opening[-1:] == [bos]
    return [[*(opening[:-1] if ends_with_bos and ids[:1] == [bos] else opening), *ids] for ids in plain]


def _ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], special: bool) -> list[list[int]]:
    ids: list[list[int]] = tokenizer(list(texts), add_special_tokens=special, verbose=False).input_ids if texts else []
    return ids


def _opening(tokenizer: PreTrainedTokenizerBase) -> list[int] | None:
    """What the tokenizer puts in front of every text; None where it does not simply stand beside the text's tokens."""
    (plain,), (whole,) = (_ids(tokenizer, [_PROBE], special) for special in (False, True))
    starts = [i for i in range(len(whole) - len(plain) + 1) if whole[i : i + len(plain)] == plain]
    return whole[: starts[0]] if plain and starts else None


def _open(tokenizer: PreTrainedTokenizerBase, whole: list[int], plain: list[int]) -> list[int]:
    """A text's ids without the EOS that were added: as many as there are more of them at the end than without."""
    added = _trailing(whole, tokenizer.eos_token_id) - _trailing(plain, tokenizer.eos_token_id)
    whole = whole[: len(whole) - max(0, added)]
    bos = tokenizer.bos_token_id
    return whole[1:] if bos is not None and whole[:2] == [bos, bos] and plain[:1] == [bos] else whole


def _trailing(ids: list[int], token: int | None) -> int:
    """How often a token stands at the end."""
    return next((n for n, seen in enumerate(reversed(ids)) if seen != token), len(ids))
