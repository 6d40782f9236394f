import itertools
import math

import pytest
import torch

from hfrlhf.core.kl import KL_ESTIMATORS, KL_PLACES, entropy_from_logits, exact_kl, kl_lacks, kl_penalty
from hfrlhf.core.masking import masked

P, Q = [0.5, 0.3, 0.15, 0.05], [0.1, 0.2, 0.3, 0.4]
# KL(P ‖ Q) = Σ p·ln(p/q), by hand over the four tokens.
KL_PQ = sum(p * math.log(p / q) for p, q in zip(P, Q, strict=True))


def test_estimators_match_the_vectors(token_rewards_vector, close):
    inputs = token_rewards_vector["inputs"]
    kl = kl_penalty(inputs["logprobs"], inputs["ref_logprobs"], inputs["estimator"])
    close(masked(kl, inputs["action_mask"]), token_rewards_vector["expected"]["kl"])


def test_exact_kl_and_entropy_match_the_vectors(exact_kl_entropy_vector, close):
    inputs, expected = exact_kl_entropy_vector["inputs"], exact_kl_entropy_vector["expected"]
    close(exact_kl(inputs["logits"], inputs["ref_logits"]), expected["kl"])
    close(entropy_from_logits(inputs["logits"]), expected["entropy"])


def test_estimators_by_hand():
    # d = ln 2: k1 = 0.6931, k2 = 0.6931²/2 = 0.2402, k3 = ½ − 1 + 0.6931 = 0.1931.
    d, zero = torch.tensor([math.log(2.0)]), torch.zeros(1)
    got = [kl_penalty(d, zero, name).item() for name in ("k1", "k2", "k3")]
    assert got == pytest.approx([0.693147, 0.240227, 0.193147], abs=1e-6)


@pytest.mark.parametrize("name", ["k1", "k3"])
def test_the_expectation_is_the_exact_kl(name, close):
    logp, logq = torch.tensor(P, dtype=torch.float64).log(), torch.tensor(Q, dtype=torch.float64).log()
    expectation = sum(p * kl for p, kl in zip(P, kl_penalty(logp, logq, name).tolist(), strict=True))
    close(expectation, KL_PQ)
    close(exact_kl(logp, logq), KL_PQ)


def test_the_expectation_over_whole_responses_is_the_exact_kl(close):
    # Two tokens, the second distribution depends on the first token; enumerated over the 3² responses.
    generator = torch.Generator().manual_seed(0)
    first, second, ref_first, ref_second = (
        torch.randn(shape, generator=generator, dtype=torch.float64).log_softmax(-1) for shape in [(3,), (3, 3)] * 2
    )
    means = {"k1": 0.0, "k3": 0.0}
    exact = 0.0
    for a, b in itertools.product(range(3), repeat=2):
        logprobs, ref_logprobs = torch.stack([first[a], second[a, b]]), torch.stack([ref_first[a], ref_second[a, b]])
        probability = math.exp(logprobs.sum())
        exact += probability * (logprobs.sum() - ref_logprobs.sum()).item()
        for name in means:
            means[name] += probability * kl_penalty(logprobs, ref_logprobs, name).sum().item()
    close(list(means.values()), [exact, exact])


def test_as_a_loss_k2_has_the_gradient_of_the_kl_and_k1_has_none(close):
    # Tokens sampled from π_θ: the gradient of Σ stopgrad(p)·k, against the exact ∂KL/∂z_j = p_j·(ln(p_j/q_j) − KL).
    logq = torch.tensor(Q, dtype=torch.float64).log()
    expected = {"k1": [0.0] * 4, "k2": [p * (math.log(p / q) - KL_PQ) for p, q in zip(P, Q, strict=True)]}
    for name, gradient in expected.items():
        logits = torch.tensor(P, dtype=torch.float64).log().requires_grad_()
        logp = logits.log_softmax(-1)
        (logp.detach().exp() * kl_penalty(logp, logq, name)).sum().backward()
        close(logits.grad, gradient)


