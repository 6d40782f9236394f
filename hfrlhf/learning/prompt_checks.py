"""Whether prompts can be read by every model of a run, and answered: their tokens, and how many there are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..data.prompts import PromptSet
from ..models.anatomy.sizes import embeddings_of
from ..models.anatomy.vocabulary import check_ids
from ..models.policy.checks import check_positions


def check_prompts(sets: Mapping[str, PromptSet], models: Mapping[str, Any], tokenizer: Any, completion: int) -> None:
    """Refuse prompts that a model cannot read together with a response.

    Args:
        sets: of prompts, by what to call them. models: by their roles, "policy" among them; what is no model (a critic
            that is a head) reads all. completion: tokens a response may have.

    Raises:
        ValueError: a token the policy has no embedding for, or more tokens than one of the models has positions for.
    """
    for name, prompts in sets.items():
        check_ids(prompts.ids, tokenizer, embeddings_of(models["policy"]), "policy", name)
    longest = max(len(ids) for prompts in sets.values() for ids in prompts.ids)
    check_positions(dict(models), longest, completion)


def models_of(trainer: Any) -> dict[str, Any]:
    """The models that read the policy's tokens, by their roles."""
    actor_critic = trainer.unwrapped()
    return {
        "policy": actor_critic.policy,
        "reference": trainer.reference.model,
        "value model": actor_critic.value_model,
    }
