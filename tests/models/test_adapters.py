"""LoRA policies and their references: what is the reference, what trains, and what is left as it was."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM

from hfrlhf.models.adapters import adapter, with_adapter
from hfrlhf.models.policy.actor_critic import ActorCritic
from hfrlhf.models.policy.loading import load_policy
from hfrlhf.models.policy.reference import make_reference
from tests.models.policy.test_actor_critic import ragged_rollout

LORA = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.3, task_type="CAUSAL_LM")


@pytest.fixture
def base(tiny_model_folder):
    return AutoModelForCausalLM.from_pretrained(tiny_model_folder)


def trained_adapter(base):
    """A policy with an adapter that is not the identity, as SFT leaves it."""
    model = get_peft_model(base, LORA)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    return model


def test_a_fresh_adapter_is_exactly_the_base(base):
    policy = with_adapter(load_policy(base), LORA)
    reference = make_reference(policy)
    rollout = ragged_rollout()
    ours = ActorCritic(policy)(rollout).logprobs
    assert torch.equal(ours, reference.logprobs(rollout, 1.0))


def test_what_peft_still_calls_by_its_old_name_is_not_told_to_the_user(base):
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        with_adapter(load_policy(base), LORA)


def test_an_adapter_start_is_its_own_reference_and_the_base_is_not(base):
    """The reference of a policy that starts from an SFT adapter is that adapter, frozen."""
    plain = copy.deepcopy(base)
    policy = with_adapter(load_policy(trained_adapter(base)), None)
    reference, rollout = make_reference(policy), ragged_rollout()
    ours = ActorCritic(policy)(rollout).logprobs
    assert torch.equal(ours, reference.logprobs(rollout, 1.0))
    raw = ActorCritic(plain)(rollout).logprobs
    assert float((ours - raw).detach().abs().max()) > 0.1


def test_the_reference_stays_when_the_policy_moves(base):
    policy = with_adapter(load_policy(trained_adapter(base)), None)
    reference, rollout = make_reference(policy), ragged_rollout()
    before = reference.logprobs(rollout, 1.0)
    actor_critic = ActorCritic(policy)
    optimizer = torch.optim.SGD([p for p in actor_critic.parameters() if p.requires_grad], lr=1.0)
    seen = actor_critic(rollout)
    moved = seen.logprobs.sum()
    moved.backward()
    optimizer.step()
    assert torch.equal(before, reference.logprobs(rollout, 1.0))
    assert float((actor_critic(rollout).logprobs - before).abs().max()) > 1e-3


def test_a_reference_adapter_leaves_the_policy_trainable(base):
    """Adding an adapter can freeze the one that trains; a step must move the policy and nothing else."""
    policy = with_adapter(load_policy(trained_adapter(base)), None)
    reference, rollout = make_reference(policy), ragged_rollout()
    reference.logprobs(rollout, 1.0)
    trainable = {name for name, p in policy.named_parameters() if p.requires_grad}
    assert trainable and all(".default." in name for name in trainable)
    before = {name: p.detach().clone() for name, p in policy.named_parameters()}
    optimizer = torch.optim.SGD([p for p in policy.parameters() if p.requires_grad], lr=1.0)
    ActorCritic(policy)(rollout).logprobs.sum().backward()
    optimizer.step()
    changed = {name for name, p in policy.named_parameters() if not torch.equal(p, before[name])}
    assert changed == trainable


def test_switching_adapters_restores_what_trains(base):
    policy = with_adapter(trained_adapter(base), None)
    before = [p.requires_grad for p in policy.parameters()]
    for name in (None, "ref"):
        with adapter(policy, name):
            pass
        assert [p.requires_grad for p in policy.parameters()] == before
        assert policy.active_adapter == "default"


@pytest.mark.parametrize("start", ["fresh", "trained"])
def test_lora_dropout_is_off(base, start):
    """A ratio of two dropout masks would not be 1."""
    if start == "fresh":
        policy = with_adapter(load_policy(base), LORA).train()
        torch.nn.init.normal_(policy.base_model.model.model.layers[0].self_attn.q_proj.lora_B["default"].weight)
    else:
        policy = with_adapter(load_policy(trained_adapter(base)), None).train()
    rollout = ragged_rollout()
    assert torch.equal(ActorCritic(policy)(rollout).logprobs, ActorCritic(policy)(rollout).logprobs)


def test_two_adapters_or_prompt_tuning_are_refused(base):
    with pytest.raises(ValueError, match="leave `peft_config` out"):
        with_adapter(trained_adapter(copy.deepcopy(base)), LORA)
    with pytest.raises(ValueError, match="LoRA"):
        with_adapter(base, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))


def test_an_adapter_policy_saves_its_own_adapter_only(base, tmp_path):
    policy = with_adapter(load_policy(trained_adapter(base)), None)
    saved = ActorCritic(policy)
    saved.save_pretrained(tmp_path)
    assert (tmp_path / "adapter_model.safetensors").is_file() and not (tmp_path / "ref").exists()
    rollout = ragged_rollout()
    expected = saved(rollout).logprobs.detach()
    for name, parameter in policy.named_parameters():
        if ".default." in name:
            torch.nn.init.zeros_(parameter)
    saved.load_saved(tmp_path)
    assert torch.equal(saved(rollout).logprobs, expected)


def test_a_new_adapter_is_a_function_of_the_seed(base):
    """Whatever was drawn from the global generator before."""
    weights = []
    for seed in (1, 1, 2):
        torch.rand(int(torch.randint(1, 9, ())))
        policy = with_adapter(copy.deepcopy(base), LORA, seed=seed)
        weights.append(policy.base_model.model.model.layers[0].self_attn.q_proj.lora_A["default"].weight)
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
