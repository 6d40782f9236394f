"""TRPO and the natural gradient on every episode of the small world: gradient, Fisher matrix and step, exactly."""

import itertools

import pytest
import torch

from tests.family.enumeration import random, relative_error
from tests.family.estimators import BETA
from tests.family.trainers import seen, trainer

EXACT = 1e-8
# Enough products for a Fisher matrix of rank 28 (14 states, three tokens each).
SETTINGS = {"vf_coef": 0.0, "gae_lambda": 1.0, "cg_iterations": 60}


def on_every_episode(world, folder, name="trpo", **settings):
    """The trainer with every episode, each once, as its rollout; and that rollout."""
    built = trainer(world, name, folder, **(SETTINGS | settings))
    experience = built.maker.estimated(seen(built, world))[0]
    built.begin_cycle(experience)
    return built, experience


def flat(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.fixture(scope="module")
def fisher(world):
    """[P,P] F = (1/N)·Σ over the N response states of Σ_a π(a|s)·∇log π(a|s)·∇log π(a|s)ᵀ, summed up one by one."""
    log_policy = world.table(world.log_policy())
    visits = torch.bincount(world.state[world.mask], minlength=len(world.states)).tolist()
    size = world.score_gradients.shape[-1]
    total = torch.zeros(size, size, dtype=torch.float64)
    for s, row in enumerate(log_policy):
        for action in range(row.numel()):
            gradient = world.gradient(row[action])
            total += visits[s] / sum(visits) * row[action].exp().item() * gradient.outer(gradient)
    return total


def surrogate_gradient(world, experience):
    """[P] ∇ of (1/K)·Σ_kt ρ·A at θ_old."""
    return torch.einsum("ka,kap->p", experience.advantages, world.score_gradients) / len(experience)


def measured(world, built, experience):
    """(mean KL(π_old ‖ π_θ) over the states visited, gain of the surrogate per episode), from the stock forward."""
    old, new = world.log_policy().detach(), world.log_policy(built.unwrapped().policy).detach()
    kl = (old.exp() * (old - new)).sum(-1)[world.mask].mean().item()
    ratios = (world.taken(new) - world.taken(old)).exp()
    return kl, ((ratios - 1) * experience.advantages).sum().item() / len(experience)


@pytest.mark.parametrize("name", ["trpo", "natural_policy_gradient"])
def test_the_gradient_over_every_episode_is_that_of_the_objective(world, name, tmp_path):
    built, experience = on_every_episode(world, tmp_path, name)
    found = torch.zeros(world.score_gradients.shape[-1], dtype=torch.float64)
    for k, chance in enumerate(world.chances(world.logprobs)):
        built.begin_cycle(experience.select(torch.tensor([k])))
        found += chance * built.problem().gradient()
    assert relative_error(found, world.true_gradient(BETA)) < EXACT


def test_products_are_those_of_the_dense_fisher_matrix(world, fisher, tmp_path):
    built, _ = on_every_episode(world, tmp_path)
    problem = built.problem()
    for seed in (1, 2):
        vector = random(len(fisher), seed=seed)
        assert relative_error(problem.fisher_vector_product(vector), fisher @ vector + 0.1 * vector) < EXACT


@pytest.mark.parametrize("max_kl", [1.0, 0.3, 0.1, 1e-2, 1e-4])
def test_the_step_keeps_to_the_bound_and_improves(world, fisher, max_kl, tmp_path):
    built, experience = on_every_episode(world, tmp_path, max_kl=max_kl)
    before = flat(world.model)
    search = built.policy_step()
    kl, gain = measured(world, built, experience)
    assert 0.5 * max_kl < kl <= max_kl
    assert gain > 0
    # It is the accepted fraction of the dense step, as far as the conjugate gradient's own tolerance (1e-5) goes.
    gradient = surrogate_gradient(world, experience)
    damped = fisher + 0.1 * torch.eye(len(fisher), dtype=torch.float64)
    direction = torch.linalg.solve(damped, gradient)
    full = (2 * max_kl / (direction @ damped @ direction)).sqrt() * direction
    step = flat(built.unwrapped().policy) - before
    assert relative_error(step, search.trials[-1].fraction * full) < 1e-4
    assert [trial.kl <= max_kl for trial in search.trials] == [False] * (len(search.trials) - 1) + [True]
    assert search.trials[-1].kl == pytest.approx(kl, rel=1e-9)


def test_for_a_small_bound_the_step_is_the_natural_gradient(world, fisher, tmp_path):
    # Hardly damped it is √(2δ/gᵀF⁺g)·F⁺g. Were the policy linear, KL would be δ and the gain gᵀ·step: both are off by
    # O(√δ), ten times less for a δ a hundred times smaller. TRPO takes that step or, where KL > δ, 0.8 of it.
    off = []
    for max_kl in (1e-4, 1e-6, 1e-8):
        settings = {"max_kl": max_kl, "cg_damping": 1e-6, "cg_iterations": 200}
        built, experience = on_every_episode(world, tmp_path, "natural_policy_gradient", **settings)
        gradient = surrogate_gradient(world, experience)
        natural = torch.linalg.pinv(fisher, rtol=1e-10, hermitian=True) @ gradient
        full = (2 * max_kl / (natural @ gradient)).sqrt() * natural
        built.policy_step()
        assert relative_error(flat(built.unwrapped().policy) - flat(world.model), full) < 1e-3
        kl, gain = measured(world, built, experience)
        off.append((kl / max_kl - 1, gain / (full @ gradient).item() - 1))
        bounded, _ = on_every_episode(world, tmp_path, **settings)
        fraction = bounded.policy_step().trials[-1].fraction
        assert fraction in (1.0, 0.8)
        assert relative_error(flat(bounded.unwrapped().policy) - flat(world.model), fraction * full) < 1e-3
    for before, after in itertools.pairwise(torch.tensor(off).abs()):
        assert ((after / before > 0.07) & (after / before < 0.14)).all()  # 4.1%, 0.41%, 0.040%


def test_a_step_that_cannot_improve_leaves_every_parameter_to_the_bit(world, tmp_path):
    # Of the one step tried, the KL is 1.05 times the bound.
    built, _ = on_every_episode(world, tmp_path, max_kl=0.1, max_backtracks=1)
    before = {name: parameter.detach().clone() for name, parameter in built.unwrapped().named_parameters()}
    search = built.policy_step()
    assert search.step is None
    assert 0.1 < search.trials[0].kl < 0.11
    for name, parameter in built.unwrapped().named_parameters():
        assert torch.equal(parameter, before[name]), name


def test_without_a_gradient_nothing_moves_to_the_bit(world, tmp_path):
    built, experience = on_every_episode(world, tmp_path)
    built.cycle.experience.advantages.zero_()
    assert experience.advantages.norm() == 0
    before = flat(built.unwrapped())
    assert built.policy_step().step is None
    assert torch.equal(flat(built.unwrapped()), before)


def test_without_a_line_search_the_whole_step_is_taken(world, tmp_path):
    built, experience = on_every_episode(world, tmp_path, "natural_policy_gradient", max_kl=0.1)
    search = built.policy_step()
    kl, _ = measured(world, built, experience)
    assert search.trials[-1].fraction == 1.0
    assert 0.1 < kl < 0.11  # beyond the bound, where the search above stops it
