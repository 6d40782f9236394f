"""A real trainer on an enumerated world, and the rollout in which every episode occurs once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

from hfrlhf.experience import EvaluatedRollout, Experience, Rollout
from hfrlhf.trainers.family import family_of
from tests.family.enumeration import EOS, World, moved, random
from tests.family.estimators import BETA

WORDS = {"a": 0, "b": 1, "<eos>": EOS}


def trainer(world: World, algorithm: str, folder: Path, **changes: Any) -> Any:
    """The trainer of that algorithm on a copy of the world's policy, with the world's prompts, scores and reference.

    Sums are divided by episodes, nothing is whitened, and the critic's loss does not reach the trunk.
    """
    config, made = family_of(algorithm)
    own = {name: changes.pop(name) for name in ("peft_config",) if name in changes}
    settings = {
        "output_dir": str(folder / "run"),
        "algorithm": algorithm,
        "rollout_batch_size": 2,
        "max_completion_length": world.limit,
        "missing_eos_penalty": None,
        "kl_coef": BETA,
        "loss_normalization": "episodes",
        "whiten_advantages": False,
        "max_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    built = made(
        moved(world.model, by=0.0),
        score_of(world),
        config(**(settings | changes)),
        Dataset.from_dict({"prompt": texts(world.prompts), "number": list(range(len(world.prompts)))}),
        processing_class=tokenizer(),
        ref_model=moved(world.reference, by=0.0),
        **own,
    )
    head = built.unwrapped().value_head
    if head is not None:  # values of no particular use, other than 0
        for seed, parameter in enumerate(head.parameters()):
            parameter.data = random(*parameter.shape, seed=40 + seed)
    return built


def texts(token_lists: Any) -> list[str]:
    words = {number: word for word, number in WORDS.items()}
    return [" ".join(words[token] for token in tokens) for tokens in token_lists]


def tokenizer() -> Any:
    """One word per token of the world."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel(WORDS, unk_token="<eos>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>", pad_token="<eos>")


def score_of(world: World) -> Any:
    """A reward function: the world's score of each response."""
    scores = dict(zip(world.episodes, world.scores.tolist(), strict=True))

    def score(completion_ids: list[list[int]], number: list[int], **_: Any) -> list[float]:
        return [scores[prompt, tuple(ids)] for prompt, ids in zip(number, completion_ids, strict=True)]

    return score


def every_episode(world: World) -> Rollout:
    """The rollout that holds each episode once, in the world's order."""
    width, number = max(map(len, world.prompts)), len(world.episodes)
    ids, real = torch.zeros(number, width + world.limit, dtype=torch.long), torch.zeros(number, width).bool()
    for k, (prompt, _) in enumerate(world.episodes):
        tokens = torch.tensor(world.prompts[prompt])
        ids[k, width - len(tokens) : width], real[k, width - len(tokens) :] = tokens, True
    ids[:, width:] = world.actions
    return Rollout(
        input_ids=ids,
        attention_mask=torch.cat([real, world.mask], 1),
        action_mask=world.mask,
        terminated=((world.actions == EOS) & world.mask).any(-1),
        episode=torch.arange(number),
        row=torch.tensor([prompt for prompt, _ in world.episodes]),
        sampler_logprobs=torch.zeros(world.mask.shape),
    )


def seen(built: Any, world: World) -> EvaluatedRollout:
    """Every episode as the trainer scores and evaluates it."""
    rollout = every_episode(world)
    scored = built.maker.score(built.describe(rollout, built.prompts))
    return built.maker.with_gradient_norms(built.maker.evaluate(rollout, *scored))


def descent(built: Any, experience: Experience, weights: Tensor) -> Tensor:
    """[P] Σ_k w_k·(−∇loss of episode k), by the policy's parameters: where the trainer would step."""
    model, loss = built.unwrapped(), torch.zeros((), dtype=torch.float64)
    for k, weight in enumerate(weights):
        fields = experience.select(torch.tensor([k])).tensors()
        loss = loss + weight * built.compute_loss(model, fields, num_items_in_batch=1)
    parts = torch.autograd.grad(loss, list(model.policy.parameters()), materialize_grads=True)
    return -torch.cat([part.flatten() for part in parts])
