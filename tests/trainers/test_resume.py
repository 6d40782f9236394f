"""A resumed run is the uninterrupted run: parameters, optimiser, log and prompts, to the bit (one process)."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForSequenceClassification, TrainerCallback

from tests.trainers.helpers import parameters, prompts, trainer, training_logs, whole_log

STEPS = 12  # three rollouts of four steps; twelve prompts and eight episodes a rollout make two rollouts an epoch


def run(folder: Path, tmp_path: Path, resume: int | None = None, **changes):
    """The run with a checkpoint after every step, or its continuation from one of them, which leaves no more."""
    settings = {
        "save_strategy": "no" if resume else "steps",
        "save_steps": 1,
        "max_steps": STEPS,
        "kl_target": 0.5,
        "kl_horizon": 80,
    }
    settings |= {"normalize_scores": True, "weight_decay": 0.1, "learning_rate": 3e-3, "lr_scheduler_type": "cosine"}
    built = trainer(str(folder), tmp_path, **(settings | changes))
    built.train(resume_from_checkpoint=None if resume is None else str(tmp_path / "run" / f"checkpoint-{resume}"))
    return built


def assert_same(continued, whole):
    """Everything that a run leaves."""
    for (name, p), q in zip(parameters(whole).items(), parameters(continued).values(), strict=True):
        assert torch.equal(p, q), name
    states = [b.optimizer.state_dict()["state"] for b in (whole, continued)]
    for index, state in states[0].items():
        for key, value in state.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(states[1][index][key])), (index, key)
    assert whole_log(continued) == whole_log(whole)
    assert torch.equal(continued.cycle.experience.input_ids, whole.cycle.experience.input_ids)


@pytest.fixture(scope="module")
def uninterrupted(tiny_model_folder, tmp_path_factory):
    """The run, and where it left its checkpoints."""
    place = tmp_path_factory.mktemp("uninterrupted")
    return run(tiny_model_folder, place), place


# After 4 and 8 a rollout ends, after 8 an epoch too; the others are in the middle of a cycle.
@pytest.mark.parametrize("step", [1, 2, 3, 4, 6, 8, 9, 11])
def test_a_resumed_run_equals_the_uninterrupted_one(tiny_model_folder, uninterrupted, step):
    whole, place = uninterrupted
    assert_same(run(tiny_model_folder, place, resume=step), whole)


@pytest.mark.parametrize("kind", ["lora", "critic apart", "stopped by target_kl", "accumulation", "logs between"])
def test_every_kind_of_run_resumes(tiny_model_folder, tmp_path, kind):
    def changes():
        return {
            "lora": {"peft_config": LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")},
            "critic apart": {
                "value_model": AutoModelForSequenceClassification.from_pretrained(tiny_model_folder, num_labels=1)
            },
            "stopped by target_kl": {"target_kl": 1e-6},
            "accumulation": {"gradient_accumulation_steps": 2},
            "logs between": {"logging_steps": 3},
        }[kind]

    whole = run(tiny_model_folder, tmp_path, **changes())
    assert_same(run(tiny_model_folder, tmp_path, resume=6, **changes()), whole)


@pytest.mark.parametrize("step", [4, 6])
def test_the_penalty_coefficient_resumes(tiny_model_folder, tmp_path, step):
    """At the end of a rollout, when it has just moved, and in the middle of the next."""
    changes = {"algorithm": "ppo_penalty", "penalty_target": 1e-4}
    whole = run(tiny_model_folder, tmp_path, **changes)
    assert whole.coefficients.penalty.coef != 1.0
    continued = run(tiny_model_folder, tmp_path, resume=step, **changes)
    assert_same(continued, whole)
    assert continued.coefficients.penalty.coef == whole.coefficients.penalty.coef


def test_another_algorithm_does_not_continue_a_run(tiny_model_folder, tmp_path):
    run(tiny_model_folder, tmp_path, max_steps=4)
    with pytest.raises(ValueError, match="algorithm: ppo_clip → ppo_penalty"):
        run(tiny_model_folder, tmp_path, resume=2, algorithm="ppo_penalty")


def test_the_global_generators_do_not_matter(tiny_model_folder, tmp_path):
    """Everything random has an address: whatever else draws numbers in between changes nothing."""
    whole = run(tiny_model_folder, tmp_path)

    def disturb(built):
        original = built.get_batch_samples
        built.get_batch_samples = lambda *a: (torch.rand(7), original(*a))[1]
        return built

    disturbed = disturb(trainer(str(tiny_model_folder), tmp_path / "b", **{"max_steps": STEPS} | settings_of(whole)))
    disturbed.train()
    for (name, p), q in zip(parameters(whole).items(), parameters(disturbed).values(), strict=True):
        assert torch.equal(p, q), name


def settings_of(built):
    names = ("kl_target", "kl_horizon", "normalize_scores", "weight_decay", "learning_rate", "lr_scheduler_type")
    return {name: getattr(built.args, name) for name in names}


def test_true_takes_the_newest_checkpoint(tiny_model_folder, tmp_path):
    whole = run(tiny_model_folder, tmp_path)
    shutil.rmtree(tmp_path / "run" / f"checkpoint-{STEPS}")
    continued = trainer(str(tiny_model_folder), tmp_path, **settings_of(whole), max_steps=STEPS)
    continued.train(resume_from_checkpoint=True)
    assert_same(continued, whole)


def test_a_finished_run_is_loaded_and_not_trained_on(tiny_model_folder, tmp_path):
    whole = run(tiny_model_folder, tmp_path)
    again = trainer(str(tiny_model_folder), tmp_path, **settings_of(whole), max_steps=STEPS)
    assert again.train(resume_from_checkpoint=True).global_step == STEPS
    for (name, p), q in zip(parameters(whole).items(), parameters(again).values(), strict=True):
        assert torch.equal(p, q), name


@pytest.mark.parametrize(
    "changes",
    [
        *({"num_ppo_epochs": 1}, {"num_mini_batches": 1}, {"rollout_batch_size": 16}, {"seed": 4}),
        *({"gradient_accumulation_steps": 2}, {"num_generations": 2}, {"value_epochs": 1}),
    ],
)
def test_another_batch_arithmetic_is_refused(tiny_model_folder, tmp_path, changes):
    run(tiny_model_folder, tmp_path, max_steps=2)
    with pytest.raises(ValueError, match=next(iter(changes))):
        run(tiny_model_folder, tmp_path, resume=2, **changes)


class RatesUsed(TrainerCallback):
    """The learning rate of every optimiser step, as the optimiser has it."""

    def __init__(self):
        self.rates = []

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        self.rates.append({group["lr"] for group in optimizer.param_groups})


@pytest.mark.parametrize(
    ("length", "steps"), [({"max_steps": 2 * STEPS}, 24), ({"max_steps": -1, "num_train_epochs": 2.0}, 16)]
)
def test_a_longer_run_follows_the_schedule_of_its_new_length(tiny_model_folder, uninterrupted, capsys, length, steps):
    used, place = RatesUsed(), uninterrupted[1]
    longer = trainer(
        *(str(tiny_model_folder), place),
        **{"learning_rate": 3e-3, "lr_scheduler_type": "cosine", "callbacks": [used]} | length,
    )
    longer.train(resume_from_checkpoint=str(place / "run" / "checkpoint-6"))
    assert f"planned for 12 steps and goes on with the schedule of {steps}" in capsys.readouterr().out
    expected = [3e-3 * 0.5 * (1 + math.cos(math.pi * step / steps)) for step in range(6, steps)]
    assert [max(rates) for rates in used.rates] == pytest.approx(expected, abs=0, rel=1e-12)
    assert all(len(rates) == 1 for rates in used.rates)
    logged = {row["step"]: row["learning_rate"] for row in training_logs(longer) if row["step"] > 6}
    assert logged == pytest.approx({step: expected[step - 7] for step in range(8, steps + 1, 4)}, abs=0, rel=1e-12)


def test_the_same_length_says_nothing(tiny_model_folder, uninterrupted, capsys):
    run(tiny_model_folder, uninterrupted[1], resume=10)
    said = capsys.readouterr().out
    assert "planned for" not in said
    assert "also holds checkpoint-11, checkpoint-12, of later steps" in said


LORA = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}


@pytest.mark.parametrize(
    ("policy", "value", "message"),
    [
        ({"lora_alpha": 8}, {}, "'lora_alpha': 4.* → .*'lora_alpha': 8"),
        ({"target_modules": ["v_proj"]}, {}, r"'target_modules': \['q_proj'\].* → .*\['v_proj'\]"),
        ({"r": 3}, {}, "'r': 2.* → .*'r': 3"),
        ({}, {"r": 1}, "'value'.* → .*'r': 1"),
    ],
)
def test_other_adapters_do_not_continue_a_run(tiny_model_folder, tmp_path, policy, value, message):
    def build(policy, value):
        adapters = {"peft_config": LoraConfig(**LORA | policy), "value_model": LoraConfig(**LORA | value)}
        return trainer(str(tiny_model_folder), tmp_path, save_strategy="steps", save_steps=1, max_steps=1, **adapters)

    build({}, {}).train()
    with pytest.raises(ValueError, match=f"changed adapters: .*{message}"):
        build(policy, value).train(resume_from_checkpoint=True)


def test_other_prompts_do_not_continue_a_run(tiny_model_folder, tmp_path):
    run(tiny_model_folder, tmp_path, max_steps=1)
    with pytest.raises(ValueError, match=r"prompts: 12 rows with .* → 11 rows with"):
        run(tiny_model_folder, tmp_path, resume=1, train_dataset=prompts(11))
    with pytest.raises(ValueError, match=r"prompts: 12 rows with .* → 12 rows with"):
        run(tiny_model_folder, tmp_path, resume=1, train_dataset=prompts().select(range(11, -1, -1)))


def test_resuming_from_nothing_says_so(tiny_model_folder, tmp_path):
    with pytest.raises(ValueError, match="no checkpoint"):
        trainer(str(tiny_model_folder), tmp_path).train(resume_from_checkpoint=True)
    (tmp_path / "empty").mkdir()
    for folder, words in (("empty", "no manifest.json"), ("nowhere", "no such folder")):
        with pytest.raises(ValueError, match=f"{folder} cannot be resumed from: .*{words}"):
            trainer(str(tiny_model_folder), tmp_path).train(resume_from_checkpoint=str(tmp_path / folder))


def test_a_folder_with_another_run_is_never_written_over(tiny_model_folder, tmp_path):
    first = trainer(str(tiny_model_folder), tmp_path)
    first.train()
    first.save_model()
    before = (tmp_path / "run" / "model.safetensors").read_bytes()
    with pytest.raises(FileExistsError, match="no checkpoint to go on from: choose another"):
        trainer(str(tiny_model_folder), tmp_path).train()
    (tmp_path / "run" / "checkpoint-4").mkdir()
    with pytest.raises(FileExistsError, match="go on with it by `resume_from_checkpoint=True`"):
        trainer(str(tiny_model_folder), tmp_path).train()
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == before


def test_a_new_run_does_not_read_all_its_data_for_a_resume(tiny_model_folder, tmp_path):
    """The hash of the prompts is for those who go on from a checkpoint, or may."""
    whole = trainer(str(tiny_model_folder), tmp_path, save_strategy="no", max_steps=1, num_ppo_epochs=1)
    whole.train()
    assert "prompts_read" not in vars(whole)


def test_a_second_training_follows_the_settings_of_now(tiny_model_folder, tmp_path):
    built = trainer(str(tiny_model_folder), tmp_path / "a", save_strategy="no", max_steps=4)
    built.train()
    assert built.clock.steps == 4 and built.guard.limit == 10
    built.args.output_dir = str(tmp_path / "b")
    built.args.value_epochs, built.args.max_tokens_per_micro_batch, built.args.max_skipped_updates = 1, 64, 3
    built.train()
    assert built.clock.steps == 6 and built.update.max_tokens == 64 and built.guard.limit == 3
