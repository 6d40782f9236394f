"""What a strategy does, and plain data parallelism (DDP, or one process): everyone holds everything.

A strategy says who holds gradients and parameters, and does with them what an optimiser step, a rollout and a
checkpoint need. The trainers call it without knowing which it is. To add one: a subclass in a file of its own that
overrides what is different there, and a row in `models/sharding.py`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, ClassVar

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import TrainingArguments


class DataParallel:
    """Each process holds all parameters, gradients and moments.

    Args:
        accelerator: of accelerate, as the Trainer has set it up.

    Class attributes: kind, the name of accelerate's `DistributedType`; title, what people call it; in_pieces, whether
    parameters or gradients lie in pieces on several processes, so that every pass is one of all processes;
    owns_gradients, whether an engine takes the optimiser's step (`step`), and gradients are not at hand; variable and
    setting, by which a launcher and a field of TrainingArguments ask for it; needs_gpus; remedy, what to do where it
    was asked for and something else runs.
    """

    kind: ClassVar[str] = "DDP"
    title: ClassVar[str] = "DDP"
    in_pieces: ClassVar[bool] = False
    owns_gradients: ClassVar[bool] = False
    variable: ClassVar[str] = ""
    setting: ClassVar[str] = ""
    needs_gpus: ClassVar[bool] = False
    remedy: ClassVar[str] = ""

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator

    @classmethod
    def asked_for(cls, args: TrainingArguments) -> bool:
        """Whether the launcher, or the settings, asked for this strategy; of plain data parallelism nobody has to."""
        return os.environ.get(cls.variable, "").lower() == "true" or bool(getattr(args, cls.setting, None))

    # ---- Loading: before there is an accelerator ----------------------------------------------------------------

    @classmethod
    def has_piece(cls, parameter: Tensor) -> bool:
        """Whether a parameter is a piece of this strategy's."""
        return False

    @classmethod
    def loaded_whole(cls) -> AbstractContextManager[None]:
        """Models loaded meanwhile are whole also where this strategy was asked for."""
        return nullcontext()

    @classmethod
    def gathered(cls, parameters: Iterable[Tensor]) -> AbstractContextManager[None]:
        """Its pieces among a few parameters at hand on every process, to be changed in the same way by each."""
        return nullcontext()

    # ---- Refusals -----------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Refuse settings under which nothing could be saved, or a rollout not be made."""

    def check_own_rates(self) -> None:
        """Refuse an optimiser or schedule in the strategy's own settings: it knows one learning rate, we have two."""

    def check_whole(self, algorithm: str, what: str) -> None:
        """Refuse an algorithm that needs whole parameters where they lie in pieces.

        Args:
            algorithm: its name. what: it needs of whole parameters, in words.

        Raises:
            ValueError: the strategy keeps them in pieces.
        """
        if self.in_pieces:
            raise ValueError(
                f"`algorithm={algorithm!r}` needs {what} of whole parameters, which {self.kind} keeps in pieces; "
                "launch it on one process or with plain data parallelism (DDP)"
            )

    # ---- Whole for a while --------------------------------------------------------------------------------------

    @classmethod
    def is_prepared(cls, model: nn.Module) -> bool:
        """Whether the strategy has put its own module or engine around a model, which then loads and saves it."""
        return False

    @contextmanager
    def whole(self, model: nn.Module, device: torch.device | str) -> Iterator[None]:
        """Every parameter at hand on every process, to be read; each process may run as many forwards as it likes.

        All processes enter and leave together. A model that is whole anyway is left alone.

        Args:
            model: as the accelerator prepared it (DeepSpeed's engine, an FSDP module, or any other), or as before.
            device: where this process computes; DeepSpeed and FSDP bring a model there only when training begins.
        """
        if next(model.parameters()).device.type != torch.device(device).type:
            model.to(device)
        yield

    # ---- An optimiser step --------------------------------------------------------------------------------------

    def passes(self, own: int) -> int:
        """How many forward and backward passes a micro-batch takes here that has so many chunks of its own.

        Where every pass is one of all processes, one with fewer chunks than another adds idle ones.
        """
        if not self.in_pieces:
            return own
        return int(self.accelerator.gather(torch.tensor([own], device=self.accelerator.device)).max())

    def backward(self, loss: Tensor, is_last: bool) -> None:
        """The backward pass of one chunk of an optimiser step.

        Args:
            is_last: the step's last one, after which gradients are summed over processes.
        """
        self.accelerator.backward(loss)

    def step(self, resting: Iterable[str]) -> None:
        """The optimiser's step without the parameter groups that rest; only where `owns_gradients`."""

    def broken_gradient(self, model: nn.Module, scaled: bool) -> tuple[Tensor, bool]:
        """Whether a gradient (of this process's shard) is not finite, and whether the update can be left out.

        The first is a boolean [] on the device, which nothing has waited for yet.

        Args:
            scaled: gradients are multiplied by fp16's scaler and may overflow: its own business, which it counts.
        """
        found = torch.tensor(0.0) if scaled else largest(local_gradients(model).values())
        return ~found.isfinite(), True

    def gradient_norm(self, model: nn.Module) -> float:
        """The 2-norm of the gradient, of what this process holds of it."""
        gradients = [gradient.float() for gradient in local_gradients(model).values()]
        return float(torch.nn.utils.get_total_norm(gradients))


def local_gradients(model: nn.Module) -> dict[str, Tensor]:
    """What this process holds of each gradient, by the parameter's name."""
    grads: dict[str, Any] = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {name: grad.to_local() if hasattr(grad, "to_local") else grad for name, grad in grads.items()}


def broken_parameters(model: nn.Module) -> list[str]:
    """The parameters whose gradient, of what this process holds, is not finite."""
    return [name for name, grad in local_gradients(model).items() if not grad.isfinite().all()]


def largest(gradients: Iterable[Tensor]) -> Tensor:
    """[] the largest absolute value, NaN where there is one; no sum of squares, which overflows before they do."""
    shards = [gradient for gradient in gradients if gradient.numel()]  # a shard may be empty, which has no largest
    return torch.nn.utils.get_total_norm(shards, norm_type=float("inf"))
