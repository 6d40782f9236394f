"""Log-probabilities and entropy as single operations of autograd, the inside of `core.logprobs`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from hfrlhf.core.masking import at_least_float32

# The least logit. A head may forbid tokens with −∞, which would make p·log p = 0·∞ = NaN where it should be 0.
FORBIDDEN = -1e30


class LinearLogprobs(torch.autograd.Function):
    """Log-probs and entropy of a linear head as one operation of autograd; arguments and results as `linear_logprobs`.

    ℓ = z_a − log Σ e^z,  H = log Σ e^z − Σ p·z,  ∂ℓ/∂z = e_a − p,  ∂H/∂z = −p·(log p + H)     (SPEC §1, §6.6)
    """

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
        vocabulary: int,
    ) -> tuple[Tensor, Tensor | None]:
        """ℓ and H, one chunk of logits at a time; kept for later are log Σ e^z [N] and H [N], no logits."""
        wide = torch.promote_types(dtype, torch.float32)
        # Made beforehand: small tensors that outlive the chunks and lie between them would fragment the heap.
        logprobs, log_normaliser = (torch.empty(len(hidden), dtype=wide, device=hidden.device) for _ in range(2))
        entropy = torch.empty_like(logprobs) if need_entropy else None
        head = _Head(weight, bias, temperature, dtype, vocabulary)
        for rows in chunks_of(len(hidden), chunk_size):
            z = head.logits(hidden[rows])
            logprobs[rows], log_normaliser[rows], of_chunk = _row_results(z, targets[rows], need_entropy)
            if entropy is not None and of_chunk is not None:
                entropy[rows] = of_chunk
        ctx.save_for_backward(hidden, weight, bias, targets, log_normaliser, entropy)
        ctx.settings = temperature, chunk_size, dtype, vocabulary
        ctx.set_materialize_grads(False)
        return logprobs, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logprobs: Tensor | None, grad_entropy: Tensor | None) -> tuple[Tensor | None, ...]:
        """The gradients of hidden, weight and bias that are asked for, from logits made once more."""
        hidden, weight, bias, targets, log_normaliser, entropy = ctx.saved_tensors
        temperature, chunk_size, dtype, vocabulary = ctx.settings
        grad_logprobs = torch.zeros_like(log_normaliser) if grad_logprobs is None else grad_logprobs
        needed = ctx.needs_input_grad[:3]
        # The head's gradient is a sum over all chunks: kept in float32, or a bfloat16 sum would drop the later ones.
        grad_hidden = torch.empty_like(hidden) if needed[0] else None
        grad_weight = torch.zeros_like(weight, dtype=log_normaliser.dtype) if needed[1] else None
        grad_bias = torch.zeros_like(bias, dtype=log_normaliser.dtype) if needed[2] else None
        head = _Head(weight, bias, temperature, dtype, vocabulary)
        with torch.autocast(hidden.device.type, enabled=False):
            for rows in chunks_of(len(hidden), chunk_size):
                logp = head.logits(hidden[rows]).sub_(log_normaliser[rows, None])
                grad = _grad_logits(
                    logp,
                    targets[rows],
                    grad_logprobs[rows] / temperature,
                    None if grad_entropy is None else grad_entropy[rows] / temperature,
                    None if entropy is None else entropy[rows],
                )
                if grad_bias is not None:
                    grad_bias[:vocabulary] += grad.sum(0)
                narrow = grad.to(dtype)
                if grad_hidden is not None:
                    grad_hidden[rows] = (narrow @ head.weight).to(hidden.dtype)
                if grad_weight is not None:
                    _add_product(grad_weight[:vocabulary], narrow.t(), hidden[rows].to(dtype))
        grads = [g if g is None else g.to(x.dtype) for g, x in ((grad_weight, weight), (grad_bias, bias))]
        return grad_hidden, *grads, *[None] * 6


class LogitsLogprobs(torch.autograd.Function):
    """The same from one chunk of logits that a head of any kind has made; it keeps them for the backward pass.

    ℓ = z_a − log Σ e^z,  H = log Σ e^z − Σ p·z,  z = logits / temperature                         (SPEC §1, §6.6)
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, targets: Tensor, temperature: float, need_entropy: bool
    ) -> tuple[Tensor, Tensor | None]:
        """ℓ [n] and H [n] (None unless needed) from logits [n,V]."""
        logprobs, log_normaliser, entropy = _row_results(_scaled(logits, temperature), targets, need_entropy)
        ctx.save_for_backward(logits, targets, log_normaliser, entropy)
        ctx.temperature = temperature
        ctx.set_materialize_grads(False)
        return logprobs, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_logprobs: Tensor | None, grad_entropy: Tensor | None) -> tuple[Tensor | None, ...]:
        """The gradient of the logits."""
        logits, targets, log_normaliser, entropy = ctx.saved_tensors
        logp = _scaled(logits, ctx.temperature).sub_(log_normaliser[:, None])
        grad_logprobs = torch.zeros_like(log_normaliser) if grad_logprobs is None else grad_logprobs
        grad_entropy = None if grad_entropy is None else grad_entropy / ctx.temperature
        grad = _grad_logits(logp, targets, grad_logprobs / ctx.temperature, grad_entropy, entropy)
        return grad.to(logits.dtype), None, None, None


def _scaled(logits: Tensor, temperature: float) -> Tensor:
    """A copy of logits / temperature in float32 or wider, finite from below."""
    return at_least_float32(logits).clamp(min=FORBIDDEN).div_(temperature)


def _row_results(z: Tensor, targets: Tensor, need_entropy: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """ℓ, log Σ e^z and H (None unless needed) of each row of z [n,V], which is overwritten."""
    # From the largest logit downwards, nothing overflows, and one exp serves all results.
    largest = z.amax(-1)
    weights = z.sub_(largest[:, None]).exp()
    total = weights.sum(-1)
    logprobs = z.gather(-1, targets[:, None]).squeeze(-1) - total.log()
    # Σ w·z as a product of a row and a column: the tensor of products is never made.
    entropy = total.log() - torch.bmm(weights[:, None], z[:, :, None]).flatten() / total if need_entropy else None
    return logprobs, largest + total.log(), entropy


class _Head:
    """The linear head, up to the last row in use, in the dtype of its matrix product."""

    def __init__(
        self, weight: Tensor, bias: Tensor | None, temperature: float, dtype: torch.dtype, vocabulary: int
    ) -> None:
        self.weight = weight.detach()[:vocabulary].to(dtype)
        self.bias = None if bias is None else bias.detach()[:vocabulary].to(dtype)
        self.temperature = temperature

    def logits(self, hidden: Tensor) -> Tensor:
        """(W·h + b) / temperature for a chunk [n,d] -> a fresh [n,V] in float32 (or float64)."""
        logits = at_least_float32(linear(hidden.detach().to(self.weight.dtype), self.weight, self.bias))
        if self.bias is not None:
            logits.clamp_(min=FORBIDDEN)
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


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b, in place where the dtypes allow it."""
    if a.dtype == total.dtype:
        total.addmm_(a, b)
    else:
        total += a @ b


def chunks_of(n: int, chunk_size: int) -> list[slice]:
    """The slices that cut n rows into chunks."""
    return [slice(i, i + chunk_size) for i in range(0, n, chunk_size)]
