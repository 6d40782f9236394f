"""Every algorithm as one row: ∇J = E[ Σ_t ∇log π_θ(a_t|s_t) · Ψ_t ] with its Ψ, its loss and its needs (SPEC §5, 6).

To add one: a function in `core` (a Ψ or a loss), a row here, a test.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass


@dataclass(frozen=True)
class Algorithm:
    """One member of the policy-gradient family.

    Args:
        psi: Ψ_t, a key of `core.advantages.PSI`.
        loss: policy loss, a key of `core.policy_losses.POLICY_LOSSES`.
        critic: whether a value function is learnt.
        reuses_rollouts: whether a rollout may serve several epochs or mini-batches (an importance ratio corrects).
        source: where it comes from.
    """

    psi: str
    loss: str
    critic: bool
    reuses_rollouts: bool
    source: str


ALGORITHMS = {
    "vpg": Algorithm("gae", "score_function", critic=True, reuses_rollouts=False, source="Spinning Up; SPEC §5"),
    "ppo_clip": Algorithm("gae", "ppo_clip", critic=True, reuses_rollouts=True, source="Schulman 2017; SPEC §6.3"),
}


def algorithm_named(name: str) -> Algorithm:
    """The row of that name.

    Raises:
        ValueError: there is none; the message lists the names and the nearest one.
    """
    if name not in ALGORITHMS:
        near = difflib.get_close_matches(name, ALGORITHMS, n=1, cutoff=0.0)
        raise ValueError(
            f"no algorithm is called {name!r}; did you mean {near[0]!r}? There are: {', '.join(ALGORITHMS)}"
        )
    return ALGORITHMS[name]
