"""Evaluation of a policy: a response for each evaluation prompt, always with the same draws, and its score."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..data.prompts import Prepared, PromptSet, prepare_prompts, prompt_batch, prompt_sets
from ..reporting.metrics import evaluation_metrics
from ..settings.policy_gradient import PolicyGradientConfig
from .batches import EVALUATION, Share
from .experience_maker import ExperienceMaker
from .start_checks import check_prompts


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


@dataclass(frozen=True)
class Evaluator:
    """Answers the same prompts with the same draws whenever it is asked.

    Args:
        own: the prompts of the run's evaluation datasets. maker: gives who samples and scores.
        share: what of the work is this process's. args: the run's settings.
    """

    own: Prepared
    maker: Callable[[], ExperienceMaker]
    share: Share
    args: PolicyGradientConfig

    def chosen(self, dataset: Any) -> PromptSet | dict[str, PromptSet]:
        """The prompts to evaluate on: those of `dataset`, of the run's set that it names, or the run's own.

        Raises:
            ValueError: there are none, none of that name, or ones that a model cannot read.
        """
        if dataset is not None and not isinstance(dataset, str):
            return self._prepared(dataset)
        if self.own is None:
            raise ValueError("evaluate() needs prompts: pass `eval_dataset` to it or to the trainer")
        if dataset is None:
            return self.own
        if not isinstance(self.own, dict) or dataset not in self.own:
            names = sorted(self.own) if isinstance(self.own, dict) else "a single dataset without a name"
            raise ValueError(f"evaluate({dataset!r}): the trainer's `eval_dataset` has {names}")
        return self.own[dataset]

    def _prepared(self, dataset: Any) -> PromptSet | dict[str, PromptSet]:
        maker = self.maker()
        tokenizer, models = maker.tokenizer, maker.actor_critic()
        prepared = prepare_evaluation(dataset, tokenizer, self.args.max_prompt_length)
        assert prepared is not None
        readers = {"policy": models.policy, "reference": maker.reference.model, "value model": models.value_model}
        check_prompts(prompt_sets(prepared), readers, tokenizer, self.args.max_completion_length)
        return prepared

    def name_of(self, name: str, prompts: PromptSet) -> Any:
        """What to pass to `evaluate()` for one set of several: its name where it is the run's own, else its rows."""
        return name if isinstance(self.own, dict) and self.own.get(name) is prompts else prompts.rows

    def metrics(self, prompts: PromptSet, prefix: str, after_part: Callable[[], None]) -> dict[str, float]:
        """Sample and score, `per_device_eval_batch_size` prompts at a time; all processes take part.

        Args:
            prefix: of the metrics' names. after_part: called after each part, for a progress bar.

        Raises:
            ValueError: fewer prompts than processes.
        """
        if len(prompts.ids) < self.share.processes:
            raise ValueError(f"{len(prompts.ids)} evaluation prompts for {self.share.processes} processes: give more")
        maker, mine = self.maker(), self.share.of(torch.arange(len(prompts.ids)))
        parts = prompt_batch(prompts, mine, mine).split(self.args.per_device_eval_batch_size or len(mine))
        seen = maker.sample_and_score(prompts, parts, (self.args.seed, EVALUATION), after_part)
        noted = {f"{prefix}_{name}": mean for name, mean in maker.notes.means().items()}
        return evaluation_metrics(seen, prefix) | noted
