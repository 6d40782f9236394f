"""Which tokens there are: those the tokenizer knows, of which a model may have more embeddings, or a few less.

Embeddings are padded (Qwen2.5-7B has 152,064 for the 151,665 tokens of its tokenizer, the 0.5B 151,936), and such an id
stands for nothing: no text holds it, and another model of the family has no embedding for it. So the policy is the
distribution over the tokens that the tokenizer knows, 0 … n − 1: the logits beyond are left out where tokens are drawn
and in every log-prob, entropy and KL, of policy and reference alike. The numbers are then exactly those of the sampler.
In a trained model what is left out has a probability of about 1e-6 in all; nothing is masked, for the head is simply
used up to that row.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ...reporting.screen import RunWarning
from ..libraries import name_or_path
from .sizes import embeddings_of, outputs_of

# Tokens that a tokenizer has a use for.
IN_USE = ("eos_token", "pad_token", "bos_token")


def known_tokens(tokenizer: PreTrainedTokenizerBase) -> int:
    """One more than the largest id that a tokenizer knows."""
    return max(tokenizer.get_vocab().values()) + 1


def tokens_drawn(policy: nn.Module, tokenizer: PreTrainedTokenizerBase) -> int:
    """n: responses are made of the tokens 0 … n − 1, which tokenizer and policy both know."""
    return min(known_tokens(tokenizer), embeddings_of(policy), outputs_of(policy))


def check_vocabulary(model: nn.Module, tokenizer: PreTrainedTokenizerBase, role: str) -> None:
    """Refuse a tokenizer that writes texts in ids the model has no embedding for; warn of added tokens beyond.

    An added token (`<image_soft_token>` of gemma-3-1b's tokenizer) stands in no data that does not hold its very name.

    Raises:
        ValueError: an ordinary token, EOS, BOS or the padding is outside the model's vocabulary.
    """
    size, added = embeddings_of(model), tokenizer.added_tokens_decoder
    beyond = {token: i for token, i in tokenizer.get_vocab().items() if i >= size}
    if not beyond:
        return
    used = [f"{name} {getattr(tokenizer, name)!r}" for name in IN_USE if getattr(tokenizer, name) in beyond]
    largest = max(beyond.values())
    if used or not set(beyond.values()) <= set(added):
        which = f" ({', '.join(used)} among them)" if used else ""
        raise ValueError(
            f"the tokenizer has ids up to {largest}{which}, the {role}'s vocabulary ends at {size - 1}: they do not "
            f"belong together, or the {role} lacks `resize_token_embeddings({largest + 1})`"
        )
    names = ", ".join(f"{token!r} ({i})" for token, i in sorted(beyond.items(), key=lambda item: item[1])[:3])
    warnings.warn(
        f"the tokenizer's {names}{', …' if len(beyond) > 3 else ''} lie{'s' * (len(beyond) == 1)} beyond the {role}'s "
        f"vocabulary, which ends at {size - 1}; texts that hold such a token are refused",
        RunWarning,
        stacklevel=3,
    )


def check_ids(
    ids: Iterable[Sequence[int]], tokenizer: PreTrainedTokenizerBase, vocabulary: int, role: str, dataset: str
) -> None:
    """Refuse data with a token that the model has no embedding for.

    Args:
        ids: token ids of each row, too long ones left out. vocabulary: embeddings of the model. dataset: what to call
            the rows.

    Raises:
        ValueError: naming the first such row and its token.
    """
    if known_tokens(tokenizer) <= vocabulary:
        return
    for row, tokens in enumerate(ids):
        if tokens and max(tokens) >= vocabulary:
            token = max(tokens)
            raise ValueError(
                f"row {row} of the {dataset} holds the token {tokenizer.convert_ids_to_tokens(token)!r} ({token}), but "
                f"the {role}'s vocabulary ends at {vocabulary - 1}; take it out of the text, or give the {role} an "
                f"embedding for it: `resize_token_embeddings({known_tokens(tokenizer)})`"
            )


def check_same_tokens(
    model: nn.Module, policy: nn.Module, role: str, drawn: int | None, tokenizer: PreTrainedTokenizerBase | None = None
) -> None:
    """Refuse a model that cannot read the policy's tokens: with too few embeddings, or another tokenizer.

    Args:
        drawn: n, how many tokens responses are made of; None if all that the policy has embeddings for.
        tokenizer: the policy's.

    Raises:
        ValueError: the model lacks an embedding for one of them; or their numbers of embeddings differ and its own
            tokenizer is another, or is not known and `drawn` is not either.
    """
    theirs, ours = embeddings_of(model), embeddings_of(policy)
    if theirs == ours:
        return
    if drawn is None or theirs < drawn or _tokenizer_is_another(model, tokenizer):
        raise ValueError(
            f"the {role} has a vocabulary of {theirs}, the policy one of {ours}: it reads the policy's tokens, so they "
            f"must share the vocabulary (another width or depth is fine{_as_are(drawn)})"
        )


def _as_are(drawn: int | None) -> str:
    return "" if drawn is None else f", and so is another padding of the embeddings behind the {drawn} tokens in use"


def _tokenizer_is_another(model: nn.Module, tokenizer: Any) -> bool:
    """Whether a model was saved with a tokenizer of other tokens; nothing saved with it says nothing."""
    place = name_or_path(model.config)
    try:
        saved = AutoTokenizer.from_pretrained(place, trust_remote_code=False) if place else None
    except (OSError, ValueError):
        saved = None
    return saved is not None and tokenizer is not None and not _agree(saved.get_vocab(), tokenizer.get_vocab())


def _agree(one: dict[str, int], other: dict[str, int]) -> bool:
    """Whether no id stands for two tokens: one may have tokens more, that the other never had an id for."""
    names = {i: token for token, i in one.items()}
    return all(names.get(i, token) == token for token, i in other.items())
