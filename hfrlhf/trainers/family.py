"""Which configuration and trainer an algorithm of the table is run by."""

from __future__ import annotations

from typing import Any

from ..algorithms import algorithm_named
from .policy_gradient import PolicyGradientTrainer
from .trpo import TRPOTrainer

# By the way the policy is updated.
FAMILY: dict[str, tuple[Any, Any]] = {
    update: (trainer.CONFIG, trainer)
    for trainer in (PolicyGradientTrainer, TRPOTrainer)
    for update in trainer.CONFIG.UPDATES
}


def family_of(algorithm: str) -> tuple[Any, Any]:
    """Configuration class and trainer class of the algorithm with that name.

    Raises:
        ValueError: there is none; the message lists the names and the nearest one.
    """
    return FAMILY[algorithm_named(algorithm).update]
