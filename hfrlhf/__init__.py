"""PPO on language models, on the ordinary `transformers.Trainer`.

The public names are loaded on first use, so that `import hfrlhf` costs nothing and prints nothing.
"""

from __future__ import annotations

import logging
from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# public name -> the module it lives in
_HOMES = {
    "ALGORITHMS": "hfrlhf.algorithms",
    "Experience": "hfrlhf.experience",
    "PPOConfig": "hfrlhf.settings.policy_gradient",
    "PPOTrainer": "hfrlhf.trainers.ppo",
    "PolicyGradientConfig": "hfrlhf.settings.policy_gradient",
    "PolicyGradientTrainer": "hfrlhf.trainers.policy_gradient",
    "RewardConfig": "hfrlhf.settings.policy_gradient",
    "RewardTrainer": "hfrlhf.trainers.reward",
    "Rollout": "hfrlhf.experience",
    "TRPOConfig": "hfrlhf.settings.policy_gradient",
    "TRPOTrainer": "hfrlhf.trainers.trpo",
    "load_reward_model": "hfrlhf.models.reward.scoring",
    "merge": "hfrlhf.models.merging",
}

__all__ = ["__version__", *_HOMES]


# On a CPU bitsandbytes warns of a kernel it does not need, in every process that imports PEFT, and of a cast in every
# 8-bit product; errors still show.
for _talkative in ("bitsandbytes.backends.cpu.ops", "bitsandbytes.autograd._functions"):
    logging.getLogger(_talkative).setLevel(logging.ERROR)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'hfrlhf' has no attribute {name!r}; it offers {', '.join(__all__)}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value  # found directly from now on
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
