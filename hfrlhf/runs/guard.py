"""Numbers that go wrong: updates that are left out, runs that stop before they spoil a checkpoint.

What stops a run here stops it by an exception, on every process, and nothing is saved after it: the checkpoints that
were written stay as they are.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.utils import logging

from ..models.sharding import strategy_of
from ..models.strategies.data_parallel import DataParallel, broken_parameters
from .checkpoints import checkpoints_in, step_of

logger = logging.get_logger(__name__)

BROKEN_FOLDER = "broken_update"
# Tensors to look at, and facts to read beside them.
Batch = tuple[dict[str, Tensor], dict[str, Any]]


class NonFiniteUpdates(RuntimeError):
    """Several updates in a row had a loss or a gradient that is not finite."""


class KLTooHigh(RuntimeError):
    """The policy has left its reference further behind than `kl_limit` allows."""


@dataclass
class UpdateGuard:
    """Leaves an update out where loss or gradient is not finite, and stops the run after too many in a row.

    Args:
        accelerator: of the run. model: gives the model whose update it is. limit: `max_skipped_updates`, the number of
            updates left out in a row at which the run stops. fp16: whether a scaler watches over the gradients.
        in_a_row: updates left out since the last that was made.
    """

    accelerator: Accelerator
    model: Callable[[], nn.Module]
    limit: int
    fp16: bool = False
    in_a_row: int = 0

    def leaves_out(self, loss: float, batch: Callable[[], Batch], step: int, run: Path) -> bool:
        """Whether the optimiser step about to be taken is left out; to be called after its last backward.

        All processes take part, and all come to the same answer: a gradient may be broken in one shard alone.

        Args:
            loss: of this process in this step. batch: gives the step's batch, for inspection; called on every process.
            step: how many were made before. run: the folder that the batch of a run that stops is written to.

        Raises:
            NonFiniteUpdates: it is the `max_skipped_updates`-th in a row, or weights that were already changed.
        """
        broken_here, prevented = self._strategy.broken_gradient(self.model(), self.fp16)
        device = self.accelerator.device
        here = torch.stack([torch.tensor(loss, device=device), broken_here.float().to(device)])
        loss, broken = self.accelerator.reduce(here, "sum").tolist()  # the one moment that waits for the device
        wrong_loss = not math.isfinite(loss)  # a loss that is NaN anywhere makes the sum NaN
        if not wrong_loss and not broken:
            self.in_a_row = 0
            return False
        self.in_a_row += 1
        if not prevented or self.in_a_row >= self.limit:
            self._stop({"step": step, "loss": loss / self.accelerator.num_processes}, batch, prevented, run)
        self._leave_out()
        if self.accelerator.is_main_process:
            what = "loss" if wrong_loss else "gradient"
            logger.warning(f"step {step}: the {what} is not finite; this update is skipped")
        return True

    @property
    def _strategy(self) -> DataParallel:
        return strategy_of(self.accelerator)

    def _leave_out(self) -> None:
        """No gradient, no step. With fp16 the scaler insists on seeing some, and leaves out what is infinite."""
        if not self.fp16:
            self.model().zero_grad(set_to_none=True)
            return
        for parameter in self.model().parameters():
            if parameter.grad is not None:
                parameter.grad.fill_(math.inf)

    def _stop(self, facts: dict[str, Any], batch: Callable[[], Batch], prevented: bool, run: Path) -> None:
        tensors, more = batch()
        norm, where = self._strategy.gradient_norm(self.model()), run / BROKEN_FOLDER
        facts |= {"updates_in_a_row": self.in_a_row} | more
        facts |= {"grad_norm": norm, "parameters_with_broken_gradients": broken_parameters(self.model())}
        if self.accelerator.is_main_process:
            save_broken(where, tensors, facts)
        done = "weights were changed by it" if not prevented else f"{self.in_a_row} in a row"
        raise NonFiniteUpdates(
            f"step {facts['step']}: loss {facts['loss']:g}, gradient norm {norm:g} ({done}; "
            f"`max_skipped_updates={self.limit}`). The batch is in {where} for inspection; "
            "checkpoints, if there are any, are as they were: `resume_from_checkpoint=True` goes on from one. Typical "
            "remedies: a lower learning rate, `bf16` in place of `fp16`, `reward_clip`, `max_grad_norm`"
        )


def save_broken(folder: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Write a batch as `batch.safetensors` and what is known of it as `facts.json`; a full disk is only reported."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, folder / "batch.safetensors")
        # JSON has no NaN: numbers that are not finite are written as words.
        readable = {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in facts.items()}
        (folder / "facts.json").write_text(json.dumps(readable, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        logger.warning(f"the broken batch could not be written to {folder}: {error}")


def check_kl(kl: float, limit: float | None, step: int, last_rollout: int, run: Path) -> None:
    """Stop a run whose policy has gone too far from the reference; before the rollout is used.

    Args:
        kl: nats per response, the mean over the new rollout of all processes. limit: `kl_limit`, None for no limit.
        step: optimiser steps made. last_rollout: the step at which the rollout before this one was made. run: the
            output folder, which may have a checkpoint to go on from.

    Raises:
        KLTooHigh: it is above the limit, or not a number.
    """
    if limit is None or kl <= limit:
        return
    kept = next((step_of(path) for path in checkpoints_in(run) if step_of(path) <= last_rollout), None)
    raise KLTooHigh(
        f"step {step}: the policy is {kl:.4g} nats per response from its reference, above "
        f"`kl_limit={limit:g}`; the run stops here and saves nothing. "
        + (f"Go on from checkpoint-{kept}, the newest" if kept is not None else "Start anew: no checkpoint is")
        + " from before the last rollout within the limit (later ones may hold the policy that ran away), with a lower "
        "`learning_rate`, a higher `kl_coef`, a `kl_target` or a `target_kl`, or with a higher `kl_limit`"
    )
