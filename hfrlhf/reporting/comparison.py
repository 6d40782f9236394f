"""What the policy answers to the same few prompts before the first update and after the last."""

from __future__ import annotations

from typing import Any

import torch
from transformers.utils import logging

from ..data.prompts import PromptSet, prompt_batch, prompt_sets
from ..experience import Rollout, concatenate
from ..rewards.completions import Completions
from .facts import Sample, SamplingRun

logger = logging.get_logger(__name__)

SHOWN = 4  # prompts
# The tensors of a `Rollout` by their names, as JSON has them: numbers, and the name of their type.
Saved = dict[str, tuple[list[Any], str]]
BEFORE, AFTER = "before, as in the first rollout", "after the last rollout"


class Comparison:
    """Samples both, with the same draws; reward models score them together at the end. All processes take part, alike.

    Args:
        trainer: a policy-gradient trainer. address: second word of the address of its draws.

    The prompts are the first of the evaluation set, or of the training set where there is none.
    """

    def __init__(self, trainer: SamplingRun, address: int) -> None:
        self.trainer, self.address = trainer, address
        self.before: Rollout | None = None
        self.rows: list[Sample] = []  # prompt, before, score before, after, score after

    @property
    def prompts(self) -> PromptSet:
        """The prompts compared on are the first of these."""
        return next(iter(prompt_sets(self.trainer.eval_prompts).values()), self.trainer.prompts)

    def begin(self) -> None:
        """Before the first update: sample."""
        if self.trainer.args.log_completions and self.trainer.state.global_step == 0:
            self.before, self.rows = self._sample(), []

    def finish(self) -> bool:
        """After the last update: sample again, and score where models do; whether there is something to compare."""
        if self.before is None:
            return False
        before, after = self.before, self._sample()
        # As one batch: the padding, and what it does to rounding, is the same for both.
        both = self.trainer.describe(concatenate([before, after]), self.prompts)
        scores = self._scores(both)
        n = len(before)
        self.rows = [
            {"prompt": both.prompts[i]}
            | {"before": both.completions[i], "score before": scores[i]}
            | {"after": both.completions[n + i], "score after": scores[n + i]}
            for i in range(n)
        ]
        return True

    def _scores(self, both: Completions) -> list[float | None]:
        """What the reward models say, where they are the whole reward: a function may cost money, or count its calls,
        and is called for rollouts and evaluations alone."""
        unscored: list[float | None] = [None] * len(both.completions)
        if not self.trainer.reward.answers_again:
            return unscored
        try:
            with self.trainer.whole_model():
                return self.trainer.reward(both).tolist()
        except Exception as error:  # the run is over, and its result does not depend on this
            logger.warning(f"the samples before and after training have no scores: {type(error).__name__}: {error}")
            return unscored

    def stages(self) -> dict[str, list[Sample]]:
        """The rows as `print_samples` takes them."""
        return {
            name: [{"prompt": r["prompt"], "completion": r[key], "score": r[f"score {key}"]} for r in self.rows]
            for name, key in {BEFORE: "before", AFTER: "after"}.items()
        }

    def _sample(self) -> Rollout:
        # The same address both times, so the same uniforms: what differs is the policy, not the luck.
        rows = torch.arange(min(SHOWN, len(self.prompts)))
        with self.trainer.whole_model():
            return self.trainer.generate(prompt_batch(self.prompts, rows, rows), (self.trainer.args.seed, self.address))

    def state_dict(self) -> Saved | None:
        """The responses from before the first update, for a run that goes on from a checkpoint."""
        if self.before is None:
            return None
        return {name: (tensor.tolist(), str(tensor.dtype)) for name, tensor in self.before.tensors().items()}

    def load_state_dict(self, state: Saved | None) -> None:
        """Put them back; nothing where the checkpoint has none."""
        fields = {name: torch.tensor(rows, dtype=_dtype(dtype)) for name, (rows, dtype) in (state or {}).items()}
        self.before = Rollout(**fields) if fields else None


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name.removeprefix("torch."))
    assert isinstance(dtype, torch.dtype)
    return dtype
