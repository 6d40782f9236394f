"""What the metrics are (stable names), and the numbers that must be 0 or 1 at the start."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..core.kl import kl_penalty
from ..core.masking import masked_mean, masked_sum
from ..experience import EvaluatedRollout

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

    def restore(self, pending: dict[str, list[float]]) -> None:
        """Go on from the numbers that a checkpoint holds."""
        self.pending = pending

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
    # `nanmean`: a source has NaN where it says nothing, and its mean is over the rows on which it does.
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


def short_names() -> dict[str, str]:
    """Metric -> its name on a line or a bar."""
    return {name: short for name, (short, _) in WATCHED.items()}
