import math

import pytest
import torch

from hfrlhf.core.masking import masked_mean
from hfrlhf.core.value_losses import (
    CRITIC_TARGETS,
    clipped_squared_error,
    explained_variance,
    sarsa_target,
    squared_error,
    value_clip_fraction,
)


def test_losses_gradients_and_clip_fraction_match_the_vectors(value_loss_vector, close):
    inputs, expected = value_loss_vector["inputs"], value_loss_vector["expected"]
    values, old_values, returns = (inputs[key] for key in ("values", "old_values", "returns"))
    mask, clip_range = inputs["action_mask"], inputs["cliprange_value"]
    values.requires_grad_()
    loss, share = squared_error(values, returns), torch.tensor(0.0)
    if clip_range is not None:
        loss = clipped_squared_error(values, old_values, returns, clip_range)
        share = masked_mean(value_clip_fraction(values, old_values, returns, clip_range).double(), mask)
    close(masked_mean(loss, mask), expected["value_loss"])
    close(torch.autograd.grad(masked_mean(loss, mask), values)[0], expected["grad"])
    close(share, expected["clip_fraction"])


def test_sarsa_target_matches_the_vectors(q_actor_critic_vector, close):
    inputs, expected = q_actor_critic_vector["inputs"], q_actor_critic_vector["expected"]
    taken = inputs["q_values"].gather(-1, inputs["actions"].long().unsqueeze(-1)).squeeze(-1)
    arguments = inputs["rewards"], taken, inputs["action_mask"], inputs["gamma"]
    close(sarsa_target(*arguments), expected["sarsa_target"])
    # A Q head's target does not look at Ψ.
    close(CRITIC_TARGETS["Q"](torch.full_like(taken, math.nan), *arguments), expected["sarsa_target"])


def test_what_each_critic_is_regressed_on_by_hand():
    # γ = ½. V: Ψ + V. Q: 1 + 4/2, then 2 with nothing after it. Padding holds NaN and gets 0.
    nan = math.nan
    psi, rewards, values = (torch.tensor([[*x, nan]]) for x in ([3.0, -1.0], [1.0, 2.0], [0.5, 4.0]))
    mask = torch.tensor([[True, True, False]])
    assert CRITIC_TARGETS["V"](psi, rewards, values, mask, 0.5).tolist() == [[3.5, 3.0, 0.0]]
    assert CRITIC_TARGETS["Q"](psi, rewards, values, mask, 0.5).tolist() == [[3.0, 2.0, 0.0]]
    assert sarsa_target(rewards, values, mask, 0.5).tolist() == [[3.0, 2.0, 0.0]]


def test_squared_error_by_hand():
    values = torch.tensor([1.0, 3.0], requires_grad=True)
    loss = squared_error(values, torch.tensor([4.0, 1.0]))
    loss.sum().backward()
    assert loss.tolist() == [4.5, 2.0]
    assert values.grad.tolist() == [-3.0, 2.0]


def test_clipping_by_hand():
    # V_old = 0, ε = 1. V = 3, R = 4: held at 1 the error 3² exceeds 1², gradient 0. V = 3, R = 0: 3² exceeds 1², the
    # value itself counts. V = 0.5: inside.
    values = torch.tensor([3.0, 3.0, 0.5], requires_grad=True)
    old_values, returns = torch.zeros(3), torch.tensor([4.0, 0.0, 2.5])
    loss = clipped_squared_error(values, old_values, returns, 1.0)
    loss.sum().backward()
    assert loss.tolist() == [4.5, 4.5, 2.0]
    assert values.grad.tolist() == [0.0, 3.0, -2.0]
    assert value_clip_fraction(values, old_values, returns, 1.0).tolist() == [True, False, False]


def test_the_target_and_the_old_value_get_no_gradient():
    values, old_values, returns = (torch.tensor([0.3, 2.0], requires_grad=True) for _ in range(3))
    (squared_error(values, returns) + clipped_squared_error(values, old_values, returns, 0.2)).sum().backward()
    assert old_values.grad is None
    assert returns.grad is None


def test_explained_variance_by_hand():
    returns, mask = (
        torch.tensor([[1.0, 3.0, math.nan], [5.0, math.nan, math.nan]]),
        torch.tensor([[1, 1, 0], [1, 0, 0]]),
    )
    # Perfect: 1. The mean everywhere: 0. Off by a constant is still perfect. Var(R) = 8/3; errors (0, 0, 4) have
    # variance 16/3 − 16/9 = 32/9: 1 − 32/9·3/8 = −1/3.
    for values, expected in [
        ([[1.0, 3.0, math.nan], [5.0, 7.0, 7.0]], 1.0),
        ([[3.0, 3.0, math.nan], [3.0, 7.0, 7.0]], 0.0),
        ([[2.0, 4.0, math.nan], [6.0, 7.0, 7.0]], 1.0),
        ([[1.0, 3.0, math.nan], [1.0, 7.0, 7.0]], -1 / 3),
    ]:
        assert explained_variance(torch.tensor(values), returns, mask).item() == pytest.approx(expected, abs=1e-6)


def test_returns_that_do_not_vary_explain_nothing():
    mask = torch.ones(2, dtype=torch.bool)
    assert explained_variance(torch.tensor([1.0, 2.0]), torch.tensor([4.0, 4.0]), mask) == 0
    assert explained_variance(torch.tensor([1.0, 2.0]), torch.tensor([4.0, 5.0]), ~mask) == 0


def test_dtypes():
    mask = torch.ones(2, dtype=torch.bool)
    for dtype, out in [(torch.float32,) * 2, (torch.float64,) * 2, (torch.bfloat16, torch.float32)]:
        x = torch.tensor([1.0, 2.0], dtype=dtype)
        results = [
            squared_error(x, x.float().to(out)),
            clipped_squared_error(x, x, x, 0.2),
            explained_variance(x, x, mask),
        ]
        assert {result.dtype for result in results} == {out}


@pytest.mark.parametrize("function", [clipped_squared_error, value_clip_fraction])
def test_a_clip_range_must_be_positive(function):
    with pytest.raises(ValueError, match=r"must be positive \(None switches value clipping off\), got 0"):
        function(torch.zeros(1), torch.zeros(1), torch.zeros(1), 0)
