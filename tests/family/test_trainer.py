"""The same through the real trainer: its log-probs, rewards, Ψ and loss, over every episode, give ∇J."""

import dataclasses
import itertools

import pytest
import torch

from hfrlhf.algorithms import ALGORITHMS
from tests.family.enumeration import moved, relative_error
from tests.family.enumeration import world as make_world
from tests.family.estimators import BETA
from tests.family.trainers import descent, every_episode, seen, trainer
from tests.test_algorithms import FAMILY

EXACT, GAMMA = 1e-8, 0.7
# Rows that are exact whatever their critic says (λ = 1, as many steps as there are tokens).
ANY_VALUES = {
    "reinforce": {},
    "reward_to_go": {},
    "vpg": {"vf_coef": 0.0},
    "a2c": {"vf_coef": 0.0, "n_step": 3},
    "gae_actor_critic": {"vf_coef": 0.0, "gae_lambda": 1.0},
    "importance_weighted": {"vf_coef": 0.0, "gae_lambda": 1.0},
    "importance_weighted_per_decision": {},
    "importance_weighted_sequence": {},
    "ppo_clip": {"vf_coef": 0.0, "gae_lambda": 1.0},
    "ppo_penalty": {"vf_coef": 0.0, "gae_lambda": 1.0},
}
# Exact where the critic is V^π or Q^π.
TRUE_VALUES = {
    "td_actor_critic": {"vf_coef": 0.0},
    "a2c": {"vf_coef": 0.0, "n_step": 2},
    "gae_actor_critic": {"vf_coef": 0.0, "gae_lambda": 0.5},
    "q_actor_critic": {"vf_coef": 0.0},
    "ppo_clip": {"vf_coef": 0.0},
}
# Over batches, each episode left out of its own baseline.
OVER_BATCHES = {
    "reinforce_constant": {"exclude_self": True},
    "reinforce_minimal_variance": {"exclude_self": True},
    "reward_to_go_constant": {"exclude_self": True},
    "reward_to_go_time_dependent": {"exclude_self": True},
    "rloo": {"num_generations": 2},
}
BIASED = {"grpo", "expected_baseline_actor_critic"}
# Their step is not the optimiser's: test_trust_region.py.
NATURAL = {"natural_policy_gradient", "trpo"}


def expected_descent(built, world, **injected):
    """[P] over every episode; `injected` replaces what the trainer's models said of them."""
    evaluated = dataclasses.replace(seen(built, world), **injected)
    return descent(built, built.maker.estimated(evaluated)[0], world.chances(world.logprobs))


def test_every_algorithm_has_its_place_here():
    assert {*ANY_VALUES, *TRUE_VALUES, *OVER_BATCHES} | BIASED | NATURAL == FAMILY


def test_what_the_trainer_sees_is_what_there_is(world, tmp_path):
    built = trainer(world, "reinforce_minimal_variance", tmp_path)
    evaluated = seen(built, world)
    experience = built.maker.estimated(evaluated)[0]
    for found, exact in [
        (evaluated.logprobs, world.logprobs),
        (evaluated.ref_logprobs, world.ref_logprobs),
        (evaluated.scores.double(), world.scores),
        (evaluated.grad_sq_norms, world.score_gradients.sum(1).square().sum(-1)),
        (experience.rewards, world.rewards(BETA)),
    ]:
        assert relative_error(found, exact) < 1e-12


@pytest.mark.parametrize("name", ANY_VALUES)
def test_rows_that_need_no_true_values(world, name, tmp_path):
    built = trainer(world, name, tmp_path, **ANY_VALUES[name])
    assert relative_error(expected_descent(built, world), world.true_gradient(BETA)) < EXACT


@pytest.mark.parametrize("name", TRUE_VALUES)
def test_rows_that_need_true_values(world, name, tmp_path):
    built = trainer(world, name, tmp_path, **TRUE_VALUES[name])
    true = world.at_states(world.state_values(BETA))
    if ALGORITHMS[name].critic == "Q":
        true = world.at_actions(world.action_values(BETA))
    exact = world.true_gradient(BETA)
    assert relative_error(expected_descent(built, world, values=true), exact) < EXACT
    assert relative_error(expected_descent(built, world), exact) > 0.01  # with the head's own


@pytest.mark.parametrize("gamma", [1.0, GAMMA])
def test_the_max_row_is_off_by_its_max(world, gamma, tmp_path):
    built = trainer(world, "expected_baseline_actor_critic", tmp_path, vf_coef=0.0, gamma=gamma)
    q, v = world.action_values(BETA, gamma), world.state_values(BETA, gamma)
    best, expected = world.at_states(q.amax(-1)), world.at_states(v)
    found = expected_descent(built, world, best_values=best, expected_values=expected)
    following = torch.nn.functional.pad((best - expected)[:, 1:], (0, 1))
    theory = world.expectation(world.at_actions(q) + gamma * following)
    assert relative_error(found, theory) < EXACT


