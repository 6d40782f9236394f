import math

import pytest
import torch

from hfrlhf.core.masking import masked_mean, masked_sum
from hfrlhf.core.policy_losses import (
    POLICY_LOSSES,
    approx_kl,
    clip_fraction,
    importance_weighted,
    per_decision_weighted,
    ppo_clip,
    ppo_penalty,
    ratio,
    score_function,
    sequence_weighted,
)
from hfrlhf.core.rows import options_of

NAN = math.nan
LOSSES = {
    "score_function": lambda new, old, psi: score_function(new, psi),
    "importance_weighted": importance_weighted,
    "ppo_clip": lambda new, old, psi: ppo_clip(new, old, psi, 0.2, 0.2),
    "ppo_clip_dual3": lambda new, old, psi: ppo_clip(new, old, psi, 0.2, 0.2, 3.0),
    "ppo_penalty": lambda new, old, psi: ppo_penalty(new, old, psi, 0.7),
}


def test_losses_gradients_and_metrics_match_the_vectors(policy_losses_vector, close):
    inputs, expected = policy_losses_vector["inputs"], policy_losses_vector["expected"]
    new, old, psi = (inputs[key] for key in ("new_logprobs", "old_logprobs", "advantages"))
    mask, clip = inputs["action_mask"], (inputs["clip_low"], inputs["clip_high"])
    new.requires_grad_()
    losses = {
        "score_function_loss": score_function(new, psi),
        "importance_weighted_loss": importance_weighted(new, old, psi),
        "ppo_clip_loss": ppo_clip(new, old, psi, *clip),
        "ppo_clip_dual3_loss": ppo_clip(new, old, psi, *clip, dual_clip=3.0),
        "ppo_penalty_loss_coef_0.7": ppo_penalty(new, old, psi, 0.7),
    }
    for name, loss in losses.items():
        close(masked_mean(loss, mask), expected[name])
        if (gradient := expected.get(name.replace("loss", "grad"))) is not None:
            close(torch.autograd.grad(masked_mean(loss, mask), new)[0], gradient)
    clipped = clip_fraction(new, old, psi, *clip)
    close(masked_mean(clipped.double(), mask), expected["clip_fraction"])
    close(masked_mean(approx_kl(new, old), mask), expected["approx_kl_k3"])


def _loss_and_gradient(loss, rho, psi):
    """The per-token loss and its gradient with respect to log ρ."""
    logprobs = torch.tensor(rho, dtype=torch.float64).log().requires_grad_()
    value = loss(logprobs, torch.zeros(len(rho), dtype=torch.float64), torch.tensor(psi, dtype=torch.float64))
    value.sum().backward()
    return value.tolist(), logprobs.grad.tolist()


def test_ppo_clip_by_hand():
    # ρ, A: clipped where the ratio has moved with the advantage (first and fourth); the others keep their gradient −ρA.
    value, gradient = _loss_and_gradient(LOSSES["ppo_clip"], [1.5, 1.5, 0.5, 0.5, 1.1], [2.0, -2.0, 2.0, -2.0, 2.0])
    assert value == pytest.approx([-2.4, 3.0, -1.0, 1.6, -2.2])
    assert gradient == pytest.approx([0.0, 3.0, -1.0, 0.0, -2.2])


def test_the_clip_may_be_asymmetric():
    value, gradient = _loss_and_gradient(
        lambda new, old, psi: ppo_clip(new, old, psi, 0.1, 0.3), [1.25, 1.4, 0.85, 0.95], [1.0, 1.0, -1.0, -1.0]
    )
    assert value == pytest.approx([-1.25, -1.3, 0.9, 0.95])
    assert gradient == pytest.approx([-1.25, 0.0, 0.0, 0.95])


def test_dual_clip_by_hand():
    # c = 3: for A = −2 the loss 10 of ρ = 5 is held at 6 and loses its gradient; for A = 2 nothing changes.
    value, gradient = _loss_and_gradient(LOSSES["ppo_clip_dual3"], [5.0, 2.5, 5.0, 0.5], [-2.0, -2.0, 2.0, -2.0])
    assert value == pytest.approx([6.0, 5.0, -2.4, 1.6])
    assert gradient == pytest.approx([0.0, 5.0, 0.0, 0.0])


def test_penalty_by_hand():
    # ρ = 2, A = 1, c = 0.7: −2 + 0.7·(1 − ln 2); gradient −2 + 0.7·(2 − 1).
    value, gradient = _loss_and_gradient(LOSSES["ppo_penalty"], [2.0], [1.0])
    assert value == pytest.approx([-2 + 0.7 * (1 - math.log(2))])
    assert gradient == pytest.approx([-1.3])


