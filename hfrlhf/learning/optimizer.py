"""What a trainer owes its optimiser, and what an optimiser must hold.

The trainer makes a value head, adapters, a reward head or a copy of the model itself, after a caller could have made an
optimiser: one that lacks what trains would move nothing, in silence. And optimisers without a schedule of their own
(`schedule_free_adamw`, …) keep two sets of weights, one to take steps from and one to be used; the stock Trainer tells
them which is due within its own loops, we wherever we sample, score or save.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainingArguments

from ..models.libraries import set_last_rates
from ..models.strategies.data_parallel import DataParallel
from ..reporting.screen import RunWarning

# Settings of a class that hold parameters: those groups are the trainer's to make.
OWN_GROUPS = ("params", "model", "optimizer_dict")
# An optimiser's class (or a factory) and its settings.
Factory = tuple[Any, dict[str, Any]]
# An optimiser and its schedule, or a factory; what was not passed is None.
Passed = tuple[tuple[Any, Any], Factory | None]
# Parameter groups for a learning rate and a weight decay.
Groups = Callable[[float, float], list[dict[str, Any]]]


INSTEAD = (
    "the class with its settings in place of the optimiser, `optimizer_cls_and_kwargs=(torch.optim.AdamW, {'lr': …})`"
)


def is_class(optimizer: object) -> bool:
    """Whether it takes parameter groups, as torch's optimisers do (transformers knows factories beside them)."""
    return isinstance(optimizer, type) and issubclass(optimizer, torch.optim.Optimizer)


def checked(optimizers: Any, given: Any, model: nn.Module, trains: Mapping[str, nn.Parameter], args: Any) -> Passed:
    """What was passed as an optimiser, as `settled` has it; refused where it cannot train the model.

    Args:
        optimizers, given: as `settled`. trains: the parameters that the optimiser has to move, by name.

    Raises:
        TypeError, ValueError: as `settled`, `check_holds` and `check_own_rates_unset`.
    """
    passed = settled(optimizers or (None, None), given)
    if passed[0][0] is not None:
        check_holds(passed[0][0], model, trains)
        check_own_rates_unset(args)
    return passed


def settled(optimizers: Any, given: Any) -> Passed:
    """The pair (optimiser, schedule) and the pair (class, settings) of what was passed; one of them is empty.

    Args:
        optimizers: an optimiser and its schedule, as for the stock Trainer; or a class and its settings.
        given: a class and its settings.

    Raises:
        TypeError: neither is what it should be. ValueError: both were passed, or a schedule of another optimiser.
    """
    if not isinstance(optimizers, tuple | list) or len(optimizers) != 2:
        raise TypeError(f"`optimizers` is a pair (optimiser, schedule or None), got {_kind(optimizers)}")
    optimizer, schedule = optimizers
    if isinstance(optimizer, type) and given is None:
        optimizer, schedule, given = None, None, (optimizer, schedule)
    if given is not None:
        given = _class_and_settings(given)
    if given is not None and (optimizer is not None or schedule is not None):
        raise ValueError("`optimizers` and `optimizer_cls_and_kwargs` were both passed; give one of the two")
    if optimizer is not None and not hasattr(optimizer, "param_groups"):
        raise TypeError(f"the first of `optimizers` is no optimiser but {_kind(optimizer)}; pass {INSTEAD}")
    if schedule is not None:
        _check_schedule(optimizer, schedule)
    return (optimizer, schedule), given


def _class_and_settings(given: Any) -> Factory:
    if not isinstance(given, tuple | list) or len(given) != 2 or not callable(given[0]):
        raise TypeError(f"`optimizer_cls_and_kwargs` is a pair (class, settings), got {_kind(given)}")
    cls, settings = given[0], given[1] or {}
    if not isinstance(settings, Mapping):
        raise TypeError(f"the settings of {getattr(cls, '__name__', cls)} must be a dict, got {_kind(settings)}")
    if own := [name for name in OWN_GROUPS if name in settings]:
        raise ValueError(f"{own[0]!r} among the optimiser's settings: its parameters are given to it by the trainer")
    if is_class(cls):
        try:
            inspect.signature(cls).bind([], **{"lr": 0.0} | dict(settings))
        except TypeError as error:
            raise TypeError(f"{cls.__name__} does not take the settings {sorted(settings)}: {error}") from None
    return cls, dict(settings)


