"""Every algorithm as one row: ∇J = E[ Σ_t ∇log π_θ(a_t|s_t) · Ψ_t ] with its Ψ, its loss and its needs (SPEC §5, 6).

To add one: a function in `core` (a Ψ or a loss), a row here, a test.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from .core.advantages import PSI
from .core.policy_losses import POLICY_LOSSES
from .core.rows import options_of


@dataclass(frozen=True)
class Algorithm:
    """One member of the policy-gradient family.

    Args:
        psi: Ψ_t, a key of `core.advantages.PSI`.
        loss: policy loss, a key of `core.policy_losses.POLICY_LOSSES`.
        source: where it comes from.
        critic: what is learnt beside the policy: "V" (state values), "Q" (action values) or None.
        epochs: passes over each rollout unless the settings say otherwise.
        whiten: whether Ψ is whitened unless the settings say otherwise; so where the source does it.
        update: "gradient" (the optimiser's step), "natural" (natural gradient) or "trust_region" (with a line search).
        needs: what Ψ needs beyond rewards and values: "batch" (several episodes), "groups" (several responses per
            prompt), "gradient_norms" (‖∇log P(τ)‖² of each response), "expected_values" (max and mean of Q over the
            vocabulary); of the loss: "penalty" (a coefficient that follows the KL).
    """

    psi: str
    loss: str
    source: str
    critic: str | None = None
    epochs: int = 1
    whiten: bool = False
    update: str = "gradient"
    needs: tuple[str, ...] = ()

    @property
    def reuses_rollouts(self) -> bool:
        """Whether a rollout may serve several optimiser steps: an importance ratio has to correct the later ones."""
        return self.loss != "score_function" and self.update == "gradient"

    @property
    def options(self) -> frozenset[str]:
        """The options that its Ψ and its loss read: the keyword arguments of their functions."""
        return options_of(PSI[self.psi]) | options_of(POLICY_LOSSES[self.loss])

    @property
    def is_ppo(self) -> bool:
        """Whether it is proximal policy optimisation: a critic, and a ratio that is clipped or penalised."""
        return self.critic is not None and self.loss in ("ppo_clip", "ppo_penalty")


ALGORITHMS = {
    "reinforce": Algorithm("total_return", "score_function", "Williams 1992; SPEC §3.1"),
    "reinforce_constant": Algorithm(
        "constant_baseline", "score_function", "Williams 1992; SPEC §3.3", needs=("batch",)
    ),
    "reinforce_minimal_variance": Algorithm(
        "minimal_variance_baseline", "score_function", "Greensmith 2004; SPEC §3.3", needs=("batch", "gradient_norms")
    ),
    "reward_to_go": Algorithm("reward_to_go", "score_function", "Sutton 1999; SPEC §3.2"),
    "reward_to_go_constant": Algorithm(
        "reward_to_go_constant_baseline", "score_function", "SPEC §3.3", needs=("batch",)
    ),
    "reward_to_go_time_dependent": Algorithm(
        "time_dependent_baseline", "score_function", "SPEC §3.3", needs=("batch",)
    ),
    "rloo": Algorithm("leave_one_out", "score_function", "after Ahmadian 2024, with R_t; SPEC §5", needs=("groups",)),
    "grpo": Algorithm("group_normalised", "ppo_clip", "Shao 2024; SPEC §3.3", needs=("groups",)),
    "vpg": Algorithm("value_baseline", "score_function", "Sutton 1999; SPEC §5", critic="V"),
    "td_actor_critic": Algorithm("td_error", "score_function", "Sutton 1999; SPEC §4.1", critic="V"),
    "a2c": Algorithm("n_step", "score_function", "Mnih 2016; SPEC §4.2", critic="V"),
    "gae_actor_critic": Algorithm(
        "gae", "score_function", "Schulman 2015; VPG in Spinning Up; SPEC §4.3", critic="V", whiten=True
    ),
    "q_actor_critic": Algorithm("action_value", "score_function", "Sutton 1999; SPEC §5", critic="Q"),
    "expected_baseline_actor_critic": Algorithm(
        "expected_baseline", "score_function", "SPEC §5", critic="Q", needs=("expected_values",)
    ),
    "importance_weighted": Algorithm(
        "gae", "importance_weighted", "Schulman 2017; SPEC §6.2", critic="V", epochs=4, whiten=True
    ),
    "importance_weighted_per_decision": Algorithm(
        "discounted_rewards", "per_decision_weighted", "Precup 2000; SPEC §6.2", epochs=4
    ),
    "importance_weighted_sequence": Algorithm("total_return", "sequence_weighted", "SPEC §6.2", epochs=4),
    "ppo_clip": Algorithm("gae", "ppo_clip", "Schulman 2017; SPEC §6.3", critic="V", epochs=4, whiten=True),
    "ppo_penalty": Algorithm(
        "gae", "ppo_penalty", "Schulman 2017; SPEC §6.4", critic="V", epochs=4, whiten=True, needs=("penalty",)
    ),
    "natural_policy_gradient": Algorithm(
        "gae", "importance_weighted", "Kakade 2001; SPEC §6.8", critic="V", whiten=True, update="natural"
    ),
    "trpo": Algorithm(
        "gae", "importance_weighted", "Schulman 2015; SPEC §6.8", critic="V", whiten=True, update="trust_region"
    ),
}


def algorithm_named(name: str) -> Algorithm:
    """The row of that name.

    Raises:
        ValueError: there is none; the message lists the names and the nearest one.
    """
    if name not in ALGORITHMS:
        raise ValueError(
            f"no algorithm is called {name!r}; did you mean {_nearest(str(name))!r}? There are: {', '.join(ALGORITHMS)}"
        )
    return ALGORITHMS[name]


def _nearest(name: str) -> str:
    """The name that was probably meant: whatever the case and the hyphens, its beginning counts first."""
    plain = name.lower().replace("-", "_")
    begins_alike = [known for known in ALGORITHMS if known.startswith(plain)]
    return (begins_alike or difflib.get_close_matches(plain, ALGORITHMS, n=1, cutoff=0.0))[0]


def algorithm_table() -> list[tuple[str, ...]]:
    """The table for people: a heading, then name, Ψ, loss, critic, epochs and source of each algorithm."""
    rows: list[tuple[str, ...]] = [("algorithm", "Ψ", "loss", "critic", "epochs", "source")]
    for name, row in ALGORITHMS.items():
        loss = row.loss if row.update == "gradient" else f"{row.loss}, {row.update} step"
        formula = (PSI[row.psi].__doc__ or row.psi).strip()
        rows.append((name, formula, loss.replace("_", " "), row.critic or "none", str(row.epochs), row.source))
    return rows
