"""The squared length of each response's score gradient, which the minimal-variance baseline weighs returns with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...core.masking import at_least_float32
from ...experience import Rollout


def score_gradient_sq_norms(actor_critic: nn.Module, rollout: Rollout, parameters: Sequence[nn.Parameter]) -> Tensor:
    """How much each response would move the parameters.

        ‖g_i‖² = ‖∇_θ log π_θ(y_i|x_i)‖² = ‖Σ_t ∇_θ log π_θ(a_t|s_t)‖²                                 (SPEC §3.3)

    It costs one forward and one backward pass per response, alone (no batching over responses, since their gradients
    must not mix): about the time of one more epoch at micro-batch size 1, and the memory of one gradient.
    Shapes: rollout of B responses, on the model's device -> [B], on the CPU, float32 (float64 if the policy is).

    Args:
        actor_critic: gives `logprobs` [1,A] for a row of the rollout. parameters: over which the norm is taken.
    """
    norms = []
    for row in rollout.split(1):
        with torch.enable_grad():
            logprob = actor_critic(row, need_entropy=False).logprobs.sum()
            gradients = torch.autograd.grad(logprob, parameters, materialize_grads=True)
        norms.append(torch.stack([at_least_float32(gradient).square().sum() for gradient in gradients]).sum().cpu())
    return torch.stack(norms)
