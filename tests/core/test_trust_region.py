import math

import pytest
import torch

from hfrlhf.core.policy_losses import importance_weighted
from hfrlhf.core.trust_region import (
    conjugate_gradient,
    fisher_vector_product,
    flatten,
    kl_gradient,
    line_search,
    natural_step,
    unflatten,
)

NAN = math.nan


class Tabular:
    """A softmax policy with one row of logits per state, seen at some states with some actions."""

    def __init__(self, inputs):
        self.theta, self.advantages = inputs["theta"], inputs["advantages"]
        self.states, self.actions = inputs["states"].long(), inputs["actions"].long()
        self.damping = inputs["damping"]

    def log_policy(self, theta):
        return theta.log_softmax(-1)[self.states]

    def surrogate(self, theta):
        """mean ρ·A, with this library's loss."""
        new, old = (self.log_policy(x).gather(-1, self.actions[:, None])[:, 0] for x in (theta, self.theta))
        return -importance_weighted(new, old, self.advantages).mean()

    def kl(self, theta, old=None):
        """mean KL(π_old ‖ π_θ) over the visited states."""
        old, new = self.log_policy(self.theta if old is None else old), self.log_policy(theta)
        return (old.exp() * (old - new)).sum(-1).mean()

    def fisher(self):
        """The damped H, by the closed form: (share of visits)·(diag(p) − p·pᵀ) for each state."""
        number, width = self.theta.shape
        dense = self.damping * torch.eye(number * width, dtype=torch.float64)
        for state, p in enumerate(self.theta.softmax(-1)):
            block = slice(state * width, (state + 1) * width)
            dense[block, block] += (self.states == state).double().mean() * (p.diag() - p.outer(p))
        return dense

    def evaluate(self, step):
        moved = self.theta + step.reshape(self.theta.shape)
        return self.surrogate(moved).item(), self.kl(moved).item()


def test_the_gradient_of_the_surrogate_matches_the_vectors(trpo_tabular_vector, close):
    policy, expected = Tabular(trpo_tabular_vector["inputs"]), trpo_tabular_vector["expected"]
    theta = policy.theta.clone().requires_grad_()
    surrogate = policy.surrogate(theta)
    close(surrogate, expected["surrogate_at_start"])
    close(torch.autograd.grad(surrogate, theta)[0].flatten(), expected["gradient"])


def test_fisher_vector_product_is_the_dense_one(trpo_tabular_vector, close):
    policy = Tabular(trpo_tabular_vector["inputs"])
    theta, unused = policy.theta.clone().requires_grad_(), torch.zeros(2, dtype=torch.float64, requires_grad=True)
    size = theta.numel()
    dense = policy.fisher() - policy.damping * torch.eye(size, dtype=torch.float64)
    kept = kl_gradient(policy.kl(theta, old=theta.detach()), [theta, unused])
    for basis in torch.eye(size + 2, dtype=torch.float64):
        gradient = kl_gradient(policy.kl(theta, old=theta.detach()), [theta, unused])
        product = fisher_vector_product(gradient, [theta, unused], basis)
        close(fisher_vector_product(kept, [theta, unused], basis, keep_graph=True), product)
        close(product[:size], dense @ basis[:size])
        assert (product[size:] == 0).all()


def test_a_divergence_that_no_parameter_reaches_has_no_curvature():
    parameters = [torch.zeros(2, requires_grad=True), torch.zeros(1, requires_grad=True)]
    kl = (torch.ones(1, requires_grad=True) * 0).sum()
    assert fisher_vector_product(kl_gradient(kl, parameters), parameters, torch.ones(3)).tolist() == [0.0, 0.0, 0.0]
    linear = parameters[0].sum()  # a gradient, but a constant one
    assert fisher_vector_product(kl_gradient(linear, parameters), parameters, torch.ones(3)).tolist() == [0.0, 0.0, 0.0]


def test_natural_direction_and_full_step_match_the_vectors(trpo_tabular_vector, close):
    inputs, expected = trpo_tabular_vector["inputs"], trpo_tabular_vector["expected"]
    dense, gradient = Tabular(inputs).fisher(), expected["gradient"]
    direction = conjugate_gradient(lambda v: dense @ v, gradient, iterations=50, tolerance=1e-30)
    close(direction, torch.linalg.solve(dense, gradient))
    close(direction, expected["natural_direction"])
    step = natural_step(direction, dense @ direction, inputs["max_kl"])
    close(step, expected["full_step"])
    # The quadratic model of the KL is at its bound there.
    close(step @ dense @ step / 2, inputs["max_kl"])


