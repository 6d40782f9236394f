"""The KL to the reference is one number for log, β, limit and reward; its estimators are one table for all who read."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from hfrlhf.core.kl import KL_ESTIMATORS, KLEstimator, k1
from hfrlhf.runs.guard import KLTooHigh
from tests.trainers.helpers import config, parameters, trainer, training_logs

ONE_STEP = {"num_ppo_epochs": 1, "num_mini_batches": 1, "max_steps": 1}


class Off:
    """A generator whose own log-probs are a little off those of the training forward, as another precision's are."""

    def __init__(self, generator):
        self.generator = generator

    def generate(self, model, given, address):
        rollout = self.generator.generate(model, given, address)
        return type(rollout)(**(rollout.tensors() | {"sampler_logprobs": rollout.sampler_logprobs * 0.9999}))


def moved(folder):
    """The tiny model with another head: a reference from which the policy differs at once."""
    lm = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        lm.lm_head.weight.add_(0.5 * torch.randn(lm.lm_head.weight.shape, generator=torch.Generator().manual_seed(5)))
    return lm


def with_another_sampler(folder, tmp_path, **changes):
    built = trainer(str(folder), tmp_path, ref_model=moved(folder), old_logprobs="sampler", **changes)
    built.generator = Off(built.generator)
    return built


@pytest.mark.filterwarnings("ignore:in a rollout's first mini-batch")
def test_beta_follows_the_kl_of_the_log_whatever_the_sampler_says(tiny_model_folder, tmp_path):
    changes = {"kl_target": 9.0, "kl_horizon": 8, "kl_coef": 0.1, "max_steps": 4, "num_ppo_epochs": 1}
    built = with_another_sampler(tiny_model_folder, tmp_path, num_mini_batches=1, learning_rate=1e-3, **changes)
    built.train()
    rows, beta, steps = training_logs(built), 0.1, []
    for row in rows:
        assert row["kl_coef"] == pytest.approx(beta, rel=1e-6)
        steps.append(max(-0.2, min(0.2, row["objective/kl"] / 9 - 1)))
        beta *= 1 + steps[-1]
    assert len(rows) == 4 and any(abs(step) < 0.2 for step in steps)  # so that it matters which KL it is
    assert rows[0]["policy/sampler_mismatch"] > 1e-4


@pytest.mark.filterwarnings("ignore:in a rollout's first mini-batch")
def test_the_reward_pays_for_the_kl_of_the_log(tiny_model_folder, tmp_path):
    built = with_another_sampler(tiny_model_folder, tmp_path, kl_coef=0.7, **ONE_STEP)
    built.train()
    row = training_logs(built)[0]
    expected = row["objective/score"] - 0.7 * row["objective/kl"]
    assert row["objective/rlhf_reward"] == pytest.approx(expected, abs=1e-4)
    assert abs(row["objective/kl"]) > 0.1
    with pytest.raises(KLTooHigh, match=f"is {row['objective/kl']:.4g} nats per response"):
        with_another_sampler(tiny_model_folder, tmp_path / "b", kl_limit=1e-3, **ONE_STEP).train()


# ---- The table of estimators ----------------------------------------------------------------------------------------


def trial(monkeypatch, function, **lacks):
    monkeypatch.setitem(KL_ESTIMATORS, "trial", KLEstimator(function, lacks) if lacks else function)


def policy_step(folder, tmp_path, **changes):
    """How far the policy's weights go where there is nothing to learn from but the KL."""
    settings = ONE_STEP | {"optim": "sgd", "learning_rate": 0.1, "lr_scheduler_type": "constant", "max_grad_norm": 1e9}
    settings |= {"kl_in": "loss", "kl_coef": 0.7, "vf_coef": 0.0, "reward_funcs": lambda completions: [0.0] * 8}
    built = trainer(str(folder), tmp_path, ref_model=moved(folder), **settings | changes)
    before = parameters(built)
    built.train()
    return {n: p - before[n] for n, p in parameters(built).items() if n.startswith("policy.")}


def test_a_new_estimator_is_one_row_for_the_settings_and_the_loss(tiny_model_folder, tmp_path, monkeypatch):
    """3·d²/2 pulls three times as hard as d²/2."""
    stock = policy_step(tiny_model_folder, tmp_path / "k2")
    trial(monkeypatch, lambda logprobs, ref_logprobs: 1.5 * (logprobs - ref_logprobs) ** 2)
    for name, step in policy_step(tiny_model_folder, tmp_path / "trial", kl_estimator="trial").items():
        torch.testing.assert_close(step, 3 * stock[name], atol=1e-6, rtol=1e-3, msg=name)
    assert max(float(step.abs().max()) for step in stock.values()) > 1e-3


def test_a_new_estimator_is_one_row_for_the_reward(tiny_model_folder, tmp_path, monkeypatch):
    trial(monkeypatch, lambda logprobs, ref_logprobs: 0 * logprobs + 2.0)
    built = trainer(str(tiny_model_folder), tmp_path, kl_coef=0.5, kl_estimator="trial", **ONE_STEP)
    built.train()
    seen = built.cycle.experience
    expected = seen.scores - 0.5 * 2.0 * seen.completion_lengths
    torch.testing.assert_close(seen.rewards.sum(-1), expected)


@pytest.mark.parametrize("place", ["reward", "loss"])
def test_what_a_row_lacks_is_said_by_the_settings(tmp_path, monkeypatch, recwarn, place):
    trial(monkeypatch, k1, **{place: "it is only a trial"})
    other = {"reward": "loss", "loss": "reward"}[place]
    config(tmp_path, kl_estimator="trial", kl_in=other)
    assert not [w for w in recwarn if "trial" in str(w.message)]
    if place == "loss":
        with pytest.raises(ValueError, match=r"'trial'.*it is only a trial; use 'k2'"):
            config(tmp_path, kl_estimator="trial", kl_in="loss")
    else:
        with pytest.warns(UserWarning, match=r"'trial'.*it is only a trial; 'k1' has all of it"):
            config(tmp_path, kl_estimator="trial")
