"""What rollouts and steps say of themselves: to the log, and where their numbers cannot be right, a stop or a warning.

Nothing that is kept here steers, but for two answers that the trainer asks for: whether a rollout may be used, and
whether a step has gone further than `target_kl` allows.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from accelerate import Accelerator

from ..experience import EvaluatedRollout
from ..reporting.metrics import Metrics, kl_per_response, sampler_mismatch
from ..reporting.screen import RunWarning
from ..runs.guard import check_kl
from ..settings.policy_gradient import PolicyGradientConfig
from .experience_maker import RolloutReport
from .update import StepReport, Tally


class StartIsWrong(ValueError):
    """The policy is not its own reference at the start of training."""


@dataclass(frozen=True)
class Start:
    """What the KL of the first rollout must be.

    Args:
        reference: what it is, in words. exact: whether it was made from the policy. shared: whether it is the policy's
            own weights, which give the same numbers. half: whether the run computes in 16 bits.
    """

    reference: str
    exact: bool
    shared: bool
    half: bool

    def check(self, seen: EvaluatedRollout) -> None:
        """Before the first update the KL to the policy's own starting point is 0 (SPEC §7).

        Raises:
            StartIsWrong: the reference is made from the policy, and yet they differ.
        """
        largest = float(kl_per_response(seen).abs().max())
        if self.exact and largest > (1e-6 if self.shared else 0.5 if self.half else 1e-3):
            raise StartIsWrong(
                f"before the first update a response is {largest:.3g} nats from the reference ({self.reference}), "
                "where it must be 0: the reference is not the policy that training starts from. Pass the policy to "
                "stay near as `ref_model`, or look for dropout and for switched adapters"
            )


class SamplerMismatch(RuntimeError):
    """The log-probs of sampling are not those of the policy that is trained."""


@dataclass
class SamplerGuard:
    """Looks at `policy/sampler_mismatch` of each rollout.

    Args:
        bound: nats per token that rounding may give (`models.anatomy.precision.MISMATCH_BOUNDS`).
        most_in_a_row: rollouts above it, after the first of the run, before the run stops.
        rollouts, in_a_row: seen, and above it since the last that was not.
    """

    bound: float
    most_in_a_row: int
    rollouts: int = 0
    in_a_row: int = 0
    warned: bool = False

    def look(self, mismatch: float, step: int) -> None:
        """Before a rollout is used.

        Args:
            mismatch: mean |Δ log π| per token between sampler and training forward, over all processes; nats.
            step: the optimiser step that the rollout is for.

        Raises:
            SamplerMismatch: it is above the bound in the first rollout, or in too many in a row later.
        """
        self.rollouts += 1
        if mismatch <= self.bound:
            self.in_a_row = 0
            return
        self.in_a_row += 1
        if self.rollouts == 1 or self.in_a_row >= self.most_in_a_row:
            raise SamplerMismatch(self._explained(mismatch, step))
        if not self.warned:
            self.warned = True
            warnings.warn(f"{self._explained(mismatch, step)}. The run goes on", RunWarning, stacklevel=2)

    def _explained(self, mismatch: float, step: int) -> str:
        which = "the first rollout" if self.rollouts == 1 else f"rollout {self.rollouts} of this run"
        again = f" ({self.in_a_row} in a row, `max_skipped_updates={self.most_in_a_row}`)" if self.in_a_row > 1 else ""
        return (
            f"step {step}: in {which} the log-probs of sampling are {mismatch:.3g} nats per token off those of the "
            f"training forward, above the {self.bound:g} that rounding gives{again}: the tokens are not those of the "
            "policy that is trained. Look for a model whose code treats a cache, padding or positions in another way "
            "than transformers expects, for noise in training mode, for weights changed outside the trainer, for the "
            "`sampler_logprobs` of a generator of your own (at the run's temperature); or, with weights that "
            "overflow in 16 bits, compute in `bf16` or float32"
        )


@dataclass
class Watch:
    """Keeps the numbers since the last log.

    Args:
        args: the run's settings. accelerator: processes. sampler, start: look at the sampler's log-probs, and at the
            first rollout. tally: sums of steps. half: whether the policy computes in 16 bits.
        steps_elsewhere: whether steps start from other weights than those that were sampled from (optimisers with two
            sets of weights).
    """

    args: PolicyGradientConfig
    accelerator: Accelerator
    sampler: SamplerGuard
    tally: Tally
    start: Start
    half: bool
    steps_elsewhere: Callable[[], bool]

    def __post_init__(self) -> None:
        self.metrics = Metrics()

    def rollout(self, report: RolloutReport, step: int, folder: Path, is_first: bool) -> None:
        """Look at a rollout before it is used.

        Args:
            step: the optimiser step that it is for. folder: of the run. is_first: of a policy that was not trained
                before.

        Raises:
            SamplerMismatch, StartIsWrong, KLTooHigh: its numbers cannot be right, or are past a limit that was set.
        """
        self.metrics.update(report.metrics)
        self.sampler.look(sampler_mismatch(report.seen), step)
        if is_first:
            self.start.check(report.seen)
        before = step - self.args.steps_per_rollout  # where the rollout before this one began
        check_kl(float(kl_per_response(report.seen).mean()), self.args.kl_limit, step, before, folder)

    def settle(self) -> list[StepReport]:
        """The numbers of the steps since the last time, over all processes, by one reduction; all take part, alike."""
        reduce = partial(self.accelerator.reduce, reduction="sum")
        reports = self.tally.settle(reduce, self.accelerator.num_processes, self.accelerator.device)
        for report in reports:
            over = report.moment.policy_epochs_over  # what it would show of the policy is of the critic's steps
            hidden = {"deviation"} | ({name for name in report.means if name.startswith("policy/")} if over else set())
            self.metrics.add("loss", report.loss)
            self.metrics.update({name: mean for name, mean in report.means.items() if name not in hidden})
            if report.moment.k == 0 and report.means and not self.steps_elsewhere():
                check_first_ratio(report.means["deviation"], self.half)
        return reports

    def is_too_far(self, step: StepReport, stopped: bool) -> bool:
        """Whether a step of the policy has passed 1.5 × `target_kl`: it rests until the next rollout."""
        target, moment = self.args.target_kl, step.moment
        if target is None or stopped or moment.policy_epochs_over or not step.means:
            return False
        too_far = step.means["policy/approx_kl"] > 1.5 * target
        if too_far:
            self.metrics.add("policy/stopped_at", moment.k)
        return too_far


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
