"""A setting is declared once, and all that follows from the declaration follows it."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Any

import pytest
from transformers import TrainingArguments

from hfrlhf import PolicyGradientConfig, PPOConfig, RewardConfig, TRPOConfig
from hfrlhf.algorithms import ALGORITHMS
from hfrlhf.settings.algorithm_checks import unread_settings
from hfrlhf.settings.declarations import INHERITED, declarations, resumed_settings, shown_settings
from hfrlhf.settings.fields import Interval, Setting, setting

CLASSES = [PPOConfig, PolicyGradientConfig, TRPOConfig, RewardConfig]


def made(cls: type, folder: Any, **changes: Any) -> Any:
    return cls(str(folder), use_cpu=True, report_to="none", **changes)


# ---- Declaring ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "inside", "outside", "words"),
    [
        ("[0, 1]", (0, 0.5, 1), (-1e-9, 1.1), "at least 0, at most 1"),
        ("(0, 1]", (1e-9, 1), (0, 1.1), "above 0, at most 1"),
        ("[0, 0.5)", (0, 0.4), (0.5, -1), "at least 0, below 0.5"),
        ("[1, ∞)", (1, 1e30), (0.9, -3), "at least 1"),
        ("(-∞, ∞)", (-1e30, 0, 1e30), (), ""),
    ],
)
def test_an_interval_is_read_as_in_mathematics(text, inside, outside, words):
    interval = Interval(text)
    assert all(value in interval for value in inside) and not any(value in interval for value in outside)
    assert str(interval) == words


def test_a_unit_stands_before_the_text():
    assert Setting("Longer ones are left out.", "tokens") == "Tokens. Longer ones are left out."
    assert Setting("Nothing is measured.") == "Nothing is measured."


@dataclass
class Own(TRPOConfig):
    """A subclass that gives one setting another default, and says something else of another."""

    gae_lambda: float = 0.5
    max_kl: float = setting(0.1, "Mine.", range="[0, 1]")


def test_what_a_subclass_does_not_say_stays_as_it_was(tmp_path):
    said = declarations(Own)
    assert said["gae_lambda"] == declarations(TRPOConfig)["gae_lambda"] and said["gae_lambda"].range == "[0, 1]"
    assert (said["max_kl"].range, said["max_kl"].unit, said["max_kl"].shown) == ("[0, 1]", "nats per token", True)
    assert declarations(TRPOConfig)["max_kl"].range == "(0, ∞)"
    assert said["learning_rate"].range == "[0, ∞)" and "critic" in said["learning_rate"]
    with pytest.raises(ValueError, match="`max_kl` must be at least 0, at most 1, got 2"):
        made(Own, tmp_path, max_kl=2)
    with pytest.raises(ValueError, match="`gae_lambda` must be at least 0, at most 1, got 2"):
        made(Own, tmp_path, gae_lambda=2)


@pytest.mark.parametrize("cls", CLASSES)
def test_every_number_of_ours_has_a_range(cls):
    inherited = {field.name for field in dataclasses.fields(TrainingArguments)}
    without = {
        field.name
        for field in dataclasses.fields(cls)
        if field.name not in inherited and ("int" in str(field.type) or "float" in str(field.type))
        if not declarations(cls)[field.name].range
    }
    assert without <= {"stop_token_id", "reward_weights"}  # a name, and a list


def test_the_inherited_numbers_are_there():
    assert INHERITED.keys() <= {field.name for field in dataclasses.fields(TrainingArguments)}


@pytest.mark.parametrize("cls", CLASSES)
def test_help_says_of_each_setting_what_it_does_once(cls):
    text = " ".join(cls.__doc__.split())
    for field in dataclasses.fields(cls):
        if isinstance(field.metadata.get("help"), Setting):
            assert text.count(f" {field.name}: {' '.join(field.metadata['help'].split())}") == 1, field.name
    assert "learning_rate: " in text and "default: None" not in text


def test_help_says_ranges_and_defaults():
    text = " ".join(PPOConfig.__doc__.split())
    assert "to 1 (no bias, more variance). (at least 0, at most 1; default: 0.95)" in text
    assert "kl_target: Nats per response. If set, kl_coef adapts to hold it. Typical: 3 to 10. (above 0)" in text
    assert "value_learning_rate: Step size of the critic. Default: learning_rate. (at least 0)" in text


# ---- What follows ---------------------------------------------------------------------------------------------------


def wrong_numbers() -> list[tuple[type, str, Any, str]]:
    """For every number of every class: one below its range, and a fraction where it is to be whole."""
    cases = []
    for cls in CLASSES:
        for name, said in declarations(cls).items():
            low, high = Interval(said.range).ends if said.range else (float("-inf"), 0)
            if low > float("-inf"):
                cases.append((cls, name, low - 1, f"{low:g}"))
            if high < float("inf") and low > float("-inf"):
                cases.append((cls, name, 2 * high + 1, f"{high:g}"))
            if said.whole:
                cases.append((cls, name, max(low, 1) + 0.5, "whole number"))
    return cases


@pytest.mark.parametrize(
    ("cls", "name", "value", "words"), wrong_numbers(), ids=lambda value: getattr(value, "__name__", str(value))
)
def test_every_number_is_held_against_its_range(tmp_path, cls, name, value, words):
    elsewhere = f"`{name}={value}` is (not used|no part)"  # refused whatever its value
    with pytest.raises(ValueError, match=f"`{name}` .*{re.escape(words)}.*, got {value}|{elsewhere}"):
        made(cls, tmp_path, **{name: value})


def test_a_resume_compares_what_its_checkpoints_have_always_held(tmp_path):
    policy = {
        *("algorithm", "num_ppo_epochs", "value_epochs", "num_mini_batches", "gradient_accumulation_steps"),
        *("rollout_batch_size", "num_generations", "seed", "data_seed"),
    }
    reward = {
        *("per_device_train_batch_size", "gradient_accumulation_steps", "seed", "data_seed", "max_length"),
        "train_sampling_strategy",
    }
    for cls in CLASSES:
        found = resumed_settings(made(cls, tmp_path, seed=7))
        assert set(found) == (reward if cls is RewardConfig else policy) and found["seed"] == 7


def test_a_card_lists_the_length_that_the_run_goes_by(tmp_path):
    for cls in CLASSES:
        for given, other in (("max_steps", "num_train_epochs"), ("num_train_epochs", "max_steps")):
            shown = shown_settings(made(cls, tmp_path, **{given: 3}))
            assert shown[given] == 3 and other not in shown and {"learning_rate", "seed"} <= set(shown)


# ---- Who reads what -------------------------------------------------------------------------------------------------

# What rows read that is no setting of the same meaning: of every algorithm, or of the rollout.
OF_EVERY_ALGORITHM = {"gamma", "num_generations"}
OF_THE_ROLLOUT = {"grad_sq_norms", "best_values", "expected_values"}


def test_every_option_that_a_row_reads_is_a_setting_or_of_the_rollout():
    """Otherwise a setting that an algorithm does not read would be accepted and do nothing."""
    declared = {said.read_by for said in declarations(PolicyGradientConfig).values()} - {"", "critic"}
    read = {option for row in ALGORITHMS.values() for option in row.options}
    assert read - OF_EVERY_ALGORITHM - OF_THE_ROLLOUT == declared


def test_what_an_algorithm_leaves_unread(tmp_path):
    args = made(PolicyGradientConfig, tmp_path)
    critic = {"vf_coef", "value_learning_rate", "critic_warmup_rollouts", "clip_range_value", "value_epochs"}
    clip = {"clip_range", "clip_range_high", "dual_clip"}
    of_psi = {"gae_lambda", "n_step", "exclude_self", "bootstrap_truncated"}
    known = critic | clip | of_psi | {"penalty_target"}
    unread = {name: known & set(unread_settings(args, row)) for name, row in ALGORITHMS.items()}
    assert unread["reinforce"] == critic | clip | of_psi | {"penalty_target"}
    assert unread["reinforce_constant"] == (critic | clip | of_psi | {"penalty_target"}) - {"exclude_self"}
    assert unread["grpo"] == critic | of_psi | {"penalty_target"}
    assert unread["a2c"] == clip | {"gae_lambda", "exclude_self", "penalty_target"}
    assert unread["ppo_clip"] == {"n_step", "exclude_self", "penalty_target"}
    assert unread["ppo_penalty"] == clip | {"n_step", "exclude_self"}
