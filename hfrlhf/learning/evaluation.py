"""Evaluation of a policy: a response for each evaluation prompt, always with the same draws, and its score."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from ..data.prompts import PromptSet, prepare_prompts
from ..experience import concatenate
from ..models.libraries import speed_metrics
from ..reporting.metrics import evaluation_metrics
from .prompt_checks import check_prompts, models_of

# One set of prompts, several by name, or none.
Prepared = PromptSet | dict[str, PromptSet] | None


def prepare_evaluation(dataset: Any, tokenizer: Any, max_prompt_length: int | None) -> Prepared:
    """The prompts of an evaluation dataset, or of each in a dict.

    Raises:
        TypeError, ValueError: as `prepare_prompts`; a dict that is empty.
    """
    if dataset is None:
        return None
    if not isinstance(dataset, Mapping):
        return prepare_prompts(dataset, tokenizer, max_prompt_length, "eval")
    if not dataset:
        raise ValueError("`eval_dataset` is an empty dict: pass a dataset, a dict of them by name, or None")
    return {name: prepare_prompts(part, tokenizer, max_prompt_length, f"eval {name}") for name, part in dataset.items()}


def prompt_sets(prepared: Prepared) -> dict[str, PromptSet]:
    """The sets of prompts, by what to call them in messages."""
    if isinstance(prepared, dict):
        return {f"eval dataset {name}": prompts for name, prompts in prepared.items()}
    return {} if prepared is None else {"eval dataset": prepared}


def chosen_prompts(trainer: Any, dataset: Any) -> PromptSet | dict[str, PromptSet]:
    """The prompts to evaluate on: those of `dataset`, of the trainer's set that it names, or the trainer's own.

    Raises:
        ValueError: there are none, or none of that name.
    """
    own = trainer.eval_prompts
    if dataset is None or isinstance(dataset, str):
        if own is None:
            raise ValueError("evaluate() needs prompts: pass `eval_dataset` to it or to the trainer")
        if dataset is None:
            return own
        if not isinstance(own, dict) or dataset not in own:
            names = sorted(own) if isinstance(own, dict) else "a single dataset without a name"
            raise ValueError(f"evaluate({dataset!r}): the trainer's `eval_dataset` has {names}")
        return own[dataset]
    prepared = prepare_evaluation(dataset, trainer.processing_class, trainer.args.max_prompt_length)
    assert prepared is not None
    tokenizer, completion = trainer.processing_class, trainer.args.max_completion_length
    check_prompts(prompt_sets(prepared), models_of(trainer), tokenizer, completion)
    return prepared


def evaluate_each(trainer: Any, prompts: dict[str, PromptSet], prefix: str) -> dict[str, float]:
    """The metrics of each set, its name in theirs, as the stock Trainer has it."""
    metrics: dict[str, float] = {}
    own = trainer.eval_prompts
    for name, part in prompts.items():
        is_own = isinstance(own, dict) and own.get(name) is part
        metrics |= trainer.evaluate(name if is_own else part.rows, metric_key_prefix=f"{prefix}_{name}")
    return metrics


def evaluate_prompts(trainer: Any, prompts: PromptSet, prefix: str) -> dict[str, float]:
    """Sample, score and log; `per_device_eval_batch_size` prompts at a time.

    How long it took stands in the log alone: the metrics are the same whenever they are asked for.
    """
    started = time.time()
    mine, address = trainer.evaluation_prompts(prompts)
    with trainer.whole_model():
        parts = []
        for part in mine.split(trainer.args.per_device_eval_batch_size):
            parts.append(trainer.generate(part, address))
            trainer.control = trainer.callback_handler.on_prediction_step(trainer.args, trainer.state, trainer.control)
        rollout = concatenate(parts)
        seen = trainer.evaluate_rollout(rollout, *trainer.score(trainer.describe(rollout, prompts)))
    metrics = evaluation_metrics(trainer.gather(seen), prefix)
    metrics |= {f"{prefix}_{name}": mean for name, mean in trainer.notes.means().items()}
    trainer.log(metrics | speed_metrics(prefix, started, num_samples=len(prompts)))
    return metrics
