"""The `train_loss` of a run that was interrupted: of all its steps, not of those since the last resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from ..models.libraries import losses_of, set_losses


class WholeRunLoss:
    """Mixin before `transformers.Trainer`: the sum behind `train_loss` is part of a checkpoint.

    The Trainer keeps a sum of what was logged and, on each process, of what is not logged yet. It begins both at 0 with
    each call of `train()`, and divides by the steps of that call.
    """

    STATE_FILE: str

    def losses_so_far(self: Any) -> dict[str, Any]:
        """What a checkpoint says of the losses; to be called on every process."""
        pending, total, logged = losses_of(self)
        return {"total": total, "pending": self._from_all(float(pending)), "logged": logged}

    def _load_rng_state(self: Any, checkpoint: str | None) -> None:
        """Beside the generators' state, which the Trainer reads after it has set its sums to 0: these sums."""
        super()._load_rng_state(checkpoint)  # type: ignore[misc]
        if checkpoint is None:
            return
        losses = json.loads(Path(checkpoint, self.STATE_FILE).read_text(encoding="utf-8"))["losses"]
        pending = torch.full_like(losses_of(self)[0], losses["pending"][self.args.process_index])
        set_losses(self, pending, losses["total"], losses["logged"])

    def _finalize_training(self: Any, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's end of a run, with the loss of the whole run and of all processes."""
        pending, total, logged = losses_of(self)
        set_losses(self, self.accelerator.reduce(pending, "mean"), total, logged)
        result = super()._finalize_training(*args, **kwargs)  # type: ignore[misc]
        return result._replace(training_loss=result.metrics["train_loss"])

    def log(self: Any, logs: dict[str, float], start_time: float | None = None) -> None:
        """Put the mean over all steps where the Trainer put that over the steps of this call."""
        if "train_loss" in logs:
            logs["train_loss"] = losses_of(self)[1] / max(self.state.global_step, 1)
        super().log(logs, start_time)  # type: ignore[misc]
