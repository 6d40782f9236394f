"""What each algorithm's row promises in the trainer, against numbers worked out here from the rollout itself."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from hfrlhf.algorithms import ALGORITHMS
from hfrlhf.reporting.cards import policy_card
from hfrlhf.trainers.callbacks import plot_curves
from hfrlhf.trainers.family import family_of
from tests.trainers.helpers import parameters, prompts, reward, training_logs

# Steps of plain gradient descent: what the optimiser adds is the gradient times the learning rate.
PLAIN_SGD = {"optim": "sgd", "learning_rate": 0.1, "lr_scheduler_type": "constant", "max_grad_norm": 1e9}


def family_trainer(model: Any, folder: Path, algorithm: str, tokenizer: Any = None, **changes: Any) -> Any:
    """A trainer of that algorithm on quick settings; `changes` are arguments of the trainer or settings."""
    own = {"train_dataset", "eval_dataset", "reward_funcs", "value_model", "ref_model", "peft_config"}
    given = {name: changes.pop(name) for name in list(changes) if name in own}
    config, trainer = family_of(algorithm)
    settings = {
        "output_dir": str(folder / "run"),
        "algorithm": algorithm,
        "rollout_batch_size": 8,
        "num_generations": 2 if "groups" in ALGORITHMS[algorithm].needs else 1,
        "max_completion_length": 6,
        "learning_rate": 1e-2,
        "max_steps": 10,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 3,
    }
    arguments = {"reward_funcs": reward, "train_dataset": prompts()} | given
    return trainer(model, args=config(**(settings | changes)), processing_class=tokenizer, **arguments)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_moves_the_policy_and_saves_a_stock_model(tiny_model_folder, tmp_path, algorithm):
    built = family_trainer(str(tiny_model_folder), tmp_path, algorithm)
    before = parameters(built)
    built.train()
    assert built.args.num_ppo_epochs == ALGORITHMS[algorithm].epochs
    assert built.args.whiten_advantages is ALGORITHMS[algorithm].whiten
    moved = {name for name, p in parameters(built).items() if not torch.equal(p, before[name])}
    assert any(name.startswith("policy.") for name in moved)
    assert any(name.startswith("value_head.") for name in moved) == (ALGORITHMS[algorithm].critic is not None)
    assert all(math.isfinite(row["loss"]) for row in training_logs(built))
    built.save_model()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "run").state_dict()
    for name, tensor in built.unwrapped().policy.state_dict().items():
        assert torch.equal(loaded[name], tensor), name


def lesson(completions: list[str], **_: Any) -> list[float]:
    """Each word that is `good` is worth 1."""
    return [float(text.split().count("good")) for text in completions]


# A Q head learns only about the tokens that were sampled, and its row's Ψ is as good as it is: more of the critic's own
# passes. A backward pass per response takes its time: fewer responses.
def suited(algorithm: str) -> dict[str, Any]:
    """Where an algorithm asks for other settings than most."""
    row = ALGORITHMS[algorithm]
    if row.critic == "Q":
        return {"value_learning_rate": 3e-2, "vf_coef": 1.0, "value_epochs": 8, "max_steps": 405}
    if row.update != "gradient":
        return {"max_kl": 0.03, "max_steps": 150, "value_epochs": 2}
    if "gradient_norms" in row.needs:
        return {"rollout_batch_size": 32, "max_steps": 70}
    return {"max_steps": 80 if row.epochs > 1 else 100}


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_learns_to_say_one_word(tiny_model_folder, tmp_path, algorithm):
    """A bandit-like task: which of 20 tokens pays. Under 20 s each."""
    changes = {"rollout_batch_size": 64, "kl_coef": 0.0, "max_completion_length": 3, "lr_scheduler_type": "constant"}
    changes |= {"num_generations": 4 if "groups" in ALGORITHMS[algorithm].needs else 1, "reward_funcs": lesson}
    built = family_trainer(str(tiny_model_folder), tmp_path, algorithm, **changes | suited(algorithm))
    built.train()
    scores = [log["objective/score"] for log in training_logs(built)]
    assert sum(scores[-3:]) / 3 > scores[0] + 1.0, scores


# ---- Where the critic learns ------------------------------------------------------------------------------------


@pytest.mark.parametrize("critic", ["on the trunk", "apart"])
def test_value_epochs_move_the_critic_alone(tiny_model_folder, tmp_path, critic):
    apart = AutoModelForSequenceClassification.from_pretrained(tiny_model_folder, num_labels=1)
    value_model = apart if critic == "apart" else None
    built = family_trainer(
        str(tiny_model_folder), tmp_path, "vpg", value_epochs=3, max_steps=8, weight_decay=0.1, value_model=value_model
    )
    seen, original = [], built.get_batch_samples
    built.get_batch_samples = lambda *a: (seen.append(parameters(built)), original(*a))[1]
    built.train()
    seen.append(parameters(built))
    assert built.args.steps_per_rollout == 4 and built.moment.rollout == 2
    for step in range(8):
        before, after = seen[step], seen[step + 1]
        changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
        value = {"value_model" if critic == "apart" else "value_head"}
        assert changed == (value | {"policy"} if step % 4 == 0 else value), step


def test_value_epochs_go_on_when_target_kl_has_stopped_the_policy(tiny_model_folder, tmp_path):
    built = family_trainer(
        *(str(tiny_model_folder), tmp_path, "ppo_clip"), target_kl=1e-9, num_ppo_epochs=3, value_epochs=3, max_steps=6
    )
    seen, original = [], built.get_batch_samples
    built.get_batch_samples = lambda *a: (seen.append(parameters(built)), original(*a))[1]
    built.train()
    seen.append(parameters(built))
    changed = [
        {name.split(".")[0] for name in a if not torch.equal(a[name], b[name])} for a, b in itertools.pairwise(seen)
    ]
    assert changed[0] == {"policy", "value_head"} and changed[2] == set()
    assert changed[3:] == [{"value_head"}] * 3


def test_value_epochs_leave_the_policys_numbers_of_the_log_alone(tiny_model_folder, tmp_path):
    """One step of the policy at ratio 1: what the critic's own passes see afterwards is not averaged in."""
    built = family_trainer(str(tiny_model_folder), tmp_path, "vpg", value_epochs=3, max_steps=4)
    built.train()
    (row,) = training_logs(built)
    assert row["policy/ratio"] == pytest.approx(1.0, abs=1e-6) and row["policy/approx_kl"] < 1e-9


