"""The hooks of `transformers.Trainer` this package stands on, as they are in the installed release."""

from __future__ import annotations

import inspect

import pytest
import torch
from transformers import Trainer

from hfrlhf import PPOTrainer
from tests.trainers.helpers import trainer

# What each overridden method is called with.
SIGNATURES = {
    "get_train_dataloader": [],
    "get_batch_samples": ["epoch_iterator", "num_batches", "device"],
    "training_step": ["model", "inputs", "num_items_in_batch"],
    "compute_loss": ["model", "inputs", "return_outputs", "num_items_in_batch"],
    "_prepare_inputs": ["inputs"],
    "evaluate": ["eval_dataset", "ignore_keys", "metric_key_prefix"],
    "log": ["logs", "start_time"],
    "_save": ["output_dir", "state_dict"],
    "_save_rng_state": ["output_dir"],
    "_load_optimizer_and_scheduler": ["checkpoint"],
    "_load_from_checkpoint": ["resume_from_checkpoint", "model"],
    "_load_best_model": [],
    "_save_checkpoint": ["model", "trial"],
    "_get_output_dir": ["trial"],
    "_push_from_checkpoint": ["checkpoint_folder"],
    "create_optimizer": ["model"],
    "save_model": ["output_dir", "_internal_call"],
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_an_overridden_method_has_the_signature_it_had(name):
    stock = list(inspect.signature(getattr(Trainer, name)).parameters)[1:]
    ours = list(inspect.signature(getattr(PPOTrainer, name)).parameters)[1:]
    assert stock == SIGNATURES[name] == ours


# Methods that pass on, or refuse, whatever the stock one takes: its parameters, where it is not the instance's own.
PASSED_ON = {
    "train": ["resume_from_checkpoint", "trial", "ignore_keys_for_eval"],
    "predict": ["test_dataset", "ignore_keys", "metric_key_prefix"],
    "create_model_card": [
        *("language", "license", "tags", "model_name", "finetuned_from", "tasks", "dataset_tags", "dataset"),
        "dataset_args",
    ],
    "get_optimizer_cls_and_kwargs": ["args", "model"],
    "_finalize_training": ["trial", "num_train_samples", "start_time"],
}


@pytest.mark.parametrize("name", PASSED_ON)
def test_an_overridden_method_can_be_called_as_the_stock_one(name):
    """By position and by name, with all arguments or the required ones."""
    stock = [p for n, p in inspect.signature(getattr(Trainer, name)).parameters.items() if n != "self"]
    assert [p.name for p in stock] == PASSED_ON[name]
    ours = inspect.signature(getattr(PPOTrainer, name))
    required = [p.name for p in stock if p.default is inspect.Parameter.empty]
    for names in (PASSED_ON[name], required):
        ours.bind("self", *names)
        ours.bind("self", **dict.fromkeys(names))
    own = [p for p in ours.parameters.values() if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD][1:]
    assert [p.name for p in own] == PASSED_ON[name][: len(own)]  # what we read ourselves stands where it stood


def test_the_loop_itself_is_the_trainers():
    for name in ("_inner_training_loop", "_run_epoch", "push_to_hub", "_maybe_log_save_evaluate", "create_scheduler"):
        assert getattr(PPOTrainer, name) is getattr(Trainer, name)


def test_every_optimiser_step_gets_exactly_its_micro_batches(tiny_model_folder, tmp_path):
    """One too few or too many would silently shift the steps."""
    built = trainer(str(tiny_model_folder), tmp_path, gradient_accumulation_steps=2)
    original, counts = built.get_batch_samples, []

    def counted(*args):
        batches, items = original(*args)
        counts.append((len(batches), [len(b["input_ids"]) for b in batches], items))
        return batches, items

    built.get_batch_samples = counted
    built.train()
    assert [n for n, _, _ in counts] == [2] * 4
    assert all(rows == [2, 2] for _, rows, _ in counts)
    experience = built.cycle.experience
    assert counts[0][2] + counts[1][2] == int(experience.action_mask.sum())


def test_gradient_checkpointing_checkpoints(tiny_model_folder, tmp_path):
    built = trainer(str(tiny_model_folder), tmp_path, gradient_checkpointing=True, max_steps=1)
    calls = 0
    layer = built.model.policy.model.layers[0].self_attn

    def count(*_):
        nonlocal calls
        calls += torch.is_grad_enabled()

    layer.register_forward_hook(count)
    built.train()
    assert calls == 2  # the one training forward, and its recomputation in the backward pass


def test_bf16_computes_in_bfloat16_and_keeps_float32_weights(tiny_model_folder, tmp_path):
    built = trainer(str(tiny_model_folder), tmp_path, bf16=True, max_steps=1)
    seen = set()
    built.model.policy.model.layers[0].mlp.down_proj.register_forward_hook(lambda m, i, out: seen.add(out.dtype))
    built.train()
    assert seen == {torch.bfloat16}
    assert {p.dtype for p in built.model.parameters()} == {torch.float32}
    assert built.cycle.experience.old_logprobs.dtype == built.cycle.experience.values.dtype == torch.float32


def test_a_saved_folder_holds_no_pickle_and_has_a_card(tiny_model_folder, tmp_path):
    built = trainer(str(tiny_model_folder), tmp_path, save_strategy="steps", save_steps=2)
    built.train()
    built.save_model()
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"model.safetensors", "value_head.safetensors", "tokenizer.json", "training_args.json", "README.md"} <= names
    # Only the Trainer's own optimiser, scheduler and generator states are torch files, read with weights_only=True.
    pickles = {p.name for p in (tmp_path / "run").rglob("*") if p.suffix in (".bin", ".pt", ".pth", ".pkl")}
    assert pickles == {"optimizer.pt", "scheduler.pt", "rng_state.pth"}
    assert "ppo_clip" in (tmp_path / "run" / "README.md").read_text()
