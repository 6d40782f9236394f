"""The demo with any algorithm of the family: as many episodes as PPO has there, in rollouts of a size that suits it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..algorithms import algorithm_named

RESPONSES_PER_PROMPT = 4
# One step per rollout asks for more and smaller rollouts than PPO's, and for longer steps.
ON_POLICY = {"rollout_batch_size": 32, "num_ppo_epochs": 1, "num_mini_batches": 1, "learning_rate": 3e-3}
# The optimiser's step is the critic's alone; the policy's is as long as the trust region allows.
TRUST_REGION = {"num_ppo_epochs": 1, "num_mini_batches": 1, "learning_rate": 3e-3, "max_kl": 0.02}


def settings_for(algorithm: str, ppo: Mapping[str, Any]) -> dict[str, Any]:
    """The demo's `ppo` section for another algorithm, with the same number of episodes.

    Raises:
        ValueError: an unknown algorithm; the message lists the names and the nearest one.
    """
    row = algorithm_named(algorithm)
    steps = ppo["num_ppo_epochs"] * ppo["num_mini_batches"]
    episodes = ppo["max_steps"] // steps * ppo["rollout_batch_size"]
    if row.update != "gradient":
        changed = {**ppo, **TRUST_REGION, "value_epochs": 4}
        steps = 5
    elif row.epochs == 1:
        changed, steps = {**ppo, **ON_POLICY}, 1
    else:
        changed = dict(ppo)
    if "groups" in row.needs:
        changed["num_generations"] = RESPONSES_PER_PROMPT
    return changed | {"algorithm": algorithm, "max_steps": episodes // changed["rollout_batch_size"] * steps}
