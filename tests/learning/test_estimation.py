"""Estimating is pure: the same rollout gives the same experience, and moves nothing."""

from __future__ import annotations

import pytest
import torch

from hfrlhf import PPOConfig
from hfrlhf.algorithms import ALGORITHMS
from hfrlhf.experience import EvaluatedRollout
from hfrlhf.learning.estimation import bounded_scores, estimate


@pytest.fixture
def seen() -> EvaluatedRollout:
    """Two responses of two tokens and of one, the second one cut off."""
    mask = torch.tensor([[True, True], [True, False]])
    zeros = torch.zeros(2, 2)
    return EvaluatedRollout(
        input_ids=torch.ones(2, 3, dtype=torch.long),
        attention_mask=torch.tensor([[True, True, True], [True, True, False]]),
        action_mask=mask,
        terminated=torch.tensor([True, False]),
        episode=torch.arange(2),
        row=torch.arange(2),
        sampler_logprobs=zeros,
        scores=torch.tensor([3.0, -8.0]),
        parts=torch.tensor([[3.0], [-8.0]]),
        logprobs=torch.tensor([[-1.0, -2.0], [-1.0, 0.0]]),
        ref_logprobs=torch.tensor([[-2.0, -2.0], [-1.5, 0.0]]),
        entropy=zeros,
        values=torch.tensor([[0.5, 1.0], [2.0, 0.0]]),
        bootstrap_values=torch.zeros(2),
    )


def settings(tmp_path, **changes) -> PPOConfig:
    plain = {
        "use_cpu": True,
        "report_to": "none",
        "rollout_batch_size": 2,
        "whiten_advantages": False,
        "gae_lambda": 1.0,
    }
    return PPOConfig(str(tmp_path), **plain | changes)


def test_scores_less_the_kl_and_the_critic(seen, tmp_path):
    args = settings(tmp_path)
    made = estimate(seen, seen.scores, ALGORITHMS["ppo_clip"], args, kl_coef=0.5)
    # KL per token: −1 − (−2) = 1, 0 and 0.5; of each 0.5 is paid, and the last token of a response has its score.
    assert made.rewards.tolist() == [[-0.5, 3.0], [-8.25, 0.0]]
    # λ = γ = 1: the sum of what is to come, less what the critic expects.
    assert made.experience.advantages.tolist() == [[2.0, 2.0], [-10.25, 0.0]]
    assert made.experience.returns.tolist() == [[2.5, 3.0], [-8.25, 0.0]]
    assert made.experience.kl.tolist() == [1.0, 0.5]


def test_with_the_kl_in_the_loss_the_rewards_have_none(seen, tmp_path):
    made = estimate(seen, seen.scores, ALGORITHMS["ppo_clip"], settings(tmp_path, kl_in="loss"), kl_coef=0.5)
    assert made.rewards.tolist() == [[0.0, 3.0], [-8.0, 0.0]]


def test_scores_are_penalised_and_then_clipped(seen, tmp_path):
    args = settings(tmp_path, missing_eos_penalty=1.0, reward_clip=5.0)
    assert bounded_scores(seen, args).tolist() == [3.0, -5.0]
    assert bounded_scores(seen, settings(tmp_path, missing_eos_penalty=1.0)).tolist() == [3.0, -9.0]


def test_nothing_is_moved(seen, tmp_path):
    before = {name: tensor.clone() for name, tensor in seen.tensors().items()}
    args = settings(tmp_path, whiten_advantages=True, whiten_rewards=True)
    one, two = (estimate(seen, seen.scores, ALGORITHMS["ppo_clip"], args, 0.5) for _ in range(2))
    assert all(torch.equal(seen.tensors()[name], tensor) for name, tensor in before.items())
    assert all(torch.equal(tensor, two.experience.tensors()[name]) for name, tensor in one.experience.tensors().items())
