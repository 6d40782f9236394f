"""A rollout in five stages, from prompts to the experience that the update learns from.

    generate → score → evaluate → gather → estimate

Collaborators are handed over; a record comes back for the update, and another for whoever reports or watches. Nothing
here knows a Trainer, and nothing that is reported steers.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..algorithms import Algorithm
from ..core.masking import at_least_float32
from ..core.value_losses import explained_variance
from ..data.prompts import PromptSet
from ..experience import EvaluatedRollout, Experience, Prompts, Rollout, chunks_by_length, concatenate
from ..models.libraries import gather_object
from ..models.policy.actor_critic import ActorCritic, Evaluation
from ..models.policy.reference import Reference
from ..models.policy.score_gradients import score_gradient_sq_norms
from ..reporting.metrics import rollout_metrics
from ..rewards.completions import Completions, completions_of
from ..rewards.notes import RewardNotes
from ..rewards.sources import WeightedSum
from ..rollout.contract import Generator, Sampling
from ..rollout.generators import sample
from ..runs.agreement import together
from ..settings.policy_gradient import PolicyGradientConfig
from .coefficients import Coefficients
from .estimation import bounded_scores, estimate

SAMPLES = 4  # responses of a rollout that are kept to be shown


@dataclass(frozen=True)
class RolloutReport:
    """What there is to say of a rollout.

    Args:
        metrics: by their stable names, over all processes.
        samples: a few of this process's prompts and completions, with scores and what reward functions noted.
        completions, parts: this process's, as the reward sources saw them, and [b,S] what each of them said.
        seen: the rollout of all processes, before any of it was combined.
        seconds: that sampling, scoring and evaluating took here.
    """

    metrics: dict[str, float]
    samples: list[dict[str, Any]]
    completions: Completions
    parts: Tensor
    seen: EvaluatedRollout
    seconds: float


@dataclass(frozen=True)
class ExperienceMaker:
    """Makes the experience of a rollout.

    Args:
        model: gives the actor-critic that computes, as it is wrapped by now. actor_critic: gives it without wrappers.
        generator, sampling: who samples, and what it keeps to. reward: scores. reference: π_ref.
        notes: what reward functions note beside their scores.
        tokenizer, prompts: of the policy, and the prompts of the run.
        row: the algorithm. args: the run's settings. coefficients: moved here are only the moments of the scores.
        accelerator: precision and processes.
    """

    model: Callable[[], Any]
    actor_critic: Callable[[], ActorCritic]
    generator: Generator
    sampling: Sampling
    reward: WeightedSum
    reference: Reference
    notes: RewardNotes
    tokenizer: PreTrainedTokenizerBase
    prompts: PromptSet
    row: Algorithm
    args: PolicyGradientConfig
    coefficients: Coefficients
    accelerator: Accelerator

    def make(self, prompts: Prompts, address: tuple[int, ...]) -> tuple[Experience, RolloutReport]:
        """Responses to this process's prompts, and the experience of all processes, the same on each."""
        started = time.perf_counter()
        rollout = self.generate(prompts, address)
        sampled = time.perf_counter()
        completions = self.describe(rollout, self.prompts)
        scores, parts = self.score(completions)
        evaluated = self.with_gradient_norms(self.evaluate(rollout, scores, parts))
        scored = time.perf_counter()
        seen = self.gather(evaluated)
        made = self.estimated(seen)
        metrics = made[1] | self.notes.means()
        metrics |= {"time/generate": sampled - started, "time/score": scored - sampled}
        samples = completions.examples(scores, SAMPLES, self.notes.columns)
        return made[0], RolloutReport(metrics, samples, completions, parts, seen, scored - started)

    def estimated(self, seen: EvaluatedRollout) -> tuple[Experience, dict[str, float]]:
        """The experience, and the rollout's metrics; the running moments have seen the rollout's scores by then."""
        scores, moments = bounded_scores(seen, self.args), self.coefficients.moments
        if self.args.normalize_scores:
            moments.update(scores)
            scores = moments.normalize(scores)
        coef = self.coefficients.kl.coef
        made = estimate(seen, scores, self.row, self.args, coef)
        metrics = rollout_metrics(seen, made.rewards, coef, [source.name for source in self.reward.sources])
        if self.row.critic:
            explained = explained_variance(seen.values, made.experience.returns, seen.action_mask)
            metrics["value/explained_variance"] = float(explained)
        return made.experience, metrics

    def sample_and_score(
        self, prompts: PromptSet, parts: Sequence[Prompts], address: tuple[int, ...], after_part: Callable[[], None]
    ) -> EvaluatedRollout:
        """The rollout of an evaluation, of all processes, before any of it is combined.

        Args:
            prompts: evaluated on. parts: this process's share, as many at a time as it samples at once.
            after_part: called after each, for a progress bar.
        """
        sampled = []
        for part in parts:
            sampled.append(self.generate(part, address))
            after_part()
        rollout = concatenate(sampled)
        return self.gather(self.evaluate(rollout, *self.score(self.describe(rollout, prompts))))

    # ---- The stages ---------------------------------------------------------------------------------------------

    def generate(self, prompts: Prompts, address: tuple[int, ...]) -> Rollout:
        """One response per prompt from the policy, its randomness a function of the address."""
        model = self.model()
        model.eval()
        # A generator of a script's own may fail on one process: then all hear of it, and none waits for the others.
        with together(self.accelerator), self.accelerator.autocast():
            return sample(self.generator, model.policy, prompts.to(self.args.device), address, self.sampling)

    def describe(self, rollout: Rollout, prompts: PromptSet) -> Completions:
        """The rollout as reward functions see it: texts or chat messages, token ids, and the dataset's columns."""
        return completions_of(self.tokenizer, rollout, prompts)

    def score(self, completions: Completions) -> tuple[Tensor, Tensor]:
        """[B] weighted scores of the reward functions, and [B,S] what each of them said."""
        self.notes.begin()
        parts = {name: part.float().cpu() for name, part in self.reward.parts(completions).items()}
        with together(self.accelerator):
            scores = self.reward.combine(parts)
            self.notes.check(len(scores))
        return scores, torch.stack(list(parts.values()), -1)

    @torch.no_grad()
    def evaluate(self, rollout: Rollout, scores: Tensor, parts: Tensor) -> EvaluatedRollout:
        """Log-probs under π_old and π_ref, entropy and values of a rollout, by the training forward without dropout."""
        self.model().eval()
        chunks = chunks_by_length(rollout.lengths, self.args.max_tokens_per_micro_batch)
        seen = [self._evaluate_chunk(rollout.select(rows), scores[rows], parts[rows]) for rows in chunks]
        return concatenate(seen).select(torch.cat(chunks).argsort())

    def _evaluate_chunk(self, rollout: Rollout, scores: Tensor, parts: Tensor) -> EvaluatedRollout:
        with self.accelerator.autocast():
            here = rollout.to(self.args.device)
            now: Evaluation = self.model()(here, need_expected_values="expected_values" in self.row.needs)
            ref_logprobs = self.reference.logprobs(here, self.args.temperature)
        none = torch.zeros_like(now.logprobs)
        return EvaluatedRollout(
            **rollout.tensors(),
            scores=scores,
            parts=parts,
            logprobs=_kept(now.logprobs),
            ref_logprobs=_kept(ref_logprobs),
            entropy=_kept(none if now.entropy is None else now.entropy),
            values=_kept(none if now.values is None else now.values),
            bootstrap_values=_kept(none[:, 0] if now.bootstrap_values is None else now.bootstrap_values),
            best_values=None if now.best_values is None else _kept(now.best_values),
            expected_values=None if now.expected_values is None else _kept(now.expected_values),
        )

    def with_gradient_norms(self, seen: EvaluatedRollout) -> EvaluatedRollout:
        """The same with ‖∇log π(τ)‖² of each response, for the algorithm that asks for it (SPEC §3.3)."""
        if "gradient_norms" not in self.row.needs:
            return seen
        actor_critic = self.actor_critic()
        self.model().eval()
        with self.accelerator.autocast():
            here = seen.to(self.args.device)
            norms = score_gradient_sq_norms(actor_critic, here, actor_critic.policy_parameters())
        return dataclasses.replace(seen, grad_sq_norms=norms)

    def gather(self, record: EvaluatedRollout) -> EvaluatedRollout:
        """The records of all processes as one, in the order of their episodes, the same on every process."""
        if self.accelerator.num_processes == 1:
            return record
        everyone: list[dict[str, Tensor]] = gather_object([record.tensors()])
        whole: EvaluatedRollout = concatenate([EvaluatedRollout(**fields) for fields in everyone])
        return whole


def _kept(tensor: Tensor) -> Tensor:
    """As it is kept for the update: in float32 at least (a ratio of rounded log-probs is noise), on the CPU."""
    return at_least_float32(tensor).cpu()
