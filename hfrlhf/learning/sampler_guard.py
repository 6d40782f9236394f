"""Decode loop and training forward agree on every token: the policy that is sampled is the one that learns."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

from ..reporting.screen import RunWarning


class SamplerMismatch(RuntimeError):
    """The log-probs of sampling are not those of the policy that is trained."""


@dataclass
class SamplerGuard:
    """Looks at `policy/sampler_mismatch` of each rollout.

    Args:
        bound: nats per token that rounding may give (`models.precision.MISMATCH_BOUNDS`). most_in_a_row: rollouts above
            it, after the first of the run, before the run stops. rollouts, in_a_row: seen, and above it since the last
            that was not.
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
            "than transformers expects, for noise in training mode, for weights changed outside the trainer; or, with "
            "weights that overflow in 16 bits, compute in `bf16` or float32"
        )
