"""Log-probabilities of chosen tokens and the entropy, from hidden states, without ever holding [N,V] logits.

With a large vocabulary the logits are the largest tensor of a training step by far. Here they exist for one chunk of
tokens at a time, in the forward pass and once more, recomputed, in the backward pass. N counts the tokens in question
(the valid ones of a micro-batch), d the hidden width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from hfrlhf.core.logprob_gradients import LinearLogprobs, LogitsLogprobs, chunks_of

# Logits held at a time: on a CPU about what its cache holds, elsewhere enough to keep an accelerator busy. Fewer rows
# than the minimum would spend the time on reading the head and adding to its gradient once per chunk.
_LOGITS_PER_CHUNK = {"cpu": 2**21}
_LOGITS_PER_CHUNK_ELSEWHERE = 2**26
_MIN_CHUNK_SIZE = 128


def linear_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    temperature: float = 1.0,
    bias: Tensor | None = None,
    need_entropy: bool = True,
    chunk_size: int | None = None,
    vocabulary: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Log-probability of each target and entropy of its distribution, for a linear head.

        ℓ_i = log softmax(z_i)[a_i],  H_i = −Σ_v p_iv·log p_iv,  z_i = (W·h_i + b) / temperature       (SPEC §1, §6.6)

    Gradients reach whichever of hidden, weight and bias require them, by the closed form
    ∂ℓ/∂z = e_a − p,  ∂H/∂z = −p·(log p + H).
    Shapes: hidden [N,d], weight [V,d], targets [N] int64, bias [V] -> [N], [N] (None unless `need_entropy`); float32
    (float64 if the input is), nats. Only the head's first `vocabulary` rows are used (None: all V): the tokens beyond
    have no probability, and their rows no gradient. `chunk_size` tokens are treated at a time (None: chosen by
    vocabulary and device); it changes memory, not the result. Under autocast the product with the head runs in the
    autocast dtype. The gradient itself cannot be differentiated again.

    Raises:
        ValueError: shapes that don't match, or a temperature or chunk size that is not positive.
    """
    _check(hidden, targets, temperature, chunk_size)
    if weight.ndim != 2 or weight.shape[1] != hidden.shape[1]:
        raise ValueError(f"the head's weight {list(weight.shape)} does not match hidden states {list(hidden.shape)}")
    vocabulary = min(vocabulary or weight.shape[0], weight.shape[0])
    chunk_size = chunk_size or _default_chunk_size(vocabulary, hidden.device)
    dtype = _matmul_dtype(hidden, weight)
    with torch.autocast(hidden.device.type, enabled=False):
        outputs = cast(Any, LinearLogprobs).apply(
            hidden, weight, bias, targets, temperature, need_entropy, chunk_size, dtype, vocabulary
        )
    return cast(tuple[Tensor, Tensor | None], outputs)


def head_logprobs(
    hidden: Tensor,
    head: Callable[[Tensor], Tensor],
    targets: Tensor,
    temperature: float = 1.0,
    need_entropy: bool = True,
    chunk_size: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """The same as `linear_logprobs` for any head: with LoRA on it, quantised, or with soft-capped logits.

        ℓ_i = log softmax(z_i)[a_i],  H_i = −Σ_v p_iv·log p_iv,  z_i = head(h_i) / temperature         (SPEC §1, §6.6)

    Each chunk is a checkpoint of autograd's: the backward pass calls the head again. It is somewhat slower than
    `linear_logprobs`, which knows its gradient.
    Shapes: hidden [N,d], targets [N] int64, head [n,d] -> [n,V] row by row -> [N], [N] (None unless `need_entropy`).

    Raises:
        ValueError: shapes that don't match, or a temperature or chunk size that is not positive.
    """
    _check(hidden, targets, temperature, chunk_size)
    # Only the head knows its vocabulary. One chunk at least, so that even no token at all is known to depend on it.
    chunks = chunks_of(max(1, len(hidden)), chunk_size or _MIN_CHUNK_SIZE)

    def from_chunk(h: Tensor, a: Tensor) -> Any:
        logits = head(h)
        # Autocast is for the head; it would take the sum of the entropy for one more product and round it to 8 bits.
        with torch.autocast(h.device.type, enabled=False):
            return cast(Any, LogitsLogprobs).apply(logits, a, temperature, need_entropy)

    parts = [cast(Any, checkpoint)(from_chunk, hidden[rows], targets[rows], use_reentrant=False) for rows in chunks]
    logprobs, entropies = zip(*parts, strict=True)
    return torch.cat(logprobs), torch.cat(entropies) if need_entropy else None


def _matmul_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """The dtype in which hidden @ weight.T is computed: autocast's where it is on, else the wider of the two."""
    dtype = torch.promote_types(hidden.dtype, weight.dtype)
    if torch.is_autocast_enabled(hidden.device.type) and dtype != torch.float64:
        return torch.get_autocast_dtype(hidden.device.type)
    return dtype


def _default_chunk_size(vocabulary: int, device: torch.device) -> int:
    """Tokens per chunk for a vocabulary of that size on that kind of device."""
    return max(_MIN_CHUNK_SIZE, _LOGITS_PER_CHUNK.get(device.type, _LOGITS_PER_CHUNK_ELSEWHERE) // max(1, vocabulary))


def _check(hidden: Tensor, targets: Tensor, temperature: float, chunk_size: int | None) -> None:
    if hidden.ndim != 2 or targets.shape != hidden.shape[:1]:
        raise ValueError(
            f"expected hidden states [N,d] and targets [N], got {list(hidden.shape)} and {list(targets.shape)}; "
            f"select the tokens of interest first, e.g. hidden[mask] and ids[mask]"
        )
    if temperature <= 0:
        raise ValueError(f"the temperature must be positive, got {temperature}")
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
