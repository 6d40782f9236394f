"""Parameters in pieces: models are loaded whole, trained in pieces, and whole again for a rollout.

ZeRO-3 and FSDP2 leave each process a piece of every parameter and put the pieces together for a forward or backward
pass, as long as every process runs the same passes. A rollout is no such pass: each process decodes, scores and
evaluates for as long as its own responses are. So the parameters are put together once for all of it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method

from .libraries import gathered_parameters, without_deepspeed_config, without_zero_hooks

# What torch says to DeepSpeed many times a step, and DeepSpeed's users can do nothing about.
OF_DEEPSPEED = r"`torch\.distributed\.(all_gather_into_tensor|reduce_scatter_tensor)` is deprecated"


def strategy(accelerator: Any) -> str:
    """Who owns gradients and parameters: "DDP" (each process, all of them), "DEEPSPEED" or "FSDP"."""
    kind = str(getattr(accelerator.distributed_type, "value", accelerator.distributed_type))
    return kind if kind in ("DEEPSPEED", "FSDP") else "DDP"


# ---- Loading ------------------------------------------------------------------------------------------------------


@contextmanager
def loaded_whole() -> Iterator[None]:
    """Models loaded meanwhile are whole also where the run will use ZeRO-3.

    Once there are training arguments, transformers loads every model of the process in pieces, also reference and
    reward models, which nothing puts together again; and heads, copies and adapters are built here on whole weights.
    """
    with without_deepspeed_config():
        yield


def check_whole(model: Any, role: str) -> None:
    """Refuse a model that was loaded in pieces.

    Raises:
        ValueError: its parameters are ZeRO-3's or FSDP's pieces already.
    """
    if in_pieces(model):
        raise ValueError(
            f"the {role} was loaded in pieces (ZeRO-3 or FSDP were configured when it was): pass its name or path, or "
            "load it within `hfrlhf.models.sharding.loaded_whole()`; the trainer distributes it"
        )


def is_prepared(model: Any) -> bool:
    """Whether the accelerator has put DeepSpeed's engine or FSDP around a model."""
    return isinstance(model, FSDPModule) or hasattr(model, "zero_optimization")


def in_pieces(model: Any) -> bool:
    """Whether a model's parameters lie in pieces on several processes (ZeRO-3, FSDP)."""
    return any(hasattr(p, "ds_id") or hasattr(p, "device_mesh") for p in model.parameters())


# ---- Settings -----------------------------------------------------------------------------------------------------


def check_sharding(accelerator: Any) -> None:
    """Refuse settings under which nothing could be saved, or a rollout not be made.

    Raises:
        ValueError: ZeRO-3 that does not gather for saving; FSDP 1; FSDP with a state dict of pieces.
    """
    if strategy(accelerator) == "DEEPSPEED":
        warnings.filterwarnings("ignore", OF_DEEPSPEED, FutureWarning)
        zero = accelerator.deepspeed_plugin.deepspeed_config.get("zero_optimization", {})
        if zero.get("stage") == 3 and not zero.get("stage3_gather_16bit_weights_on_model_save"):
            raise ValueError(
                "ZeRO-3 is set not to gather the weights for saving, so no model would be written; set "
                "`zero3_save_16bit_model: true` as in recipes/accelerate/zero3.yaml"
            )
    if strategy(accelerator) == "FSDP":
        plugin = accelerator.state.fsdp_plugin
        if plugin.fsdp_version != 2 or "FULL_STATE_DICT" not in str(plugin.state_dict_type):
            raise ValueError(
                f"FSDP is configured with fsdp_version {plugin.fsdp_version} and {plugin.state_dict_type}; set "
                "`fsdp_version: 2` and `fsdp_state_dict_type: FULL_STATE_DICT` as in recipes/accelerate/fsdp2.yaml "
                "(with a state dict of pieces no model would be written)"
            )


def check_own_rates(accelerator: Any) -> None:
    """Refuse an optimiser or schedule in DeepSpeed's own settings: it knows one learning rate, we have two.

    Raises:
        ValueError: the settings hold `optimizer` or `scheduler`.
    """
    if strategy(accelerator) != "DEEPSPEED":
        return
    found = {"optimizer", "scheduler"} & accelerator.deepspeed_plugin.deepspeed_config.keys()
    if found:
        raise ValueError(
            f"the DeepSpeed configuration defines its own {' and '.join(sorted(found))}, which would ignore the "
            "separate learning rates of policy and critic; delete it there: `optim`, `learning_rate`, "
            "`value_learning_rate` and `lr_scheduler_type` are set in the trainer's configuration"
        )


# ---- Whole for a while --------------------------------------------------------------------------------------------


@contextmanager
def whole_parameters(model: Any, device: torch.device | str) -> Iterator[None]:
    """Every parameter at hand on every process, to be read; each process may run as many forwards as it likes.

    All processes enter and leave together. A model that is whole anyway is left alone.

    Args:
        model: as the accelerator prepared it (DeepSpeed's engine, an FSDP module, or any other), or as it is before.
        device: where this process computes; DeepSpeed and FSDP bring a model there only when its training begins.
    """
    if in_pieces(model) and not isinstance(model, FSDPModule):
        with gathered_parameters(model.parameters()), without_zero_hooks(model):
            yield
    elif isinstance(model, FSDPModule):
        with _unsharded(model):
            yield
    else:
        if next(model.parameters()).device.type != torch.device(device).type:
            model.to(device)
        yield


@contextmanager
def _unsharded(root: Any) -> Iterator[None]:
    parts = [module for module in root.modules() if isinstance(module, FSDPModule)]
    _initialize(root)
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()
            part.set_reshard_after_forward(True, recurse=False)


def _initialize(root: Any) -> None:
    """FSDP makes the module whose forward is called first the root of the others: it must be this one."""
    if not hasattr(root, "touched_first"):
        root.touched_first = lambda: None
        register_fsdp_forward_method(root, "touched_first")
    root.touched_first()


@contextmanager
def gathered(parameters: Iterable[Any]) -> Iterator[None]:
    """A few parameters at hand on every process, to be changed in the same way by each."""
    pieces = [parameter for parameter in parameters if hasattr(parameter, "ds_id")]
    if not pieces:
        yield
        return
    with gathered_parameters(pieces, modifier_rank=0):
        yield


# ---- An optimiser step --------------------------------------------------------------------------------------------


def backward(accelerator: Any, loss: torch.Tensor, is_last: bool) -> None:
    """The backward pass of one chunk of an optimiser step.

    Args:
        is_last: the step's last one, after which gradients are summed over processes. DeepSpeed's engine takes its step
            in `engine_step`, not here: what this step showed may decide that the policy is to rest.
    """
    if strategy(accelerator) != "DEEPSPEED":
        accelerator.backward(loss)
        return
    engine = accelerator.deepspeed_engine_wrapped.engine
    engine.set_gradient_accumulation_boundary(is_last)
    engine.backward(loss, scale_wrt_gas=False)  # the loss is divided by the items of the whole step already


def engine_step(accelerator: Any, resting: Iterable[str]) -> None:
    """DeepSpeed's optimiser step, without the parameter groups that rest.

    DeepSpeed leaves it out by itself where the norm of the gradient is not finite.

    Args:
        resting: names of parameter groups. Their gradients are kept from the optimiser: with a learning rate of 0 its
            moments would still move.
    """
    engine, names = accelerator.deepspeed_engine_wrapped.engine, set(resting)
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
