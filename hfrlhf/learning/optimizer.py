"""What a trainer owes its optimiser, and what an optimiser must hold.

The trainer makes a value head, adapters, a reward head or a copy of the model itself, after a caller could have made an
optimiser: one that lacks what trains would move nothing, in silence. And optimisers without a schedule of their own
(`schedule_free_adamw`, …) keep two sets of weights, one to take steps from and one to be used; the stock Trainer tells
them which is due within its own loops, we wherever we sample, score or save.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from ..models.libraries import clear_device_cache
from ..models.sharding import strategy_of
from ..reporting.screen import RunWarning
from ..runs.input_checks import check_best_metric, check_callbacks, check_early_stopping, check_evaluation

# Settings of a class that hold parameters: those groups are the trainer's to make.
OWN_GROUPS = ("params", "model", "optimizer_dict")


class OptimizerDuties:
    """Mixin before `transformers.Trainer`: an optimiser passed from outside, and the modes of one that has modes.

    Raises:
        TypeError, ValueError: at construction, for an optimiser that lacks something that trains, a schedule of another
            optimiser, or both an optimiser and a class.
    """

    has_named_groups = False  # whether the trainer reads the names of its optimiser's groups
    given_optimizer: tuple[Any, dict[str, Any]] | None = None

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        kwargs["callbacks"] = check_callbacks(kwargs.get("callbacks"))
        check_evaluation(kwargs["args"], kwargs.get("eval_dataset"))
        given = kwargs.pop("optimizer_cls_and_kwargs", None)
        pair, self.given_optimizer = settled(kwargs.pop("optimizers", None) or (None, None), given)
        if pair[0] is not None:
            check_holds(pair[0], kwargs["model"], self.moved_by_optimizer(kwargs["model"]))
            check_own_rates_unset(kwargs["args"])
        super().__init__(*args, **kwargs | {"optimizers": pair})
        self.strategy = strategy_of(self.accelerator)
        check_best_metric(self, self.evaluation_metric_names())
        check_early_stopping(self, self.evaluation_metric_names())
        self.name_optimizer()
        if pair[0] is not None and self.has_named_groups and self.strategy.owns_gradients:
            raise ValueError(
                f"{self.strategy.title} keeps the gradients itself, so that policy and critic can only rest by "
                f"parameter groups that the trainer has made; pass {INSTEAD}"
            )

    def moved_by_optimizer(self: Any, model: Any) -> dict[str, nn.Parameter]:
        """What the optimiser has to hold: everything that trains."""
        return {name: p for name, p in model.named_parameters() if p.requires_grad}

    def name_optimizer(self: Any) -> None:
        """Look up what `optim` names, and make nothing of it: what is not installed is heard of here, not in train().

        A subclass may have its own way to say which optimiser it is, and need more than there is by now.
        """
        if self.optimizer is None and type(self).get_optimizer_cls_and_kwargs.__module__.startswith("hfrlhf."):
            self.get_optimizer_cls_and_kwargs(self.args, self.model)

    def create_scheduler(self: Any, num_training_steps: int, optimizer: Any = None) -> Any:
        """The Trainer's, after a last look at the optimiser: a subclass may make its own without asking us."""
        if self.optimizer is not None and not self.strategy.in_pieces:  # elsewhere its tensors are pieces
            check_holds(self.optimizer, self.model, self.moved_by_optimizer(self.model))
        return super().create_scheduler(num_training_steps, optimizer)  # type: ignore[misc]

    def create_optimizer(self: Any, model: Any = None) -> Any:
        """The Trainer's, and then a look at whether it holds what trains: a subclass may have made its own."""
        optimizer = super().create_optimizer(model)  # type: ignore[misc]
        check_holds(optimizer, model or self.model, self.moved_by_optimizer(model or self.model))
        return optimizer

    def get_optimizer_cls_and_kwargs(self: Any, args: Any, model: Any = None) -> tuple[Any, dict[str, Any]]:
        """The class and settings passed to the trainer, on its own parameter groups; else those that `optim` names."""
        if self.given_optimizer is None:
            return super().get_optimizer_cls_and_kwargs(args, model)  # type: ignore[misc]
        cls, given = self.given_optimizer
        if not is_class(cls):
            return cls, given  # a factory groups the model's parameters itself
        settings = {"lr": args.learning_rate, "weight_decay": args.weight_decay} | given
        groups = self.parameter_groups(model or self.model, settings["lr"], settings["weight_decay"])
        return cls, {"lr": args.learning_rate} | given | {"params": groups}

    def parameter_groups(self: Any, model: Any, rate: float, weight_decay: float) -> list[dict[str, Any]]:
        """What trains, in a group with weight decay and one without."""
        decays = set(self.get_decay_parameter_names(model))
        trains = [(name in decays, p) for name, p in model.named_parameters() if p.requires_grad]
        return [
            {"params": [p for decay, p in trains if decay == here], "lr": rate, "weight_decay": weight_decay * here}
            for here in (True, False)
        ]

    # ---- Modes --------------------------------------------------------------------------------------------------

    def optimizer_mode(self: Any, mode: str) -> None:
        """Tell an optimiser that has modes which weights are due.

        Args:
            mode: "train" before a step, "eval" before the weights are used in any other way.
        """
        switch = getattr(self.optimizer, mode, None)
        if callable(switch):
            switch()

    @property
    def has_modes(self: Any) -> bool:
        """Whether the weights that take steps are others than those that are sampled from."""
        inner = self.optimizer
        while hasattr(inner, "optimizer"):  # accelerate's wrapper has both methods, whatever is in it
            inner = inner.optimizer
        return callable(getattr(inner, "eval", None))

    def empty_cache(self: Any) -> None:
        """Free the device's cached memory in the steps that `torch_empty_cache_steps` names."""
        every = self.args.torch_empty_cache_steps
        if every is not None and self.state.global_step % every == 0:
            clear_device_cache()

    def save_model(self: Any, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As in the stock Trainer, the weights that are to be used."""
        self.optimizer_mode("eval")
        super().save_model(output_dir, _internal_call)  # type: ignore[misc]

    def _save_checkpoint(self: Any, model: Any, trial: Any) -> None:
        self.optimizer_mode("eval")  # the optimiser's own state is saved beside the weights that belong to it
        super()._save_checkpoint(model, trial)  # type: ignore[misc]

    def _finalize_training(self: Any, *args: Any, **kwargs: Any) -> Any:
        """What is left after a training are the weights that are to be used."""
        self.optimizer_mode("eval")
        return super()._finalize_training(*args, **kwargs)  # type: ignore[misc]


INSTEAD = (
    "the class with its settings in place of the optimiser, `optimizer_cls_and_kwargs=(torch.optim.AdamW, {'lr': …})`"
)


def is_class(optimizer: Any) -> bool:
    """Whether it takes parameter groups, as torch's optimisers do (transformers knows factories beside them)."""
    return isinstance(optimizer, type) and issubclass(optimizer, torch.optim.Optimizer)


def settled(optimizers: Any, given: Any) -> tuple[tuple[Any, Any], tuple[Any, dict[str, Any]] | None]:
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


def _class_and_settings(given: Any) -> tuple[Any, dict[str, Any]]:
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


def check_holds(optimizer: Any, model: Any, trains: Mapping[str, nn.Parameter]) -> None:
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


def _first(names: Iterable[str]) -> str:
    shown = list(names)
    return ", ".join(shown[:3]) + (", …" if len(shown) > 3 else "")


def _kind(value: Any) -> str:
    return f"{str(value)[:60]!r} ({type(value).__name__})"
