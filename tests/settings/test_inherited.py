"""Every field of the installed `TrainingArguments` is followed or refused; settings may be copied and changed."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
import warnings
from typing import Any

import pytest
import torch
from transformers import TrainerCallback, TrainingArguments

from hfrlhf import PolicyGradientConfig, PPOConfig, RewardConfig, RewardTrainer, TRPOConfig
from hfrlhf.settings.inherited import (
    FOLLOWED,
    FOLLOWED_BY_REWARD,
    POLICY_REFUSED,
    REWARD_REFUSED,
    check_inherited,
)
from tests.trainers import test_reward_trainer
from tests.trainers.helpers import config, load, prompts, trainer

FIELDS = {field.name: field for field in dataclasses.fields(TrainingArguments)}
POLICY_CONFIGS = [PPOConfig, PolicyGradientConfig, TRPOConfig]
# A value that is none of those accepted, where "the other one" will not do.
OTHERS: dict[str, Any] = {
    "label_smoothing_factor": 0.1,
    "include_for_metrics": ["inputs"],
    "parallelism_config": object(),
    "label_names": ["label"],
    "length_column_name": "tokens",
    "torch_compile_backend": "eager",
    "torch_compile_mode": "default",
    "liger_kernel_config": {"rope": True},
    "neftune_noise_alpha": 5.0,
    "eval_accumulation_steps": 2,
    "dataloader_num_workers": 1,
    "dataloader_prefetch_factor": 2,
    "dataloader_multiprocessing_context": "fork",
    "train_sampling_strategy": "batch_rebalance",
    "optim_target_modules": "all-linear",
}


def settings(cls: type, folder: Any, **changes: Any) -> Any:
    return cls(str(folder), use_cpu=True, report_to="none", **changes)


# ---- The tables ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("followed", "refused"), [(FOLLOWED, POLICY_REFUSED), (FOLLOWED_BY_REWARD, REWARD_REFUSED)])
def test_the_tables_know_every_field_of_the_installed_class(followed, refused):
    """A field in neither came with this release of transformers: find out whether the trainers follow it."""
    assert set(FIELDS) - followed - set(refused) == set()
    assert followed & set(refused) == set()


REFUSALS = [(cls, name) for cls in POLICY_CONFIGS for name in POLICY_REFUSED if name in FIELDS]
REFUSALS += [(RewardConfig, name) for name in REWARD_REFUSED if name in FIELDS]


@pytest.mark.parametrize(("cls", "name"), REFUSALS, ids=lambda value: getattr(value, "__name__", value))
def test_what_is_not_followed_is_refused_with_advice(tmp_path, cls, name):
    default = dataclasses.fields(cls)[[f.name for f in dataclasses.fields(cls)].index(name)].default
    value = OTHERS.get(name, not default)
    with pytest.raises(ValueError, match=rf"`{name}=.*is not used by .*: \w+.*[;:,] .*|must stay False"):
        settings(cls, tmp_path, **{name: value})


@pytest.mark.parametrize("cls", [*POLICY_CONFIGS, RewardConfig])
@pytest.mark.parametrize(
    "given", [{"split_batches": True}, {"even_batches": False}, {"gradient_accumulation_kwargs": {"num_steps": 2}}]
)
def test_accelerate_makes_no_batches(tmp_path, cls, given):
    with pytest.raises(ValueError, match=next(iter({"num_steps"} & set(str(given).split("'")) or given))):
        settings(cls, tmp_path, accelerator_config=given)
    settings(cls, tmp_path, accelerator_config={"gradient_accumulation_kwargs": {"sync_each_batch": True}})


def test_a_field_of_a_later_release_is_warned_of_where_it_is_set(tmp_path):
    args, known = settings(PPOConfig, tmp_path), FOLLOWED - {"run_name"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_inherited(args, known, POLICY_REFUSED, "the trainers")
    args.run_name = "mine"
    with pytest.warns(UserWarning, match=r"`run_name='mine'`.*does not know the field"):
        check_inherited(args, known, POLICY_REFUSED, "the trainers")


@pytest.mark.parametrize("cls", [*POLICY_CONFIGS, RewardConfig])
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"max_steps": 0}, "`max_steps` must be at least 1"),
        ({"max_steps": -3}, "`max_steps` must be at least 1"),
        ({"max_steps": 1.5}, "`max_steps` must be a whole number"),
        ({"num_train_epochs": 0}, "`num_train_epochs=0` trains nothing"),
        ({"num_train_epochs": -1}, "trains nothing"),
        ({"num_train_epochs": float("nan")}, "finite"),
        ({"save_steps": 0}, "`save_steps` must be above 0"),
        ({"save_steps": -5}, "`save_steps` must be above 0"),
        ({"logging_steps": -1}, "`logging_steps` must be above 0"),
        ({"eval_steps": -2}, "`eval_steps` must be at least 0"),
        ({"eval_delay": -2}, "`eval_delay` must be at least 0"),
        ({"save_total_limit": 0}, "`save_total_limit` must be at least 1"),
        ({"per_device_eval_batch_size": 0}, "`per_device_eval_batch_size` must be at least 1"),
        ({"per_device_train_batch_size": -8}, "`per_device_train_batch_size` must be at least 1"),
        ({"gradient_accumulation_steps": 0}, "`gradient_accumulation_steps` must be at least 1"),
        ({"adam_beta2": 1.0}, "`adam_beta2` must be at least 0, below 1"),
        ({"adam_beta1": "0.9"}, "`adam_beta1` must be a finite number, got '0.9'"),
        ({"seed": -1}, "`seed` must be at least 0"),
        ({"data_seed": 2**32}, "`data_seed` must be at least 0, at most"),
        ({"warmup_steps": -1}, "`warmup_steps` must be at least 0"),
        ({"learning_rate": float("inf")}, "`learning_rate` must be .*finite"),
    ],
)
def test_numbers_are_looked_at_before_anything_runs(tmp_path, cls, changes, words):
    with pytest.raises(ValueError, match=words):
        settings(cls, tmp_path, **changes)


# ---- Copied and changed -------------------------------------------------------------------------------------------

GIVEN = [
    (PPOConfig, {}),
    (PPOConfig, {"rollout_batch_size": 32}),
    (PPOConfig, {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}),
    (PPOConfig, {"eval_strategy": "steps", "save_strategy": "steps", "load_best_model_at_end": True, "save_steps": 4}),
    (PolicyGradientConfig, {"algorithm": "rloo", "num_generations": 4}),
    (TRPOConfig, {"rollout_batch_size": 16}),
    (RewardConfig, {"normalize_scores": "none"}),
]


@pytest.mark.parametrize(("cls", "given"), GIVEN)
def test_a_copy_says_the_same(tmp_path, cls, given):
    args = settings(cls, tmp_path, **given)
    as_json = json.loads(args.to_json_string())
    for made in (
        dataclasses.replace(args),
        copy.deepcopy(args),
        pickle.loads(pickle.dumps(args)),
        cls(**args.to_dict()),
        dataclasses.replace(copy.deepcopy(dataclasses.replace(args))),
    ):
        assert json.loads(made.to_json_string()) == as_json
    assert {type(v) for v in args.to_dict().values()} <= {int, float, str, bool, list, dict, type(None)}


def test_what_follows_from_a_changed_setting_follows_it(tmp_path):
    args = settings(PPOConfig, tmp_path)
    assert (args.rollout_batch_size, args.per_device_train_batch_size, args.logging_steps) == (8, 8, 4)
    changed = dataclasses.replace(args, num_mini_batches=4)
    assert (changed.rollout_batch_size, changed.per_device_train_batch_size, changed.logging_steps) == (32, 8, 16)
    changed = dataclasses.replace(settings(PPOConfig, tmp_path, rollout_batch_size=32), num_mini_batches=4)
    assert (changed.rollout_batch_size, changed.per_device_train_batch_size) == (32, 8)
    changed = dataclasses.replace(changed, gradient_accumulation_steps=4, per_device_eval_batch_size=3)
    assert (changed.rollout_batch_size, changed.per_device_train_batch_size) == (32, 2)
    assert dataclasses.replace(changed, rollout_batch_size=64).per_device_eval_batch_size == 3
    changed = dataclasses.replace(settings(PPOConfig, tmp_path, logging_steps=3), num_mini_batches=4)
    assert changed.logging_steps == 3
    critic = settings(PolicyGradientConfig, tmp_path)
    assert (critic.vf_coef, dataclasses.replace(critic, algorithm="reinforce").vf_coef) == (0.1, None)


def test_what_was_set_is_still_held_against_what_changes(tmp_path):
    args = settings(PPOConfig, tmp_path, rollout_batch_size=32, per_device_train_batch_size=32)
    with pytest.raises(ValueError, match="disagree"):
        dataclasses.replace(args, num_mini_batches=4)


def test_evaluations_follow_the_logs_also_in_a_copy(tmp_path):
    args = settings(PPOConfig, tmp_path, eval_strategy="steps")
    assert args.eval_steps == 4
    assert dataclasses.replace(args, num_mini_batches=2).eval_steps == 8
    assert dataclasses.replace(args, eval_steps=3).eval_steps == 3


def test_the_best_model_is_the_one_that_scores_best(tmp_path):
    best = {"eval_strategy": "steps", "load_best_model_at_end": True, "eval_steps": 500}
    args = settings(PPOConfig, tmp_path, **best)
    assert (args.metric_for_best_model, args.greater_is_better) == ("objective/score", True)
    args = settings(PPOConfig, tmp_path, **best, metric_for_best_model="eval_objective/kl")
    assert args.greater_is_better is False
    assert settings(PPOConfig, tmp_path).metric_for_best_model is None
    args = settings(RewardConfig, tmp_path, **best)
    assert (args.metric_for_best_model, args.greater_is_better) == ("loss", False)


# ---- Followed -----------------------------------------------------------------------------------------------------


class Parts(TrainerCallback):
    """How often part of an evaluation was over."""

    count = 0

    def on_prediction_step(self, *_: Any, **__: Any) -> None:
        self.count += 1


def test_an_evaluation_samples_as_many_prompts_at_a_time_as_it_is_told(tiny_model_folder, tmp_path):
    found = []
    for size, parts in ((None, 1), (3, 2), (1, 5)):
        callback = Parts()
        built = trainer(
            str(tiny_model_folder),
            tmp_path,
            eval_dataset=prompts(5),
            per_device_eval_batch_size=size,
            callbacks=[callback],
        )
        found.append(built.evaluate())
        assert callback.count == parts
        assert "eval_samples_per_second" in built.state.log_history[-1]
    assert found[1] == pytest.approx(found[0], abs=1e-5)
    assert found[2] == pytest.approx(found[0], abs=1e-5)


def test_a_seed_for_the_data_orders_the_prompts_and_nothing_else(tiny_model_folder, tmp_path):
    same, other = (
        trainer(str(tiny_model_folder), tmp_path, seed=3, data_seed=seed).training_prompts(0) for seed in (3, 4)
    )
    stock = trainer(str(tiny_model_folder), tmp_path, seed=3).training_prompts(0)
    assert same[0].row.tolist() == stock[0].row.tolist() != other[0].row.tolist()
    assert same[1] == stock[1] == other[1]  # the address of the draws


def test_tokens_memory_and_the_first_step_are_logged_where_asked_for(tiny_model_folder, tmp_path):
    settings = {"include_num_input_tokens_seen": "non_padding", "skip_memory_metrics": False, "logging_steps": 4}
    built = trainer(
        *(str(tiny_model_folder), tmp_path),
        **settings,
        eval_on_start=True,
        eval_dataset=prompts(4),
        logging_first_step=True,
    )
    result = built.train()
    seen, history = built.cycle.experience, built.state.log_history
    assert built.state.num_input_tokens_seen == 2 * int(seen.attention_mask.sum())  # two epochs of one rollout
    assert [row["step"] for row in history] == [0, 1, 4, 4] and "eval_objective/score" in history[0]
    assert "train_mem_cpu_alloc_delta" in result.metrics
    assert "eval_mem_cpu_alloc_delta" in built.evaluate()
    assert built.state.total_flos >= 0


def test_overflows_are_looked_for(tiny_model_folder, tmp_path):
    trainer(str(tiny_model_folder), tmp_path, debug="underflow_overflow", max_steps=1).train()


@pytest.mark.parametrize(
    "setting",
    [
        {"neftune_noise_alpha": 5.0},
        {"dataloader_num_workers": 1, "dataloader_persistent_workers": True, "dataloader_prefetch_factor": 2},
        {"dataloader_drop_last": True},
        {"eval_accumulation_steps": 1},
        {"bf16_full_eval": True},
        {"remove_unused_columns": False},
        {"torch_compile_backend": "eager"},
        {"include_num_input_tokens_seen": "all"},
        {"skip_memory_metrics": False},
        {"logging_nan_inf_filter": True},
        {"debug": "underflow_overflow"},
        {"train_sampling_strategy": "sequential"},
        {"data_seed": 5},
    ],
    ids=lambda setting: next(iter(setting)),
)
def test_a_reward_model_is_trained_and_evaluated_with_the_stock_trainers_settings(tiny_model_folder, tmp_path, setting):
    model, tokenizer = load(tiny_model_folder)
    args = test_reward_trainer.config(tmp_path, **{"max_steps": 2, "per_device_train_batch_size": 4} | setting)
    data = test_reward_trainer.pairs()
    built = RewardTrainer(model, args, data, data, tokenizer)
    before = built.model.get_input_embeddings().weight.clone()
    built.train()
    assert not torch.equal(before, built.model.get_input_embeddings().weight)
    assert 0 <= built.evaluate()["eval_accuracy"] <= 1


@pytest.mark.parametrize("number", [{"max_steps": 100.0}, {"seed": 3.0}, {"save_total_limit": 2.0}])
def test_whole_numbers_of_transformers_may_be_written_with_a_point(tmp_path, number):
    """As YAML and JSON write them; of ours, which things are counted with, they may not."""
    ((name, value),) = number.items()
    assert getattr(config(tmp_path, **number), name) == value
    with pytest.raises(ValueError, match=r"`num_mini_batches` must be a whole number, got 2\.0"):
        config(tmp_path, num_mini_batches=2.0)
