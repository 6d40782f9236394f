import math
import statistics

import pytest
import torch

from hfrlhf.core.reward_shaping import RunningMoments, clip_scores, missing_eos, token_rewards


def test_token_rewards_match_the_vectors(token_rewards_vector, close):
    inputs, expected = token_rewards_vector["inputs"], token_rewards_vector["expected"]
    rewards = token_rewards(inputs["scores"], expected["kl"], inputs["kl_coef"], inputs["action_mask"])
    close(rewards, expected["token_rewards"])


def test_token_rewards_by_hand():
    # β = ½. Row 0: −½·(1, 2), the score 10 on its second token. Row 1: one token. Row 2: none, so no reward at all.
    kl = torch.tensor([[1.0, 2.0, math.nan], [4.0, math.nan, math.nan], [math.nan] * 3])
    mask = torch.tensor([[True, True, False], [True, False, False], [False] * 3])
    rewards = token_rewards(torch.tensor([10.0, 20.0, 30.0]), kl, 0.5, mask)
    assert rewards.tolist() == [[-0.5, 9.0, 0.0], [18.0, 0.0, 0.0], [0.0, 0.0, 0.0]]


def test_token_rewards_do_not_depend_on_the_side_of_the_padding():
    kl, mask = torch.tensor([[0.0, 1.0, 2.0]] * 2), torch.tensor([[False, True, True], [False, False, True]])
    assert token_rewards(torch.tensor([10.0, 20.0]), kl, 0.5, mask).tolist() == [[0.0, -0.5, 9.0], [0.0, 0.0, 19.0]]


def test_the_sum_of_rewards_is_the_regularised_score():
    generator = torch.Generator().manual_seed(0)
    kl, scores = torch.randn(4, 6, generator=generator), torch.randn(4, generator=generator)
    mask = torch.arange(6) < torch.tensor([[6], [1], [3], [5]])
    regularised = [
        score - 0.1 * sum(row[:n]) for score, row, n in zip(scores.tolist(), kl.tolist(), [6, 1, 3, 5], strict=True)
    ]
    assert token_rewards(scores, kl, 0.1, mask).sum(1).tolist() == pytest.approx(regularised, abs=1e-6)


def test_token_rewards_keep_the_dtype_of_the_kl():
    mask = torch.ones(1, 2, dtype=torch.bool)
    for dtype in (torch.float32, torch.float64):
        assert token_rewards(torch.ones(1, dtype=dtype), torch.ones(1, 2, dtype=dtype), 0.1, mask).dtype == dtype


def test_a_missing_stop_token_costs_the_penalty():
    scores = missing_eos(torch.tensor([2.0, 2.0, -1.0]), torch.tensor([True, False, False]), 1.5)
    assert scores.tolist() == [2.0, 0.5, -2.5]
    with pytest.raises(ValueError, match="at least 0, got -1"):
        missing_eos(torch.zeros(1), torch.tensor([True]), -1.0)


def test_scores_are_clipped_on_both_sides():
    assert clip_scores(torch.tensor([-7.0, 0.5, 9.0]), 5.0).tolist() == [-5.0, 0.5, 5.0]
    with pytest.raises(ValueError, match="reward_clip must be positive, got 0"):
        clip_scores(torch.zeros(1), 0)


def test_running_moments_are_those_of_all_scores():
    scores = [3.0, -1.5, 1000.25, 7.0, 7.0, 2.0, -44.0]
    moments = RunningMoments()
    for part in (scores[:1], scores[1:4], [], scores[4:]):
        moments.update(torch.tensor(part))
    assert moments.count == 7
    assert moments.mean == pytest.approx(statistics.fmean(scores), rel=1e-12)
    assert moments.std == pytest.approx(statistics.pstdev(scores), rel=1e-12)


def test_running_moments_are_precise_far_from_zero():
    # A sum of squares would lose the unit spread beside 10¹⁶.
    moments = RunningMoments()
    for low in (0.0, 2.0):
        moments.update(torch.tensor([1e8 + low, 1e8 + low + 1], dtype=torch.float64))
    assert moments.std == pytest.approx(math.sqrt(1.25))


def test_running_moments_before_and_after_the_first_score():
    moments = RunningMoments()
    assert (moments.mean, moments.std) == (0.0, 0.0)
    moments.update(torch.tensor([4.0]))
    assert (moments.mean, moments.std) == (4.0, 0.0)
    assert moments.normalize(torch.tensor([4.0])).tolist() == [0.0]


def test_normalize_by_hand():
    # Scores 1 and 5: mean 3, standard deviation 2.
    moments = RunningMoments()
    moments.update(torch.tensor([1.0, 5.0]))
    assert moments.normalize(torch.tensor([1.0, 5.0, 9.0])).tolist() == pytest.approx([-1.0, 1.0, 3.0])


def test_running_moments_continue_from_a_checkpoint():
    parts = [torch.tensor([0.1, 0.7]), torch.tensor([2.3]), torch.tensor([-5.5, 0.2, 0.3])]
    whole, first, second = RunningMoments(), RunningMoments(), RunningMoments()
    for part in parts:
        whole.update(part)
    first.update(parts[0])
    second.load_state_dict(first.state_dict())
    for part in parts[1:]:
        second.update(part)
    assert (second.mean, second.std) == (whole.mean, whole.std)
    assert all(type(value) is float for value in first.state_dict().values())
