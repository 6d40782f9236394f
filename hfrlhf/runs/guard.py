"""Numbers that go wrong: updates that are left out, runs that stop before they spoil a checkpoint.

What stops a run here stops it by an exception, on every process, and nothing is saved after it: the checkpoints that
were written stay as they are.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers.utils import logging

from ..models.libraries import gather_object
from ..models.sharding import strategy_of
from ..models.strategies.data_parallel import broken_parameters

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
        trainer: whose model it guards. in_a_row: updates left out since the last that was made.
    """

    trainer: Any
    in_a_row: int = 0

    def leaves_out(self, loss: float, batch: Callable[[], Batch]) -> bool:
        """Whether the optimiser step about to be taken is left out; to be called after its last backward.

        All processes take part, and all come to the same answer: a gradient may be broken in one shard alone.

        Args:
            loss: of this process in this step. batch: gives the step's batch, for inspection; called on every process.

        Raises:
            NonFiniteUpdates: it is the `max_skipped_updates`-th in a row, or weights that were already changed.
        """
        accelerator, model = self.trainer.accelerator, self.trainer.model
        broken_here, prevented = strategy_of(accelerator).broken_gradient(model, self.trainer.args.fp16)
        here = torch.tensor([loss, broken_here], dtype=torch.float32, device=self.trainer.args.device)
        loss, broken = accelerator.reduce(here, "sum").tolist()  # a loss that is NaN anywhere makes the sum NaN
        wrong_loss, wrong_gradient = not math.isfinite(loss), broken > 0
        if not wrong_loss and not wrong_gradient:
            self.in_a_row = 0
            return False
        self.in_a_row += 1
        if not prevented or self.in_a_row >= self.trainer.args.max_skipped_updates:
            self._stop(loss / accelerator.num_processes, batch, prevented)
        self._leave_out()
        what = "loss" if wrong_loss else "gradient"
        if self.trainer.is_world_process_zero():
            logger.warning(f"step {self.trainer.state.global_step}: the {what} is not finite; this update is skipped")
        return True

    def _leave_out(self) -> None:
        """No gradient, no step. With fp16 the scaler insists on seeing some, and leaves out what is infinite."""
        if not self.trainer.args.fp16:
            self.trainer.model.zero_grad(set_to_none=True)
            return
        for parameter in self.trainer.model.parameters():
            if parameter.grad is not None:
                parameter.grad.fill_(math.inf)

    def _stop(self, loss: float, batch: Callable[[], Batch], prevented: bool) -> None:
        trainer = self.trainer
        tensors, facts = batch()
        facts = {"step": trainer.state.global_step, "loss": loss, "updates_in_a_row": self.in_a_row} | facts
        norm = strategy_of(trainer.accelerator).gradient_norm(trainer.model)
        facts |= {"grad_norm": norm, "parameters_with_broken_gradients": broken_parameters(trainer.model)}
        where = Path(trainer.args.output_dir) / BROKEN_FOLDER
        if trainer.is_world_process_zero():
            save_broken(where, tensors, facts)
        done = "weights were changed by it" if not prevented else f"{self.in_a_row} in a row"
        raise NonFiniteUpdates(
            f"step {trainer.state.global_step}: loss {loss:g}, gradient norm {facts['grad_norm']:g} ({done}; "
            f"`max_skipped_updates={trainer.args.max_skipped_updates}`). The batch is in {where} for inspection; "
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


def mini_batch_for_inspection(trainer: Any) -> Batch:
    """The mini-batch of a policy-gradient trainer's optimiser step: its experience, prompts and completions."""
    experience = trainer.cycle.experience
    batch = experience.select(trainer.mini_batch_rows(len(experience)))
    decode = trainer.processing_class.batch_decode
    texts = {"prompts": decode(batch.prompt_lists()), "completions": decode(batch.completion_lists())}
    return batch.tensors(), {"texts": texts}


class GuardedUpdates:
    """Mixin before `transformers.Trainer`: its updates pass an `UpdateGuard`, left-out ones are counted in the log."""

    _guard: UpdateGuard | None = None
    _step_loss = 0.0
    _skipped = 0
    _batches: Sequence[dict[str, Tensor]] = ()

    def get_batch_samples(self: Any, *args: Any, **kwargs: Any) -> Any:
        """The Trainer's micro-batches of an optimiser step, remembered until the next."""
        self._batches, items = super().get_batch_samples(*args, **kwargs)  # type: ignore[misc]
        return self._batches, items

    def training_step(self: Any, *args: Any, **kwargs: Any) -> Tensor:
        """The Trainer's step on a micro-batch; after the last one of an optimiser step, the guard."""
        loss: Tensor = super().training_step(*args, **kwargs)  # type: ignore[misc]
        self._step_loss += float(loss)
        if self.accelerator.sync_gradients:
            self._guard = self._guard or UpdateGuard(self)
            self._skipped += self._guard.leaves_out(self._step_loss, self.batch_for_inspection)
            self._step_loss = 0.0
        return loss

    def batch_for_inspection(self: Any) -> Batch:
        """The micro-batches of the step of all processes, and their texts."""
        everyone = gather_object([[{k: v.cpu() for k, v in batch.items()} for batch in self._batches]])
        named = {f"process {p}, batch {i}": batch for p, mine in enumerate(everyone) for i, batch in enumerate(mine)}
        tensors = {f"{place}/{name}": tensor for place, batch in named.items() for name, tensor in batch.items()}
        decode = self.processing_class.batch_decode
        texts = {place: decode(batch["input_ids"], skip_special_tokens=True) for place, batch in named.items()}
        return tensors, {"texts": texts}

    def log(self: Any, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add how many updates were left out since the last log, where there were any."""
        if "loss" in logs and self._skipped:
            logs["skipped_updates"] = self._skipped
            self._skipped = 0
        super().log(logs, start_time)  # type: ignore[misc]


def check_kl(trainer: Any, kl: float) -> None:
    """Stop a run whose policy has gone too far from the reference; before the rollout is used.

    Args:
        kl: nats per response, the mean over the new rollout of all processes.

    Raises:
        KLTooHigh: it is above `kl_limit`, or not a number.
    """
    limit = trainer.args.kl_limit
    if limit is None or kl <= limit:
        return
    good = trainer.state.global_step - trainer.args.steps_per_rollout  # where the rollout before this one began
    steps = [int(p.name.split("-")[1]) for p in Path(trainer.args.output_dir).glob("checkpoint-*") if _is_step(p.name)]
    kept = max((step for step in steps if step <= good), default=None)
    raise KLTooHigh(
        f"step {trainer.state.global_step}: the policy is {kl:.4g} nats per response from its reference, above "
        f"`kl_limit={limit:g}`; the run stops here and saves nothing. "
        + (f"Go on from checkpoint-{kept}, the newest" if kept is not None else "Start anew: no checkpoint is")
        + " from before the last rollout within the limit (later ones may hold the policy that ran away), with a lower "
        "`learning_rate`, a higher `kl_coef`, a `kl_target` or a `target_kl`, or with a higher `kl_limit`"
    )


def _is_step(name: str) -> bool:
    return name.removeprefix("checkpoint-").isdigit()


@contextmanager
def together(accelerator: Any) -> Iterator[None]:
    """A block in which one process's error is every process's: none is left waiting for one that has failed.

    The block itself must not communicate. A process that fails waits at its end for the others.

    Raises:
        RuntimeError: on the processes where the block went well, if it failed on another.
    """
    error: Exception | None = None
    try:
        yield
    except Exception as raised:
        error = raised
    if accelerator.num_processes > 1:
        errors = gather_object([error and f"{type(error).__name__}: {error}"])
        failed = next((rank for rank, text in enumerate(errors) if text), None)
        if error is None and failed is not None:
            raise RuntimeError(f"process {failed} failed: {errors[failed]}")
    if error is not None:
        raise error
