"""Episodes of π_old, the gradient at another θ: which importance weights are exact."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from hfrlhf.core.policy_losses import POLICY_LOSSES
from tests.family.enumeration import moved, relative_error
from tests.family.estimators import BETA, psi, shaped_rewards

EXACT, GAMMA = 1e-8, 0.9
EXACT_ROWS = {"sequence_weighted": "total_return", "per_decision_weighted": "discounted_rewards"}


@dataclass(frozen=True)
class OffPolicy:
    """Another policy and, from the world's own, the probabilities of the episodes; rewards stay those of π_old."""

    world: Any
    model: Any

    def found(self, loss, psi):
        """[P] E over π_old of the descent direction of a loss of the library."""
        new = self.world.taken(self.world.log_policy(self.model))
        each = POLICY_LOSSES[loss](new, self.world.logprobs, psi, {"clip_range": 0.2, "penalty_coef": 1.0})
        chances = self.world.chances(self.world.logprobs)
        return -self.world.gradient((chances[:, None] * torch.where(self.world.mask, each, 0.0)).sum(), self.model)

    def true_gradient(self, gamma=1.0):
        """[P] ∇J at θ, of rewards that do not move with it."""
        return self.world.true_gradient(BETA, gamma, self.model, fixed=self.world.rewards(BETA))

    def surrogate_gradient(self):
        """[P] ∇ of Σ_s d_old(s)·Σ_a π_θ(a|s)·Q_old(s,a), d_old(s) how often π_old passes through s."""
        world = self.world
        visits = torch.zeros(len(world.states), dtype=torch.float64)
        chances = world.chances(world.logprobs)[:, None].expand(world.mask.shape)
        visits.index_add_(0, world.state[world.mask], chances[world.mask])
        policy = world.table(world.log_policy(self.model)).exp()
        return world.gradient((visits[:, None] * policy * world.action_values(BETA)).sum(), self.model)


@pytest.fixture(scope="module")
def elsewhere(world):
    """θ ≠ θ_old: no ratio is near 1."""
    made = OffPolicy(world, moved(world.model, by=0.2))
    ratios = (world.taken(world.log_policy(made.model)).detach() - world.logprobs)[world.mask].exp()
    assert ratios.min() < 0.7
    assert ratios.max() > 1.5
    return made


@pytest.fixture(scope="module")
def at_home(world):
    """θ = θ_old."""
    return OffPolicy(world, world.model)


@pytest.mark.parametrize("gamma", [1.0, GAMMA])
@pytest.mark.parametrize(
    ("loss", "row"), [("sequence_weighted", "total_return"), ("per_decision_weighted", "discounted_rewards")]
)
def test_both_exact_weights_give_the_gradient_anywhere(elsewhere, at_home, loss, row, gamma):
    for where in (elsewhere, at_home):
        found = where.found(loss, psi(where.world, row, gamma=gamma))
        assert relative_error(found, where.true_gradient(gamma)) < EXACT


def test_sequence_weights_with_a_baseline_of_the_prompt(elsewhere):
    # Σ_y π_old·W·∇log π = ∇Σ_y π_θ(y|x) = 0: a constant per prompt takes nothing away.
    world = elsewhere.world
    baseline = torch.tensor([[0.8, -1.7][prompt] for prompt, _ in world.episodes], dtype=torch.float64)
    shifted = torch.where(world.mask, psi(world, "total_return") - baseline[:, None], 0.0)
    assert relative_error(elsewhere.found("sequence_weighted", shifted), elsewhere.true_gradient()) < EXACT


@pytest.mark.parametrize("row", ["reward_to_go", "value_baseline", "gae", "td_error"])
def test_the_ratio_of_each_token_gives_the_gradient_of_the_surrogate(elsewhere, at_home, row):
    # With V^π_old, every one of these Ψ has Q_old(s,a), up to what the state alone decides, as its mean given (s,a).
    for where in (elsewhere, at_home):
        values = where.world.at_states(where.world.state_values(BETA))
        found = where.found("importance_weighted", psi(where.world, row, values, gae_lambda=0.6))
        assert relative_error(found, where.surrogate_gradient()) < EXACT


@pytest.mark.parametrize("loss", ["importance_weighted", "ppo_clip", "ppo_penalty", "score_function"])
def test_only_at_the_old_policy_is_that_the_gradient(elsewhere, at_home, loss):
    estimate = psi(elsewhere.world, "reward_to_go")
    assert relative_error(at_home.found(loss, estimate), at_home.true_gradient()) < EXACT
    assert relative_error(elsewhere.found(loss, estimate), elsewhere.true_gradient()) > 0.05


def test_the_ratio_is_exact_for_a_single_token(one_token):
    where = OffPolicy(one_token, moved(one_token.model, by=0.2))
    found = where.found("importance_weighted", psi(one_token, "total_return"))
    assert relative_error(found, where.true_gradient()) < EXACT


def test_the_rewards_do_not_move(elsewhere):
    # What (c) is about: the reward is a number given with the episode, also its part −β·log(π_old/π_ref).
    torch.testing.assert_close(shaped_rewards(elsewhere.world), elsewhere.world.rewards(BETA), rtol=0, atol=1e-14)


def _with_scores_alone(made, loss):
    """What `loss` gives and ∇J(θ) where the reward is the score alone."""
    found = made.found(loss, psi(made.world, EXACT_ROWS[loss], rewards=shaped_rewards(made.world, beta=0.0)))
    return found, made.world.true_gradient(0.0, 1.0, made.model)


@pytest.mark.parametrize("loss", EXACT_ROWS)
def test_of_the_score_alone_the_gradient_is_that_of_the_objective_itself(elsewhere, loss):
    """No KL in the reward: nothing in it moves with θ, and the weights give ∇J(θ)."""
    assert relative_error(*_with_scores_alone(elsewhere, loss)) < EXACT


@pytest.mark.parametrize("loss", EXACT_ROWS)
def test_a_kl_in_the_reward_stays_that_of_the_policy_that_sampled(elsewhere, loss):
    """Rewards are formed once per rollout, so the KL in them is π_old's. What is missing of ∇J(θ) is
    −β·E[(log π_θ/π_old)·∇log π]: 80 % here, where θ has moved far."""
    world = elsewhere.world
    found = elsewhere.found(loss, psi(world, EXACT_ROWS[loss]))
    whole = world.true_gradient(BETA, 1.0, elsewhere.model)
    logprobs = world.taken(world.log_policy(elsewhere.model))
    since = (logprobs - world.logprobs).sum(-1).detach()
    missing = -BETA * world.gradient((world.chances(logprobs) * since).sum(), elsewhere.model)
    assert relative_error(found + missing, whole) < EXACT
    assert 0.7 < relative_error(found, whole) < 0.9
