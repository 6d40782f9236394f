"""The loss of a reward model on pairs of responses, and how often it prefers the right one."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from hfrlhf.core.masking import at_least_float32


def pairwise_loss(
    chosen: Tensor,
    rejected: Tensor,
    margin: Tensor | None = None,
    center_coef: float = 0.0,
    label_smoothing: float = 0.0,
) -> Tensor:
    """The Bradley–Terry loss of each pair, with optional margin, label smoothing and centring.

        L = −(1 − ε)·log σ(Δ) − ε·log σ(−Δ) + c·(r_w + r_l)²,  Δ = r_w − r_l − m                       (SPEC §2.1)

    Shapes: chosen, rejected (scores), margin (reward units, None for 0) [pairs] -> [pairs], nats.

    Raises:
        ValueError: a label smoothing outside [0, 0.5), or a negative centring coefficient.
    """
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(
            f"label_smoothing, the assumed share of wrong labels, must be in [0, 0.5), got {label_smoothing}"
        )
    if center_coef < 0:
        raise ValueError(f"center_rewards_coefficient must be at least 0, got {center_coef}")
    chosen, rejected = at_least_float32(chosen), at_least_float32(rejected)
    difference = chosen - rejected if margin is None else chosen - rejected - margin.to(chosen.dtype)
    # logsigmoid stays finite where log(1 + exp(−Δ)) overflows.
    loss = -(1 - label_smoothing) * logsigmoid(difference) - label_smoothing * logsigmoid(-difference)
    return loss + center_coef * (chosen + rejected).square()


def pairwise_accuracy(chosen: Tensor, rejected: Tensor) -> Tensor:
    """The share of pairs in which the chosen response scores higher; a tie counts one half (SPEC §2.1).

    Shapes: chosen, rejected [pairs] -> []; 0 without pairs.
    """
    chosen, rejected = at_least_float32(chosen), at_least_float32(rejected)
    points = (chosen > rejected).to(chosen.dtype) + (chosen == rejected).to(chosen.dtype) / 2
    return torch.sum(points) / max(1, points.numel())
