"""An optimiser step: micro-batches forward and backward in chunks, their sums, and no gradient for what rests.

What a step shows is a mean over the response tokens of all processes. Asking for it after every step would cost a
meeting of all processes each time; so the sums wait in a `Tally`, and one reduction serves all since the last log.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from ..core.masking import masked_sum
from ..core.policy_losses import approx_kl
from ..experience import Experience, chunks_by_length
from ..models.libraries import gradients_stay
from ..models.policy.actor_critic import ActorCritic
from ..models.strategies.data_parallel import DataParallel
from .clock import Moment, Phase

MOST_WAITING = 256  # steps: a run that never logs must not collect them all
# Of a chunk: its part of the loss, and sums over its tokens for the metrics.
LossOf = Callable[[Experience], tuple[Tensor, dict[str, Tensor]]]


@dataclass(frozen=True)
class StepSums:
    """Of one optimiser step on this process.

    Args:
        moment: when it was. tokens: response tokens of the step, on all processes.
        loss: this process's part of the step's loss. sums: by metric, over this process's tokens.
    """

    moment: Moment
    tokens: int
    loss: float
    sums: dict[str, Tensor]


@dataclass(frozen=True)
class StepReport:
    """What a step shows, over all processes: its loss, and means over its response tokens."""

    moment: Moment
    loss: float
    means: dict[str, float]


@dataclass
class Tally:
    """The step in progress, and the steps that wait to be reduced."""

    sums: dict[str, Tensor] = field(default_factory=dict)
    waiting: list[StepSums] = field(default_factory=list)

    @property
    def is_full(self) -> bool:
        """Whether so many steps wait, the same on every process, that it is time to settle them without a log."""
        return len(self.waiting) >= MOST_WAITING

    def add(self, sums: Mapping[str, Tensor]) -> None:
        """The sums of one more forward pass of the step in progress."""
        for name, value in sums.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value

    def close(self, moment: Moment, tokens: int, loss: float) -> None:
        """The step in progress is over: when it was, its tokens on all processes, its loss on this one."""
        self.waiting.append(StepSums(moment, max(1, tokens), loss, self.sums))
        self.sums = {}

    def settle(self, reduce: Callable[[Tensor], Tensor], processes: int, device: torch.device) -> list[StepReport]:
        """The reports of all steps that wait, by one reduction; all processes take part, alike.

        Args:
            reduce: gives the sum of a tensor over all processes. processes: how many there are; each one's loss is
                scaled by them, as data-parallel wrappers ask for it, so that the step's is their mean.
        """
        steps, self.waiting = self.waiting, []
        if not steps:
            return []
        everyone = reduce(torch.cat([_numbers(step, device) for step in steps])).tolist()
        reports = []
        for step in steps:
            loss, *values = everyone[: len(step.sums) + 1]
            del everyone[: len(step.sums) + 1]
            means = {name: value / step.tokens for name, value in zip(step.sums, values, strict=True)}
            reports.append(StepReport(step.moment, loss / processes, means))
        return reports


def _numbers(step: StepSums, device: torch.device) -> Tensor:
    """[1 + sums] the loss, then the sums in their order; on every process the same names."""
    sums = [value.to(device) for value in step.sums.values()]
    return torch.stack([torch.tensor(step.loss, device=device, dtype=sums[0].dtype if sums else None), *sums])


@dataclass(frozen=True)
class Update:
    """The work of an optimiser step on this process.

    Args:
        accelerator: precision and processes. strategy: who holds gradients and parameters.
        max_tokens: padded tokens per forward and backward.
        actor_critic: gives the model without wrappers. tally: takes the sums for the metrics.
    """

    accelerator: Accelerator
    strategy: DataParallel
    max_tokens: int
    actor_critic: Callable[[], ActorCritic]
    tally: Tally

    def nothing_learns(self, moment: Moment) -> bool:
        """Whether a step would move no weight: the trunk rests, and the critic stands on it."""
        return moment.phase is Phase.REST and not self.actor_critic().critic_is_apart

    def micro_batch(self, model: Any, batch: Experience, loss_of: LossOf) -> Tensor:
        """Forward and backward of a micro-batch, a chunk of similar lengths at a time; [] its loss."""
        chunks = chunks_by_length(batch.lengths, self.max_tokens)
        count = self.strategy.passes(len(chunks))
        total = torch.zeros((), device=self.accelerator.device)
        for i in range(count):
            idle = i >= len(chunks)  # the shortest rows once more, for nothing
            chunk = batch.select(chunks[-1] if idle else chunks[i])
            # Gradients meet those of other processes once, after the last chunk.
            with nullcontext() if i == count - 1 else gradients_stay(self.accelerator, model):
                total += self._chunk(loss_of, chunk, idle)
        return total

    def _chunk(self, loss_of: LossOf, chunk: Experience, idle: bool) -> Tensor:
        loss, sums = loss_of(chunk)
        self.strategy.backward(loss * 0 if idle else loss, self.accelerator.sync_gradients)
        if idle:
            return torch.zeros_like(loss)
        self.tally.add(sums)
        return loss.detach()

    def leave_at_rest(self, moment: Moment, groups: Sequence[dict[str, Any]], took_part: bool) -> None:
        """After the last backward of a step: nothing moves what does not learn in it.

        Args:
            groups: of the optimiser, "policy/…" and "value/…". took_part: whether there was a backward at all.
        """
        if took_part and self.strategy.owns_gradients:
            self.strategy.step(self._resting(moment, groups))
        elif moment.policy_rests:
            # Adam moves what has a gradient of 0 too; None is what leaves a weight as it is.
            self.actor_critic().stop_policy_gradients(whole=moment.phase is Phase.REST)

    def _resting(self, moment: Moment, groups: Sequence[dict[str, Any]]) -> list[str]:
        """The names of the parameter groups that stay as they are."""
        rests = {"policy": moment.policy_rests, "value": self.nothing_learns(moment)}
        return [group["name"] for group in groups if rests[group["name"].split("/")[0]]]

    @torch.no_grad()
    def moved_by(self, model: Any, mine: Experience, tokens: int) -> float:
        """The mean over all tokens of a rollout of [(ρ − 1) − log ρ], with the policy as it is now (SPEC §6.4).

        Args:
            mine: this process's rows. tokens: of the whole rollout.
        """
        total = torch.zeros((), device=self.accelerator.device)
        for rows in chunks_by_length(mine.lengths, self.max_tokens):
            chunk = mine.select(rows).to(self.accelerator.device)
            with self.accelerator.autocast():
                logprobs = model(chunk, need_entropy=False).logprobs
            total += masked_sum(approx_kl(logprobs, chunk.old_logprobs), chunk.action_mask)
        return float(self.accelerator.reduce(total, "sum")) / max(1, tokens)