def _check_schedule(optimizer: Any, schedule: Any) -> None:
    if not hasattr(schedule, "step"):
        raise TypeError(f"the second of `optimizers` is no learning-rate schedule but {_kind(schedule)}")
    steps = getattr(schedule, "optimizer", optimizer)
    if optimizer is None or (steps is not optimizer and getattr(optimizer, "optimizer", None) is not steps):
        raise ValueError(
            "the schedule in `optimizers` was made for another optimiser, so that it would change no learning rate of "
            "this run; pass the optimiser it was made for beside it, or set `lr_scheduler_type` instead"
        )


def check_own_rates_unset(args: Any) -> None:
    """Refuse a learning rate that an optimiser made elsewhere does not have.

    Raises:
        ValueError: `value_learning_rate` is set.
    """
    if getattr(args, "value_learning_rate", None) is not None:
        raise ValueError(
            f"`value_learning_rate={args.value_learning_rate}` would do nothing: the optimiser that was passed has its "
            f"own groups and rates; leave it out, or pass {INSTEAD}"
        )


def held_by(optimizer: Any) -> set[int] | None:
    """The ids of an optimiser's parameters; None where it does not show them (a stand-in for DeepSpeed's own)."""
    if hasattr(optimizer, "optimizer_dict"):  # one optimiser for each parameter, which steps in its backward pass
        return set(map(id, optimizer.optimizer_dict))
    if not hasattr(optimizer, "param_groups"):
        return None
    return {id(p) for group in optimizer.param_groups for p in group["params"]}


def check_holds(optimizer: Any, model: nn.Module, trains: Mapping[str, nn.Parameter]) -> None:
    """Refuse an optimiser that lacks something that trains; warn of one that holds what is not the model's.

    Args:
        model: what it is to train. trains: its parameters that the optimiser has to move, by name.

    Raises:
        ValueError: the message names what is missing.
    """
    held = held_by(optimizer)
    if held is None:
        return
    missing = [name for name, p in trains.items() if id(p) not in held]
    if missing:
        raise ValueError(
            f"the optimiser does not hold {len(missing):,} of the {len(trains):,} tensors that train "
            f"({_first(missing)}), which would never move: heads, adapters and copies are made by the trainer, after "
            f"it; pass {INSTEAD}"
        )
    if others := len(held - {id(p) for p in model.parameters()}):
        warnings.warn(
            f"the optimiser holds {others:,} tensors that are not the model's; this training gives them no gradient",
            RunWarning,
            stacklevel=5,
        )


# ---- Its groups -----------------------------------------------------------------------------------------------------


def parameter_groups(
    named: Iterable[tuple[str, nn.Parameter]], decays: Collection[str], rate: float, weight_decay: float
) -> list[dict[str, Any]]:
    """What trains, in a group with weight decay and one without.

    Args:
        named: a model's parameters. decays: names of those that decay. rate: of learning.
    """
    trains = [(name in decays, p) for name, p in named if p.requires_grad]
    return [
        {"params": [p for decay, p in trains if decay == here], "lr": rate, "weight_decay": weight_decay * here}
        for here in (True, False)
    ]


def on_groups(given: Factory, args: TrainingArguments, groups: Groups) -> Factory:
    """The class and settings that a caller passed, on the trainer's parameter groups; its own rates come first."""
    cls, settings = given
    if not is_class(cls):
        return cls, settings  # a factory groups the model's parameters itself
    rates = {"lr": args.learning_rate, "weight_decay": args.weight_decay} | settings
    return cls, {"lr": args.learning_rate} | settings | {"params": groups(rates["lr"], rates["weight_decay"])}


