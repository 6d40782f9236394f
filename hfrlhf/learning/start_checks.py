"""What is assumed of every role, tried once where the run runs, before its first rollout.

A few of the run's own prompts with a few tokens behind each, rows of different lengths: the decode loop gives the
log-probs of a plain forward pass; log-probs, values and scores of a row do not depend on the rows beside it; and the
reference is the policy where training starts from it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from ..core.masking import masked_mean
from ..data.prompts import PromptSet, prompt_batch
from ..experience import Rollout, concatenate
from ..models.anatomy.precision import MISMATCH_BOUNDS, precision_of
from ..models.anatomy.sizes import embeddings_of
from ..models.anatomy.training_mode import quieten
from ..models.anatomy.vocabulary import check_ids
from ..models.policy.actor_critic import check_head
from ..models.policy.checks import check_positions
from ..models.policy.reference import Reference
from ..models.policy.response_states import causal_lm
from ..rewards.completions import Completions
from ..rewards.source import RewardSource
from ..rollout.examination import examined
from ..rollout.generation import evaluation_mode

# Prompts that are looked at for short ones, and how many tokens stand behind each of those taken.
LOOKED_AT, RESPONSES = 64, (3, 1, 4)
# How far a value or a score may move with the rows beside it, in parts of the largest: rounding, as MISMATCH_BOUNDS.
SHARES = {"float32": 1e-3, "tf32": 0.01, "half": 0.1}


class RoleIsWrong(ValueError):
    """A model does not say of a row what it says of it alone."""


@torch.no_grad()
def check_roles(
    actor_critic: Any,
    reference: Reference,
    rewards: Sequence[RewardSource],
    describe: Callable[[Rollout], Completions],
    prompts: PromptSet,
    half: bool,
    autocast: Callable[[], AbstractContextManager[None]],
) -> None:
    """Try policy, critic, reference and reward models on a few rows; nothing is drawn.

    What is noisy in training mode is kept out of it from here on.

    Args:
        actor_critic: with its policy on the device where it will compute. reference: of that policy.
        rewards: those that answer again are tried. describe: makes of a rollout what they read. prompts: of the run.
        half: the run computes in 16 bits. autocast: the context of the run's forwards.

    Raises:
        DecodingIsWrong: the policy cannot be sampled token by token.
        ValueError: it changes its logits behind the vocabulary head in a way we do not know.
        RoleIsWrong: a log-prob, value or score depends on the rows beside it, or the reference is not the policy.
    """
    policy = actor_critic.policy
    precision = precision_of(policy, half)
    device = causal_lm(policy).get_output_embeddings().weight.device
    rollout = probe(prompts).to(device)
    with evaluation_mode(actor_critic), autocast():
        check_head(policy)
        examined(policy, anew=True)
        together, alone = actor_critic(rollout), [actor_critic(row) for row in rollout.split(1)]
        _check_logprobs(policy, together.logprobs, _stacked([x.logprobs for x in alone]), rollout, precision)
        if together.values is not None:
            _compare("critic's value", together.values, _stacked([x.values for x in alone]), precision)
        if reference.exact:
            _check_reference(reference, together.logprobs, rollout, actor_critic.temperature, precision)
        quieten(actor_critic, rollout, MISMATCH_BOUNDS[precision] / 10)  # nothing but the mode is another
    rollout = rollout.to("cpu")
    for source in filter(lambda source: source.answers_again, rewards):
        scores = [source(describe(part)).float().cpu() for part in (rollout, *rollout.split(1))]
        _compare(f"score of the reward model {source.name!r}", scores[0], torch.cat(scores[1:]), precision)


def probe(prompts: PromptSet) -> Rollout:
    """Short prompts of different lengths, each with a few tokens of another prompt for a response."""
    order = sorted(range(min(LOOKED_AT, len(prompts.ids))), key=lambda row: len(prompts.ids[row]))
    different = list({len(prompts.ids[row]): row for row in reversed(order)}.values())[::-1]
    rows = torch.tensor((different + order * len(RESPONSES))[: len(RESPONSES)])
    batch = prompt_batch(prompts, rows, torch.arange(len(rows)))
    parts = []
    for row, (length, other) in enumerate(zip(RESPONSES, rows.roll(1).tolist(), strict=True)):
        ids = torch.tensor([(prompts.ids[other] * length)[-length:]])
        mask = torch.ones_like(ids, dtype=torch.bool)
        one = batch.select(torch.tensor([row]))
        whole = torch.cat([one.input_ids, ids], 1), torch.cat([one.attention_mask, mask], 1)
        parts.append(Rollout(*whole, mask, torch.tensor([row > 0]), one.episode, one.row, torch.zeros(ids.shape)))
    return concatenate(parts)


def _stacked(rows: list[Any]) -> Tensor:
    """[1,a] of each row, its padding cut off, as one [B,A]."""
    return torch.nn.utils.rnn.pad_sequence([row[0] for row in rows], batch_first=True)


def _check_logprobs(policy: Any, together: Tensor, alone: Tensor, rollout: Rollout, precision: str) -> None:
    off = float(masked_mean((together - alone).abs(), rollout.action_mask))
    if not off <= MISMATCH_BOUNDS[precision]:
        raise RoleIsWrong(
            f"the policy's log-probs of a row depend on the rows beside it: they are {off:.3g} nats per token off "
            f"those of the row alone (up to {MISMATCH_BOUNDS[precision]:g} is rounding). "
            f"{type(causal_lm(policy)).__name__} is not causal, or its code mixes the rows of a batch: such a policy "
            "cannot be trained here"
        )


def _check_reference(reference: Reference, logprobs: Tensor, rollout: Rollout, temperature: float, key: str) -> None:
    off = float(masked_mean((reference.logprobs(rollout, temperature) - logprobs).abs(), rollout.action_mask))
    if not off <= MISMATCH_BOUNDS[key]:
        raise RoleIsWrong(
            f"the reference ({reference.source}) is {off:.3g} nats per token from the policy that training starts "
            f"from, where it must be 0 (up to {MISMATCH_BOUNDS[key]:g} is rounding): pass the policy to stay near as "
            "`ref_model`, or look for dropout and for switched adapters"
        )


def _compare(what: str, together: Tensor, alone: Tensor, precision: str) -> None:
    """Refuse numbers of a batch that are not those of its rows alone, or no numbers."""
    if not alone.isfinite().all():
        raise RoleIsWrong(
            f"the {what} is {float(alone[~alone.isfinite()][0])}: weights of its model are NaN or infinite, or too "
            "large for its precision; pass another, or load it in float32"
        )
    scale = max(1.0, float(alone.abs().max()))
    off = float((together - alone).abs().max())
    if not off <= SHARES[precision] * scale:
        raise RoleIsWrong(
            f"the {what} of a row depends on the rows beside it: it moves by {off:.3g} where the row is alone (up to "
            f"{SHARES[precision] * scale:.2g} is rounding). Its model is not causal, reads padding, or has noise left "
            "on; pass another"
        )


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
