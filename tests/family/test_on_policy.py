"""On the policy that sampled: which Ψ give the gradient of the objective, exactly, and how far off the others are."""

import itertools

import pytest
import torch

from tests.family.enumeration import relative_error, world
from tests.family.estimators import BETA, any_values, psi, psi_of_batch, shaped_rewards

EXACT = 1e-8
ON_RETURN = ["constant_baseline", "minimal_variance_baseline"]
ON_REWARD_TO_GO = ["reward_to_go_constant_baseline", "time_dependent_baseline"]
# Ψ, its options: unbiased at γ = 1 with any values of the states.
ALONE = {
    "total_return": {},
    "reward_to_go": {},
    "value_baseline": {},
    "gae": {"gae_lambda": 1.0},
    "n_step": {"n_step": 3},  # as many steps as there are tokens
}


def test_the_worlds_are_complete(world):
    # The probabilities sum to 1, and so the score gradients average to 0 at every step.
    assert world.chances(world.logprobs).sum().item() == pytest.approx(1.0, abs=1e-12)
    assert {len(response) for _, response in world.episodes} == {1, 2, 3}
    for t in range(world.limit):
        at_step = torch.where(torch.arange(world.limit) == t, world.mask, False).double()
        assert world.expectation(at_step).norm() < 1e-12


def test_the_rewards_are_those_of_the_definition(world):
    torch.testing.assert_close(shaped_rewards(world), world.rewards(BETA), rtol=0, atol=1e-14)


# ---- γ = 1 ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALONE)
def test_whole_returns_and_what_a_state_is_expected_to_give(world, name):
    found = world.expectation(psi(world, name, any_values(world), **ALONE[name]))
    assert relative_error(found, world.true_gradient(BETA)) < EXACT


@pytest.mark.parametrize("group_size", [2, 3])
def test_leave_one_out_over_every_group(world, group_size):
    found = world.expectation_over_groups(psi_of_batch(world, "leave_one_out", num_generations=group_size), group_size)
    assert relative_error(found, world.true_gradient(BETA)) < EXACT


@pytest.mark.parametrize("m", [2, 4])
@pytest.mark.parametrize("name", ON_RETURN + ON_REWARD_TO_GO)
def test_a_baseline_of_the_other_episodes_over_every_batch(world, name, m):
    found = world.expectation_over_batches(psi_of_batch(world, name, exclude_self=True), m)
    assert relative_error(found, world.true_gradient(BETA)) < EXACT


# With the episode inside its own baseline, as is usual. Bias ‖E[estimate] − ∇J‖ / ‖∇J‖ in the world of one prompt:
#
#   Ψ                               m = 2     4      8      m·bias for m → ∞
#   constant_baseline               0.500  0.250  0.125     1
#   reward_to_go_constant_baseline  0.500  0.250  0.125     1
#   time_dependent_baseline         0.795  0.612  0.388     3.32
#   minimal_variance_baseline       0.752  0.592  0.415     4.19


@pytest.mark.parametrize("m", [2, 4, 8])
@pytest.mark.parametrize("name", ["constant_baseline", "reward_to_go_constant_baseline"])
def test_the_mean_of_all_episodes_shrinks_the_gradient(one_prompt, name, m):
    found = one_prompt.expectation_over_batches(psi_of_batch(one_prompt, name), m)
    assert relative_error(found, (m - 1) / m * one_prompt.true_gradient(BETA)) < EXACT


@pytest.mark.parametrize("m", [2, 4, 8])
def test_the_bias_of_the_time_dependent_mean(one_prompt, m):
    # Its own R_t enters with 1/N_t, N_t the number running: 1 + a binomial of the other m − 1. With q_t the chance to
    # run, E[1/N_t] = (1 − (1 − q_t)^m) / (m·q_t): of the order 1/m once m·q_t is large.
    exact = one_prompt.true_gradient(BETA)
    running = (one_prompt.chances(one_prompt.logprobs)[:, None] * one_prompt.mask).sum(0)
    own = (1 - (1 - running) ** m) / (m * running)
    to_go = one_prompt.rewards(BETA).flip(-1).cumsum(-1).flip(-1)
    found = one_prompt.expectation_over_batches(psi_of_batch(one_prompt, "time_dependent_baseline"), m)
    assert relative_error(found - exact, -one_prompt.expectation(own * to_go * one_prompt.mask)) < EXACT
    assert relative_error(found, exact) > 0.3


