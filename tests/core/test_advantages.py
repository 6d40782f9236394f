import math

import pytest
import torch

from hfrlhf.core.advantages import PSI, expected_baseline, gae, k_step, td_error
from hfrlhf.core.rows import options_of

NAN = math.nan
# As in test_returns.py: three tokens, one token, none; the padding holds NaN.
REWARDS = torch.tensor([[1.0, 2.0, 4.0, NAN], [5.0, NAN, NAN, NAN], [NAN] * 4])
VALUES = torch.tensor([[0.5, 1.0, 2.0, NAN], [3.0, NAN, NAN, NAN], [NAN] * 4])
MASK = torch.tensor([[True, True, True, False], [True, False, False, False], [False] * 4])


def test_advantages_match_the_vectors(returns_and_advantages_vector, close):
    inputs, expected = returns_and_advantages_vector["inputs"], returns_and_advantages_vector["expected"]
    rewards, values, mask, gamma = (inputs[key] for key in ("rewards", "values", "action_mask", "gamma"))
    close(td_error(rewards, values, mask, gamma), expected["td"])
    for k, advantage in expected["k_step"].items():
        close(k_step(rewards, values, mask, gamma, int(k)), advantage)
    close(gae(rewards, values, mask, gamma, inputs["lam"]), expected["gae"])
    close(gae(rewards, values, mask, gamma, inputs["lam"]) + values, expected["lambda_return"])
    # V(s_{n+1}) counts only where the response was cut off.
    bootstrap = torch.where(inputs["truncated"], inputs["next_values"], 0.0)
    close(gae(rewards, values, mask, gamma, inputs["lam"], bootstrap), expected["gae_bootstrap_truncated"])


def test_rows_with_a_q_head_match_the_vectors(q_actor_critic_vector, close):
    inputs, expected = q_actor_critic_vector["inputs"], q_actor_critic_vector["expected"]
    rewards, mask, q = inputs["rewards"], inputs["action_mask"], inputs["q_values"]
    taken = q.gather(-1, inputs["actions"].long().unsqueeze(-1)).squeeze(-1)
    mean = (inputs["logits"].softmax(-1) * q).sum(-1)
    options = {"gamma": inputs["gamma"], "best_values": q.amax(-1), "expected_values": mean}
    close(PSI["action_value"](rewards, taken, mask, options), expected["q_psi"])
    close(PSI["expected_baseline"](rewards, taken, mask, options), expected["expected_baseline_psi"])
    close(expected_baseline(rewards, q.amax(-1), mean, mask, inputs["gamma"]), expected["expected_baseline_psi"])


def test_td_error_by_hand():
    # γ = ½: 1 + 1/2 − 0.5 = 1; 2 + 2/2 − 1 = 2; 4 + 0 − 2 = 2. With V(s_4) = 6 the last is 4 + 3 − 2 = 5.
    assert td_error(REWARDS, VALUES, MASK, 0.5).tolist() == [[1.0, 2.0, 2.0, 0.0], [2.0, 0.0, 0.0, 0.0], [0.0] * 4]
    assert td_error(REWARDS, VALUES, MASK, 0.5, torch.tensor([6.0, 0.0, 0.0]))[0].tolist() == [1.0, 2.0, 5.0, 0.0]


def test_k_step_by_hand():
    # δ = 1, 2, 2 and γ = ½, two steps: 1 + 2/2 = 2; 2 + 2/2 = 3; 2.
    assert k_step(REWARDS, VALUES, MASK, 0.5, 2)[0].tolist() == [2.0, 3.0, 2.0, 0.0]


def test_gae_by_hand():
    # δ = 1, 2, 2 and γλ = ¼: 2; 2 + 2/4 = 2.5; 1 + 2.5/4 = 1.625.
    assert gae(REWARDS, VALUES, MASK, 0.5, 0.5).tolist() == [[1.625, 2.5, 2.0, 0.0], [2.0, 0.0, 0.0, 0.0], [0.0] * 4]


