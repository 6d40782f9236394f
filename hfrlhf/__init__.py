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


# Two lines of bitsandbytes that nobody can do anything about: where there is no GPU, the advice to install a package of
# faster kernels, in every process that imports PEFT (any import of ours may be the first to do so), and that 8-bit
# products are what they are, at each of them. These lines alone are left out; whatever else it says is seen.
_LEFT_OUT = {
    "bitsandbytes.backends.cpu.ops": "from kernels-community",
    "bitsandbytes.autograd._functions": "inputs will be cast",
}


def _is_told(record: logging.LogRecord) -> bool:
    return _LEFT_OUT[record.name] not in record.getMessage()


for _logger in _LEFT_OUT:
    logging.getLogger(_logger).addFilter(_is_told)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'hfrlhf' has no attribute {name!r}; it offers {', '.join(__all__)}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value  # found directly from now on
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
