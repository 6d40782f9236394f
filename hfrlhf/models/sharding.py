"""The table of distribution strategies, and models in pieces: loaded whole, trained in pieces, whole for a rollout.

ZeRO-3 and FSDP2 leave each process a piece of every parameter and put the pieces together for a forward or backward
pass, as long as every process runs the same passes. What differs between strategies stands in a file of `strategies/`
each; the trainers ask the one that runs, `strategy_of(accelerator)`, without knowing which it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

from accelerate import Accelerator
from torch import Tensor, nn

from .strategies.data_parallel import DataParallel
from .strategies.fully_sharded import FullySharded
from .strategies.zero import Zero

# By accelerate's `DistributedType`; what is not here is plain data parallelism.
STRATEGIES: dict[str, type[DataParallel]] = {row.kind: row for row in (FullySharded, Zero)}


def strategy_of(accelerator: Accelerator) -> DataParallel:
    """The strategy of a run, as its accelerator was set up."""
    kind = str(getattr(accelerator.distributed_type, "value", accelerator.distributed_type))
    return STRATEGIES.get(kind, DataParallel)(accelerator)


@contextmanager
def loaded_whole() -> Iterator[None]:
    """Models loaded meanwhile are whole, whatever strategy the run will use; the trainer distributes them."""
    with ExitStack() as stack:
        for row in STRATEGIES.values():
            stack.enter_context(row.loaded_whole())
        yield


@contextmanager
def gathered(parameters: Iterable[Tensor]) -> Iterator[None]:
    """A few parameters at hand on every process, to be changed in the same way by each."""
    few = list(parameters)
    with ExitStack() as stack:
        for row in STRATEGIES.values():
            stack.enter_context(row.gathered(few))
        yield


def in_pieces(model: nn.Module) -> bool:
    """Whether a model's parameters lie in pieces on several processes (ZeRO-3, FSDP)."""
    return any(row.has_piece(parameter) for parameter in model.parameters() for row in STRATEGIES.values())


def check_whole(model: nn.Module, role: str) -> None:
    """Refuse a model that was loaded in pieces.

    Raises:
        ValueError: its parameters are a strategy's pieces already.
    """
    if in_pieces(model):
        raise ValueError(
            f"the {role} was loaded in pieces (ZeRO-3 or FSDP were configured when it was): pass its name or path, or "
            "load it within `hfrlhf.models.sharding.loaded_whole()`; the trainer distributes it"
        )