def q_values(built: Any, experience: Any) -> list[Tensor]:
    """Q(s_t, ·) of each response's states: the head's weights on the stock model's hidden states, row by row."""
    lm, head, found = built.unwrapped().policy.eval(), built.unwrapped().value_head, []
    for row in range(len(experience)):
        ids, n = experience.input_ids[row][experience.attention_mask[row]], int(experience.completion_lengths[row])
        hidden = lm.model(ids[None]).last_hidden_state[0, len(ids) - n - 1 : -1]
        found.append(hidden @ head.weight.T + head.bias)
    return found


@pytest.mark.parametrize("algorithm", ["q_actor_critic", "expected_baseline_actor_critic"])
def test_a_q_head_gives_psi_and_learns_the_sarsa_target(tiny_model_folder, tmp_path, algorithm):
    built = family_trainer(str(tiny_model_folder), tmp_path, algorithm, gamma=0.9, max_steps=1, temperature=0.8)
    torch.manual_seed(0)
    torch.nn.init.normal_(built.unwrapped().value_head.weight)
    experiences, original = [], built.after_rollout
    built.after_rollout = lambda e: (experiences.append((e, q_values(built, e))), original(e))[1]
    built.train()
    ((experience, q),) = experiences
    # The policy at sampling temperature before the step: the reference, which is where training starts.
    lm = AutoModelForCausalLM.from_pretrained(tiny_model_folder).eval()
    for row, values in enumerate(q):
        ids, n = experience.input_ids[row][experience.attention_mask[row]], len(values)
        actions, rewards = ids[-n:], experience.rewards[row, :n]
        policy = (lm(ids[None]).logits[0, len(ids) - n - 1 : -1] / 0.8).softmax(-1)
        taken = values[torch.arange(n), actions]
        following = torch.cat([taken[1:], torch.zeros(1)])
        psi = taken
        if algorithm == "expected_baseline_actor_critic":
            best = torch.cat([values.amax(-1)[1:], torch.zeros(1)])
            psi = rewards + 0.9 * best - (policy * values).sum(-1)
        torch.testing.assert_close(experience.values[row, :n], taken, atol=1e-4, rtol=0)
        torch.testing.assert_close(experience.advantages[row, :n], psi, atol=1e-4, rtol=0)
        torch.testing.assert_close(experience.returns[row, :n], rewards + 0.9 * following, atol=1e-4, rtol=0)