# Two responses of three tokens and of one, with ρ = 2, ½, 3 and 4; all is 0 at padding.
SEQUENCE_RHO = torch.tensor([[2.0, 0.5, 3.0], [4.0, 1.0, 1.0]], dtype=torch.float64)
SEQUENCE_OLD = torch.tensor([[-1.0, -2.0, -3.0], [-2.0, 0.0, 0.0]], dtype=torch.float64)
SEQUENCE_PSI = torch.tensor([[1.0, -2.0, 4.0], [5.0, 0.0, 0.0]], dtype=torch.float64)


def _sequence_loss_and_gradient(loss, psi, width=3):
    """[2,width] loss and gradient with respect to the log-probs, `width` − 3 more columns of padding."""
    more = (0, width - 3)
    old, psi = (torch.nn.functional.pad(x, more) for x in (SEQUENCE_OLD, psi))
    new = torch.nn.functional.pad(SEQUENCE_OLD + SEQUENCE_RHO.log(), more).requires_grad_()
    value = loss(new, old, psi)
    return value.detach(), torch.autograd.grad(value.sum(), new)[0]


@pytest.mark.parametrize("width", [3, 5])
def test_sequence_weights_by_hand(width, close):
    # W = 2·½·3 = 3 and 4 are constants: −W·log π·Ψ per token, with gradient −W·Ψ. With Ψ = R on every token that is
    # the gradient of −W·R.
    value, gradient = _sequence_loss_and_gradient(sequence_weighted, SEQUENCE_PSI, width)
    logprobs = (SEQUENCE_OLD + SEQUENCE_RHO.log()).tolist()
    by_hand = [[-3 * logprobs[0][0], 6 * logprobs[0][1], -12 * logprobs[0][2]], [-20 * logprobs[1][0], 0.0, 0.0]]
    close(value[:, :3], by_hand)
    close(gradient[:, :3], [[-3.0, 6.0, -12.0], [-20.0, 0.0, 0.0]])
    assert (value[:, 3:] == 0).all()
    assert (gradient[:, 3:] == 0).all()


@pytest.mark.parametrize("width", [3, 5])
def test_per_decision_weights_by_hand(width, close):
    # Products so far 2, 1, 3 and 4: −2·1, −1·(−2), −3·4 and −4·5. Each log-prob moves every later product:
    # −2 + 2 − 12, 2 − 12, −12 and −20.
    value, gradient = _sequence_loss_and_gradient(per_decision_weighted, SEQUENCE_PSI, width)
    close(value[:, :3], [[-2.0, 2.0, -12.0], [-20.0, 0.0, 0.0]])
    close(gradient[:, :3], [[-12.0, -10.0, -12.0], [-20.0, 0.0, 0.0]])
    assert (value[:, 3:] == 0).all()
    assert (gradient[:, 3:] == 0).all()


def test_both_exact_weights_agree_on_a_reward_at_the_end(close):
    # One reward R on the last token: both have the gradient of −W·R, the same for every token of the response.
    at_end = torch.tensor([[0.0, 0.0, 4.0], [5.0, 0.0, 0.0]], dtype=torch.float64)
    whole = torch.tensor([[4.0, 4.0, 4.0], [5.0, 0.0, 0.0]], dtype=torch.float64)
    for gradient in (
        _sequence_loss_and_gradient(per_decision_weighted, at_end)[1],
        _sequence_loss_and_gradient(sequence_weighted, whole)[1],
    ):
        close(gradient, [[-12.0, -12.0, -12.0], [-20.0, 0.0, 0.0]])


@pytest.mark.parametrize("loss", [sequence_weighted, per_decision_weighted])
def test_weights_of_whole_responses_are_held_and_constant(loss):
    # Twice 15 is beyond 20: the product is held at e^20, never inf.
    new, old, psi = (torch.full((1, 2), x, requires_grad=True) for x in (15.0, 0.0, 1.0))
    value = loss(new, old, psi)
    value.sum().backward()
    expected = {sequence_weighted: -15 * math.exp(20), per_decision_weighted: -math.exp(20)}
    assert value[0, 1].item() == pytest.approx(expected[loss])
    assert new.grad.isfinite().all()
    assert old.grad is None
    assert psi.grad is None


