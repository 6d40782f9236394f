"""A policy before and after, on held-out prompts: the scores of its reward model and of a judge it never saw, the KL.

    python tests/benchmarks/reviews_judged.py --before ../shared/models/reviews-sft --after runs/ppo_reviews \\
        --reward runs/reward_first --judge runs/reward_second --prompts ../shared/data/reviews-prompts

The judge should come from other pairs than the reward model. One response per prompt at temperature 1, with the same
draws for both policies, of at most 32 tokens. Also measured, of the first policy's responses that were cut off at that
length: what each reward model says of them with the ending of its training, as they are read, and without it.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import torch
from datasets import load_dataset

from hfrlhf.core.kl import kl_penalty
from hfrlhf.core.masking import masked_sum
from hfrlhf.data.prompts import prepare_prompts, prompt_batch
from hfrlhf.experience import Rollout
from hfrlhf.models.policy.loading import load_policy, load_tokenizer
from hfrlhf.models.policy.reference import Reference, frozen
from hfrlhf.rewards.completions import completions_of
from hfrlhf.rewards.sources import ModelReward, reward_source
from hfrlhf.rollout.generation import TransformersGenerator

LENGTH = 32


def respond(folder: str, prompts: Any, tokenizer: Any) -> Rollout:
    """One response of a policy to each prompt."""
    rows = torch.arange(len(prompts))
    generator = TransformersGenerator(LENGTH, 1.0, tokenizer.eos_token_id)
    return generator.generate(load_policy(folder).eval(), prompt_batch(prompts, rows, rows), (1, 0))


def seen(rollout: Rollout, prompts: Any, tokenizer: Any, raters: dict[str, ModelReward]) -> dict[str, float]:
    """What the raters and the lengths say of a rollout."""
    completions = completions_of(tokenizer, rollout, prompts)
    scores = {name: float(rater(completions).mean()) for name, rater in raters.items()}
    tokens = float(rollout.completion_lengths.float().mean())
    distinct = len({str(text) for text in completions.completions})
    return scores | {"ended": float(rollout.terminated.float().mean()), "tokens": tokens, "distinct": distinct}


def cut_off(rollout: Rollout, prompts: Any, tokenizer: Any, rater: ModelReward) -> dict[str, float]:
    """Mean scores of responses that ended, and of those cut off with and without the ending."""
    readings = rater.reader.read(completions_of(tokenizer, rollout, prompts))
    cut = [row for row, ended in zip(readings, rollout.terminated.tolist(), strict=True) if not ended]
    whole = [row for row, ended in zip(readings, rollout.terminated.tolist(), strict=True) if ended]
    rows = {"ended": [r.ids for r in whole], "cut, with the ending": [r.ids for r in cut]}
    rows["cut, without it"] = [[*r.prompt, *r.content] for r in cut]
    return {name: float(rater.scores(ids).mean()) for name, ids in rows.items()}


def kl(rollout: Rollout, before: str) -> float:
    """Mean Σ_t log π(a_t) − log π_before(a_t), in nats per response."""
    reference = Reference(frozen(load_policy(before)), before)
    per_token = kl_penalty(rollout.sampler_logprobs, reference.logprobs(rollout, temperature=1.0), "k1")
    masked = torch.where(rollout.action_mask, per_token, 0.0)
    return float(masked_sum(masked, rollout.action_mask, -1).mean())


def main() -> None:
    """Print everything as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("before", "after", "reward", "judge", "prompts"):
        parser.add_argument(f"--{name}", required=True)
    options = parser.parse_args()
    tokenizer = load_tokenizer(None, options.before)
    data = load_dataset("json", data_files=f"{options.prompts}/test.jsonl", split="train")
    prompts = prepare_prompts(data, tokenizer, None, "test")
    raters: dict[str, Any] = {
        role: reward_source(getattr(options, role), tokenizer).sources[0] for role in ("reward", "judge")
    }
    rollouts = {when: respond(getattr(options, when), prompts, tokenizer) for when in ("before", "after")}
    result: dict[str, Any] = {when: seen(r, prompts, tokenizer, raters) for when, r in rollouts.items()}
    result["after"]["kl"] = kl(rollouts["after"], options.before)
    result["read"] = {role: cut_off(rollouts["before"], prompts, tokenizer, rater) for role, rater in raters.items()}
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
