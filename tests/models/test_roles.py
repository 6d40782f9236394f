"""Every role an adapter on one base: each role's gradient is what it is alone, and nothing moves that should not."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from hfrlhf.models.adapters import adapter, add_value_adapter, roles_of, with_adapter
from hfrlhf.models.libraries import keep_training_format
from hfrlhf.models.policy.actor_critic import ActorCritic, checkpoints_activations
from tests.models.policy.test_actor_critic import ragged_rollout

POLICY = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
VALUE = LoraConfig(r=2, target_modules=["k_proj", "o_proj", "down_proj"], task_type="CAUSAL_LM")


def base_model(folder: Path, bits: int) -> Any:
    options = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    quantised = {"quantization_config": BitsAndBytesConfig(**options)} if bits == 4 else {}
    model = AutoModelForCausalLM.from_pretrained(folder, **quantised)
    keep_training_format(model)
    return model


def shared(folder: Path, bits: int, checkpointing: bool) -> ActorCritic:
    """Policy and critic on one base, every adapter and head with weights that are not 0."""
    policy = with_adapter(base_model(folder, bits), POLICY, checkpointing, seed=0)
    add_value_adapter(policy, VALUE, seed=1)
    built = filled(ActorCritic(policy, "adapter"))
    if checkpointing:
        built.activation_checkpointing_enable()
    return built.train()


def filled(built: ActorCritic) -> ActorCritic:
    """What trains, with weights that are not 0: a function of nothing."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in built.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return built


def losses(built: ActorCritic, rollout: Any) -> tuple[torch.Tensor, torch.Tensor]:
    seen = built(rollout, need_entropy=False)
    return -seen.logprobs.sum(), (seen.values - 1).square().sum()


def gradients(built: ActorCritic) -> dict[str, torch.Tensor]:
    return {n: p.grad.clone() for n, p in built.named_parameters() if p.grad is not None}


def alone(folder: Path, bits: int, role: str, rollout: Any) -> dict[str, torch.Tensor]:
    """The gradient of one role on a copy of the model where the other is never run."""
    built = shared(folder, bits, checkpointing=False)
    if role == "policy":
        built.has_value_adapter, built.value_head = False, None
        (-built(rollout, need_entropy=False).logprobs.sum()).backward()
        return gradients(built)
    built.policy.set_adapter("value")
    ids, n = rollout.input_ids, rollout.action_mask.shape[1]
    total = torch.zeros(())
    for row in range(len(rollout)):
        real = ids[row][rollout.attention_mask[row]]
        length = int(rollout.completion_lengths[row])
        hidden = built.policy.get_base_model().model(real[None]).last_hidden_state[0, -length - 1 : -1]
        total = total + (built.value_head(hidden).squeeze(-1) - 1).square().sum() + (n - length)
    total.backward()
    return gradients(built)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize(("bits", "tolerance"), [(32, 1e-5), (4, 1e-4)])
def test_each_roles_gradient_is_what_it_is_alone(base_folder, bits, tolerance, checkpointing):
    """Policy, value, and both in one backward pass, once or accumulated over two halves of the batch."""
    rollout = ragged_rollout()
    expected = {role: alone(base_folder, bits, role, rollout) for role in ("policy", "value")}
    assert not expected["policy"].keys() & expected["value"].keys()
    halves = [rollout.select(torch.arange(len(rollout))[rows]) for rows in (slice(0, 1), slice(1, None))]
    for parts in ([rollout], halves):
        for roles in (("policy",), ("value",), ("policy", "value")):
            built = shared(base_folder, bits, checkpointing)
            for part in parts:
                policy, value = losses(built, part)
                sum({"policy": policy, "value": value}[role] for role in roles).backward()
            found = gradients(built)
            wanted = {name: g for role in roles for name, g in expected[role].items()}
            for name, gradient in wanted.items():
                error = (found[name] - gradient).norm() / gradient.norm()
                assert error < tolerance, (roles, len(parts), name, float(error))
            rest = found.keys() - wanted.keys()
            assert all(not found[name].any() for name in rest), (roles, rest)


def test_each_parameter_of_an_adapter_has_its_role(base_folder):
    built = shared(base_folder, 32, checkpointing=False)
    roles = roles_of(built.policy)
    assert set(roles.values()) == {"default", "value"}
    critic = {name for name, _ in built.named_value_parameters()}
    assert critic == {f"policy.{n}" for n, r in roles.items() if r == "value"} | {
        "value_head.weight",
        "value_head.bias",
    }
    trained = {n for n, p in built.named_parameters() if p.requires_grad}
    assert trained == critic | {f"policy.{n}" for n, r in roles.items() if r == "default"}


def test_switching_leaves_active_adapter_and_flags_as_they_were(base_folder):
    built = shared(base_folder, 32, checkpointing=False)
    flags = [p.requires_grad for p in built.parameters()]
    for name in ("value", None, "default"):
        with adapter(built.policy, name):
            pass
        assert built.policy.active_adapter == "default"
        assert [p.requires_grad for p in built.parameters()] == flags


def test_policy_and_critic_survive_saving(base_folder, tmp_path):
    saved = shared(base_folder, 32, checkpointing=False)
    saved.save_pretrained(tmp_path)
    loaded = shared(base_folder, 32, checkpointing=False)
    with torch.no_grad():
        for parameter in loaded.parameters():
            if parameter.requires_grad:
                parameter.zero_()
    loaded.load_saved(tmp_path)
    for (name, ours), theirs in zip(saved.named_parameters(), loaded.parameters(), strict=True):
        assert torch.equal(ours, theirs), name
    from peft import AutoPeftModelForCausalLM

    stock = AutoPeftModelForCausalLM.from_pretrained(tmp_path)
    ids = torch.arange(1, 6)[None]
    torch.testing.assert_close(stock(ids).logits, copy.deepcopy(saved.policy).eval()(ids).logits)


@pytest.mark.parametrize(
    ("bits", "tolerance"), [(32, 1e-5), (4, 1e-4)], ids=["the base's own switch", "peft's preparation"]
)
def test_checkpointing_that_was_on_before_remembers_the_adapters_too(base_folder, bits, tolerance):
    """Switched on by the user, before any adapter; `prepare_model_for_kbit_training` does so on a quantised base."""
    rollout = ragged_rollout()
    expected = {role: alone(base_folder, bits, role, rollout) for role in ("policy", "value")}
    base = base_model(base_folder, bits)
    if bits == 4:
        policy = get_peft_model(prepare_model_for_kbit_training(base), POLICY)
    else:
        base.gradient_checkpointing_enable()
        base.enable_input_require_grads()
        policy = with_adapter(base, POLICY, seed=0)
    assert checkpoints_activations(base)
    add_value_adapter(policy, VALUE, seed=1)
    built = filled(ActorCritic(policy, "adapter")).train()
    sum(losses(built, rollout)).backward()
    found = gradients(built)
    for name, gradient in (expected["policy"] | expected["value"]).items():
        assert (found[name] - gradient).norm() / gradient.norm() < tolerance, name
