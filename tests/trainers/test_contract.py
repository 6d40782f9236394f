"""What the Trainer does around the hooks that `tests/contracts` names: steps, precision, what it saves."""

from __future__ import annotations

import torch

from tests.trainers.helpers import trainer


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
