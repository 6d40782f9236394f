"""From scores of whole responses to rewards of single tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from hfrlhf.core.masking import at_least_float32, masked


def token_rewards(scores: Tensor, kl: Tensor, kl_coef: float, mask: Tensor) -> Tensor:
    """The regularised reward of each token: a KL penalty everywhere, the score on the last valid token.

        r_t = −β·kl_t + 1[t = n]·score                                                                 (SPEC §2.2)

    Shapes: scores [B], kl [B,A] (nats per token), mask [B,A] -> [B,A], 0 at padding. A response without tokens has no
    place for its score and gets 0.
    """
    mask = mask.bool()
    penalty = masked(-kl_coef * at_least_float32(kl), mask)
    is_last = mask & (mask.flip(-1).cumsum(-1).flip(-1) == 1)
    return penalty + masked(scores.to(penalty.dtype).unsqueeze(-1).expand_as(penalty), is_last)


def missing_eos(scores: Tensor, terminated: Tensor, penalty: float) -> Tensor:
    """Subtract a penalty from the score of every response that did not produce the stop token (SPEC §2.5).

    Shapes: scores [B], terminated [B] bool -> [B].

    Raises:
        ValueError: a negative penalty, which would reward endless responses.
    """
    if penalty < 0:
        raise ValueError(f"missing_eos_penalty is subtracted from the score, so it must be at least 0, got {penalty}")
    return torch.where(terminated.bool(), scores, scores - penalty)


def clip_scores(scores: Tensor, limit: float) -> Tensor:
    """Hold the scores within ±limit (SPEC §2.6).

    Shapes: scores [B] -> [B].

    Raises:
        ValueError: a limit that is not positive.
    """
    if limit <= 0:
        raise ValueError(f"reward_clip must be positive, got {limit}")
    return scores.clamp(-limit, limit)


class RunningMoments:
    """Mean and standard deviation of all scores seen so far (SPEC §2.6), by merging batch after batch.

        m ← m + δ·n_b/n,  M ← M + M_b + δ²·n_a·n_b/n,  δ = m_b − m,  std = √(M/n)              (Chan, Golub, LeVeque)

    Kept as three plain floats, so that the state survives a checkpoint exactly.
    """

    def __init__(self) -> None:
        self.count = 0.0
        self.mean = 0.0
        self._deviations = 0.0

    @property
    def std(self) -> float:
        """The population standard deviation; 0 before the second score."""
        return math.sqrt(self._deviations / self.count) if self.count else 0.0

    def update(self, x: Tensor) -> None:
        """Add a batch of scores [B], which may be empty; with several processes, the scores of all of them."""
        if not x.numel():
            return
        batch = [float(value) for value in x.flatten().tolist()]
        count, mean = len(batch), math.fsum(batch) / len(batch)
        total, shift = self.count + count, mean - self.mean
        self._deviations += math.fsum((value - mean) ** 2 for value in batch) + shift**2 * self.count * count / total
        self.mean += shift * count / total
        self.count = total

    def normalize(self, x: Tensor) -> Tensor:
        """(x − mean) / √(std² + 1e-8) for scores [B] -> [B]."""
        return (x - self.mean) / math.sqrt(self.std**2 + 1e-8)

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint has to keep."""
        return {"count": self.count, "mean": self.mean, "deviations": self._deviations}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Continue from what `state_dict` gave."""
        self.count = float(state["count"])
        self.mean = float(state["mean"])
        self._deviations = float(state["deviations"])
