import numpy as np
import pytest
import torch

from hfrlhf.core.randomness import permutation, uniforms


def test_a_row_does_not_depend_on_its_batch():
    together = uniforms((7, 3), torch.tensor([5, 0, 12, 9]), 6)
    alone = uniforms((7, 3), torch.tensor([12]), 6)
    reordered = uniforms((7, 3), torch.tensor([9, 12]), 6)
    assert torch.equal(together[2:3], alone)
    assert torch.equal(together[[3, 2]], reordered)


def test_a_longer_row_only_appends():
    rows = torch.tensor([1, 2])
    assert torch.equal(uniforms((0,), rows, 100)[:, :17], uniforms((0,), rows, 17))


@pytest.mark.parametrize(
    ("first", "second"),
    [((1,), (2,)), ((1,), (1, 0)), ((0,), (0, 0)), ((2**32,), (0, 1)), ((1, 2), (2, 1)), ((2**40,), (2**41,))],
)
def test_addresses_that_look_alike_are_apart(first, second):
    # numpy's SeedSequence alone takes several of these pairs for one seed.
    rows = torch.tensor([0])
    assert not torch.equal(uniforms(first, rows, 4), uniforms(second, rows, 4))
    assert not torch.equal(permutation(50, first), permutation(50, second))


def test_a_row_is_not_the_row_of_a_longer_address():
    # (1, row 2) and (1, 2) with row 0 are different places.
    assert not torch.equal(uniforms((1,), torch.tensor([2]), 4), uniforms((1, 2), torch.tensor([0]), 4))


def test_the_distribution_is_uniform():
    u = uniforms((0, 1), torch.arange(512), 128)
    n = u.numel()
    assert u.dtype == torch.float64
    assert u.shape == (512, 128)
    assert u.min() >= 0
    assert u.max() < 1
    # Mean ½ and variance 1/12, each within five standard errors; 16 bins by χ² with 15 degrees of freedom.
    assert abs(u.mean() - 0.5) < 5 * (1 / 12 / n) ** 0.5
    assert abs(u.var() - 1 / 12) < 5 * (1 / 180 / n) ** 0.5
    counts = torch.histc(u, 16, 0, 1)
    assert ((counts - n / 16) ** 2 / (n / 16)).sum() < 45
    assert len(torch.unique(u)) == n


def test_neighbouring_rows_and_steps_are_uncorrelated():
    u = uniforms((0, 1), torch.arange(512), 128) - 0.5
    bound = 5 / u.numel() ** 0.5
    assert abs((u[1:] * u[:-1]).mean() * 12) < bound
    assert abs((u[:, 1:] * u[:, :-1]).mean() * 12) < bound


def test_numbers_are_those_of_numpys_philox():
    # The words of the address (3,) with row 4: purpose 1, two numbers, low and high half of each.
    numpy_generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([1, 2, 3, 0, 4, 0])))
    assert uniforms((3,), torch.tensor([4]), 8)[0].tolist() == numpy_generator.random(8).tolist()


def test_permutation_is_a_permutation_that_depends_on_its_address():
    order = permutation(100, (1, 2))
    assert order.dtype == torch.int64
    assert sorted(order.tolist()) == list(range(100))
    assert torch.equal(order, permutation(100, (1, 2)))
    assert not torch.equal(order, permutation(100, (1, 3)))
    assert permutation(1, (0,)).tolist() == [0]
    assert permutation(0, (0,)).tolist() == []


def test_all_orders_are_equally_likely():
    orders = [tuple(permutation(3, (seed,)).tolist()) for seed in range(1200)]
    counts = [orders.count(order) for order in set(orders)]
    # Six orders, 200 each on average with standard deviation √(1200·1/6·5/6) = 12.9.
    assert len(counts) == 6
    assert all(135 < count < 265 for count in counts)


def test_the_global_generators_are_left_alone():
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    uniforms((0,), torch.arange(3), 5), permutation(9, (0,))
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()


def test_nothing_asked_for():
    assert uniforms((0,), torch.arange(0), 3).shape == (0, 3)
    assert uniforms((0,), torch.arange(2), 0).shape == (2, 0)


def test_negative_numbers_are_refused():
    with pytest.raises(ValueError, match=r"address \(1, -2\).*use integers from 0 on"):
        permutation(3, (1, -2))
    with pytest.raises(ValueError, match="negative number"):
        uniforms((1,), torch.tensor([-1]), 3)
    with pytest.raises(ValueError, match="at least 0, got -3"):
        permutation(-3, (1,))
