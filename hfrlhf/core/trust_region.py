"""The step of TRPO: the natural gradient, scaled to a trust region and shortened until it holds (SPEC §6.8).

Everything here works on flat vectors; what a policy and its divergence are is the caller's (`trainers.trpo_trainer`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def kl_gradient(kl: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """∇_θ KL(stopgrad π_θ ‖ π_θ) with its own graph: 0 at θ = θ_old, but not its derivative.

    Shapes: kl [] with a graph that can be differentiated twice -> one tensor per parameter; 0 where the KL does not
    depend on it.
    """
    return list(torch.autograd.grad(kl, parameters, create_graph=True, materialize_grads=True))


def fisher_vector_product(
    gradient: Sequence[Tensor], parameters: Sequence[Tensor], vector: Tensor, keep_graph: bool = False
) -> Tensor:
    """H·v without ever forming H, by differentiating the divergence a second time.

        H·v = ∇_θ( ∇_θ KL(stopgrad π_θ ‖ π_θ) · v )                                                    (SPEC §6.8)

    At θ = θ_old the gradient of the KL is 0 and its Hessian H is the Fisher information matrix.
    Shapes: gradient as `kl_gradient` gives it, parameters P numbers in all, vector [P] -> [P]. `keep_graph` where the
    same gradient serves another product: its forward pass and first backward pass are then not done again.
    """
    pieces = unflatten(vector, parameters)
    slope = torch.stack([(g * v).sum() for g, v in zip(gradient, pieces, strict=True)]).sum()
    if not slope.requires_grad:  # no parameter at all reaches the KL
        return torch.zeros_like(vector)
    second = torch.autograd.grad(slope, parameters, retain_graph=keep_graph, materialize_grads=True)
    return flatten(second)


def conjugate_gradient(
    matvec: Callable[[Tensor], Tensor], b: Tensor, iterations: int = 10, tolerance: float = 1e-10
) -> Tensor:
    """Solve H·x = b for a symmetric positive definite H of which only products are known (Hestenes and Stiefel 1952).

        x ← x + α·p,  r' = r − α·H·p,  p ← r' + (‖r'‖²/‖r‖²)·p,  r ← r',  with α = ‖r‖² / pᵀHp, from x = 0, r = p = b

    Shapes: b [P], matvec [P] -> [P] -> [P]. It stops when ‖r‖² < tolerance·‖b‖², when H shows no curvature along p, or
    after `iterations`; P of them are exact but for rounding.
    """
    x, residual = torch.zeros_like(b), b.clone()
    direction, squared = residual.clone(), residual @ residual
    enough = tolerance * squared
    for _ in range(iterations):
        if squared <= enough:
            break
        product = matvec(direction)
        curvature = direction @ product
        if not curvature > 0:
            break
        step = squared / curvature
        x, residual = x + step * direction, residual - step * product
        before, squared = squared, residual @ residual
        direction = residual + (squared / before) * direction
    return x


def natural_step(direction: Tensor, product: Tensor, max_kl: float) -> Tensor:
    """The step along the natural gradient to the edge of the trust region, where the KL is its quadratic model.

        √(2δ / xᵀHx)·x                                                                                 (SPEC §6.8)

    Shapes: direction x [P], product H·x [P] (damped) -> [P]; 0 where there is no gradient.
    """
    curvature = float(direction @ product)
    if not curvature > 0:
        return torch.zeros_like(direction)
    return math.sqrt(2 * max_kl / curvature) * direction


@dataclass(frozen=True)
class Trial:
    """A step that was tried: its fraction of the full step, the mean KL (nats per token) and surrogate there."""

    fraction: float
    kl: float
    surrogate: float


@dataclass(frozen=True)
class LineSearch:
    """The result: the accepted step [P] (None: there is none, the parameters stay) and every trial, in order."""

    step: Tensor | None
    trials: tuple[Trial, ...]


def line_search(
    evaluate: Callable[[Tensor], tuple[float, float]],
    full_step: Tensor,
    max_kl: float,
    backtrack: float = 0.8,
    max_backtracks: int = 10,
) -> LineSearch:
    """The longest of the steps α^j·s that keeps to the trust region and improves the surrogate.

        the first j in 0 … J − 1 with  KL(θ + α^j·s) ≤ δ  and  surrogate(θ + α^j·s) > surrogate(θ)      (SPEC §6.8)

    Args:
        evaluate: step [P] -> (surrogate, mean KL) of the parameters moved by it; called with 0 first.
        full_step: s [P]. max_kl: δ, nats per token. backtrack: α. max_backtracks: J.
    """
    start, _ = evaluate(torch.zeros_like(full_step))
    trials: list[Trial] = []
    for j in range(max_backtracks):
        step = backtrack**j * full_step
        surrogate, kl = evaluate(step)
        trials.append(Trial(backtrack**j, kl, surrogate))
        if kl <= max_kl and surrogate > start:  # neither holds for NaN
            return LineSearch(step, tuple(trials))
    return LineSearch(None, tuple(trials))


def flatten(tensors: Sequence[Tensor]) -> Tensor:
    """All numbers of the tensors, one after the other: [P]."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def unflatten(vector: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """A vector [P] cut into the shapes of the given tensors."""
    pieces = torch.split(vector, [tensor.numel() for tensor in like])
    return [piece.reshape(tensor.shape) for piece, tensor in zip(pieces, like, strict=True)]
