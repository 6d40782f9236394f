"""FSDP2, by torch: each process keeps a piece of every parameter, of its gradient and of the optimiser's moments.

The pieces are put together for a forward or backward pass, as long as every process runs the same passes; for a
rollout, which is no such pass, once for all of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method

from .data_parallel import DataParallel


class FullySharded(DataParallel):
    """Fully sharded data parallelism, version 2."""

    kind = "FSDP"
    title = "FSDP"
    in_pieces = True
    variable = "ACCELERATE_USE_FSDP"
    setting = "fsdp"
    needs_gpus = True
    remedy = (
        "FSDP needs a GPU for every process; on CPUs launch with `ACCELERATE_USE_CPU=true torchrun "
        "--nproc_per_node N SCRIPT` (DDP), or with a copy of recipes/accelerate/zero2.yaml that has `use_cpu: true`"
    )

    @classmethod
    def has_piece(cls, parameter: Tensor) -> bool:
        """Whether a parameter is a DTensor."""
        return hasattr(parameter, "device_mesh")

    def check(self) -> None:
        """Refuse FSDP 1, and a state dict of pieces.

        Raises:
            ValueError: the message names the settings.
        """
        plugin = self.accelerator.state.fsdp_plugin
        if plugin.fsdp_version != 2 or "FULL_STATE_DICT" not in str(plugin.state_dict_type):
            raise ValueError(
                f"FSDP is configured with fsdp_version {plugin.fsdp_version} and {plugin.state_dict_type}; set "
                "`fsdp_version: 2` and `fsdp_state_dict_type: FULL_STATE_DICT` as in recipes/accelerate/fsdp2.yaml "
                "(with a state dict of pieces no model would be written)"
            )

    @classmethod
    def is_prepared(cls, model: nn.Module) -> bool:
        """Whether it is an FSDP module."""
        return isinstance(model, FSDPModule)

    @contextmanager
    def whole(self, model: nn.Module, device: torch.device | str) -> Iterator[None]:
        """As `DataParallel.whole`; every module keeps its parameters together after a forward."""
        if not self.is_prepared(model):
            with super().whole(model, device):
                yield
        else:
            with unsharded(model):
                yield


@contextmanager
def unsharded(root: nn.Module) -> Iterator[None]:
    """Every parameter of an FSDP module at hand on every process, to be read."""
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
