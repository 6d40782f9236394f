"""What is passed to a trainer beside models, data and settings, looked at before anything is made of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from transformers import EarlyStoppingCallback, TrainerCallback, TrainingArguments

# Of transformers' own callbacks and of ours none adds a metric to those of an evaluation.
_KNOWN = ("transformers.", "hfrlhf.")
_TIMES = ("runtime", "samples_per_second", "steps_per_second")


def check_callbacks(callbacks: object) -> list[Any] | None:
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


def check_evaluation(args: TrainingArguments, eval_dataset: object) -> None:
    """Refuse evaluations that were asked for without anything to evaluate on.

    Raises:
        ValueError: the message names the setting.
    """
    if eval_dataset is not None:
        return
    strategy = _when(args)
    asked = f"eval_strategy={strategy!r}" if strategy != "no" else "eval_on_start=True" if args.eval_on_start else None
    if asked:
        raise ValueError(f"`{asked}` asks for evaluations, and there is no `eval_dataset`: pass one, or leave it out")


def check_metrics(
    args: TrainingArguments,
    eval_dataset: object,
    names: Sequence[str],
    evaluate: Callable[..., Any],
    callbacks: Sequence[TrainerCallback],
) -> None:
    """Refuse a metric to choose or to stop by that no evaluation will have.

    Args:
        eval_dataset: the trainer's, or a dict of them by name. names: of the trainer's own metrics, without `eval_`.
        evaluate: the trainer's method.

    Raises:
        ValueError: the message says what to set, or which metrics there are.
    """
    check_best_metric(args, eval_dataset, names, [evaluate, *(callback.on_evaluate for callback in callbacks)])
    check_early_stopping(args, callbacks, names)


def check_early_stopping(args: TrainingArguments, callbacks: Iterable[object], names: Iterable[str]) -> None:
    """Refuse a callback that stops by a metric where none was named, or none will be measured.

    Args:
        names: of the trainer's own metrics, without `eval_`.

    Raises:
        ValueError: the message says what to set.
    """
    if not any(isinstance(callback, EarlyStoppingCallback) for callback in callbacks):
        return
    if args.metric_for_best_model is None:
        raise ValueError(
            "EarlyStoppingCallback stops by `metric_for_best_model`, which is not set; an evaluation gives "
            f"{', '.join(names)}"
        )
    if _when(args) == "no":
        raise ValueError(
            "EarlyStoppingCallback needs evaluations to stop by: set `eval_strategy='steps'` and `eval_steps`"
        )


def check_best_metric(
    args: TrainingArguments, eval_dataset: object, names: Iterable[str], hooks: Iterable[Callable[..., Any]]
) -> None:
    """Refuse a best metric that no evaluation will have.

    Where a subclass or a callback may add metrics of its own to an evaluation's, nothing is known of them.

    Args:
        eval_dataset: the trainer's, or a dict of them by name. names: of the trainer's own metrics, without `eval_`.
            hooks: the functions that have a hand in an evaluation.

    Raises:
        ValueError: the message lists the metrics there are.
    """
    metric = args.metric_for_best_model
    if metric is None or _when(args) == "no" or not all(hook.__module__.startswith(_KNOWN) for hook in hooks):
        return
    sets = [f"{name}_" for name in eval_dataset] if isinstance(eval_dataset, Mapping) else [""]
    known = [f"{part}{name}" for part in sets for name in names]
    wanted = metric.removeprefix("eval_")
    # The Trainer's own times come with every evaluation; nobody should want the best of them, but it can be done.
    if wanted in known or wanted in [f"{part}{time}" for part in sets for time in _TIMES]:
        return
    likely = get_close_matches(wanted, known, 1, 0.5)
    hint = f"; did you mean {likely[0]!r}?" if likely else "."
    raise ValueError(
        f"`metric_for_best_model={metric!r}` is none of what an evaluation of this trainer gives{hint} There are: "
        f"{', '.join(known[:12])}"
    )


def _when(args: TrainingArguments) -> str:
    """When the run evaluates: "no", "steps" or "epoch"."""
    return str(getattr(args.eval_strategy, "value", args.eval_strategy))


def _kind(value: object) -> str:
    return f"{str(value)[:60]!r} ({type(value).__name__})"