@pytest.mark.parametrize("epsilon", [0.1, 0.2, 0.3])
def test_the_gradient_outside_the_clip_is_exactly_zero(epsilon):
    # The first float32 ratios outside, times 1,001 advantages: often ρ·A and clip(ρ)·A round to the same number.
    advantages, ties = torch.linspace(0.5, 1.5, 1001), 0
    for sign, bound in ((1, torch.tensor(1 + epsilon)), (-1, torch.tensor(1 - epsilon))):
        around = bound.log() + sign * torch.arange(-40, 40) * 1e-8
        outside = around[((around.exp() - bound) * sign > 0) & ((around.exp() - bound).abs() < 3e-7)]
        logprobs, psi = torch.cartesian_prod(outside, sign * advantages).unbind(-1)
        logprobs = logprobs.clone().requires_grad_()
        ppo_clip(logprobs, torch.zeros_like(psi), psi, epsilon, epsilon).sum().backward()
        assert len(psi) >= 1001
        assert (logprobs.grad == 0).all()
        ties += (logprobs.exp() * psi == bound * psi).sum().item()
    assert ties > 0


@pytest.mark.parametrize("name", LOSSES)
def test_at_ratio_one_every_loss_has_the_policy_gradient(name, close):
    # Through a softmax: the gradient of −log p(a)·Ψ with respect to the logits is −Ψ·(e_a − p).
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 4, generator=generator, dtype=torch.float64).requires_grad_()
    actions, psi = torch.tensor([0, 1, 2, 3, 0, 2]), torch.randn(6, generator=generator, dtype=torch.float64)
    logprobs = logits.log_softmax(-1)[range(6), actions]
    LOSSES[name](logprobs, logprobs.detach(), psi).sum().backward()
    one_hot = torch.eye(4, dtype=torch.float64)[actions]
    close(logits.grad, -psi[:, None] * (one_hot - logits.detach().softmax(-1)))


@pytest.mark.parametrize("name", LOSSES)
def test_the_weights_and_the_old_policy_get_no_gradient(name):
    logprobs, old, psi = (torch.tensor([0.3, -0.2], requires_grad=True) for _ in range(3))
    LOSSES[name](logprobs, old, psi).sum().backward()
    assert logprobs.grad is not None
    assert old.grad is None
    assert psi.grad is None


@pytest.mark.parametrize("name", LOSSES)
def test_extreme_log_ratios_stay_finite(name):
    logprobs = torch.tensor([-1e4, -90.0, 90.0, 1e4, 1e4], requires_grad=True)
    loss = LOSSES[name](logprobs, torch.zeros(5), torch.tensor([1.0, -1.0, 1.0, -1.0, 0.0]))
    loss.sum().backward()
    assert loss.isfinite().all()
    assert logprobs.grad.isfinite().all()


def test_the_log_ratio_is_held_within_twenty():
    logprobs = torch.tensor([-25.0, 25.0, 19.0], requires_grad=True)
    rho = ratio(logprobs, torch.zeros(3))
    rho.sum().backward()
    assert rho.tolist() == pytest.approx([math.exp(-20), math.exp(20), math.exp(19)])
    assert logprobs.grad[:2].tolist() == [0.0, 0.0]
    assert logprobs.grad[2].item() == pytest.approx(math.exp(19))


def test_the_penalty_still_pulls_back_a_token_that_has_nearly_vanished():
    # The bracket's gradient is ρ − 1: about −1 at ρ = e^−30, so that descent raises the log-prob again.
    logprobs = torch.tensor([-30.0], requires_grad=True)
    approx_kl(logprobs, torch.zeros(1)).sum().backward()
    assert logprobs.grad.item() == pytest.approx(-1.0)


def test_clip_fraction_by_hand():
    # Outside on the side of the advantage: clipped. Outside on the other side, inside, or A = 0: not.
    rho, psi = [1.5, 1.5, 0.5, 0.5, 1.1, 1.5], [2.0, -2.0, 2.0, -2.0, 2.0, 0.0]
    logprobs = torch.tensor(rho).log()
    is_clipped = clip_fraction(logprobs, torch.zeros(6), torch.tensor(psi), 0.2, 0.2)
    assert is_clipped.tolist() == [True, False, False, True, False, False]


