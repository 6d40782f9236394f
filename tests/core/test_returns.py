import math

import pytest
import torch

from hfrlhf.core.returns import discounted_sum, n_step_return, reward_to_go, shifted, total_return

NAN = math.nan
# Row 0: three tokens with rewards 1, 2, 4; row 1: one token; row 2: none. Whatever stands in the padding is not read.
REWARDS = torch.tensor([[1.0, 2.0, 4.0, NAN], [5.0, NAN, NAN, NAN], [NAN] * 4])
VALUES = torch.tensor([[0.5, 1.0, 2.0, NAN], [3.0, NAN, NAN, NAN], [NAN] * 4])
MASK = torch.tensor([[True, True, True, False], [True, False, False, False], [False] * 4])


def test_returns_match_the_vectors(returns_and_advantages_vector, close):
    inputs, expected = returns_and_advantages_vector["inputs"], returns_and_advantages_vector["expected"]
    rewards, mask, gamma = inputs["rewards"], inputs["action_mask"], inputs["gamma"]
    close(total_return(rewards, mask, gamma), expected["whole_return"])
    close(reward_to_go(rewards, mask, gamma), expected["reward_to_go"])


def test_total_return_by_hand():
    # γ = ½: 1 + 2/2 + 4/4 = 3.
    assert total_return(REWARDS, MASK, 0.5).tolist() == [3.0, 5.0, 0.0]
    assert total_return(REWARDS, MASK, 1.0).tolist() == [7.0, 5.0, 0.0]
    assert total_return(REWARDS, MASK, 0.0).tolist() == [1.0, 5.0, 0.0]


def test_reward_to_go_by_hand():
    # γ = ½, from the end: 4, 2 + 4/2 = 4, 1 + 4/2 = 3.
    assert reward_to_go(REWARDS, MASK, 0.5).tolist() == [[3.0, 4.0, 4.0, 0.0], [5.0, 0.0, 0.0, 0.0], [0.0] * 4]


def test_n_step_return_by_hand():
    # γ = ½, two steps: 1 + 2/2 + 2/4 = 2.5; then 2 + 4/2 + bootstrap 8/4 = 6; then 4 + 8/2 = 8.
    bootstrap = torch.tensor([8.0, 0.0, NAN])
    assert n_step_return(REWARDS, VALUES, MASK, 0.5, 2, bootstrap).tolist() == [
        [2.5, 6.0, 8.0, 0.0],
        [5.0, 0.0, 0.0, 0.0],
        [0.0] * 4,
    ]


def test_n_step_return_with_enough_steps_is_the_reward_to_go():
    torch.testing.assert_close(n_step_return(REWARDS, VALUES, MASK, 0.7, 3), reward_to_go(REWARDS, MASK, 0.7))
    assert not torch.allclose(n_step_return(REWARDS, VALUES, MASK, 0.7, 2), reward_to_go(REWARDS, MASK, 0.7))


def test_n_step_return_needs_a_step():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        n_step_return(REWARDS, VALUES, MASK, 1.0, 0)


def test_shifted_reads_the_next_valid_entry():
    x, mask = torch.tensor([[1.0, NAN, 3.0, 4.0, NAN]]), torch.tensor([[True, False, True, True, False]])
    assert shifted(x, mask).tolist() == [[3.0, 0.0, 4.0, 0.0, 0.0]]
    assert shifted(x, mask, torch.tensor([9.0])).tolist() == [[3.0, 0.0, 4.0, 9.0, 0.0]]


def test_discounted_sum_skips_padding_inside_a_row():
    x, mask = torch.tensor([[1.0, NAN, 4.0]]), torch.tensor([[True, False, True]])
    assert discounted_sum(x, mask, 0.5).tolist() == [[3.0, 0.0, 4.0]]


@pytest.mark.parametrize("function", [total_return, reward_to_go])
def test_padding_its_side_and_the_order_of_rows_change_nothing(function):
    left = torch.full((3, 6), NAN)
    left_mask = torch.zeros(3, 6, dtype=torch.bool)
    for row, n in enumerate([3, 1, 0]):
        left[row, 6 - n :], left_mask[row, 6 - n :] = REWARDS[row, :n], True
    order = torch.tensor([2, 0, 1])
    here, there = function(REWARDS, MASK, 0.9), function(left[order], left_mask[order], 0.9)
    if here.ndim == 1:
        assert there.tolist() == here[order].tolist()
    else:
        assert there[left_mask[order]].tolist() == here[order][MASK[order]].tolist()


def test_no_response_positions_at_all():
    empty, mask = torch.zeros(2, 0), torch.zeros(2, 0, dtype=torch.bool)
    assert total_return(empty, mask, 1.0).tolist() == [0.0, 0.0]
    assert reward_to_go(empty, mask, 1.0).shape == (2, 0)
    assert n_step_return(empty, empty, mask, 1.0, 2).shape == (2, 0)


def test_dtypes():
    for dtype, out in [(torch.float32,) * 2, (torch.float64,) * 2, (torch.bfloat16, torch.float32)]:
        rewards = REWARDS.to(dtype)
        results = [total_return(rewards, MASK, 0.9), reward_to_go(rewards, MASK, 0.9)]
        results.append(n_step_return(rewards, VALUES.to(dtype), MASK, 0.9, 2, torch.zeros(3, dtype=dtype)))
        assert {result.dtype for result in results} == {out}
