"""ZeRO, by DeepSpeed: its engine owns the gradients and takes the optimiser's step; stage 3 keeps parameters in pieces.

ZeRO-3 puts the pieces together for a forward or backward pass, as long as every process runs the same passes. A rollout
is no such pass: each process decodes, scores and evaluates for as long as its own responses are. So the parameters are
put together once for all of it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from ..libraries import gathered_parameters, without_deepspeed_config, without_zero_hooks
from .data_parallel import DataParallel

# What torch says to DeepSpeed many times a step, and DeepSpeed's users can do nothing about.
OF_DEEPSPEED = r"`torch\.distributed\.(all_gather_into_tensor|reduce_scatter_tensor)` is deprecated"


class Zero(DataParallel):
    """DeepSpeed's ZeRO, stages 1 to 3."""

    kind = "DEEPSPEED"
    title = "DeepSpeed"
    in_pieces = True
    owns_gradients = True
    variable = "ACCELERATE_USE_DEEPSPEED"
    setting = "deepspeed"
    remedy = (
        "unset ACCELERATE_USE_CPU and give the launcher no `--cpu` (on CPUs pass `use_cpu=True` to the training "
        "arguments instead), or launch without DeepSpeed"
    )

    @classmethod
    def has_piece(cls, parameter: Tensor) -> bool:
        """Whether a parameter is one of ZeRO-3's."""
        return hasattr(parameter, "ds_id")

    @classmethod
    def loaded_whole(cls) -> AbstractContextManager[None]:
        """Once there are training arguments, transformers loads every model of the process in pieces, also reference
        and reward models, which nothing puts together again; not meanwhile."""
        return without_deepspeed_config()

    @classmethod
    def gathered(cls, parameters: Iterable[Tensor]) -> AbstractContextManager[None]:
        """ZeRO-3's pieces at hand on every process; what the first changes is everyone's."""
        pieces = [parameter for parameter in parameters if cls.has_piece(parameter)]
        return gathered_parameters(pieces, modifier_rank=0) if pieces else nullcontext()

    def check(self) -> None:
        """Refuse ZeRO-3 that does not gather for saving.

        Raises:
            ValueError: the message names the setting.
        """
        warnings.filterwarnings("ignore", OF_DEEPSPEED, FutureWarning)
        zero = self.accelerator.deepspeed_plugin.deepspeed_config.get("zero_optimization", {})
        if zero.get("stage") == 3 and not zero.get("stage3_gather_16bit_weights_on_model_save"):
            raise ValueError(
                "ZeRO-3 is set not to gather the weights for saving, so no model would be written; set "
                "`zero3_save_16bit_model: true` as in recipes/accelerate/zero3.yaml"
            )

    def check_own_rates(self) -> None:
        """Refuse an optimiser or schedule in DeepSpeed's own settings.

        Raises:
            ValueError: the settings hold `optimizer` or `scheduler`.
        """
        found = {"optimizer", "scheduler"} & self.accelerator.deepspeed_plugin.deepspeed_config.keys()
        if found:
            raise ValueError(
                f"the DeepSpeed configuration defines its own {' and '.join(sorted(found))}, which would ignore the "
                "separate learning rates of policy and critic; delete it there: `optim`, `learning_rate`, "
                "`value_learning_rate` and `lr_scheduler_type` are set in the trainer's configuration"
            )

    @classmethod
    def is_prepared(cls, model: nn.Module) -> bool:
        """Whether it is DeepSpeed's engine."""
        return hasattr(model, "zero_optimization")

    @contextmanager
    def whole(self, model: nn.Module, device: torch.device | str) -> Iterator[None]:
        """As `DataParallel.whole`; ZeRO-3's pieces put together, its forward no longer fetching them."""
        if not any(map(self.has_piece, model.parameters())):
            with super().whole(model, device):
                yield
        else:
            with gathered_parameters(model.parameters()), without_zero_hooks(model):
                yield

    def backward(self, loss: Tensor, is_last: bool) -> None:
        """As `DataParallel.backward`; without the step that DeepSpeed's own would take at its end: what this step
        showed may decide that the policy is to rest."""
        engine = self._engine
        engine.set_gradient_accumulation_boundary(is_last)
        engine.backward(loss, scale_wrt_gas=False)  # the loss is divided by the items of the whole step already

    def step(self, resting: Iterable[str]) -> None:
        """DeepSpeed's optimiser step, without the parameter groups that rest.

        DeepSpeed leaves it out by itself where the norm of the gradient is not finite.

        Args:
            resting: names of parameter groups. Their gradients are kept from the optimiser: with a learning rate of 0
                its moments would still move.
        """
        engine, names = self._engine, set(resting)
        optimizer = getattr(engine.optimizer, "optimizer", engine.optimizer)  # the one inside ZeRO's

        def hide(optimizer: torch.optim.Optimizer, *_: Any) -> None:
            for group in optimizer.param_groups:
                if group.get("name") in names:
                    for parameter in group["params"]:
                        parameter.grad = None

        hook = optimizer.register_step_pre_hook(hide)
        try:
            engine.step()
        finally:
            hook.remove()

    def broken_gradient(self, model: nn.Module, scaled: bool) -> tuple[Tensor, bool]:
        """As `DataParallel.broken_gradient`; the engine has stepped by now, and left out a step in half precision."""
        engine = self._engine
        norm, skipped = engine.get_global_grad_norm(), bool(getattr(engine.optimizer, "overflow", False))
        broken = skipped or (norm is not None and not math.isfinite(float(norm)))
        return torch.tensor(broken), skipped

    def gradient_norm(self, model: nn.Module) -> float:
        """The 2-norm of the gradient, over all processes."""
        return float(self._engine.get_global_grad_norm() or 0.0)

    @property
    def _engine(self) -> Any:
        return self.accelerator.deepspeed_engine_wrapped.engine
