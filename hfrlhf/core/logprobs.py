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
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint

from hfrlhf.core.masking import at_least_float32

# Logits held at a time: on a CPU about what its cache holds, elsewhere enough to keep an accelerator busy. Fewer rows
# than the minimum would spend the time on reading the head and adding to its gradient once per chunk.
_LOGITS_PER_CHUNK = {"cpu": 2**21}
_LOGITS_PER_CHUNK_ELSEWHERE = 2**26
_MIN_CHUNK_SIZE = 128

# The least logit. A head may forbid tokens with −∞, which would make p·log p = 0·∞ = NaN where it should be 0.
_FORBIDDEN = -1e30


def linear_logprobs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    temperature: float = 1.0,
    bias: Tensor | None = None,
    need_entropy: bool = True,
    chunk_size: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Log-probability of each target and entropy of its distribution, for a linear head.

        ℓ_i = log softmax(z_i)[a_i],  H_i = −Σ_v p_iv·log p_iv,  z_i = (W·h_i + b) / temperature       (SPEC §1, §6.6)

    Gradients reach whichever of hidden, weight and bias require them, by the closed form
    ∂ℓ/∂z = e_a − p,  ∂H/∂z = −p·(log p + H).
    Shapes: hidden [N,d], weight [V,d], targets [N] int64, bias [V] -> [N], [N] (None unless `need_entropy`); float32
    (float64 if the input is), nats. `chunk_size` tokens are treated at a time (None: chosen by vocabulary and device);
    it changes memory, not the result. Under autocast the product with the head runs in the autocast dtype. The gradient
    itself cannot be differentiated again.

    Raises:
        ValueError: shapes that don't match, or a temperature or chunk size that is not positive.
    """
    _check(hidden, targets, temperature, chunk_size)
    if weight.ndim != 2 or weight.shape[1] != hidden.shape[1]:
        raise ValueError(f"the head's weight {list(weight.shape)} does not match hidden states {list(hidden.shape)}")
    chunk_size = chunk_size or _default_chunk_size(weight.shape[0], hidden.device)
    dtype = _matmul_dtype(hidden, weight)
    with torch.autocast(hidden.device.type, enabled=False):
        outputs = cast(Any, _LinearLogprobs).apply(
            hidden, weight, bias, targets, temperature, need_entropy, chunk_size, dtype
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
    chunks = _chunks(max(1, len(hidden)), chunk_size or _MIN_CHUNK_SIZE)

    def from_chunk(h: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        logits = head(h)
        # Autocast is for the head; it would take the sum of the entropy for one more product and round it to 8 bits.
        with torch.autocast(h.device.type, enabled=False):
            return _logprobs_from_logits(logits, a, temperature, need_entropy)

    parts = [cast(Any, checkpoint)(from_chunk, hidden[rows], targets[rows], use_reentrant=False) for rows in chunks]
    logprobs, entropies = (torch.cat(column) for column in zip(*parts, strict=True))
    return logprobs, entropies if need_entropy else None


class _LinearLogprobs(torch.autograd.Function):
    """Chunked forward and recomputed, chunked backward of `linear_logprobs`."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        temperature: float,
        need_entropy: bool,
        chunk_size: int,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor | None]:
        wide = torch.promote_types(dtype, torch.float32)
        logprobs, log_normaliser = (torch.empty(len(hidden), dtype=wide, device=hidden.device) for _ in range(2))
        entropy = torch.empty_like(logprobs) if need_entropy else None
        head = _Head(weight, bias, temperature, dtype)
        for rows in _chunks(len(hidden), chunk_size):
            z = head.logits(hidden[rows])
            # From the largest logit downwards, nothing overflows, and one exp serves both results.
            largest = z.amax(-1)
            weights = z.sub_(largest[:, None]).exp()
            total = weights.sum(-1)
            logprobs[rows] = z.gather(-1, targets[rows, None]).squeeze(-1) - total.log()
            log_normaliser[rows] = largest + total.log()
            if entropy is not None:
                entropy[rows] = total.log() - _row_products(weights, z) / total
        ctx.save_for_backward(hidden, weight, bias, targets, log_normaliser, entropy)
        ctx.settings = temperature, chunk_size, dtype
        ctx.set_materialize_grads(False)
        return logprobs, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logprobs: Tensor | None, grad_entropy: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, log_normaliser, entropy = ctx.saved_tensors
        temperature, chunk_size, dtype = ctx.settings
        grad_logprobs = torch.zeros_like(log_normaliser) if grad_logprobs is None else grad_logprobs
        needed = ctx.needs_input_grad[:3]
        # The head's gradient is a sum over all chunks: kept in float32, or a bfloat16 sum would drop the later ones.
        grad_hidden = torch.empty_like(hidden) if needed[0] else None
        grad_weight = torch.zeros_like(weight, dtype=log_normaliser.dtype) if needed[1] else None
        grad_bias = torch.zeros_like(bias, dtype=log_normaliser.dtype) if needed[2] else None
        head = _Head(weight, bias, temperature, dtype)
        with torch.autocast(hidden.device.type, enabled=False):
            for rows in _chunks(len(hidden), chunk_size):
                logp = head.logits(hidden[rows]).sub_(log_normaliser[rows, None])
                grad = _grad_logits(
                    logp,
                    targets[rows],
                    grad_logprobs[rows] / temperature,
                    None if grad_entropy is None else grad_entropy[rows] / temperature,
                    None if entropy is None else entropy[rows],
                )
                if grad_bias is not None:
                    grad_bias += grad.sum(0)
                narrow = grad.to(dtype)
                if grad_hidden is not None:
                    grad_hidden[rows] = (narrow @ head.weight).to(hidden.dtype)
                if grad_weight is not None:
                    _add_product(grad_weight, narrow.t(), hidden[rows].to(dtype))
        grads = [g if g is None else g.to(x.dtype) for g, x in ((grad_weight, weight), (grad_bias, bias))]
        return grad_hidden, *grads, None, None, None, None, None