# ---- Baselines that need more than rewards ----------------------------------------------------------------------


@pytest.mark.parametrize("exclude_self", [False, True])
def test_the_minimal_variance_baseline_weighs_returns_with_real_gradients(tiny_model_folder, tmp_path, exclude_self):
    built = family_trainer(
        str(tiny_model_folder), tmp_path, "reinforce_minimal_variance", max_steps=1, exclude_self=exclude_self
    )
    experiences, original = [], built.after_rollout
    built.after_rollout = lambda e: (experiences.append(e), original(e))[1]
    built.train()
    (experience,) = experiences
    lm = AutoModelForCausalLM.from_pretrained(tiny_model_folder).eval()
    squares = []
    for row in range(8):
        ids, n = experience.input_ids[row][experience.attention_mask[row]], int(experience.completion_lengths[row])
        logp = lm(ids[None]).logits[0, len(ids) - n - 1 : -1].log_softmax(-1)
        lm.zero_grad()
        logp[torch.arange(n), ids[-n:]].sum().backward()
        squares.append(sum(float(p.grad.square().sum()) for p in lm.parameters()))
    totals = [float(r[m].sum()) for r, m in zip(experience.rewards, experience.action_mask, strict=True)]
    for row in range(8):
        used = [i for i in range(8) if i != row or not exclude_self]
        baseline = sum(squares[i] * totals[i] for i in used) / sum(squares[i] for i in used)
        n = int(experience.completion_lengths[row])
        assert experience.advantages[row, :n].tolist() == pytest.approx([totals[row] - baseline] * n, abs=1e-4)


def test_a_baseline_that_leaves_an_episode_out_of_its_own(tiny_model_folder, tmp_path):
    """R(τ_i) − mean of the others = (R(τ_i) − mean of all)·m/(m − 1)."""
    found = []
    for exclude_self in (False, True):
        built = family_trainer(
            str(tiny_model_folder), tmp_path / str(exclude_self), "reinforce_constant", exclude_self=exclude_self
        )
        experiences, original = [], built.after_rollout
        built.after_rollout = lambda e, kept=experiences, go=original: (kept.append(e), go(e))[1]
        built.args.max_steps = 1
        built.train()
        found.append(experiences[0].advantages)
    torch.testing.assert_close(found[1], found[0] * 8 / 7)
    assert found[0].abs().max() > 0.01


# ---- PPO-Penalty's coefficient ----------------------------------------------------------------------------------


def test_the_penalty_coefficient_follows_the_kl_after_the_epochs(tiny_model_folder, tmp_path):
    """Measured here with the stock model at the end of each rollout's epochs."""
    built = family_trainer(
        str(tiny_model_folder), tmp_path, "ppo_penalty", max_steps=12, penalty_target=3e-3, learning_rate=3e-2
    )
    kls, original = [], built.after_cycle

    def measured() -> None:
        seen, lm = built.cycle.experience, built.unwrapped().policy.eval()
        tokens = []
        for row in range(len(seen)):
            ids, n = seen.input_ids[row][seen.attention_mask[row]], int(seen.completion_lengths[row])
            with torch.no_grad():
                logp = lm(ids[None]).logits[0, len(ids) - n - 1 : -1].log_softmax(-1)
            log_ratio = logp[torch.arange(n), ids[-n:]] - seen.old_logprobs[row, :n]
            tokens += (log_ratio.exp() - 1 - log_ratio).tolist()
        kls.append(sum(tokens) / len(tokens))
        original()

    built.after_cycle = measured
    built.train()
    rows = training_logs(built)
    assert len(rows) == len(kls) == 3
    coefficient = 1.0
    for row, kl in zip(rows, kls, strict=True):
        assert row["policy/kl_after"] == pytest.approx(kl, rel=1e-3, abs=1e-7)
        assert row["policy/penalty_coef"] == coefficient
        coefficient *= 2.0 if kl > 1.5 * 3e-3 else 0.5 if kl < 3e-3 / 1.5 else 1.0
    assert built.coefficients.penalty.coef == coefficient != 1.0


