import itertools

import pytest
import torch

from hfrlhf.core.baselines import constant, group_normalised, leave_one_out, minimal_variance, time_dependent
from hfrlhf.core.returns import reward_to_go, total_return


def test_baselines_match_the_vectors(returns_and_advantages_vector, close):
    inputs, expected = returns_and_advantages_vector["inputs"], returns_and_advantages_vector["expected"]
    close(constant(expected["whole_return"]), expected["baseline_constant"])
    close(
        minimal_variance(expected["whole_return"], inputs["score_grad_sq_norms"]), expected["baseline_minimal_variance"]
    )
    close(time_dependent(expected["reward_to_go"], inputs["action_mask"]), expected["baseline_time"])


def test_group_baselines_match_the_vectors(group_baselines_vector, close):
    total, size = group_baselines_vector["inputs"]["rewards"], group_baselines_vector["inputs"]["group_size"]
    close(total - leave_one_out(total, size), group_baselines_vector["expected"]["rloo"])
    close(group_normalised(total, size), group_baselines_vector["expected"]["grpo"])


def test_by_hand():
    total = torch.tensor([1.0, 3.0, 8.0, 0.0])
    assert constant(total) == 3.0
    # (1·1 + 3·3 + 8·0 + 0·1) / 5 = 2.
    assert minimal_variance(total, torch.tensor([1.0, 3.0, 0.0, 1.0])) == 2.0
    # Groups (1, 3) and (8, 0): each is measured against the other.
    assert leave_one_out(total, 2).tolist() == [3.0, 1.0, 0.0, 8.0]
    # Of all four: the mean of the other three is (12 − R)/3.
    assert leave_one_out(total, 4).tolist() == pytest.approx([11 / 3, 3.0, 4 / 3, 4.0])
    # Group (8, 0): mean 4, sample standard deviation √32.
    assert group_normalised(total, 2)[2:].tolist() == pytest.approx([4 / (32**0.5 + 1e-4), -4 / (32**0.5 + 1e-4)])


def test_time_dependent_by_hand():
    to_go = torch.tensor([[3.0, 2.0, 1.0, float("nan")], [5.0, 6.0, float("nan"), float("nan")]])
    mask = torch.tensor([[True, True, True, False], [True, True, False, False]])
    assert time_dependent(to_go, mask).tolist() == [4.0, 4.0, 1.0, 0.0]


def test_without_its_own_episode_by_hand():
    total = torch.tensor([1.0, 3.0, 8.0, 0.0])
    assert constant(total, exclude_self=True).tolist() == pytest.approx([11 / 3, 3.0, 4 / 3, 4.0])
    # Weights 1, 3, 0, 1; Σ w·R = 10, Σ w = 5: 9/4, 1/2, 10/5, 10/4.
    norms = torch.tensor([1.0, 3.0, 0.0, 1.0])
    assert minimal_variance(total, norms, exclude_self=True).tolist() == [2.25, 0.5, 2.0, 2.5]
    # Three, two and one running: (6 + 8)/2, (3 + 8)/2, (3 + 6)/2; then each other's; then nobody else.
    nan = float("nan")
    to_go = torch.tensor([[3.0, 2.0, 1.0], [6.0, 5.0, nan], [8.0, nan, nan]])
    mask = torch.tensor([[True, True, True], [True, True, False], [True, False, False]])
    baseline = time_dependent(to_go, mask, exclude_self=True)
    assert baseline[mask].tolist() == [7.0, 5.0, 0.0, 5.5, 2.0, 4.5]
    assert baseline.isfinite().all()


def test_alone_in_a_batch_there_is_no_baseline():
    one, running = torch.tensor([2.0]), torch.ones(1, 2, dtype=torch.bool)
    assert constant(one, exclude_self=True).tolist() == [0.0]
    assert minimal_variance(one, torch.tensor([3.0]), exclude_self=True).tolist() == [0.0]
    assert time_dependent(torch.ones(1, 2), running, exclude_self=True).tolist() == [[0.0, 0.0]]


