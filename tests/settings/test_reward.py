"""RewardConfig: ranges, what is refused by which name, and help for every field."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainingArguments

from hfrlhf.settings.policy_gradient import RewardConfig as ReExported
from hfrlhf.settings.reward import RewardConfig

BAD = [
    ({"label_smoothing_factor": 0.1}, "`label_smoothing_factor=0.1` is not used .* is `label_smoothing`"),
    ({"batch_eval_metrics": True}, "`batch_eval_metrics=True` is not used"),
    ({"prediction_loss_only": True}, "`prediction_loss_only=True` is not used"),
    ({"label_smoothing": -0.1}, "`label_smoothing` .* got -0.1"),
    ({"label_smoothing": 0.5}, "below 0.5, got 0.5"),
    ({"center_rewards_coefficient": -1.0}, "`center_rewards_coefficient` must be at least 0 and finite, got -1.0"),
    ({"learning_rate": -1e-5}, "`learning_rate` must be at least 0 and finite, got -1e-05"),
    ({"learning_rate": float("nan")}, "`learning_rate` must be at least 0 and finite, got nan"),
    ({"max_grad_norm": -1.0}, "`max_grad_norm` must be at least 0"),
    ({"weight_decay": -0.1}, "`weight_decay` must be at least 0"),
    ({"max_length": 0}, "`max_length` must be a whole number of tokens of at least 1, got 0"),
    ({"max_length": 1.5}, "`max_length` must be a whole number"),
    ({"per_device_train_batch_size": 0}, "`per_device_train_batch_size` must be at least 1, got 0"),
    ({"gradient_accumulation_steps": 0}, "`gradient_accumulation_steps` must be at least 1, got 0"),
    ({"normalize_scores": "std"}, "`normalize_scores` must be 'mean', 'mean_std' or 'none', got 'std'"),
]


@pytest.mark.parametrize(("given", "message"), BAD, ids=[next(iter(given)) for given, _ in BAD])
def test_nonsense_is_refused_with_the_value(given: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        RewardConfig(output_dir=str(tmp_path), **given)


def test_the_defaults_are_those_of_the_documentation(tmp_path: Path) -> None:
    config = RewardConfig(output_dir=str(tmp_path))
    assert (config.max_length, config.center_rewards_coefficient, config.label_smoothing) == (1024, 0, 0)
    assert config.normalize_scores == "mean" and config.num_train_epochs == 1
    assert RewardConfig(output_dir=str(tmp_path), normalize_scores="none").normalize_scores is None
    assert RewardConfig(output_dir=str(tmp_path), max_length=None).max_length is None
    assert ReExported is RewardConfig


def test_every_field_of_ours_explains_itself() -> None:
    inherited = {f.name: f.default for f in dataclasses.fields(TrainingArguments)}
    ours = [f for f in dataclasses.fields(RewardConfig) if f.default != inherited.get(f.name, dataclasses.MISSING)]
    new = {f.name for f in ours} - inherited.keys()
    assert new == {
        "max_length",
        "center_rewards_coefficient",
        "label_smoothing",
        "normalize_scores",
        "max_skipped_updates",
        "save_logs",
        "save_curves",
    }
    for field in ours:
        assert len(field.metadata["help"]) > 40, field.name
