import math

import pytest
import torch

from hfrlhf.core.masking import at_least_float32, masked, masked_mean, masked_sum, masked_whiten

NAN = math.nan


def test_only_valid_positions_count():
    x = torch.tensor([[1.0, 2.0, NAN], [6.0, math.inf, NAN]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert masked_sum(x, mask) == 9.0
    assert masked_mean(x, mask) == 3.0
    assert masked_mean(x, mask, dim=1).tolist() == [1.5, 6.0]
    assert masked_sum(x, mask, dim=0).tolist() == [7.0, 2.0, 0.0]
    assert masked(x, mask).tolist() == [[1.0, 2.0, 0.0], [6.0, 0.0, 0.0]]


def test_nothing_valid_gives_zero():
    x, mask = torch.full((2, 3), NAN), torch.tensor([[False] * 3, [True, False, False]])
    x[1, 0] = 5.0
    assert masked_mean(x, mask, dim=1).tolist() == [0.0, 5.0]
    assert masked_mean(x[:1], mask[:1]) == 0.0
    assert masked_whiten(x[:1], mask[:1]).tolist() == [[0.0, 0.0, 0.0]]


def test_the_gradient_at_padding_is_zero_even_for_nan():
    x = torch.tensor([1.0, NAN, 3.0], requires_grad=True)
    masked_mean(x, torch.tensor([True, False, True])).backward()
    assert x.grad.tolist() == [0.5, 0.0, 0.5]


def test_the_mask_may_be_smaller_or_of_numbers():
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert masked_mean(x, torch.tensor([[1], [0]])) == 1.5
    assert masked_sum(torch.tensor([1.0, 2.0]), torch.tensor([[True, False], [True, True]])) == 4.0


def test_whiten_by_hand():
    # Valid: 1 and 5; mean 3, population variance ((−2)² + 2²)/2 = 4, so ±2/2 (the 1e-8 is lost in float32).
    x, mask = torch.tensor([1.0, NAN, 5.0]), torch.tensor([True, False, True])
    assert masked_whiten(x, mask).tolist() == [-1.0, 0.0, 1.0]
    assert masked_whiten(x, mask, shift_mean=False).tolist() == [2.0, 0.0, 4.0]


def test_whitening_matches_the_vectors(returns_and_advantages_vector, close):
    case = returns_and_advantages_vector
    whitened = masked_whiten(case["expected"]["gae"], case["inputs"]["action_mask"])
    close(whitened, case["expected"]["whitened_gae_population_variance"])


def test_one_element_whitens_to_zero():
    x, mask = torch.tensor([[7.3, 1.0]]), torch.tensor([[True, False]])
    assert masked_whiten(x, mask).tolist() == [[0.0, 0.0]]
    assert masked_whiten(x, mask, shift_mean=False)[0].tolist() == [pytest.approx(7.3), 0.0]


@pytest.mark.parametrize("score", [0.1, 3.7, -1234.5])
def test_a_constant_whitens_to_zero(score):
    # 0.1 has no exact mean over 777 float32 copies; divided by √1e-8 the rounding error would be visible.
    whitened = masked_whiten(torch.full((7, 111), score), torch.ones(7, 111, dtype=torch.bool))
    assert whitened.abs().max() < 1e-7


def test_whitening_ignores_padding_and_order():
    x = torch.tensor([[1.0, 2.5, -3.0], [0.5, 9.0, 9.0]], dtype=torch.float64)
    mask = torch.tensor([[True, True, True], [True, False, False]])
    wide, wide_mask = torch.full((2, 6), NAN, dtype=torch.float64), torch.zeros(2, 6, dtype=torch.bool)
    wide[:, 2:5], wide_mask[:, 2:5] = x.flip(0), mask.flip(0)
    torch.testing.assert_close(masked_whiten(wide, wide_mask)[:, 2:5].flip(0), masked_whiten(x, mask))


@pytest.mark.parametrize("function", [masked_sum, masked_mean, masked_whiten])
def test_dtypes(function):
    mask = torch.tensor([True, True, False])
    for dtype in (torch.float32, torch.float64):
        assert function(torch.ones(3, dtype=dtype), mask).dtype == dtype
    # bfloat16 holds integers up to 256 only; a sum of 1,000 ones must not stop there.
    assert function(torch.ones(3, dtype=torch.bfloat16), mask).dtype == torch.float32
    assert masked_sum(torch.ones(1000, dtype=torch.bfloat16), torch.ones(1000, dtype=torch.bool)) == 1000


def test_a_share_is_the_mean_of_a_bool():
    is_clipped = torch.tensor([True, False, True, True])
    assert masked_mean(is_clipped, torch.tensor([True, True, True, False])) == pytest.approx(2 / 3)
    assert at_least_float32(is_clipped).dtype == torch.float32