def in_the_reward(logp, kl):
    """Tokens sampled from π_θ, the estimate a price: the gradient of E[k] by the score function."""
    return (logp.detach().exp() * kl.detach() * logp).sum()


def in_the_loss(logp, kl):
    """Tokens sampled from π_θ, the estimate differentiated itself."""
    return (logp.detach().exp() * kl).sum()


@pytest.mark.parametrize("place, objective", [("reward", in_the_reward), ("loss", in_the_loss)])
@pytest.mark.parametrize("name", KL_ESTIMATORS)
def test_a_row_lacks_something_exactly_where_its_gradient_is_not_the_kls(name, place, objective):
    logits = torch.tensor(P, dtype=torch.float64).log().requires_grad_()
    logp, logq = logits.log_softmax(-1), torch.tensor(Q, dtype=torch.float64).log()
    objective(logp, kl_penalty(logp, logq, name)).backward()
    exact = torch.tensor([p * (math.log(p / q) - KL_PQ) for p, q in zip(P, Q, strict=True)], dtype=torch.float64)
    assert (kl_lacks(name, place) is None) == torch.allclose(logits.grad, exact, rtol=1e-9)
    assert kl_lacks(KL_PLACES[place], place) is None


def test_the_same_policy_has_no_divergence():
    logprobs = torch.randn(3, 5, generator=torch.Generator().manual_seed(1))
    for name in KL_ESTIMATORS:
        assert kl_penalty(logprobs, logprobs.clone(), name).abs().max() == 0
    assert exact_kl(logprobs, logprobs.clone()).abs().max() == 0


def test_k2_and_k3_are_never_negative_and_k3_is_precise_near_zero():
    d = torch.tensor([-3.0, -1e-4, 1e-4, 2.0])
    for name in ("k2", "k3"):
        assert kl_penalty(d, torch.zeros(4), name).min() >= 0
    # k3(1e-4) = d²/2 − d³/6 + …; computed as e^{−d} − 1 + d in float32 it would have no correct digit.
    assert kl_penalty(d, torch.zeros(4), "k3")[2].item() == pytest.approx(0.5e-8 - 1e-12 / 6, rel=1e-2)


def test_extreme_log_ratios_stay_finite():
    d = torch.tensor([-1e4, -100.0, 100.0, 1e4], requires_grad=True)
    kl = kl_penalty(d, torch.zeros(4), "k3")
    kl.sum().backward()
    assert kl.isfinite().all()
    # Far out, −d is held at 20 and the gradient is 0; on the other side k3 grows like d.
    assert d.grad.tolist() == [0.0, 0.0, 1.0, 1.0]
    assert kl[0].item() == pytest.approx(math.exp(20) - 21)


def test_forbidden_tokens_contribute_nothing():
    logits = torch.tensor([[0.0, 0.0, -math.inf]], requires_grad=True)
    ref_logits = torch.tensor([[math.log(3.0), 0.0, -math.inf]])
    # Uniform over two tokens against (¾, ¼): ½·ln(½/¾) + ½·ln(½/¼) = ½·ln(4/3).
    kl, entropy = exact_kl(logits, ref_logits), entropy_from_logits(logits)
    assert kl.item() == pytest.approx(0.5 * math.log(4 / 3))
    assert entropy.item() == pytest.approx(math.log(2))
    (kl + entropy).sum().backward()
    assert logits.grad.isfinite().all()


def test_dtypes():
    for dtype, out in [(torch.float32,) * 2, (torch.float64,) * 2, (torch.bfloat16, torch.float32)]:
        x = torch.zeros(2, 3, dtype=dtype)
        results = [exact_kl(x, x), entropy_from_logits(x), *(kl_penalty(x, x, name) for name in KL_ESTIMATORS)]
        assert {result.dtype for result in results} == {out}


def test_an_unknown_estimator_is_refused():
    with pytest.raises(ValueError, match="'k4'; choose one of k1, k2, "):
        kl_penalty(torch.zeros(1), torch.zeros(1), "k4")
