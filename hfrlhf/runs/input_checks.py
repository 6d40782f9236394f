"""What is passed to a trainer beside models, data and settings, looked at before anything is made of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from transformers import EarlyStoppingCallback, TrainerCallback

# Of transformers' own callbacks and of ours none adds a metric to those of an evaluation.
_KNOWN = ("transformers.", "hfrlhf.")
_TIMES = ("runtime", "samples_per_second", "steps_per_second")


def check_callbacks(callbacks: Any) -> list[Any] | None:
    """The callbacks as a list; refuse what is none.

    Raises:
        TypeError: the message names what was passed.
    """
    if callbacks is None:
        return None
    if isinstance(callbacks, TrainerCallback) or not isinstance(callbacks, list | tuple):
        raise TypeError(f"`callbacks` is a list of callbacks, got {_kind(callbacks)}; pass [callback]")
    for callback in callbacks:
        made = callback if isinstance(callback, type) else type(callback)
        if not issubclass(made, TrainerCallback):
            raise TypeError(
                f"`callbacks` holds {_kind(callback)}, which is no transformers.TrainerCallback; derive it from that"
            )
    return list(callbacks)


def check_evaluation(args: Any, eval_dataset: Any) -> None:
    """Refuse evaluations that were asked for without anything to evaluate on.

    Raises:
        ValueError: the message names the setting.
    """
    if eval_dataset is not None:
        return
    strategy = getattr(args.eval_strategy, "value", args.eval_strategy)
    asked = f"eval_strategy={strategy!r}" if strategy != "no" else "eval_on_start=True" if args.eval_on_start else None
    if asked:
        raise ValueError(f"`{asked}` asks for evaluations, and there is no `eval_dataset`: pass one, or leave it out")


def check_early_stopping(trainer: Any, names: Iterable[str]) -> None:
    """Refuse a callback that stops by a metric where none was named, or none will be measured.

    Args:
        names: of the trainer's own metrics, without `eval_`.

    Raises:
        ValueError: the message says what to set.
    """
    if not any(isinstance(callback, EarlyStoppingCallback) for callback in trainer.callback_handler.callbacks):
        return
    if trainer.args.metric_for_best_model is None:
        raise ValueError(
            "EarlyStoppingCallback stops by `metric_for_best_model`, which is not set; an evaluation gives "
            f"{', '.join(names)}"
        )
    if getattr(trainer.args.eval_strategy, "value", trainer.args.eval_strategy) == "no":
        raise ValueError(
            "EarlyStoppingCallback needs evaluations to stop by: set `eval_strategy='steps'` and `eval_steps`"
        )


def check_best_metric(trainer: Any, names: Iterable[str]) -> None:
    """Refuse a best metric that no evaluation will have.

    Where a subclass or a callback may add metrics of its own to an evaluation's, nothing is known of them.

    Args:
        names: of the trainer's own metrics, without `eval_`.

    Raises:
        ValueError: the message lists the metrics there are.
    """
    metric, strategy = trainer.args.metric_for_best_model, trainer.args.eval_strategy
    if metric is None or getattr(strategy, "value", strategy) == "no" or _adds_metrics(trainer):
        return
    sets = [f"{name}_" for name in trainer.eval_dataset] if isinstance(trainer.eval_dataset, Mapping) else [""]
    known = [f"{part}{name}" for part in sets for name in names]
    wanted = metric.removeprefix("eval_")
    if wanted in known or wanted in [f"{part}{time}" for part in sets for time in _TIMES]:
        return
    likely = get_close_matches(wanted, known, 1, 0.5)
    hint = f"; did you mean {likely[0]!r}?" if likely else "."
    raise ValueError(
        f"`metric_for_best_model={metric!r}` is none of what an evaluation of this trainer gives{hint} There are: "
        f"{', '.join(known[:12])}"
    )


def _adds_metrics(trainer: Any) -> bool:
    """Whether code that is neither ours nor transformers' has a hand in an evaluation."""
    callbacks = [type(callback) for callback in trainer.callback_handler.callbacks]
    hooks = [type(trainer).evaluate, *(callback.on_evaluate for callback in callbacks)]
    return not all(hook.__module__.startswith(_KNOWN) for hook in hooks)


def _kind(value: Any) -> str:
    return f"{str(value)[:60]!r} ({type(value).__name__})"