def rates_of(cls: Any, settings: Mapping[str, Any], args: TrainingArguments, passed: bool) -> tuple[float, float]:
    """Learning rate and weight decay for our groups; refuse an optimiser that groups parameters itself.

    Args:
        cls, settings: as `get_optimizer_cls_and_kwargs` gives them. passed: whether the trainer was given the class.

    Raises:
        ValueError: the message names it.
    """
    if is_class(cls) and (passed or not set(OWN_GROUPS) & settings.keys()):
        return settings.get("lr", args.learning_rate), settings.get("weight_decay", args.weight_decay)
    name = getattr(cls, "__name__", cls) if passed else f"optim={getattr(args.optim, 'value', args.optim)!r}"
    raise ValueError(
        f"{name} makes its own parameter groups, so that policy and critic could not have their own learning rates; "
        "use 'adamw_torch', 'adamw_bnb_8bit' or another plain optimiser"
    )


def policy_and_critic_groups(
    model: nn.Module, critic: Collection[str], decays: Collection[str], rates: Mapping[str, float], weight_decay: float
) -> list[dict[str, Any]]:
    """Policy and critic × decay and no decay, each with its learning rate.

    Args:
        model: whose parameters train. critic: the names of the critic's own. decays: of those with weight decay.
        rates: of "policy" and "value".
    """
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault(("value" if name in critic else "policy", name in decays), []).append(parameter)
    return [
        {"params": groups[key], "lr": rates[key[0]], "weight_decay": weight_decay if key[1] else 0.0}
        | {"name": f"{key[0]}/{'decay' if key[1] else 'no_decay'}"}
        for key in sorted(groups, key=lambda k: (k[0] != "policy", not k[1]))
    ]


def check_groups_are_ours(optimizer: Any, groups_are_read: bool, strategy: DataParallel) -> None:
    """Refuse an optimiser from outside where parts of the model can only rest by the names of its groups.

    Args:
        optimizer: what was passed, or None. groups_are_read: whether the trainer lets parts of its model rest.

    Raises:
        ValueError: the strategy keeps the gradients.
    """
    if optimizer is not None and groups_are_read and strategy.owns_gradients:
        raise ValueError(
            f"{strategy.title} keeps the gradients itself, so that policy and critic can only rest by "
            f"parameter groups that the trainer has made; pass {INSTEAD}"
        )


# ---- While it runs --------------------------------------------------------------------------------------------------


def switch_mode(optimizer: Any, mode: str) -> None:
    """Tell an optimiser that has modes which weights are due.

    Args:
        mode: "train" before a step, "eval" before the weights are used in any other way.
    """
    switch = getattr(optimizer, mode, None)
    if callable(switch):
        switch()


def has_modes(optimizer: Any) -> bool:
    """Whether the weights that take steps are others than those that are sampled from."""
    while hasattr(optimizer, "optimizer"):  # accelerate's wrapper has both methods, whatever is in it
        optimizer = optimizer.optimizer
    return callable(getattr(optimizer, "eval", None))


def follow_schedule(optimizer: Any, schedule: Any) -> None:
    """Give an optimiser the rates of its schedule, now.

    Where a run goes on with a schedule of another length, the optimiser came back from the checkpoint with the old
    one's rates, which the next step would still have used.
    """
    if not isinstance(schedule, LambdaLR):
        return
    rates = [f(schedule.last_epoch) * base for f, base in zip(schedule.lr_lambdas, schedule.base_lrs, strict=True)]
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    set_last_rates(schedule, rates)


def _first(names: Iterable[str]) -> str:
    shown = list(names)
    return ", ".join(shown[:3]) + (", …" if len(shown) > 3 else "")


def _kind(value: object) -> str:
    return f"{str(value)[:60]!r} ({type(value).__name__})"
