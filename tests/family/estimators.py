"""The library's estimators, fed with the episodes of an enumerated world."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hfrlhf.core.advantages import PSI
from hfrlhf.core.kl import kl_penalty
from hfrlhf.core.reward_shaping import token_rewards
from tests.family.enumeration import World, random

BETA = 0.3

# What a row reads where a test says nothing else.
NUMBERS = {"gamma": 1.0, "gae_lambda": 0.95, "exclude_self": False}


def shaped_rewards(world: World, beta: float = BETA, estimator: str = "k1") -> Tensor:
    """[K,A] the library's rewards of every episode."""
    kl = kl_penalty(world.logprobs, world.ref_logprobs, estimator)
    return token_rewards(world.scores, kl, beta, world.mask)


def any_values(world: World, seed: int = 7) -> Tensor:
    """[K,A] a made-up value of each state, the same wherever an episode meets it."""
    return world.at_states(random(len(world.states), seed=seed))


def psi(world: World, name: str, values: Tensor | None = None, rewards: Tensor | None = None, **options: Any) -> Tensor:
    """[K,A] a Ψ that looks at its own episode alone."""
    rewards = shaped_rewards(world) if rewards is None else rewards
    values = torch.zeros_like(rewards) if values is None else values
    return PSI[name](rewards, values, world.mask, NUMBERS | options)


def psi_of_batch(world: World, name: str, **options: Any) -> Callable[[Tensor], Tensor]:
    """Episodes [m] -> their Ψ [m,A], which may look at the whole batch."""
    rewards, norms = shaped_rewards(world), world.score_gradients.sum(1).square().sum(-1)

    def of(episodes: Tensor) -> Tensor:
        given = NUMBERS | {"grad_sq_norms": norms[episodes]} | options
        return PSI[name](rewards[episodes], torch.zeros_like(rewards[episodes]), world.mask[episodes], given)

    return of
