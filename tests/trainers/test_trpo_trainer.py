"""What TRPO promises on a language model, measured with the stock model's own logits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
    LlamaConfig,
    LlamaForCausalLM,
)

from hfrlhf import TRPOConfig, TRPOTrainer
from tests.conftest import word_tokenizer
from tests.trainers.helpers import parameters, prompts, reward, training_logs

# One step per rollout and no passes of the critic alone: two steps are two rollouts.
SETTINGS = {"max_completion_length": 6, "save_strategy": "no", "report_to": "none", "use_cpu": True, "seed": 3}


def trpo(model: Any, folder: Path, **changes: Any) -> TRPOTrainer:
    own = {"reward_funcs", "value_model", "peft_config", "quantization_config", "processing_class"}
    given = {name: changes.pop(name) for name in list(changes) if name in own}
    quick = {"rollout_batch_size": 16, "value_epochs": 0, "max_steps": 2, "disable_tqdm": True, "learning_rate": 1e-2}
    args = TRPOConfig(output_dir=str(folder / "run"), **(SETTINGS | quick | changes))
    return TRPOTrainer(model, args=args, train_dataset=prompts(), **({"reward_funcs": reward} | given))


def watch(built: TRPOTrainer) -> list[tuple[Any, dict, dict, Any]]:
    """Fills with (experience, parameters before, parameters after, result) of every step of the policy."""
    seen, original = [], built.policy_step

    def step():
        before = parameters(built)
        search = original()
        seen.append((built.cycle.experience, before, parameters(built), search))
        return search

    built.policy_step = step
    return seen


def measured(folder: Path, experience: Any, before: dict, after: dict) -> tuple[float, float, float]:
    """Mean KL(π_old ‖ π_θ) per token and the surrogate before and after, from stock models, row by row."""
    models = []
    for snapshot in (before, after):
        lm = AutoModelForCausalLM.from_pretrained(folder).eval()
        lm.load_state_dict({k.removeprefix("policy."): p for k, p in snapshot.items() if k.startswith("policy.")})
        models.append(lm)
    kl, surrogates, tokens = 0.0, [0.0, 0.0], int(experience.action_mask.sum())
    for row in range(len(experience)):
        ids, n = experience.input_ids[row][experience.attention_mask[row]], int(experience.completion_lengths[row])
        with torch.no_grad():
            old, new = (lm(ids[None]).logits[0, len(ids) - n - 1 : -1].double().log_softmax(-1) for lm in models)
        kl += float((old.exp() * (old - new)).sum())
        for i, logp in enumerate((old, new)):
            ratios = (logp - old)[torch.arange(n), ids[-n:]].exp()
            surrogates[i] += float((ratios * experience.advantages[row, :n]).sum())
    return kl / tokens, surrogates[0] / tokens, surrogates[1] / tokens


@pytest.mark.parametrize("max_kl", [0.001, 0.01, 0.2])
def test_a_step_keeps_to_the_trust_region_and_improves_the_surrogate(tiny_model_folder, tmp_path, max_kl):
    built = trpo(str(tiny_model_folder), tmp_path, max_kl=max_kl)
    seen = watch(built)
    built.train()
    assert len(seen) == 2
    for (experience, before, after, search), row in zip(seen, training_logs(built), strict=True):
        kl, start, end = measured(tiny_model_folder, experience, before, after)
        assert search.step is not None
        assert 0.01 * max_kl < kl <= max_kl * (1 + 1e-4)
        assert end > start
        assert row["policy/kl"] == pytest.approx(kl, rel=1e-3)
        assert row["policy/surrogate_gain"] == pytest.approx(end - start, rel=1e-3, abs=1e-6)
        assert row["policy/step_fraction"] == search.trials[-1].fraction


def test_a_step_that_cannot_improve_leaves_every_weight_to_the_bit(tiny_model_folder, tmp_path):
    """With hardly any damping the full step goes where the quadratic model no longer holds; no other is tried."""
    built = trpo(str(tiny_model_folder), tmp_path, max_backtracks=1, max_kl=1e-3, cg_damping=1e-4, cg_iterations=60)
    seen = watch(built)
    built.train()
    rejected = [(before, after) for _, before, after, search in seen if search.step is None]
    assert rejected
    for before, after in rejected:
        for name in before:
            assert torch.equal(before[name], after[name]), name
    rows = training_logs(built)
    assert [row["policy/step_fraction"] for row in rows] == [float(s.step is not None) for *_, s in seen]


def test_without_an_advantage_nothing_moves(tiny_model_folder, tmp_path):
    """A constant score and no KL: every whitened advantage is 0, so is the gradient."""
    built = trpo(
        str(tiny_model_folder),
        tmp_path,
        kl_coef=0.0,
        gae_lambda=1.0,
        reward_funcs=lambda completions, **_: [1.0] * len(completions),
        max_steps=1,
    )
    before = parameters(built)
    built.train()
    for name, p in parameters(built).items():
        assert torch.equal(p, before[name]) or name.startswith("value_head."), name


def test_micro_batches_do_not_change_the_step(tiny_model_folder, tmp_path):
    """All tokens at once, one response at a time, or in four accumulated micro-batches."""
    found = []
    for changes in ({}, {"max_tokens_per_micro_batch": 1}, {"gradient_accumulation_steps": 4}):
        built = trpo(str(tiny_model_folder), tmp_path / str(len(found)), max_steps=1, **changes)
        built.train()
        found.append(parameters(built))
    start = AutoModelForCausalLM.from_pretrained(tiny_model_folder).state_dict()
    for other in found[1:]:
        for name, p in found[0].items():
            torch.testing.assert_close(other[name], p, atol=1e-4, rtol=0, msg=lambda m, name=name: f"{name}: {m}")
    assert max(
        float((p - start[n.removeprefix("policy.")]).abs().max()) for n, p in found[0].items() if "policy" in n
    ) > (1e-2)


def test_only_the_adapter_moves(tiny_model_folder, tmp_path):
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "lm_head"], task_type="CAUSAL_LM")
    built = trpo(str(tiny_model_folder), tmp_path, peft_config=config)
    seen = watch(built)
    built.train()
    assert all(search.step is not None for *_, search in seen)
    _, before, after, _ = seen[0]
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all("lora_" in name for name in changed)
    assert all(0 < row["policy/kl"] <= 0.01 for row in training_logs(built))


def test_it_moves_an_adapter_on_a_quantised_base(tmp_path):
    """4-bit weights let the second derivative through; the base stays as it is."""
    pytest.importorskip("bitsandbytes")
    tokenizer = word_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    built = trpo(
        str(tmp_path / "base"),
        tmp_path,
        processing_class=tokenizer,
        peft_config=LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
        quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
        max_steps=1,
    )
    seen = watch(built)
    built.train()
    ((_, before, after, search),) = seen
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert search.step is not None and 0 < search.trials[-1].kl <= 0.01
    assert changed and all("lora_" in name for name in changed)


@pytest.mark.parametrize("critic", ["on the trunk", "apart"])
def test_the_optimiser_moves_the_critic_alone(tiny_model_folder, tmp_path, critic):
    """A head on the trunk learns too, but only the trust region moves the trunk."""
    apart = AutoModelForSequenceClassification.from_pretrained(tiny_model_folder, num_labels=1)
    changes = {"value_model": apart} if critic == "apart" else {}
    built = trpo(str(tiny_model_folder), tmp_path, value_epochs=2, max_steps=3, weight_decay=0.1, **changes)
    seen = watch(built)
    built.train()
    ((_, _, after, _),) = seen
    changed = {name.split(".")[0] for name, p in parameters(built).items() if not torch.equal(p, after[name])}
    assert changed == {"value_model" if critic == "apart" else "value_head"}


def test_the_natural_policy_gradient_takes_the_full_step(tiny_model_folder, tmp_path):
    """√(2δ/xᵀHx)·x: a hundredth of δ gives a hundredth of the KL, and no trial is refused."""
    kls = []
    for max_kl in (1e-5, 1e-3):
        built = trpo(
            str(tiny_model_folder),
            tmp_path / str(max_kl),
            algorithm="natural_policy_gradient",
            max_kl=max_kl,
            max_steps=1,
        )
        seen = watch(built)
        built.train()
        ((experience, before, after, search),) = seen
        assert [trial.fraction for trial in search.trials] == [1.0]
        kls.append(measured(tiny_model_folder, experience, before, after)[0])
    assert kls[1] / kls[0] == pytest.approx(100, rel=0.1)


def test_a_resumed_run_equals_the_uninterrupted_one(tiny_model_folder, tmp_path):
    def run(resume=None):
        built = trpo(str(tiny_model_folder), tmp_path, value_epochs=1, max_steps=6, save_strategy="steps", save_steps=1)
        built.train(resume_from_checkpoint=resume and str(tmp_path / "run" / f"checkpoint-{resume}"))
        return built

    whole = run()
    expected = parameters(whole)
    for step in (2, 3):
        continued = run(step)
        for name, p in parameters(continued).items():
            assert torch.equal(p, expected[name]), (step, name)
        assert training_logs(continued) == training_logs(whole)


def test_the_settings_are_saved(tiny_model_folder, tmp_path):
    built = trpo(str(tiny_model_folder), tmp_path, max_steps=1)
    built.save_model()
    assert json.loads((tmp_path / "run" / "training_args.json").read_text())["max_kl"] == 0.01
