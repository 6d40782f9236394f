"""A resumed reward training is the uninterrupted one, to the bit; what it cannot continue it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from tests.faults.runs import assert_same, reward, state_of

STEPS = 12  # ten micro-batches, five optimiser steps an epoch


def run(model: Path, folder: Path, resume: int | None = None, **changes):
    settings = {"max_steps": STEPS, "save_total_limit": None, "lr_scheduler_type": "cosine", "logging_steps": 4}
    built = reward(str(model), folder, **(settings | changes))
    result = built.train(resume_from_checkpoint=resume and str(folder / "run" / f"checkpoint-{resume}"))
    assert result.training_loss == result.metrics.get("train_loss", 0.0), "an end that is only loaded has none"
    return built


# 4 is a log, 5 ends an epoch; the log after 6 and 11 has something of both runs; 12 is the end.
@pytest.mark.parametrize("adapter", [False, True], ids=["full", "LoRA"])
def test_a_resumed_run_is_the_uninterrupted_one(tiny_model_folder, tmp_path, adapter):
    def changes():
        return {"peft_config": LoraConfig(r=2, lora_dropout=0.2)} if adapter else {}

    whole = run(tiny_model_folder, tmp_path, **changes())
    for step in (6,) if adapter else (4, 5, 6, 11):
        continued = run(tiny_model_folder, tmp_path, resume=step, **changes())
        assert_same(state_of(whole), state_of(continued))
        assert "train_loss" in state_of(whole)["logs"][-1]
        assert continued.model.config.reward_shift == whole.model.config.reward_shift


def test_a_finished_run_is_loaded_and_normalised(tiny_model_folder, tmp_path):
    whole = run(tiny_model_folder, tmp_path)
    again = run(tiny_model_folder, tmp_path, resume=STEPS)
    assert again.state.global_step == STEPS
    one, two = (dict(built.model.named_parameters()) for built in (whole, again))
    assert all(bool((one[name] == two[name]).all()) for name in one)
    assert again.model.config.reward_shift == whole.model.config.reward_shift


@pytest.mark.parametrize(
    "changes",
    [
        *({"per_device_train_batch_size": 4}, {"gradient_accumulation_steps": 1}, {"seed": 4}, {"max_length": 5}),
        *({"train_sampling_strategy": "random"}, {"data_seed": 1}),
        {"peft_config": LoraConfig(r=2)},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_changes_the_batches_or_the_adapter_is_refused(tiny_model_folder, tmp_path, changes):
    run(tiny_model_folder, tmp_path, max_steps=1)
    name = next(iter(changes)).replace("peft_config", "adapters")
    with pytest.raises(ValueError, match=f"changed .*{name}: .* → "):
        run(tiny_model_folder, tmp_path, resume=1, **changes)


def test_other_pairs_are_refused(tiny_model_folder, tmp_path):
    """Fewer of them, and as many in another order."""
    run(tiny_model_folder, tmp_path, max_steps=1)
    for rows, message in ((range(18), "pairs: 19 rows with .* → 18 rows with"), (range(18, -1, -1), "→ 19 rows with")):
        built = reward(str(tiny_model_folder), tmp_path, max_steps=3)
        built.train_dataset = built.train_dataset.select(rows)
        with pytest.raises(ValueError, match=message):
            built.train(resume_from_checkpoint=True)


def test_a_longer_run_says_so(tiny_model_folder, tmp_path, capsys):
    run(tiny_model_folder, tmp_path)
    longer = run(tiny_model_folder, tmp_path, resume=6, max_steps=20)
    assert "planned for 12 steps and goes on with the schedule of 20" in capsys.readouterr().out
    assert longer.state.global_step == 20


@pytest.mark.parametrize("change", ["missing", "unexpected"])
def test_an_adapter_is_loaded_whole_or_not_at_all(tiny_model_folder, tmp_path, change):
    """PEFT itself would leave what is missing as it is."""
    built = run(tiny_model_folder, tmp_path, max_steps=1, peft_config=LoraConfig(r=2))
    file = tmp_path / "run" / "checkpoint-1" / "adapter_model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if "lora_A" in name)
    if change == "missing":
        del tensors[name]
    else:
        tensors[name.replace("layers.0", "layers.9")] = tensors[name].clone()
    save_file(tensors, file)
    with pytest.raises(ValueError, match=f"does not fit the adapter .*{change} .*base_model"):
        built._load_from_checkpoint(str(file.parent))