def _minimal_variance_bias(small, m):
    """m·bias, and its limit for large m: −E[g·‖g‖²·(R − b)] / E[‖g‖²] with b = E[‖g‖²R] / E[‖g‖²], to first order."""
    exact, chances = small.true_gradient(BETA), small.chances(small.logprobs)
    returns, gradients = small.rewards(BETA).sum(-1), small.score_gradients.sum(1)
    weights = chances * gradients.square().sum(-1)
    centred = weights * (returns - (weights * returns).sum() / weights.sum())
    limit = -(centred[:, None] * gradients).sum(0) / weights.sum()
    found = small.expectation_over_batches(psi_of_batch(small, "minimal_variance_baseline"), m)
    return m * (found - exact), limit


def test_the_bias_of_the_minimal_variance_mean_falls(one_prompt):
    # ‖g‖² varies by a factor of 50 here, so that eight episodes are still few: m·bias is within 72%, 48% and 25% of
    # its limit.
    off = [relative_error(*_minimal_variance_bias(one_prompt, m)) for m in (2, 4, 8)]
    assert off == pytest.approx([0.722, 0.476, 0.248], abs=2e-3)


def test_the_bias_of_the_minimal_variance_mean_goes_as_one_over_m():
    # One prompt and one token: three episodes, so that even batches of 64 are few. m·bias comes twice as near to its
    # limit with every doubling, which makes the bias itself limit/m + O(1/m²).
    small = world(number_of_prompts=1, limit=1)
    off = [relative_error(*_minimal_variance_bias(small, m)) for m in (8, 16, 32, 64)]
    assert off[0] < 0.1
    for before, after in itertools.pairwise(off):
        assert 0.4 < after / before < 0.6


# ---- γ < 1 ----------------------------------------------------------------------------------------------------------

GAMMA = 0.7


def test_the_whole_discounted_return_gives_the_gradient_of_the_discounted_objective(world):
    exact = world.true_gradient(BETA, GAMMA)
    assert relative_error(world.expectation(psi(world, "total_return", gamma=GAMMA)), exact) < EXACT
    for name in ON_RETURN:
        over_batches = world.expectation_over_batches(psi_of_batch(world, name, exclude_self=True, gamma=GAMMA), 2)
        assert relative_error(over_batches, exact) < EXACT


def _discounted_estimates(world, factor):
    """Every row on R_t, its Ψ_t times `factor` [A]."""
    values = any_values(world)
    for name, options in {"reward_to_go": {}, "value_baseline": {}, "gae": {"gae_lambda": 1.0}}.items():
        yield name, world.expectation(factor * psi(world, name, values, gamma=GAMMA, **options))
    for name in ON_REWARD_TO_GO:
        of = psi_of_batch(world, name, exclude_self=True, gamma=GAMMA)
        yield name, world.expectation_over_batches(lambda rows, of=of: factor * of(rows), 2)
    of = psi_of_batch(world, "leave_one_out", num_generations=2, gamma=GAMMA)
    yield "leave_one_out", world.expectation_over_groups(lambda rows: factor * of(rows), 2)


def test_discounted_rewards_to_go_stand_for_action_values(world):
    exact = world.expectation(world.at_actions(world.action_values(BETA, GAMMA)))
    for name, found in _discounted_estimates(world, torch.ones(world.limit, dtype=torch.float64)):
        assert relative_error(found, exact) < EXACT, name


def test_with_the_dropped_factor_they_give_the_gradient(world):
    exact = world.true_gradient(BETA, GAMMA)
    for name, found in _discounted_estimates(world, world.discounts(GAMMA)):
        assert relative_error(found, exact) < EXACT, name


def test_the_dropped_factor_matters(world):
    found = world.expectation(psi(world, "reward_to_go", gamma=GAMMA))
    assert relative_error(found, world.true_gradient(BETA, GAMMA)) > 0.05