class _Head:
    """The linear head in the dtype of its matrix product."""

    def __init__(self, weight: Tensor, bias: Tensor | None, temperature: float, dtype: torch.dtype) -> None:
        self.weight = weight.detach().to(dtype)
        self.bias = None if bias is None else bias.detach().to(dtype)
        self.temperature = temperature

    def logits(self, hidden: Tensor) -> Tensor:
        """(W·h + b) / temperature for a chunk [n,d] -> a fresh [n,V] in float32 (or float64)."""
        logits = at_least_float32(linear(hidden.detach().to(self.weight.dtype), self.weight, self.bias))
        if self.bias is not None:
            logits.clamp_(min=_FORBIDDEN)
        return logits if self.temperature == 1.0 else logits.div_(self.temperature)


def _grad_logits(
    logp: Tensor, targets: Tensor, grad_logprobs: Tensor, grad_entropy: Tensor | None, entropy: Tensor | None
) -> Tensor:
    """The gradient with respect to undivided logits, g_ℓ·(e_a − p) − g_H·p·(log p + H), written over log p [n,V]."""
    p = logp.exp()
    if grad_entropy is None or entropy is None:
        grad = torch.mul(p, -grad_logprobs[:, None], out=logp)
    else:
        # p·(−g_H·log p − g_H·H − g_ℓ), in two passes and without a further [n,V] tensor.
        offset = -grad_entropy * entropy - grad_logprobs
        grad = torch.addcmul(offset[:, None], logp, -grad_entropy[:, None], out=logp).mul_(p)
    return grad.scatter_add_(-1, targets[:, None], grad_logprobs[:, None])


def _logprobs_from_logits(
    logits: Tensor, targets: Tensor, temperature: float, need_entropy: bool
) -> tuple[Tensor, Tensor]:
    """Log-probs [n] and entropy [n] (0 unless needed) from logits [n,V]; log-softmax in float32 or wider."""
    logp = (at_least_float32(logits) / temperature).log_softmax(-1)
    chosen = logp.gather(-1, targets[:, None]).squeeze(-1)
    if not need_entropy:
        return chosen, torch.zeros_like(chosen)
    return chosen, -_row_products(logp.exp(), logp.clamp(min=_FORBIDDEN))


def _row_products(a: Tensor, b: Tensor) -> Tensor:
    """Σ_v a_iv·b_iv for each row, without the tensor of products."""
    return (a.unsqueeze(-2) @ b.unsqueeze(-1)).squeeze(-1).squeeze(-1)


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b, in place where the dtypes allow it."""
    if a.dtype == total.dtype:
        total.addmm_(a, b)
    else:
        total += a @ b


def _matmul_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """The dtype in which hidden @ weight.T is computed: autocast's where it is on, else the wider of the two."""
    dtype = torch.promote_types(hidden.dtype, weight.dtype)
    if torch.is_autocast_enabled(hidden.device.type) and dtype != torch.float64:
        return torch.get_autocast_dtype(hidden.device.type)
    return dtype


def _default_chunk_size(vocabulary: int, device: torch.device) -> int:
    """Tokens per chunk for a vocabulary of that size on that kind of device."""
    return max(_MIN_CHUNK_SIZE, _LOGITS_PER_CHUNK.get(device.type, _LOGITS_PER_CHUNK_ELSEWHERE) // max(1, vocabulary))


def _chunks(n: int, chunk_size: int) -> list[slice]:
    """The slices that cut n rows into chunks."""
    return [slice(i, i + chunk_size) for i in range(0, n, chunk_size)]


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
