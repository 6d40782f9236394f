"""What the metrics are (stable names), and the numbers that must be 0 or 1 at the start."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ..core.kl import kl_penalty
from ..core.masking import masked_mean, masked_sum
from ..experience import EvaluatedRollout
from .facts import StartingRun
from .screen import RunWarning

# Metric, short name, and what it is measured in; the most telling ones first.
WATCHED = {
    "objective/score": ("score", "mean score of a response"),
    "objective/kl": ("KL", "nats per response"),
    "objective/ended": ("ended", "share of responses with a stop token"),
    "objective/entropy": ("entropy", "nats per token"),
    "objective/response_length": ("length", "tokens"),
    "value/explained_variance": ("critic", "explained share of the returns' variance"),
}
# The same for trainers whose numbers are losses.
OF_PAIRS = {"loss": "loss", "accuracy": "accuracy", "margin": "margin", "eval_accuracy": "held-out accuracy"}

COUNTED = {"skipped_updates"}  # events: a log shows how many there were
# Rates: a log shows the sum of the one over the sum of the other, which are not shown themselves.
RATES = {"tokens_per_second": ("tokens", "seconds")}


class Metrics:
    """Numbers since the last log, by name; a log shows means (of events the count, of rates the ratio of sums)."""

    def __init__(self) -> None:
        self.pending: dict[str, list[float]] = {}

    def add(self, name: str, value: float) -> None:
        """One more observation."""
        self.pending.setdefault(name, []).append(float(value))

    def update(self, values: dict[str, float]) -> None:
        """One more observation each."""
        for name, value in values.items():
            self.add(name, value)

    def drain(self) -> dict[str, float]:
        """The means, after which nothing is pending; fsum, so that the order of addition leaves no trace."""
        parts = {part for pair in RATES.values() for part in pair}
        means = {
            name: _sum(values) / (1 if name in COUNTED else len(values))
            for name, values in self.pending.items()
            if name not in parts
        }
        for name, (what, time_spent) in RATES.items():
            if spent := _sum(self.pending.get(time_spent, [])):
                means[name] = _sum(self.pending.get(what, [])) / spent
        self.pending = {}
        return means


def _sum(values: list[float]) -> float:
    """fsum, which raises an error where the plain sum says inf or NaN."""
    return math.fsum(values) if all(map(math.isfinite, values)) else sum(values)


@contextmanager
def timed(metrics: Metrics, name: str) -> Iterator[None]:
    """Add the seconds the block took."""
    start = time.perf_counter()
    yield
    metrics.add(name, time.perf_counter() - start)


def kl_per_response(seen: EvaluatedRollout) -> Tensor:
    """[B] Σ_t k1 over each response: nats per response, always k1 (SPEC §2.4)."""
    return masked_sum(kl_penalty(seen.logprobs, seen.ref_logprobs, "k1"), seen.action_mask, -1)


def objectives(seen: EvaluatedRollout) -> dict[str, float]:
    """What the policy does: means over the episodes of all processes; entropy per token."""
    return {
        "objective/score": float(seen.scores.mean()),
        "objective/kl": float(kl_per_response(seen).mean()),
        "objective/entropy": float(masked_mean(seen.entropy, seen.action_mask)),
        "objective/response_length": float(seen.completion_lengths.float().mean()),
        "objective/ended": float(seen.terminated.float().mean()),
    }


def rollout_metrics(seen: EvaluatedRollout, rewards: Tensor, kl_coef: float, sources: list[str]) -> dict[str, float]:
    """The metrics of one rollout, over all processes.

    `objective/rlhf_reward` is the mean Σ_t r_t before any whitening, `policy/sampler_mismatch` the mean absolute
    difference per token between the sampler's log-probs and the training forward's, `reward/…` each source's mean.
    """
    named = zip(sources, seen.parts.T, strict=True)  # a source without any opinion has no mean
    opinions = {f"reward/{name}": float(part.nanmean()) for name, part in named if not part.isnan().all()}
    return (
        objectives(seen)
        | opinions
        | {
            "policy/sampler_mismatch": sampler_mismatch(seen),
            "objective/rlhf_reward": float(masked_sum(rewards, seen.action_mask, -1).mean()),
            "kl_coef": kl_coef,
        }
    )


def sampler_mismatch(seen: EvaluatedRollout) -> float:
    """Mean |log π(a_t) of the sampler − of the training forward| over response tokens; nats per token."""
    return float(masked_mean((seen.sampler_logprobs - seen.logprobs).abs(), seen.action_mask))


def evaluation_metrics(seen: EvaluatedRollout, prefix: str) -> dict[str, float]:
    """The same for evaluation prompts, under `eval_…` names."""
    return {f"{prefix}_{name}": value for name, value in objectives(seen).items()}


def evaluation_metric_names() -> list[str]:
    """What `evaluation_metrics` will give, without the prefix."""
    one = torch.ones(1, 1)
    mask = {"attention_mask": one.expand(1, 2) > 0, "action_mask": one > 0, "terminated": one[0] > 0}
    ids = {"input_ids": torch.ones(1, 2, dtype=torch.long), "episode": one[0].long(), "row": one[0].long()}
    per_token = ("sampler_logprobs", "parts", "logprobs", "ref_logprobs", "entropy", "values")
    rest = {"scores": one[0], "bootstrap_values": one[0]} | dict.fromkeys(per_token, one)
    return list(objectives(EvaluatedRollout(**ids, **mask, **rest)))


class StartIsWrong(ValueError):
    """The policy is not its own reference at the start of training."""


def check_start(trainer: StartingRun, seen: EvaluatedRollout) -> None:
    """At step 0 the KL to the policy's own starting point is 0 (SPEC §7), unless the trainer has trained it before.

    Raises:
        StartIsWrong: the reference is made from the policy, and yet they differ.
    """
    if trainer.state.global_step != 0 or not trainer.is_in_train or trainer.trainings > 1:
        return
    largest = float(kl_per_response(seen).abs().max())
    if not trainer.reference.exact:
        return
    args = trainer.args
    shared = trainer.reference.model is trainer.unwrapped().policy  # the same weights, so the same numbers
    if largest > (1e-6 if shared else 0.5 if args.bf16 or args.fp16 else 1e-3):
        raise StartIsWrong(
            f"before the first update a response is {largest:.3g} nats from the reference "
            f"({trainer.reference.source}), where it must be 0: the reference is not the policy that training starts "
            "from. Pass the policy to stay near as `ref_model`, or look for dropout and for switched adapters"
        )


def check_first_ratio(deviation: float, half_precision: bool) -> None:
    """At the first mini-batch of a rollout every ratio is 1 (SPEC §7); warn loudly where they are not.

    Args:
        deviation: mean |ρ − 1| over tokens. The mean of ρ itself would not do: under the sampling policy it is 1 for
            any other policy.
    """
    if deviation > (0.02 if half_precision else 1e-4):
        warnings.warn(
            f"in a rollout's first mini-batch the ratios π_θ/π_old should be 1 and are off by {deviation:.6f} on "
            "average: the log-probs of sampling and of training disagree (dropout, another temperature, or "
            "`old_logprobs='sampler'` with an engine of another precision)",
            RunWarning,
            stacklevel=2,
        )


def short_names() -> dict[str, str]:
    """Metric -> its name on a line or a bar."""
    return {name: short for name, (short, _) in WATCHED.items()}
