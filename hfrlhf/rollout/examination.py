"""How a model is sampled, found out by doing it: what it remembers, what it takes, and whether the numbers are right.

What a forward calls its state (`past_key_values`, since transformers 5.24 `cache`; `state` in RWKV) and whether it uses
it at all are not read from its signature. A model is run on a few short rows: its outputs show the state and its name,
by the same name it takes it back, and every way of decoding has to give the log-probs of a plain forward pass of the
same tokens before it is used. A token sampled without its context looks like any other token.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from warnings import warn
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import DynamicCache

from ..core.masking import at_least_float32
from ..experience import Prompts
from ..models.anatomy.forward import forward_flags
from ..models.anatomy.precision import mismatch_bound
from ..models.anatomy.sizes import device_of, embeddings_of
from ..models.libraries import EMPTY_LAYER, Cache, DynamicLayer, DynamicSlidingWindowLayer, is_stateful
from ..models.policy.response_states import causal_lm
from ..reporting.screen import RunWarning
from .contract import LanguageModel
from .decoding import Decoding, rows_in_loop

# Where a state is no `Cache` of transformers: the names under which its models give it back.
STATE_NAMES = ("cache", "past_key_values", "cache_params", "state", "mems", "past_buckets_states")
# What a forward may take beside: as much as it does.
OPTIONS = (("position_ids", "logits_to_keep"), ("position_ids",), ("logits_to_keep",), ())
# The rows it is tried on, two of one length; one of them leaves after a step.
LENGTHS, STEPS, LEAVES_AFTER, STAYING = (2, 3, 3, 5, 6), 3, 1, (0, 2, 3, 4)
ALL_TOGETHER, EQUAL_LENGTHS, ALONE = [[0, 1, 2, 3, 4]], [[0], [1, 2], [3], [4]], [[0], [1], [2], [3], [4]]

_FOUND: WeakKeyDictionary[Any, Decoding] = WeakKeyDictionary()


class DecodingIsWrong(ValueError):
    """A model cannot be sampled step by step: it does not use what it is given to remember."""


def examined(model: LanguageModel, anew: bool = False) -> Decoding:
    """How a model is sampled; found out once for each model, and remembered.

    Args:
        model: causal language model, plain or wrapped by PEFT, in eval mode. anew: forget what was found before.

    Raises:
        DecodingIsWrong: it has a state, and with it the log-probs are not those of a plain forward pass.
    """
    lm = causal_lm(model)
    if anew or lm not in _FOUND:
        _FOUND[lm] = _examine(model)
    return _FOUND[lm]


@torch.no_grad()
def _examine(model: LanguageModel) -> Decoding:
    lm = causal_lm(model)
    tokens, bound = some_tokens(lm), mismatch_bound(model)
    options, outputs = _first_forward(model, tokens[:1, : LENGTHS[-1]])
    state = _state_in(outputs)
    expected = plain_logprobs(lm, tokens)
    if not expected.isfinite().all():  # weights that are not finite are the sampler's to report
        return Decoding(state, options, leaves=state is None)
    if state is None:
        if outputs:
            _refuse_lost_cache(lm)
        return _without_state(model, tokens, expected)
    for candidate in _candidates(Decoding(state, options), outputs[state]):
        off = mismatch(model, tokens, candidate, expected, ALL_TOGETHER if candidate.pads else EQUAL_LENGTHS)
        if off <= bound:
            return candidate
    off = mismatch(model, tokens, candidate, expected, ALONE)
    if off <= bound or _cache_is_off(lm):  # the state is used, but several rows spoil each other's (RWKV)
        return _without_state(model, tokens, expected)
    raise DecodingIsWrong(
        f"{type(lm).__name__} cannot be sampled token by token: with the state it gives back as `{state}` its "
        f"log-probs must be those of a plain forward pass of the same tokens, and {_measured(off, bound)}. Its forward "
        f"does not use the state that it is given, or another one. {REMEDY}"
    )


def _cache_is_off(lm: LanguageModel) -> bool:
    """The library's own switch. It stands at False in many checkpoints, left there by a training: it is asked only
    where the cache does not work."""
    return getattr(lm.generation_config, "use_cache", None) is False


def _refuse_lost_cache(lm: LanguageModel) -> None:
    """A model whose configuration speaks of a cache and that gives none back has lost it on the way.

    Those that keep their state inside themselves (RecurrentGemma) give none back either.
    """
    keeps_it_inside = is_stateful(lm)
    if hasattr(lm.config.get_text_config(), "use_cache") and not keeps_it_inside and not _cache_is_off(lm):
        raise DecodingIsWrong(
            f"{type(lm).__name__} was asked for its cache (`use_cache=True`) and gave none back, though its "
            f"configuration speaks of one: its forward does not do what transformers expects of it. {REMEDY}"
        )


def _without_state(model: LanguageModel, tokens: Tensor, expected: Tensor) -> Decoding:
    """Whole sequences at every step, if that at least is right."""
    kind, bound, decoding = type(causal_lm(model)).__name__, mismatch_bound(model), Decoding(state=None)
    off = mismatch(model, tokens, decoding, expected, ALL_TOGETHER)
    if off > bound:
        raise DecodingIsWrong(
            f"{kind} cannot be sampled: its vocabulary head on its last hidden states must give the log-probs of its "
            f"own logits, and {_measured(off, bound)}: it does something to its logits that this package does not know"
        )
    warn(
        f"{kind} is sampled without a state from which its next token could be computed alone: each step computes the "
        "whole sequences again, which is right, and slow",
        RunWarning,
        stacklevel=2,
    )
    return decoding


def _measured(off: float, bound: float) -> str:
    if not math.isfinite(off):
        return "it raises an error"
    return f"they are {off:.3g} nats per token off (up to {bound:g} is rounding)"


REMEDY = (
    "Install the releases that this package was tested with (`pip install -c constraints.txt`), or set "
    "`model.generation_config.use_cache = False` to sample it without a cache, which is right, and slow"
)


# ---- What a model gives back --------------------------------------------------------------------------------------


def some_tokens(lm: LanguageModel) -> Tensor:
    """[rows, longest prompt + steps] token ids from all over the vocabulary."""
    shape = len(LENGTHS), LENGTHS[-1] + STEPS
    ids = torch.arange(shape[0] * shape[1], device=device_of(lm)) * 7919 + 11
    return (ids % embeddings_of(lm)).view(shape)


def _first_forward(model: LanguageModel, ids: Tensor) -> tuple[tuple[str, ...], Any]:
    """Which of `OPTIONS` the forward takes, and what it gives back."""
    values = {"position_ids": torch.arange(ids.shape[1], device=ids.device)[None], "logits_to_keep": 1}
    for options in OPTIONS:
        try:
            given = {name: values[name] for name in options}
            return options, model(input_ids=ids, **forward_flags(model, use_cache=True), **given)
        except TypeError:  # an argument that it does not know
            continue
        except (RuntimeError, ValueError, IndexError, AttributeError):  # it cannot begin with a state
            break
    return (), {}


def _state_in(outputs: Any) -> str | None:
    """The name of the state among the outputs; None where there is none that we know of."""
    given = dict(outputs.items())  # to be asked for an old name, the record itself would complain
    caches = [name for name, value in given.items() if isinstance(value, Cache)]
    named = [name for name in STATE_NAMES if given.get(name) is not None]
    return next(iter(caches + named), None)


def _candidates(found: Decoding, state: Any) -> Iterator[Decoding]:
    """The ways to decode with a state, the fastest first."""
    plain = {DynamicLayer, DynamicSlidingWindowLayer, EMPTY_LAYER}
    if type(state) is DynamicCache and {type(layer) for layer in state.layers} <= plain:
        yield found
    yield replace(found, leaves=False)
    yield replace(found, leaves=False, masks_steps=False)
    yield replace(found, leaves=False, masks_steps=False, pads=False)


# ---- Whether the numbers are right --------------------------------------------------------------------------------


def plain_logprobs(lm: LanguageModel, tokens: Tensor) -> Tensor:
    """[rows, steps, V] log-probs behind each prompt and each token appended to it: each row alone, nothing else."""
    rows = []
    for ids, length in zip(tokens, LENGTHS, strict=True):
        logits = lm(input_ids=ids[None, : length + STEPS - 1], **forward_flags(lm, use_cache=False)).logits[0]
        rows.append(at_least_float32(logits[length - 1 :]).log_softmax(-1))
    return torch.stack(rows)


def mismatch(
    model: LanguageModel, tokens: Tensor, decoding: Decoding, expected: Tensor, batches: list[list[int]]
) -> float:
    """How far the log-probs of a way to decode are from the expected ones, in nats per sampled token.

        mean over rows and steps of Σ_v π(v)·|log π'(v) − log π(v)|

    It is what `policy/sampler_mismatch` of a rollout would show. Infinite where the model raises an error.
    """
    try:
        decoded = torch.cat([_decoded(model, tokens, decoding, rows) for rows in batches])
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError, KeyError):
        return math.inf
    off = (expected.exp() * (decoded - expected).abs()).sum(-1)
    seen = decoded.isfinite().all(-1)  # a row that left has no log-probs of its later steps
    return float(off[seen].mean()) if seen.any() else math.inf


def _decoded(model: LanguageModel, tokens: Tensor, decoding: Decoding, rows: list[int]) -> Tensor:
    """[rows, steps, V] log-probs of some rows as the decode loop gets them, NaN where a row has left."""
    tokens, lengths = tokens[rows], torch.tensor([LENGTHS[row] for row in rows], device=tokens.device)
    batch = rows_in_loop(model, prompts_of(tokens, lengths.tolist()), STEPS, decoding, 0)
    here = torch.arange(len(rows), device=tokens.device)
    logits = batch.prefill()
    seen = torch.full((len(rows), STEPS, logits.shape[-1]), math.nan, device=tokens.device)
    for step in range(STEPS):
        seen[here, step] = at_least_float32(logits).log_softmax(-1).to(seen.dtype)
        if step == LEAVES_AFTER and decoding.leaves:
            here = torch.tensor(STAYING, device=tokens.device)
            batch.keep(here)
        if step < STEPS - 1:
            logits = batch.step(tokens[here, lengths[here] + step])
    return seen


def prompts_of(tokens: Tensor, lengths: list[int]) -> Prompts:
    """The first tokens of each row as left-padded prompts."""
    width = max(lengths)
    ids = torch.stack(
        [torch.nn.functional.pad(row[:n], (width - n, 0)) for row, n in zip(tokens, lengths, strict=True)]
    )
    mask = torch.arange(width, device=ids.device) >= width - torch.tensor(lengths, device=ids.device)[:, None]
    rows = torch.arange(len(lengths))
    return Prompts(ids, mask, rows, rows)