def test_the_penalty_coefficient_waits_for_the_critics_warm_up(tiny_model_folder, tmp_path):
    """While the policy rests its KL is 0, which says nothing about the penalty."""
    built = family_trainer(
        str(tiny_model_folder), tmp_path, "ppo_penalty", critic_warmup_rollouts=2, max_steps=12, num_ppo_epochs=4
    )
    built.train()
    coefficients = [row.get("policy/penalty_coef") for row in training_logs(built)]
    assert coefficients == [None, None, 1.0]


# ---- Epochs over one rollout ------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["importance_weighted_sequence", "importance_weighted_per_decision"])
def test_exact_importance_weights_are_used_in_later_epochs(tiny_model_folder, tmp_path, algorithm):
    """The second epoch's gradient is −Σ W·R·∇log π, respectively −Σ_k r_k·∇Π_{j≤k} ρ_j, at the moved parameters."""
    changes = {"num_ppo_epochs": 2, "max_steps": 2, "loss_normalization": "episodes", "kl_coef": 0.1} | PLAIN_SGD
    built = family_trainer(str(tiny_model_folder), tmp_path, algorithm, **changes)
    seen, original = [], built.get_batch_samples
    built.get_batch_samples = lambda *a: (seen.append(parameters(built)), original(*a))[1]
    built.train()
    seen.append(parameters(built))
    experience = built.cycle.experience
    lm = AutoModelForCausalLM.from_pretrained(tiny_model_folder).eval()
    lm.load_state_dict({k.removeprefix("policy."): p for k, p in seen[1].items() if k.startswith("policy.")})
    objective = torch.zeros(())
    for row in range(len(experience)):
        ids, n = experience.input_ids[row][experience.attention_mask[row]], int(experience.completion_lengths[row])
        logp = lm(ids[None]).logits[0, len(ids) - n - 1 : -1].log_softmax(-1)[torch.arange(n), ids[-n:]]
        ratios = (logp - experience.old_logprobs[row, :n]).exp()
        weights = ratios.prod() if algorithm.endswith("sequence") else ratios.cumprod(0)
        objective = objective + (weights * experience.rewards[row, :n]).sum()
    (objective / len(experience)).backward()
    moved = 0.0
    for name, p in lm.named_parameters():
        step = seen[2][f"policy.{name}"] - seen[1][f"policy.{name}"]
        torch.testing.assert_close(step, 0.1 * p.grad, atol=2e-5, rtol=1e-2, msg=lambda m, name=name: f"{name}: {m}")
        moved = max(moved, float(step.abs().max()))
    assert moved > 1e-3


def test_grpo_may_go_over_a_rollout_several_times(tiny_model_folder, tmp_path):
    built = family_trainer(str(tiny_model_folder), tmp_path, "grpo", num_ppo_epochs=2, num_mini_batches=2, max_steps=8)
    built.train()
    assert built.moment.rollout == 2


# ---- What is left behind ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("algorithm", "shown", "hidden"),
    [
        ("a2c", {"n_step", "vf_coef", "bootstrap_truncated"}, {"gae_lambda", "clip_range"}),
        ("rloo", {"num_generations"}, {"gae_lambda", "clip_range", "clip_range_value", "vf_coef", "value_epochs"}),
        ("ppo_penalty", {"penalty_target", "gae_lambda"}, {"clip_range", "n_step"}),
        ("trpo", {"max_kl", "cg_iterations", "gae_lambda"}, {"clip_range", "n_step"}),
    ],
)
def test_the_card_lists_the_settings_that_were_read(tiny_model_folder, tmp_path, algorithm, shown, hidden):
    listed = set(policy_card(family_trainer(str(tiny_model_folder), tmp_path, algorithm)).hyperparameters)
    assert shown <= listed and not hidden & listed


def test_the_curves_of_a_run_without_a_critic_have_no_panel_for_it(tiny_model_folder, tmp_path):
    built = family_trainer(str(tiny_model_folder), tmp_path, "reinforce", max_steps=2)
    built.train()
    assert not any(name.startswith("value/") for row in built.state.log_history for name in row)
    plot_curves(built.state.log_history, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 10_000


# ---- Evaluation -------------------------------------------------------------------------------------------------


def test_evaluation_works_without_a_critic(tiny_model_folder, tmp_path):
    built = family_trainer(
        str(tiny_model_folder),
        tmp_path,
        "reinforce_minimal_variance",
        eval_dataset=Dataset.from_dict({"prompt": ["a"]}),
    )
    assert "eval_objective/score" in built.evaluate()
