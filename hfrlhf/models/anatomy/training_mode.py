"""Training mode without its noise: a ratio or a KL formed under two draws would be noise (DETAILS 28).

Dropout is set to 0 where it is known by name (`dropout.py`). There is more: jitter and Gumbel noise of routers, layers
that are left out, statistics of the batch. None of it is looked for by name. A few tokens are run in training mode, and
what draws a random number there, whatever for, stays in evaluation mode from then on; the rest has to compute what it
computes in evaluation mode.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.utils import logging

logger = logging.get_logger(__name__)

Results = Sequence[Tensor]
# How often the search goes round: a module and the one that it is a part of may both draw.
ROUNDS = 8


def quieten(actor_critic: Any, rollout: Any, bound: float) -> None:
    """Keep out of the training mode of policy and critic what would make it noisy.

    Args:
        actor_critic: its `train()` then leaves those modules alone. rollout: a few rows. bound: as below.
    """

    def compute() -> Results:
        return [result for result in actor_critic(rollout) if result is not None]

    actor_critic.keep_in_evaluation(what_stays_in_evaluation(actor_critic, compute, bound))


@torch.no_grad()
def what_stays_in_evaluation(model: nn.Module, compute: Callable[[], Results], bound: float) -> list[nn.Module]:
    """The modules of a model that make training mode noisy, or another computation than evaluation mode.

    Args:
        model: left in the mode it was in. compute: its forward on a few tokens, the results in parts.
        bound: how far results may lie apart by rounding, in parts of the largest (of 1, where all are smaller).

    Raises:
        ValueError: training mode stays noisy, or different, whatever is kept out of it.
    """
    with _modes_restored(model), torch.random.fork_rng():
        model.eval()
        expected = [result.clone() for result in compute()]
        # In training mode these compute with the batch's statistics, and change their own.
        kept: list[nn.Module] = [m for m in model.modules() if getattr(m, "track_running_stats", False)]
        for _ in range(ROUNDS):
            drawing, results = _run(model, kept, compute)
            if not drawing:
                break
            kept += drawing
        if not drawing and _off(results, expected) <= bound:
            return kept
        found = drawing
        kept = [module for module in model.modules() if not _needs_training(module)]
        drawing, results = _run(model, kept, compute)
        if drawing or not _off(results, expected) <= bound:
            raise ValueError(_complaint(drawing or found, _off(results, expected)))
    logger.warning("in training mode the model computes other numbers than in evaluation mode: it stays in the latter")
    return kept


def _complaint(drawing: list[nn.Module], off: float) -> str:
    kinds = sorted({type(module).__name__ for module in drawing})
    what = f"random numbers are drawn by {', '.join(kinds)}" if kinds else f"the results differ by {off:.3g}"
    return (
        "in training mode the model does not compute what it computes in evaluation mode: "
        f"{what}, so that ratios and KL would be noise; switch that off in its configuration, or "
        "`gradient_checkpointing`, which keeps modules in training mode"
    )


def _needs_training(module: nn.Module) -> bool:
    """Whether a module does in training mode alone what the update needs: recompute, or (cuDNN) have a gradient."""
    return bool(getattr(module, "gradient_checkpointing", False)) or isinstance(module, nn.RNNBase)


def _off(results: Results, expected: Results) -> float:
    scales = [max(1.0, float(tensor.abs().max())) for tensor in expected]
    return max(float((a - b).abs().mean()) / s for a, b, s in zip(results, expected, scales, strict=True))


def _run(model: nn.Module, kept: list[nn.Module], compute: Callable[[], Results]) -> tuple[list[nn.Module], Results]:
    """In training mode but for what is kept out of it: the modules that draw random numbers, and the results."""
    model.train()
    for module in kept:
        module.training = False
    with _watched(model) as drawing, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "None of the inputs have requires_grad")  # checkpoints, without gradients
        results = compute()
    return drawing, results


@contextmanager
def _watched(model: nn.Module) -> Iterator[list[nn.Module]]:
    """Lists, when it is over, the innermost modules in whose forward pass a generator of random numbers moved."""
    drawing: list[nn.Module] = []
    open_calls: list[tuple[Any, int]] = []  # of the calls that are under way: the generators before, and who drew

    def begin(module: nn.Module, inputs: object) -> None:
        open_calls.append((_generators(), len(drawing)))

    def end(module: nn.Module, inputs: object, outputs: object) -> None:
        before, known = open_calls.pop()
        if len(drawing) == known and before != _generators():
            drawing.append(module)

    hooks = [module.register_forward_pre_hook(begin, prepend=True) for module in model.modules()]
    hooks += [module.register_forward_hook(end) for module in model.modules()]
    try:
        yield drawing
    finally:
        for hook in hooks:
            hook.remove()


def _generators() -> tuple[Any, ...]:
    """Where every generator of random numbers is that a forward pass may draw from."""
    on_devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    torches = [state.numpy().tobytes() for state in (torch.get_rng_state(), *on_devices)]
    return *torches, random.getstate(), np.random.get_state()[1].tobytes(), np.random.get_state()[2]  # type: ignore


@contextmanager
def _modes_restored(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
