import math

import pytest

from hfrlhf.core.kl import AdaptiveKLController, PenaltyCoefficient


def test_adaptive_coefficient_matches_the_vectors(adaptive_kl_vector, close):
    inputs = adaptive_kl_vector["inputs"]
    controller = AdaptiveKLController(inputs["init"], inputs["target"], inputs["horizon"])
    close(
        [controller.update(kl.item(), inputs["episodes"]) for kl in inputs["kl"]],
        adaptive_kl_vector["expected"]["kl_coef"],
    )


def test_penalty_coefficient_matches_the_vectors(ppo_penalty_coef_vector, close):
    inputs = ppo_penalty_coef_vector["inputs"]
    controller = PenaltyCoefficient(inputs["init"], inputs["target"])
    close([controller.update(kl.item()) for kl in inputs["kl"]], ppo_penalty_coef_vector["expected"]["coef"])


def test_adaptive_coefficient_by_hand():
    # Twice the target: e = clip(1, ±0.2) = 0.2; 100 of 1,000 episodes: 0.2·(1 + 0.2·0.1) = 0.204. Then 3 % below:
    # e = −0.03, 0.204·(1 − 0.03·0.1) = 0.203388.
    controller = AdaptiveKLController(init=0.2, target=6.0, horizon=1000)
    assert controller.update(12.0, 100) == pytest.approx(0.204)
    assert controller.update(5.82, 100) == pytest.approx(0.203388)
    assert controller.coef == pytest.approx(0.203388)


def test_coefficients_continue_from_a_checkpoint():
    for make, update in [
        (lambda: AdaptiveKLController(0.2, 6.0, 1000), lambda c, kl: c.update(kl, 64)),
        (lambda: PenaltyCoefficient(1.0, 0.01), lambda c, kl: c.update(kl)),
    ]:
        whole, first, second = make(), make(), make()
        expected = [update(whole, kl) for kl in (20.0, 0.001, 3.0)]
        got = [update(first, 20.0)]
        second.load_state_dict(first.state_dict())
        got += [update(second, kl) for kl in (0.001, 3.0)]
        assert got == expected
        assert all(type(value) is float for value in first.state_dict().values())


@pytest.mark.parametrize("wrong", [{"init": -0.1}, {"target": 0.0}, {"horizon": -5.0}])
def test_nonsensical_coefficients_are_refused(wrong):
    with pytest.raises(ValueError, match="positive target and horizon"):
        AdaptiveKLController(**({"init": 0.1, "target": 6.0, "horizon": 1e4} | wrong))
    with pytest.raises(ValueError, match="must be positive"):
        PenaltyCoefficient(init=wrong.get("init", 1.0), target=wrong.get("target", -1.0))


def test_too_many_episodes_for_the_horizon_are_refused():
    controller = AdaptiveKLController(0.2, 6.0, horizon=100)
    with pytest.raises(ValueError, match="use a horizon above 100, better 5000"):
        controller.update(0.0, 500)
    assert controller.update(0.0, 499) > 0


def test_a_kl_that_is_not_a_number_is_refused():
    for controller, arguments in [(AdaptiveKLController(0.2, 6.0, 1e4), (64,)), (PenaltyCoefficient(1.0, 0.1), ())]:
        with pytest.raises(ValueError, match="KL of this rollout is NaN"):
            controller.update(math.nan, *arguments)
        assert math.isfinite(controller.coef)
