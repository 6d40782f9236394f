"""The demo with any algorithm of the family: as many episodes as PPO has there, in rollouts of a size that suits it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..algorithms import algorithm_named

RESPONSES_PER_PROMPT = 4
# What differs from PPO's settings, by how an algorithm uses a rollout.
SEVERAL_STEPS: dict[str, Any] = {}
# One step per rollout asks for more and smaller rollouts than PPO's; longer steps (3e-3) lead far from the SFT model.
ONE_STEP = {"rollout_batch_size": 32, "num_ppo_epochs": 1, "num_mini_batches": 1, "learning_rate": 1e-3}
# The optimiser's step is the critic's alone; the policy's is as long as the trust region allows.
TRUST_REGION = {
    "num_ppo_epochs": 1,
    "num_mini_batches": 1,
    "value_epochs": 4,
    "learning_rate": 3e-3,
    "max_kl": 0.02,
    "cg_iterations": 5,
    "max_tokens_per_micro_batch": 8192,  # a whole rollout, so that its graph is made once for all products
}


def settings_for(algorithm: str, ppo: Mapping[str, Any]) -> dict[str, Any]:
    """The demo's `ppo` section for another algorithm, with the same number of episodes.

    Raises:
        ValueError: an unknown algorithm; the message lists the names and the nearest one.
    """
    row = algorithm_named(algorithm)
    by_gradient = SEVERAL_STEPS if row.epochs > 1 else ONE_STEP
    changed = {**ppo, **(by_gradient if row.update == "gradient" else TRUST_REGION), "algorithm": algorithm}
    if "groups" in row.needs:
        changed["num_generations"] = RESPONSES_PER_PROMPT
    episodes = ppo["max_steps"] // _steps(ppo) * ppo["rollout_batch_size"]
    return changed | {"max_steps": episodes // changed["rollout_batch_size"] * _steps(changed)}


def _steps(settings: Mapping[str, Any]) -> int:
    """Optimiser steps per rollout."""
    return (settings["num_ppo_epochs"] + settings.get("value_epochs", 0)) * settings["num_mini_batches"]