def _over_pairs(built, small):
    """[P] the expected step of batches of two: each pair shaped by itself, its loss divided by two episodes."""
    evaluated, chances, model = seen(built, small), small.chances(small.logprobs), built.unwrapped()
    total = torch.zeros((), dtype=torch.float64)
    for pair in itertools.product(range(len(chances)), repeat=2):
        fields = built.maker.estimated(evaluated.select(torch.tensor(pair)))[0].tensors()
        total = total + chances[list(pair)].prod() * built.compute_loss(model, fields, num_items_in_batch=2)
    parts = torch.autograd.grad(total, list(model.policy.parameters()), materialize_grads=True)
    return -torch.cat([part.flatten() for part in parts])


@pytest.mark.parametrize("name", OVER_BATCHES)
def test_rows_that_compare_episodes(name, tmp_path):
    small = make_world(number_of_prompts=1, limit=2)
    found = _over_pairs(trainer(small, name, tmp_path, **OVER_BATCHES[name]), small)
    assert relative_error(found, small.true_gradient(BETA)) < EXACT


def test_the_usual_mean_shrinks_by_half_and_group_normalisation_is_biased(tmp_path):
    small = make_world(number_of_prompts=1, limit=2)
    exact = small.true_gradient(BETA)
    assert relative_error(_over_pairs(trainer(small, "reinforce_constant", tmp_path), small), exact / 2) < EXACT
    grpo = _over_pairs(trainer(small, "grpo", tmp_path, num_generations=2), small)
    assert relative_error((grpo @ exact) / (grpo @ grpo) * grpo, exact) > 0.05


def test_the_discounted_objective(world, tmp_path):
    exact = world.true_gradient(BETA, GAMMA)
    for name in ("reinforce", "importance_weighted_sequence", "importance_weighted_per_decision"):
        found = expected_descent(trainer(world, name, tmp_path, gamma=GAMMA), world)
        assert relative_error(found, exact) < EXACT, name


@pytest.mark.parametrize("name", ["reward_to_go", "vpg", "gae_actor_critic", "ppo_clip"])
def test_discounted_rewards_to_go_stand_for_action_values(world, name, tmp_path):
    built = trainer(world, name, tmp_path, gamma=GAMMA, **ANY_VALUES[name])
    exact = world.expectation(world.at_actions(world.action_values(BETA, GAMMA)))
    assert relative_error(expected_descent(built, world), exact) < EXACT


# ---- Off-policy: the rollout is π_old's, the policy has moved since ------------------------------------------------


def _moved_on(world, name, folder, **settings):
    """(expected descent at θ, θ's model): the trainer after its policy has moved."""
    built = trainer(world, name, folder, **settings)
    experience = built.maker.estimated(seen(built, world))[0]
    there = moved(world.model, by=0.2)
    built.unwrapped().policy.load_state_dict(there.state_dict())
    return descent(built, experience, world.chances(world.logprobs)), there


@pytest.mark.parametrize("gamma", [1.0, GAMMA])
@pytest.mark.parametrize("name", ["importance_weighted_sequence", "importance_weighted_per_decision"])
def test_exact_weights_give_the_gradient_where_the_policy_is_now(world, name, gamma, tmp_path):
    found, there = _moved_on(world, name, tmp_path, gamma=gamma)
    exact = world.true_gradient(BETA, gamma, there, fixed=world.rewards(BETA))
    assert relative_error(found, exact) < EXACT


@pytest.mark.parametrize("name", ["importance_weighted", "ppo_clip", "ppo_penalty", "reinforce"])
def test_the_others_do_not(world, name, tmp_path):
    found, there = _moved_on(world, name, tmp_path, **ANY_VALUES[name])
    assert relative_error(found, world.true_gradient(BETA, 1.0, there, fixed=world.rewards(BETA))) > 0.05


# ---- The divergence as a loss --------------------------------------------------------------------------------------


def test_the_divergence_as_a_loss_is_that_of_each_state(world, tmp_path):
    found = expected_descent(trainer(world, "reinforce", tmp_path, kl_in="loss"), world)
    log_policy = world.log_policy()
    each = torch.where(world.mask, (log_policy.exp() * (log_policy - world.log_reference)).sum(-1), 0.0)
    penalty = world.gradient((world.chances(world.logprobs)[:, None] * each).sum())
    assert relative_error(found, world.true_gradient(0.0) - BETA * penalty) < EXACT


def test_the_rollout_of_every_episode_reads_as_the_world(world):
    rollout = every_episode(world)
    assert rollout.completion_lists() == [list(response) for _, response in world.episodes]
    assert rollout.prompt_lists() == [list(world.prompts[prompt]) for prompt, _ in world.episodes]
    assert rollout.terminated.tolist() == [response[-1] == 2 for _, response in world.episodes]
