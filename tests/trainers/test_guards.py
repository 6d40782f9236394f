"""Numbers that must not be wrong in silence: the first ratio, broken gradients, coefficients, what a run leaves."""

from __future__ import annotations

import itertools
import json

import pytest
import torch
from datasets import Dataset

from hfrlhf.trainers.callbacks import CompletionsCallback
from tests.trainers.helpers import config, parameters, trainer, training_logs


def test_dropout_in_training_is_noticed_though_the_mean_ratio_is_one(tiny_model_folder, tmp_path):
    """E[π_θ/π_old] is 1 under π_old for any π_θ: only the ratios' distance from 1 tells."""
    built = trainer(str(tiny_model_folder), tmp_path, rollout_batch_size=64, num_ppo_epochs=1, max_steps=1)
    embedding = built.model.policy.get_input_embeddings()
    embedding.register_forward_hook(
        lambda module, _, out: torch.nn.functional.dropout(out, 0.3) if torch.is_grad_enabled() else out
    )
    with pytest.warns(UserWarning, match="should be 1"):
        built.train()


def test_a_gradient_that_is_not_finite_moves_nothing(tiny_model_folder, tmp_path):
    built = trainer(str(tiny_model_folder), tmp_path, max_steps=4)
    snapshots = []
    original = built.compute_loss

    def broken_once(*args, **kwargs):
        snapshots.append(parameters(built))
        loss, sums = original(*args, **kwargs)
        return (loss * float("nan"), sums) if len(snapshots) == 2 else (loss, sums)

    built.compute_loss = broken_once
    built.train()
    moved = [any(not torch.equal(a[n], b[n]) for n in a) for a, b in itertools.pairwise(snapshots)]
    assert moved == [True, False, True]
    assert training_logs(built)[0]["skipped_updates"] == 1
    assert all(torch.isfinite(p).all() for p in parameters(built).values())


def test_the_step_at_which_the_policy_stopped_is_logged_once(tiny_model_folder, tmp_path):
    from transformers import AutoModelForSequenceClassification

    critic = AutoModelForSequenceClassification.from_pretrained(tiny_model_folder, num_labels=1)
    built = trainer(
        str(tiny_model_folder), tmp_path, target_kl=1e-9, value_model=critic, num_ppo_epochs=4, num_mini_batches=1
    )
    built.train()
    assert training_logs(built)[0]["policy/stopped_at"] == 1


def test_the_kl_coefficient_in_the_loss_is_the_one_that_is_logged(tiny_model_folder, tmp_path):
    built = trainer(str(tiny_model_folder), tmp_path, kl_in="loss", kl_target=0.5, kl_horizon=80, max_steps=8)
    used = []
    original = built.compute_loss
    built.compute_loss = lambda *a, **k: (used.append(built.kl_coef.coef), original(*a, **k))[1]
    built.train()
    assert [row["kl_coef"] for row in training_logs(built)] == [used[0], used[4]]
    assert len(set(used[:4])) == 1 and used[4] != used[0]


def test_the_kl_coefficient_waits_for_the_warm_up(tiny_model_folder, tmp_path):
    built = trainer(
        str(tiny_model_folder), tmp_path, critic_warmup_rollouts=2, kl_target=0.5, kl_horizon=80, max_steps=12
    )
    built.train()
    coefficients = [row["kl_coef"] for row in training_logs(built)]
    assert coefficients == [0.05, 0.05, 0.05] and built.kl_coef.coef != 0.05


def test_completions_are_kept_once_also_across_a_resume(tiny_model_folder, tmp_path):
    def built():
        run = trainer(str(tiny_model_folder), tmp_path, save_strategy="steps", save_steps=6, max_steps=12)
        run.add_callback(CompletionsCallback(run))
        return run

    built().train()
    path = tmp_path / "run" / "completions.jsonl"
    whole = path.read_text()
    path.write_text(whole + '{"step": 12, "prom')  # what a kill in the middle of a line leaves
    built().train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-6"))
    assert path.read_text() == whole
    assert {json.loads(row)["step"] for row in whole.splitlines()} == {4, 8, 12}


def test_an_evaluation_in_mid_cycle_leaves_the_rollouts_samples(tiny_model_folder, tmp_path):
    """What is kept as a rollout's completions are its own, not those of evaluation prompts."""
    settings = {"eval_dataset": Dataset.from_dict({"prompt": ["the very very film"] * 4}), "max_steps": 4}
    built = trainer(str(tiny_model_folder), tmp_path, eval_strategy="steps", eval_steps=1, **settings)
    built.train()
    seen = [built.processing_class.decode(ids[1:]) for ids in built.cycle.experience.prompt_lists()[:4]]
    assert [row["prompt"] for row in built.samples] == seen


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": float("inf")}, "finite"),
        ({"kl_coef": float("inf")}, "finite"),
        ({"reward_weights": [float("nan")]}, "reward_weights"),
        ({"weight_decay": -1.0}, "weight_decay"),
        ({"adam_epsilon": -1.0}, "adam_epsilon"),
        ({"max_tokens_per_micro_batch": 2.5}, "whole number"),
        ({"critic_warmup_rollouts": 0.5}, "whole number"),
        ({"num_generations": 2.0}, "whole number"),
        ({"clip_range": 5.0}, "at most 1"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps"),
    ],
)
def test_numbers_that_would_fail_later_are_refused_now(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        config(tmp_path, **changes)


def test_checkpoints_that_cannot_be_resumed_are_announced(tmp_path):
    with pytest.warns(UserWarning, match="cannot be resumed"):
        config(tmp_path, save_only_model=True)