def test_line_search_matches_the_vectors(trpo_tabular_vector, close):
    inputs, expected = trpo_tabular_vector["inputs"], trpo_tabular_vector["expected"]
    policy, settings = Tabular(inputs), [inputs[key] for key in ("max_kl", "backtrack", "max_backtracks")]
    found = line_search(policy.evaluate, expected["full_step"], *settings)
    assert len(found.trials) == len(expected["line_search"])
    for trial, known in zip(found.trials, expected["line_search"], strict=True):
        close([trial.fraction, trial.kl, trial.surrogate], [known[key] for key in ("fraction", "kl", "surrogate")])
    if expected["accepted"] is None:
        assert found.step is None
        close(policy.theta, expected["theta"])
    else:
        assert len(found.trials) == expected["accepted"] + 1
        close(policy.theta + found.step.reshape(policy.theta.shape), expected["theta"])


def test_the_whole_step_from_products_alone(trpo_tabular_vector, close):
    inputs, expected = trpo_tabular_vector["inputs"], trpo_tabular_vector["expected"]
    policy = Tabular(inputs)
    theta = policy.theta.clone().requires_grad_()
    gradient = torch.autograd.grad(policy.surrogate(theta), theta)[0].flatten()

    def product(v):
        gradient = kl_gradient(policy.kl(theta, old=theta.detach()), [theta])
        return fisher_vector_product(gradient, [theta], v) + policy.damping * v

    direction = conjugate_gradient(product, gradient, iterations=50, tolerance=1e-30)
    step = natural_step(direction, product(direction), inputs["max_kl"])
    found = line_search(policy.evaluate, step, inputs["max_kl"], inputs["backtrack"], inputs["max_backtracks"])
    moved = torch.zeros_like(step) if found.step is None else found.step
    close(policy.theta + moved.reshape(theta.shape), expected["theta"])


def test_conjugate_gradient_needs_one_step_per_distinct_eigenvalue(close):
    # Eigenvalues 1, 1, 4: two steps are exact, one is not.
    matrix, b = torch.tensor([1.0, 1.0, 4.0], dtype=torch.float64), torch.tensor([1.0, -2.0, 8.0], dtype=torch.float64)
    close(conjugate_gradient(lambda v: matrix * v, b, iterations=2), [1.0, -2.0, 2.0])
    # From x = 0 the first step is ‖b‖²/bᵀHb = 69/261 along b.
    close(conjugate_gradient(lambda v: matrix * v, b, iterations=1), 69 / 261 * b)


def test_conjugate_gradient_stops_when_the_rest_is_small():
    calls = []

    def product(v):
        calls.append(v)
        return v * torch.tensor([1.0, 2.0])

    conjugate_gradient(product, torch.tensor([1.0, 1e-8]), iterations=10, tolerance=1e-6)
    assert len(calls) == 1


def test_without_a_gradient_nothing_moves():
    zero = torch.zeros(3)
    assert conjugate_gradient(lambda v: v, zero).tolist() == [0.0, 0.0, 0.0]
    assert natural_step(zero, zero, 0.01).tolist() == [0.0, 0.0, 0.0]
    found = line_search(lambda step: (1.0, 0.0), zero, 0.01, max_backtracks=3)
    assert found.step is None  # the surrogate has to improve, not merely stay
    assert len(found.trials) == 3


@pytest.mark.parametrize("factor", [0.0, -1.0, NAN])
def test_without_curvature_there_is_no_step(factor):
    b = torch.tensor([1.0, 2.0])
    assert conjugate_gradient(lambda v: factor * v, b).tolist() == [0.0, 0.0]
    assert natural_step(b, factor * b, 0.01).tolist() == [0.0, 0.0]


@pytest.mark.parametrize(("surrogate", "kl"), [(NAN, 0.0), (2.0, NAN), (2.0, math.inf), (-math.inf, 0.0)])
def test_a_step_into_nothing_is_not_taken(surrogate, kl):
    found = line_search(lambda step: (surrogate, kl) if step.any() else (1.0, 0.0), torch.ones(2), 0.01)
    assert found.step is None
    assert [trial.fraction for trial in found.trials] == pytest.approx([0.8**j for j in range(10)])


def test_a_surrogate_that_is_nan_before_the_step_allows_none():
    assert line_search(lambda step: (2.0, 0.0) if step.any() else (NAN, 0.0), torch.ones(2), 0.01).step is None


def test_the_first_step_within_both_bounds_is_taken():
    # KL = s², surrogate = s·(3 − s): 4 and 2 are too far, 1 is within δ = 1 and improves on 0.
    found = line_search(lambda step: (float(step * (3 - step)), float(step**2)), torch.tensor(4.0), 1.0, backtrack=0.5)
    assert found.step == 1.0
    assert [(trial.kl, trial.surrogate) for trial in found.trials] == [(16.0, -4.0), (4.0, 2.0), (1.0, 2.0)]


def test_flat_and_back():
    tensors = [torch.arange(6.0).reshape(2, 3), torch.tensor(6.0), torch.tensor([7.0, 8.0])]
    assert flatten(tensors).tolist() == list(range(9))
    back = unflatten(torch.arange(9.0), tensors)
    assert [x.shape for x in back] == [x.shape for x in tensors]
    assert all(torch.equal(x, y) for x, y in zip(back, tensors, strict=True))