def test_degenerate_batches_give_zero_and_not_nan():
    assert constant(torch.zeros(0)) == 0
    assert minimal_variance(torch.tensor([1.0, 2.0]), torch.zeros(2)) == 0
    assert group_normalised(torch.full((4,), 0.1), 4).abs().max() < 1e-3


def test_minimal_variance_is_minimal():
    # The variance of g·(R − b) around its mean, Σ g²·(R − b)² up to a constant, is least at b.
    generator = torch.Generator().manual_seed(0)
    total, norms = torch.randn(20, generator=generator), torch.rand(20, generator=generator)
    best = minimal_variance(total, norms).item()
    spread = [sum(g * (r - best - step) ** 2 for g, r in zip(norms, total, strict=True)) for step in (-0.1, 0.0, 0.1)]
    assert spread[1] < spread[0]
    assert spread[1] < spread[2]


def test_leave_one_out_is_unbiased_and_the_constant_shrinks(close):
    # A bandit with three arms and batches of two: the expected Σ_i ∇log p(a_i)·Ψ_i / 2 over the nine batches. The
    # exact gradient of E[R] is p_v·(r_v − E[R]).
    p, r = [0.5, 0.3, 0.2], [1.0, -2.0, 4.0]
    mean = sum(a * b for a, b in zip(p, r, strict=True))
    exact = torch.tensor([a * (b - mean) for a, b in zip(p, r, strict=True)], dtype=torch.float64)
    probabilities, eye = torch.tensor(p, dtype=torch.float64), torch.eye(3, dtype=torch.float64)
    loo, shrunk = torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    for first, second in itertools.product(range(3), repeat=2):
        total = torch.tensor([r[first], r[second]], dtype=torch.float64)
        gradients = eye[[first, second]] - probabilities
        weight = p[first] * p[second] / 2
        loo += weight * ((total - leave_one_out(total, 2))[:, None] * gradients).sum(0)
        shrunk += weight * ((total - constant(total))[:, None] * gradients).sum(0)
    close(loo, exact)
    close(shrunk, exact / 2)


@pytest.mark.parametrize("norms", [torch.tensor([1.0, 3.0, 0.5]), torch.ones(3), torch.tensor([1.0, 0.0, 0.0])])
def test_minimal_variance_of_others_weighs_only_others(norms, close):
    # Whatever an episode's own return is, its baseline stays.
    total = torch.tensor([2.0, -1.0, 5.0])
    for i in range(3):
        changed = total + 100 * torch.eye(3)[i]
        close(minimal_variance(changed, norms, True)[i], minimal_variance(total, norms, True)[i], atol=2e-5)


def test_a_baseline_of_the_return_is_one_of_the_first_step():
    rewards, mask = torch.tensor([[1.0, 2.0], [3.0, 5.0]]), torch.ones(2, 2, dtype=torch.bool)
    assert time_dependent(reward_to_go(rewards, mask, 0.9), mask)[0] == constant(total_return(rewards, mask, 0.9))


@pytest.mark.parametrize("function", [leave_one_out, group_normalised])
def test_groups_must_compare_and_fill_the_batch(function):
    with pytest.raises(ValueError, match="num_generations=1; use at least 2"):
        function(torch.zeros(4), 1)
    with pytest.raises(ValueError, match="5 responses don't form groups of num_generations=2"):
        function(torch.zeros(5), 2)


def test_dtypes():
    for dtype in (torch.float32, torch.float64):
        total = torch.ones(4, dtype=dtype)
        results = [constant(total), minimal_variance(total, total), leave_one_out(total, 2), group_normalised(total, 2)]
        results += [constant(total, True), minimal_variance(total, total, True)]
        results += [time_dependent(total[:, None], torch.ones(4, 1), exclude_self=True)]
        assert {result.dtype for result in results} == {dtype}
