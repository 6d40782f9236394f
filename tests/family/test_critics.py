"""What a critic costs in bias: none where it is V^π or Q^π, a measured one where it is not."""

import pytest
import torch

from tests.family.enumeration import random, relative_error
from tests.family.estimators import BETA, any_values, psi, psi_of_batch

EXACT, GAMMA = 1e-8, 0.9
# Ψ, its options, and its bias ‖E[estimate] − ∇J‖ / ‖∇J‖ with made-up values (normal, about the size of the returns).
BOOTSTRAPPED = [
    ("td_error", {}, 1.82),
    ("n_step", {"n_step": 2}, 0.387),
    ("gae", {"gae_lambda": 0.0}, 1.82),
    ("gae", {"gae_lambda": 0.5}, 0.960),
    ("gae", {"gae_lambda": 0.95}, 0.101),
]


@pytest.mark.parametrize("gamma", [1.0, GAMMA])
@pytest.mark.parametrize(("name", "options"), [row[:2] for row in BOOTSTRAPPED])
def test_bootstrapping_is_unbiased_with_the_true_values(world, name, options, gamma):
    exact = world.expectation(world.at_actions(world.action_values(BETA, gamma)))
    values = world.at_states(world.state_values(BETA, gamma))
    assert relative_error(world.expectation(psi(world, name, values, gamma=gamma, **options)), exact) < EXACT


@pytest.mark.parametrize(("name", "options", "bias"), BOOTSTRAPPED)
def test_bootstrapping_on_wrong_values_is_biased(world, name, options, bias):
    found = world.expectation(psi(world, name, any_values(world), **options))
    assert relative_error(found, world.true_gradient(BETA)) == pytest.approx(bias, rel=0.01)


def test_the_bias_of_a_temporal_difference_is_that_of_the_next_value(world):
    # E[∇log π·δ] − ∇J = E[∇log π·γ(V − V^π)(s_{t+1})]: what V says of s_t itself averages out.
    error = torch.where(world.mask, any_values(world) - world.at_states(world.state_values(BETA)), 0.0)
    found = world.expectation(psi(world, "td_error", any_values(world)))
    theory = world.expectation(_next(error))
    assert relative_error(found - world.true_gradient(BETA), theory) < EXACT


def test_true_values_are_the_averages_of_what_follows(world):
    # V^π of the first state is J's share of its prompt, by summing over episodes instead of going back from the end.
    chances, returns = world.chances(world.logprobs), world.rewards(BETA).sum(-1)
    for s, (prompt, prefix) in enumerate(world.states):
        through = torch.tensor([p == prompt and y[: len(prefix)] == prefix for p, y in world.episodes])
        through &= world.mask[:, len(prefix)]
        to_go = returns - world.rewards(BETA)[:, : len(prefix)].sum(-1)
        mean = (chances * to_go)[through].sum() / chances[through].sum()
        assert world.state_values(BETA)[s].item() == pytest.approx(mean.item(), abs=1e-12)


# ---- Q --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [1.0, GAMMA])
def test_true_action_values_are_unbiased(world, gamma):
    values = world.at_actions(world.action_values(BETA, gamma))
    # With γ = 1 that is ∇J; below, Ψ times γ^{t−1} is.
    found = world.expectation(world.discounts(gamma) * psi(world, "action_value", values, gamma=gamma))
    assert relative_error(found, world.true_gradient(BETA, gamma)) < EXACT


def test_wrong_action_values_are_biased(world):
    wrong = world.action_values(BETA)
    wrong += random(*wrong.shape, seed=3)
    found = world.expectation(psi(world, "action_value", world.at_actions(wrong)))
    assert relative_error(found, world.true_gradient(BETA)) == pytest.approx(0.894, rel=0.01)


@pytest.mark.parametrize("gamma", [1.0, GAMMA])
def test_the_best_that_can_follow_is_biased_by_its_max(world, gamma):
    # With Q^π itself: E[∇log π·Ψ] = E[∇log π·Q] + E[∇log π·γ(max_a Q − V)(s_{t+1})].
    q, v = world.action_values(BETA, gamma), world.state_values(BETA, gamma)
    best, expected = world.at_states(q.amax(-1)), world.at_states(v)
    row = psi(world, "expected_baseline", best_values=best, expected_values=expected, gamma=gamma)
    unbiased = world.expectation(world.at_actions(q))
    theory = world.expectation(gamma * _next(best - expected))
    assert relative_error(world.expectation(row) - unbiased, theory) < EXACT
    assert relative_error(world.expectation(row), unbiased) > 0.5  # 1.08 at γ = 1


def test_with_the_mean_in_place_of_the_max_it_is_unbiased(world):
    expected = world.at_states(world.state_values(BETA))
    row = psi(world, "expected_baseline", best_values=expected, expected_values=expected)
    assert relative_error(world.expectation(row), world.true_gradient(BETA)) < EXACT


# ---- Groups ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("group_size", "bias"), [(2, 0.293), (3, 0.278), (4, 0.248)])
def test_dividing_by_the_deviation_of_the_group_is_biased(world, group_size, bias):
    # No rescaling heals it: what is left after the best one, relative to ‖∇J‖.
    of = psi_of_batch(world, "group_normalised", num_generations=group_size)
    found, exact = world.expectation_over_groups(of, group_size), world.true_gradient(BETA)
    best = (found @ exact) / (found @ found) * found
    assert relative_error(best, exact) == pytest.approx(bias, rel=0.01)


def test_normalised_pairs_follow_the_rate_of_winning(world):
    # Two responses: (R_i − R_j)/2 over |R_i − R_j|/√2 + 1e-4, which is the sign over √2 but for the 1e-4. Its gradient
    # is that of the chance to beat another response, not of the reward.
    chances, returns = world.chances(world.logprobs), world.rewards(BETA).sum(-1)
    same = torch.tensor([[p == q for q, _ in world.episodes] for p, _ in world.episodes])
    given = torch.where(same, chances * len(world.prompts), 0.0)
    difference = returns[:, None] - returns
    found = world.expectation_over_groups(psi_of_batch(world, "group_normalised", num_generations=2), 2)
    normalised = (given * (difference / 2) / (difference.abs() / 2**0.5 + 1e-4)).sum(-1)
    assert relative_error(found, world.expectation(normalised[:, None] * world.mask)) < EXACT
    winning = (given * difference.sign()).sum(-1) / 2**0.5
    assert relative_error(found, world.expectation(winning[:, None] * world.mask)) < 0.01


def _next(per_token):
    """[K,A] the entry of the next token, 0 after the last; what it is given is 0 at padding."""
    return torch.nn.functional.pad(per_token[:, 1:], (0, 1))
