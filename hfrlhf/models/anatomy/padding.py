"""A pad token that a sequence-classification model of transformers can be read with."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from transformers import PreTrainedTokenizerBase


def with_padding_token(tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> Any:
    """The tokenizer, or a copy of it with a pad token that is never the last token of a sequence.

    transformers reads a sequence-classification model at the rightmost token that differs from `config.pad_token_id`.
    With pad = EOS that is the token before EOS, and without a pad id a batch is refused. So the pad token must be one
    that no sequence ends with; elsewhere in a sequence it does no harm.

    Args:
        tokenizer: left as it is; only a copy is changed.
        vocabulary: number of embeddings of the model.
    """
    if tokenizer.pad_token_id not in (None, tokenizer.eos_token_id):
        return tokenizer
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.add_special_tokens({"pad_token": next(_padding_candidates(tokenizer, vocabulary))})
    return tokenizer


def _padding_candidates(tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> Iterator[str]:
    """Tokens to pad with, best first; none of them adds an embedding to the model."""
    vocab, eos = tokenizer.get_vocab(), tokenizer.eos_token_id
    special = {*tokenizer.all_special_tokens, *(str(t) for t in tokenizer.added_tokens_decoder.values() if t.special)}
    usable = sorted((t for t in special if vocab[t] != eos and vocab[t] < vocabulary), key=vocab.__getitem__)
    yield from (t for t in usable if "pad" in t.lower())  # present, but not declared
    yield from (t for t in usable if t == tokenizer.bos_token)  # only ever opens a sequence
    for token in ("<0xFF>", "ÿ"):  # the byte FF in its two usual spellings: it occurs in no UTF-8 text
        if token in vocab and tokenizer.decode([vocab[token]]) == "\ufffd":
            yield token
    if max(vocab.values()) + 1 < vocabulary:
        yield "<|pad|>"  # becomes a token of its own, in an embedding that no token uses
    # Sequences end with EOS, so any other token will do.
    yield from usable
    yield next(t for t, i in vocab.items() if i != eos)
