"""The penalty on the divergence: which estimators give its gradient, as part of the reward and as a loss."""

import dataclasses

import pytest
import torch

from hfrlhf.core.kl import exact_kl, kl_penalty
from tests.family.enumeration import moved, relative_error
from tests.family.estimators import psi

EXACT = 1e-8


def sequence_gradient(world):
    """[P] ∇KL(π_θ ‖ π_ref) of whole responses: ∇Σ_y π_θ(y|x)·log(π_θ/π_ref)."""
    logprobs = world.taken(world.log_policy())
    return world.gradient((world.chances(logprobs) * (logprobs - world.ref_logprobs).sum(-1)).sum())


def state_gradient(world):
    """[P] Σ_t E[∇KL(π_θ(·|s_t) ‖ π_ref(·|s_t))]: the states are those that were visited, they do not move with θ."""
    log_policy = world.log_policy()
    each = (log_policy.exp() * (log_policy - world.log_reference)).sum(-1)
    return world.gradient((world.chances(world.logprobs)[:, None] * torch.where(world.mask, each, 0.0)).sum())


def as_reward(world, estimator):
    """[P] −E[Σ_t ∇log π·R_t] where the rewards are the negative estimates: the gradient of a penalty, if it is one."""
    rewards = torch.where(world.mask, -kl_penalty(world.logprobs, world.ref_logprobs, estimator), 0.0)
    return -world.expectation(psi(world, "reward_to_go", rewards=rewards))


def as_loss(world, per_token):
    """[P] E[Σ_t ∇ estimate_t], episodes from π_θ, differentiated through the log-probs alone."""
    each = torch.where(world.mask, per_token, 0.0)
    return world.gradient((world.chances(world.logprobs)[:, None] * each).sum())


def estimate_as_loss(world, estimator):
    return as_loss(world, kl_penalty(world.taken(world.log_policy()), world.ref_logprobs, estimator))


@pytest.fixture(scope="module")
def near(world):
    """The same policy with a reference close to it, as early in training: KL 0.006 nats a response, not 1.1."""
    reference = moved(world.model, by=0.01, seed=9)
    return dataclasses.replace(world, reference=reference, log_reference=world.log_policy(reference).detach())


def test_as_a_reward_k1_has_the_gradient_of_the_divergence(world, near, one_token):
    for where in (world, near, one_token):
        assert relative_error(as_reward(where, "k1"), sequence_gradient(where)) < EXACT


@pytest.mark.parametrize(("estimator", "bias"), [("k2", 1.142), ("k3", 1.358)])
def test_as_rewards_k2_and_k3_are_biased(world, estimator, bias):
    assert relative_error(as_reward(world, estimator), sequence_gradient(world)) == pytest.approx(bias, rel=0.01)


@pytest.mark.parametrize(("estimator", "left"), [("k2", 0.059), ("k3", 0.057)])
def test_near_the_reference_a_few_per_cent_are_left(near, estimator, left):
    found, exact = as_reward(near, estimator), sequence_gradient(near)
    assert (found.norm() / exact.norm()).item() == pytest.approx(left, abs=0.002)
    assert relative_error(found, exact) > 0.9


def test_of_a_single_token_k3_as_a_reward_leaves_the_difference_of_both_directions(one_token):
    # E[∇log π·k3] = ∇KL(π_θ ‖ π_ref) − ∇KL(π_ref ‖ π_θ): opposite to first order.
    log_policy, chance = one_token.log_policy(), one_token.chances(one_token.logprobs)[:, None]
    reverse = (one_token.log_reference.exp() * (one_token.log_reference - log_policy)).sum(-1)
    difference = sequence_gradient(one_token) - one_token.gradient((chance * reverse).sum())
    assert relative_error(as_reward(one_token, "k3"), difference) < EXACT


def test_as_losses_k2_and_the_exact_divergence_have_the_gradient_at_each_state(world, near, one_token):
    for where in (world, near, one_token):
        assert relative_error(estimate_as_loss(where, "k2"), state_gradient(where)) < EXACT
        over_vocabulary = exact_kl(where.log_policy(), where.log_reference)
        assert relative_error(as_loss(where, over_vocabulary), state_gradient(where)) < EXACT


def test_that_is_the_whole_gradient_for_one_token_only(world, near, one_token):
    # What is missing is how earlier tokens decide which states are visited. The k1 reward has it (above).
    assert relative_error(estimate_as_loss(one_token, "k2"), sequence_gradient(one_token)) < EXACT
    assert relative_error(estimate_as_loss(world, "k2"), sequence_gradient(world)) == pytest.approx(0.487, rel=0.01)
    assert relative_error(estimate_as_loss(near, "k2"), sequence_gradient(near)) == pytest.approx(0.044, rel=0.02)


def test_what_is_missing_is_the_divergence_that_follows(world):
    # ∇KL of the response = Σ_t E[∇KL at s_t] + Σ_t E[∇log π(a_t|s_t)·(KL of the tokens after t)].
    log_policy = world.log_policy().detach()
    each = torch.where(world.mask, (log_policy.exp() * (log_policy - world.log_reference)).sum(-1), 0.0)
    after = each.flip(-1).cumsum(-1).flip(-1) - each
    whole = estimate_as_loss(world, "k2") + world.expectation(after)
    assert relative_error(whole, sequence_gradient(world)) < EXACT


def test_as_a_loss_k1_does_nothing(world, near):
    for where in (world, near):
        assert estimate_as_loss(where, "k1").norm() < 1e-12 * state_gradient(where).norm()


@pytest.mark.parametrize(("where", "bias"), [("world", 0.316), ("near", 0.0238)])
def test_as_a_loss_k3_is_biased(where, bias, request):
    world = request.getfixturevalue(where)
    assert relative_error(estimate_as_loss(world, "k3"), state_gradient(world)) == pytest.approx(bias, rel=0.01)


def test_as_a_loss_k3_descends_the_other_direction(world):
    # Σ_a π·∇k3 = −Σ_a π_ref·∇log π = ∇KL(π_ref ‖ π_θ) at each state.
    log_policy = world.log_policy()
    reverse = (world.log_reference.exp() * (world.log_reference - log_policy)).sum(-1)
    exact = world.gradient((world.chances(world.logprobs)[:, None] * torch.where(world.mask, reverse, 0.0)).sum())
    assert relative_error(estimate_as_loss(world, "k3"), exact) < EXACT
