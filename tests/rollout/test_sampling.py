"""Drawing a token: exact masses, the edges of the unit interval, tokens that cannot come, rounding in the logits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hfrlhf.rollout.sampling import draw

ALMOST_1 = 1 - 2.0**-53  # the largest number there is to draw; exactly 1 where it is rounded to float32


def logits_with(vocabulary: int, rows: int = 1, seed: int = 0, scale: float = 2.0) -> Tensor:
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed)) * scale


@pytest.mark.parametrize("vocabulary", [1, 2, 3, 7, 16, 41])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_every_token_gets_its_share_of_the_unit_square(vocabulary: int, temperature: float) -> None:
    logits = logits_with(vocabulary)
    side = 300
    middles = (torch.arange(side, dtype=torch.float64) + 0.5) / side
    square = torch.cartesian_prod(middles, middles)
    tokens, logprobs = draw(logits.expand(side**2, -1), square, temperature)
    exact = (logits[0].double() / temperature).softmax(-1)
    shares = torch.bincount(tokens, minlength=vocabulary) / side**2
    # Each token is a rectangle: its sides are right to one line of the grid.
    assert (shares - exact).abs().max() <= 2 / side
    torch.testing.assert_close(logprobs.double(), exact.log()[tokens], atol=1e-6, rtol=1e-6)
    assert logprobs.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("edge", ["begin", "end"])
def test_a_token_without_probability_never_comes(dtype: torch.dtype, edge: str) -> None:
    # Allowed are the tokens 5 … 8 of 13: the blocks at both ends hold none of them, or not at their own ends.
    rows = 500
    logits = logits_with(13, rows)
    logits[:, :5] = logits[:, 9:] = -torch.inf
    number = 0.0 if edge == "begin" else ALMOST_1
    numbers = torch.full((rows, 2), number, dtype=torch.float64).to(dtype)
    tokens, logprobs = draw(logits, numbers, 1.0)
    assert set(tokens.tolist()) == ({5} if edge == "begin" else {8})
    assert logprobs.isfinite().all()


def test_a_small_change_of_the_logits_hardly_ever_changes_the_token() -> None:
    # Rounding moves every logit of a large vocabulary a little. One CDF over all of it has V steps to fall over.
    rows, vocabulary = 500, 4096
    logits = logits_with(vocabulary, rows)
    moved = logits + logits_with(vocabulary, rows, seed=1, scale=1e-5)
    ours = flat = 0
    for seed in range(40):
        numbers = torch.rand(rows, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        ours += int((draw(logits, numbers, 1.0)[0] != draw(moved, numbers, 1.0)[0]).sum())
        flat += int((one_cdf(logits, numbers) != one_cdf(moved, numbers)).sum())
    assert flat > 10
    assert ours < flat / 5


def one_cdf(logits: Tensor, numbers: Tensor) -> Tensor:
    return torch.searchsorted(logits.double().softmax(-1).cumsum(-1), numbers[:, :1].contiguous(), right=True).squeeze(
        1
    )


def test_temperature_0_takes_the_most_probable_token_with_its_log_prob_at_temperature_1() -> None:
    logits = logits_with(41, rows=20)
    tokens, logprobs = draw(logits, torch.full((20, 2), 0.99), 0.0)
    assert torch.equal(tokens, logits.argmax(-1))
    torch.testing.assert_close(logprobs, logits.log_softmax(-1).max(-1).values, atol=1e-6, rtol=0)


def test_16_bit_logits_are_drawn_from_in_32() -> None:
    logits = logits_with(41, rows=20).bfloat16()
    numbers = torch.rand(20, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    tokens, logprobs = draw(logits, numbers, 0.7)
    expected = draw(logits.float(), numbers, 0.7)
    assert torch.equal(tokens, expected[0])
    assert torch.equal(logprobs, expected[1])
    assert logprobs.dtype == torch.float32


def test_logits_that_are_no_numbers_give_no_token_outside_the_vocabulary() -> None:
    tokens, logprobs = draw(torch.full((2, 41), torch.nan), torch.full((2, 2), 0.5), 1.0)
    assert tokens.max() < 41
    assert logprobs.isnan().all()  # which the decode loop refuses