def _random_episodes(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    rewards, values = (torch.randn(5, 7, generator=generator, dtype=dtype) for _ in range(2))
    lengths = [7, 1, 4, 0, 6]
    return rewards, values, torch.arange(7) < torch.tensor(lengths)[:, None], lengths


def test_gae_at_lambda_one_is_the_reward_to_go_minus_the_value(close):
    rewards, values, mask, lengths = _random_episodes()
    advantages = gae(rewards, values, mask, 0.9, 1.0)
    for row, n in enumerate(lengths):
        for t in range(7):
            to_go = sum(0.9 ** (k - t) * rewards[row, k].item() for k in range(t, n))
            close(advantages[row, t], to_go - values[row, t] if t < n else 0.0)


def test_gae_at_lambda_zero_is_the_td_error(close):
    rewards, values, mask, lengths = _random_episodes()
    advantages = gae(rewards, values, mask, 0.9, 0.0)
    for row, n in enumerate(lengths):
        for t in range(7):
            following = values[row, t + 1].item() if t + 1 < n else 0.0
            close(advantages[row, t], rewards[row, t] + 0.9 * following - values[row, t] if t < n else 0.0)


def test_gae_is_the_geometric_mean_of_the_k_step_advantages(close):
    # A = (1 − λ)·Σ_{k≥1} λ^{k−1}·A^{(k)}; from k = 7 on, all A^{(k)} of seven tokens are the same.
    rewards, values, mask, _ = _random_episodes()
    steps = [k_step(rewards, values, mask, 0.9, k) for k in range(1, 8)]
    mixture = sum(0.4 * 0.6 ** (k - 1) * step for k, step in enumerate(steps, 1)) + 0.6**7 * steps[-1]
    close(gae(rewards, values, mask, 0.9, 0.6), mixture)


def test_a_constant_score_without_critic_and_kl_is_every_advantage():
    mask = torch.tensor([[True] * 3, [True, False, False]])
    rewards = torch.tensor([[0.0, 0.0, 2.5], [2.5, 0.0, 0.0]])
    assert gae(rewards, torch.zeros(2, 3), mask, 1.0, 1.0).tolist() == [[2.5] * 3, [2.5, 0.0, 0.0]]


ESTIMATORS = {
    "td": lambda r, v, m, b: td_error(r, v, m, 0.9, b),
    "k_step": lambda r, v, m, b: k_step(r, v, m, 0.9, 3, b),
    "gae": lambda r, v, m, b: gae(r, v, m, 0.9, 0.7, b),
    "expected_baseline": lambda r, v, m, b: expected_baseline(r, v + 1, v, m, 0.9),
}


@pytest.mark.parametrize("estimator", ESTIMATORS.values(), ids=ESTIMATORS)
def test_padding_its_side_and_the_order_of_rows_change_nothing(estimator, close):
    rewards, values, mask, lengths = _random_episodes()
    bootstrap, order = torch.arange(5, dtype=torch.float64), torch.tensor([3, 0, 4, 1, 2])
    left_rewards, left_values = torch.full((2, 5, 9), NAN, dtype=torch.float64)
    left_mask = torch.arange(9) >= 9 - torch.tensor(lengths)[:, None]
    for left, right in ((left_rewards, rewards), (left_values, values)):
        left[left_mask] = right[mask]
    here = estimator(rewards, values, mask, bootstrap)
    there = estimator(left_rewards[order], left_values[order], left_mask[order], bootstrap[order])
    close(there[left_mask[order]], here[order][mask[order]])
    assert (there[~left_mask[order]] == 0).all()


@pytest.mark.parametrize("estimator", ESTIMATORS.values(), ids=ESTIMATORS)
def test_dtypes(estimator):
    for dtype, out in [(torch.float32,) * 2, (torch.float64,) * 2, (torch.bfloat16, torch.float32)]:
        assert estimator(REWARDS.to(dtype), VALUES.to(dtype), MASK, torch.zeros(3, dtype=dtype)).dtype == out


# Two prompts with two responses each, of 2, 1, 1 and 2 tokens; γ = ½, λ = ½, one-step and groups of two unless said.
PSI_REWARDS = torch.tensor([[1.0, 4.0], [2.0, 0.0], [0.0, 0.0], [-1.0, 2.0]])
PSI_VALUES = torch.tensor([[1.0, 2.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
PSI_MASK = torch.tensor([[True, True], [True, False], [True, False], [True, True]])
GRAD_SQ_NORMS = torch.tensor([1.0, 2.0, 1.0, 0.0])
BEST_VALUES = torch.tensor([[3.0, 4.0], [2.0, 9.0], [1.0, 9.0], [0.0, 6.0]])
EXPECTED_VALUES = torch.tensor([[1.0, 2.0], [1.0, 9.0], [-1.0, 9.0], [0.0, 1.0]])
# Whole returns 3, 2, 0, 0 (mean 1.25); reward-to-go (3, 4), 2, 0, (0, 2), its mean over time (1.25, 3).
# Weighted with the norms: (3 + 2·2) / 4 = 1.75. With the best Q: 1 + 4/2 − 1 = 2, 4 − 2 = 2; −1 + 6/2 − 0 = 2, 2 − 1.
# δ: 1 + 2/2 − 1 = 1, 4 − 2 = 2 · 2 − 1 = 1 · 0 + 1 = 1 · −1 + 1/2 − 0 = −0.5, 2 − 1 = 1.
GROUP_STD = 0.5**0.5 + 1e-4  # of the returns 3 and 2
PSI_BY_HAND = {
    "total_return": [[3.0, 3.0], [2.0, 0.0], [0.0, 0.0], [0.0, 0.0]],
    "constant_baseline": [[1.75, 1.75], [0.75, 0.0], [-1.25, 0.0], [-1.25, -1.25]],
    "minimal_variance_baseline": [[1.25, 1.25], [0.25, 0.0], [-1.75, 0.0], [-1.75, -1.75]],
    "reward_to_go": [[3.0, 4.0], [2.0, 0.0], [0.0, 0.0], [0.0, 2.0]],
    "reward_to_go_constant_baseline": [[1.75, 2.75], [0.75, 0.0], [-1.25, 0.0], [-1.25, 0.75]],
    "time_dependent_baseline": [[1.75, 1.0], [0.75, 0.0], [-1.25, 0.0], [-1.25, -1.0]],
    "leave_one_out": [[1.0, 2.0], [-1.0, 0.0], [0.0, 0.0], [0.0, 2.0]],
    "group_normalised": [[0.5 / GROUP_STD] * 2, [-0.5 / GROUP_STD, 0.0], [0.0, 0.0], [0.0, 0.0]],
    "value_baseline": [[2.0, 2.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]],
    "td_error": [[1.0, 2.0], [1.0, 0.0], [1.0, 0.0], [-0.5, 1.0]],
    "n_step": [[2.0, 2.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]],
    "gae": [[1.5, 2.0], [1.0, 0.0], [1.0, 0.0], [-0.25, 1.0]],
    "action_value": [[1.0, 2.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]],
    "expected_baseline": [[2.0, 2.0], [1.0, 0.0], [1.0, 0.0], [2.0, 1.0]],
    "discounted_rewards": [[1.0, 2.0], [2.0, 0.0], [0.0, 0.0], [-1.0, 1.0]],
}
# Without an episode's own return, the others' mean is 2/3, 1, 5/3, 5/3; weighted, 4/3, 3/2, 7/3, 7/4.
EXCLUDING_SELF_BY_HAND = {
    "constant_baseline": [[7 / 3, 7 / 3], [1.0, 0.0], [-5 / 3, 0.0], [-5 / 3, -5 / 3]],
    "minimal_variance_baseline": [[5 / 3, 5 / 3], [0.5, 0.0], [-7 / 3, 0.0], [-1.75, -1.75]],
    "reward_to_go_constant_baseline": [[7 / 3, 10 / 3], [1.0, 0.0], [-5 / 3, 0.0], [-5 / 3, 1 / 3]],
    "time_dependent_baseline": [[7 / 3, 2.0], [1.0, 0.0], [-5 / 3, 0.0], [-5 / 3, -2.0]],
}


# Each option as it is in the cases by hand, and another value of it.
OPTIONS = {
    "gamma": (0.5, 0.25),
    "gae_lambda": (0.5, 0.25),
    "n_step": (2, 1),
    "num_generations": (2, 4),
    "exclude_self": (False, True),
    "bootstrap_values": (None, torch.tensor([2.0, 1.0, 0.0, -3.0])),
    "grad_sq_norms": (GRAD_SQ_NORMS, GRAD_SQ_NORMS**2),
    "best_values": (BEST_VALUES, 2 * BEST_VALUES),
    "expected_values": (EXPECTED_VALUES, EXPECTED_VALUES - 1),
}


def _options(**changes):
    return {name: value for name, (value, _) in OPTIONS.items()} | changes


@pytest.mark.parametrize("name", PSI)
def test_every_row_of_the_table_by_hand(name):
    psi = PSI[name](PSI_REWARDS, PSI_VALUES, PSI_MASK, _options())
    torch.testing.assert_close(psi, torch.tensor(PSI_BY_HAND[name]))


@pytest.mark.parametrize("name", PSI)
def test_the_options_that_a_row_names_are_those_that_matter(name):
    """Its keyword arguments are what the settings are refused by where no row of an algorithm reads them."""

    def of(**changes):
        return PSI[name](PSI_REWARDS, PSI_VALUES, PSI_MASK, _options(**changes))

    changed = {option for option, (_, other) in OPTIONS.items() if not torch.equal(of(), of(**{option: other}))}
    assert changed == options_of(PSI[name])


@pytest.mark.parametrize("name", PSI)
def test_a_baseline_may_leave_an_episode_out_of_its_own(name):
    psi = PSI[name](PSI_REWARDS, PSI_VALUES, PSI_MASK, _options(exclude_self=True))
    torch.testing.assert_close(psi, torch.tensor((PSI_BY_HAND | EXCLUDING_SELF_BY_HAND)[name]))


@pytest.mark.parametrize("name", PSI)
def test_what_stands_in_the_padding_reaches_no_row(name):
    rewards, values, best, expected = (
        torch.where(PSI_MASK, x, NAN) for x in (PSI_REWARDS, PSI_VALUES, BEST_VALUES, EXPECTED_VALUES)
    )
    psi = PSI[name](rewards, values, PSI_MASK, _options(best_values=best, expected_values=expected))
    torch.testing.assert_close(psi, torch.tensor(PSI_BY_HAND[name]))


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("minimal_variance_baseline", "grad_sq_norms"),
        ("expected_baseline", "best_values"),
        ("expected_baseline", "expected_values"),
    ],
)
def test_a_row_says_which_option_it_misses(name, option):
    with pytest.raises(ValueError, match=rf"PSI\['{name}'\] needs the option '{option}', which was not given"):
        PSI[name](PSI_REWARDS, PSI_VALUES, PSI_MASK, _options(**{option: None}))


@pytest.mark.parametrize("name", ["td_error", "n_step", "gae"])
def test_rows_with_a_critic_bootstrap(name):
    # Row 0 was cut off where the critic expects 2: its last δ grows by ½·2 = 1.
    bootstrap = torch.tensor([2.0, 0.0, 0.0, 0.0])
    options = _options(bootstrap_values=bootstrap, n_step=1)
    assert PSI[name](PSI_REWARDS, PSI_VALUES, PSI_MASK, options)[:, 1].tolist() == [3.0, 0.0, 0.0, 1.0]
