import math

import pytest
import torch

from hfrlhf.core.preference_losses import pairwise_accuracy, pairwise_loss


def test_loss_and_accuracy_match_the_vectors(reward_pairwise_loss_vector, close):
    inputs, expected = reward_pairwise_loss_vector["inputs"], reward_pairwise_loss_vector["expected"]
    loss = pairwise_loss(**inputs)
    close(loss, expected["per_pair"])
    close(loss.mean(), expected["mean"])
    close(pairwise_accuracy(inputs["chosen"], inputs["rejected"]), expected["accuracy"])


def test_by_hand():
    # σ(ln 3) = ¾ and σ(−ln 3) = ¼.
    chosen, rejected = torch.tensor([math.log(3.0)]), torch.zeros(1)
    assert pairwise_loss(chosen, rejected).item() == pytest.approx(math.log(4 / 3))
    # A margin of ln 3 leaves Δ = 0, σ = ½.
    assert pairwise_loss(chosen, rejected, margin=chosen).item() == pytest.approx(math.log(2))
    # One label in ten assumed wrong: 0.9·ln(4/3) + 0.1·ln 4.
    smoothed = pairwise_loss(chosen, rejected, label_smoothing=0.1).item()
    assert smoothed == pytest.approx(0.9 * math.log(4 / 3) + 0.1 * math.log(4))
    # Centring: 0.5·(ln 3 + 0)² on top.
    centred = pairwise_loss(chosen, rejected, center_coef=0.5).item()
    assert centred == pytest.approx(math.log(4 / 3) + 0.5 * math.log(3) ** 2)


def test_the_gradient_pushes_the_scores_apart():
    # ∂/∂Δ of −log σ(Δ) is −σ(−Δ): −¼ at Δ = ln 3.
    chosen, rejected = torch.tensor([math.log(3.0)], requires_grad=True), torch.zeros(1, requires_grad=True)
    pairwise_loss(chosen, rejected).sum().backward()
    assert chosen.grad.item() == pytest.approx(-0.25)
    assert rejected.grad.item() == pytest.approx(0.25)


def test_extreme_scores_do_not_overflow():
    chosen = torch.tensor([-1e4, 1e4], requires_grad=True)
    loss = pairwise_loss(chosen, torch.zeros(2), label_smoothing=0.1)
    loss.sum().backward()
    assert loss.tolist() == pytest.approx([9e3, 1e3])
    assert chosen.grad.tolist() == pytest.approx([-0.9, 0.1])


def test_ties_count_one_half():
    assert pairwise_accuracy(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.0, 2.0, 4.0])) == 0.5
    assert pairwise_accuracy(torch.zeros(0), torch.zeros(0)) == 0


def test_dtypes():
    for dtype, out in [(torch.float32,) * 2, (torch.float64,) * 2, (torch.bfloat16, torch.float32)]:
        x = torch.ones(2, dtype=dtype)
        assert pairwise_loss(x, x, margin=x, center_coef=0.1).dtype == out
        assert pairwise_accuracy(x, x).dtype == out


def test_nonsensical_options_are_refused():
    for smoothing in (-0.1, 0.5):
        with pytest.raises(ValueError, match=f"in \\[0, 0.5\\), got {smoothing}"):
            pairwise_loss(torch.zeros(1), torch.zeros(1), label_smoothing=smoothing)
    with pytest.raises(ValueError, match="center_rewards_coefficient must be at least 0"):
        pairwise_loss(torch.zeros(1), torch.zeros(1), center_coef=-1.0)
