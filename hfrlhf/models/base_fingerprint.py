"""Whether two models stand on the same base: told by its weights, since names can lie.

A model that an adapter was merged into still has the name of what it was loaded from; the same base has one name on the
Hub and another in a local folder.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from .anatomy.sizes import WRAPPERS
from .libraries import BaseTunerLayer, dequantize_module_weight
from .reward.head import backbone_of

PROBED_MATRICES, PROBED_ROWS = 8, 64
# Rounding leaves 1e-6 (a processor and a GPU quantise a few weights apart); a merged adapter is 1e-3 and more away.
SAME = 1e-4


@torch.no_grad()
def base_fingerprint(model: nn.Module) -> dict[str, float]:
    """A number for each of a few matrices of the trunk, spread from first to last; empty where weights are sharded.

        f(W) = ⟨w, c⟩ / ‖w‖,  w = the first 64 rows in bfloat16, c_i = cos(i)

    The bfloat16 makes it the same whatever precision the weights were loaded in.

    Args:
        model: causal language model or reward model, plain or with adapters, which are left out.
    """
    matrices = _matrices(model)
    spread = torch.linspace(0, len(matrices) - 1, min(PROBED_MATRICES, len(matrices))).long().tolist()
    names = [list(matrices)[i] for i in spread]
    if any(matrices[name].weight.numel() == 0 or isinstance(matrices[name].weight, DTensor) for name in names):
        return {}  # to look at them would take every process
    return {name: _projection(_rows(matrices[name])) for name in names}


def other_weights(ours: dict[str, float], theirs: dict[str, float]) -> list[str]:
    """The matrices, by name, that differ between two bases; what only one of them has differs."""
    return [
        name
        for name in ours.keys() | theirs.keys()
        if name not in ours or name not in theirs or abs(ours[name] - theirs[name]) > SAME
    ]


def _matrices(model: nn.Module) -> dict[str, Any]:
    """Modules of the trunk with a matrix of weights, in order, under their names without adapters."""
    tuned = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    of_adapters = {layer for module in tuned for layer in module.adapter_layer_names} | {"modules_to_save"}
    found: dict[str, Any] = {}
    for name, module in backbone_of(model).named_modules():
        parts = name.split(".")
        if isinstance(module, BaseTunerLayer) or not of_adapters.isdisjoint(parts):
            continue
        # A matrix, or what was one: packed into bits (`quant_state`), or away in another process (no elements).
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor) and (weight.dim() == 2 or weight.numel() == 0 or hasattr(weight, "quant_state")):
            found[".".join(part for part in parts if part not in (*WRAPPERS, "token_adapter"))] = module
    return found


def _rows(module: Any) -> Tensor:
    weight = dequantize_module_weight(module) if _is_quantised(module) else module.weight
    return weight[:PROBED_ROWS].detach().to("cpu", torch.bfloat16).double().flatten()


def _is_quantised(module: Any) -> bool:
    return not module.weight.is_floating_point()


def _projection(w: Tensor) -> float:
    # A fixed direction in which no weights are likely to lie: no seed, no draw, the same on every machine.
    c = torch.arange(len(w), dtype=torch.float64).cos()
    return float((w * c).sum() / w.norm().clamp(min=1e-30))