def test_approx_kl_is_the_divergence_from_the_old_policy(close):
    # Tokens sampled from π_old: Σ p_old·bracket = KL(π_old ‖ π_θ), by hand over three tokens.
    p_old, p_new = [0.6, 0.3, 0.1], [0.2, 0.3, 0.5]
    bracket = approx_kl(torch.tensor(p_new, dtype=torch.float64).log(), torch.tensor(p_old, dtype=torch.float64).log())
    expectation = sum(p * b for p, b in zip(p_old, bracket.tolist(), strict=True))
    close(expectation, sum(p * math.log(p / q) for p, q in zip(p_old, p_new, strict=True)))


@pytest.mark.parametrize("name", LOSSES)
def test_nan_in_the_old_logprobs_of_padding_reaches_nothing(name):
    logprobs = torch.tensor([[-1.0, -2.0], [-1.5, 0.0]], requires_grad=True)
    old, psi = torch.tensor([[-1.1, -2.0], [-1.5, NAN]]), torch.tensor([[1.0, -1.0], [0.5, 0.0]])
    mask = torch.tensor([[True, True], [True, False]])
    loss = masked_sum(LOSSES[name](logprobs, old, psi), mask)
    loss.backward()
    assert loss.isfinite()
    assert logprobs.grad.isfinite().all()
    assert logprobs.grad[1, 1] == 0


@pytest.mark.parametrize("name", LOSSES)
def test_dtypes(name):
    for dtype, out in [(torch.float32,) * 2, (torch.float64,) * 2, (torch.bfloat16, torch.float32)]:
        x = torch.zeros(2, dtype=dtype)
        assert LOSSES[name](x, x, x).dtype == out
        assert sequence_weighted(x, x, x).dtype == per_decision_weighted(x, x, x).dtype == out
    assert ratio(x, x).dtype == approx_kl(x, x).dtype == torch.float32


def test_the_table_passes_each_loss_its_options():
    # ρ = 4: −A·log 4; −4A; clipped at 1.5 (A = 1) or, for A = −1, at the dual clip 2; −4A + 0.5·(3 − ln 4).
    # W = 16: −16·A·log 4; products 4 and 16.
    new, old, psi = torch.full((2,), math.log(4.0)), torch.zeros(2), torch.tensor([1.0, -1.0])
    options = {"clip_range": 0.3, "clip_range_high": 0.5, "dual_clip": 2.0, "penalty_coef": 0.5}
    bracket = 0.5 * (3 - math.log(4))
    expected = {
        "score_function": [-math.log(4), math.log(4)],
        "importance_weighted": [-4.0, 4.0],
        "sequence_weighted": [-16 * math.log(4), 16 * math.log(4)],
        "per_decision_weighted": [-4.0, 16.0],
        "ppo_clip": [-1.5, 2.0],
        "ppo_penalty": [-4 + bracket, 4 + bracket],
    }
    for name, loss in POLICY_LOSSES.items():
        assert loss(new, old, psi, options).tolist() == pytest.approx(expected[name])


# Two values of every option.
OPTIONS = {
    "clip_range": (0.2, 0.3),
    "clip_range_high": (0.2, 0.4),
    "dual_clip": (None, 2.0),
    "penalty_coef": (1.0, 0.5),
}


@pytest.mark.parametrize("name", POLICY_LOSSES)
def test_the_options_that_a_row_names_are_those_that_matter(name):
    new, psi = torch.tensor([[4.0, 4.0], [0.25, 0.25]]).log(), torch.tensor([[1.0, -1.0], [1.0, -1.0]])
    first = {option: value for option, (value, _) in OPTIONS.items()}

    def of(changes):
        return POLICY_LOSSES[name](new, torch.zeros(2, 2), psi, first | changes)

    changed = {option for option, (_, other) in OPTIONS.items() if not torch.equal(of({}), of({option: other}))}
    assert changed == options_of(POLICY_LOSSES[name])


def test_the_upper_end_of_the_clip_is_the_lower_one_where_nothing_is_said():
    new, old, psi = torch.tensor([4.0]).log(), torch.zeros(1), torch.ones(1)
    assert POLICY_LOSSES["ppo_clip"](new, old, psi, {"clip_range": 0.3}).item() == pytest.approx(-1.3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((-0.1, 0.2), "clip_low must be in"), ((1.1, 0.2), "clip_low must be in"), ((0.2, -0.2), "got 0.2 and -0.2")],
)
def test_nonsensical_clips_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ppo_clip(torch.zeros(1), torch.zeros(1), torch.ones(1), *arguments)
    with pytest.raises(ValueError, match="must be above 1, got 1"):
        ppo_clip(torch.zeros(1), torch.zeros(1), torch.ones(1), 0.2, 0.2, dual_clip=1.0)
