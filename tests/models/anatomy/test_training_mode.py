"""Training mode computes what evaluation mode does: nothing in it draws random numbers, dropout or not."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from datasets import Dataset
from peft import LoraConfig
from torch import Tensor, nn

from hfrlhf import PPOConfig, PPOTrainer
from hfrlhf.models.adapters import with_adapter
from hfrlhf.models.anatomy.training_mode import quieten
from hfrlhf.models.policy.actor_critic import ActorCritic
from hfrlhf.models.policy.loading import load_policy
from tests.conftest import word_tokenizer
from tests.models.policy.test_actor_critic import ragged_rollout

SIZES = {
    "vocab_size": 20,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS = {"num_local_experts": 4, "num_key_value_heads": 2}


def mixtral(**more: Any) -> Any:
    return tf.MixtralForCausalLM(tf.MixtralConfig(**SIZES, **EXPERTS, router_jitter_noise=0.1, **more))


def phimoe() -> Any:
    """Its router draws Gumbel noise in training mode, whatever its numbers for jitter are."""
    return tf.PhimoeForCausalLM(tf.PhimoeConfig(**SIZES, **EXPERTS, input_jitter_noise=0.1))


def llama() -> Any:
    return tf.LlamaForCausalLM(tf.LlamaConfig(**SIZES))


class Noisy(nn.Module):
    """Around a layer: noise of a kind that no library has a name for."""

    def __init__(self, layer: nn.Module, draw: Callable[[], Any]):
        super().__init__()
        self.layer, self.draw = layer, draw

    def forward(self, hidden: Tensor) -> Tensor:
        out = self.layer(hidden)
        return out * (1 + 0.1 * self.draw()) if self.training else out


def noisy(draw: Callable[[], Any]) -> Any:
    model = llama()
    for block in model.model.layers:
        block.mlp = Noisy(Noisy(block.mlp, draw), draw)
    return model


def normalised() -> Any:
    """By the statistics of the batch in training mode, which also change those of evaluation."""

    class Norm(nn.BatchNorm1d):
        def forward(self, hidden: Tensor) -> Tensor:
            return super().forward(hidden.flatten(0, -2)).view_as(hidden)

    model = llama()
    model.model.norm = Norm(16)
    return model


class Halved(nn.Module):
    """Twice as much in training mode: no noise, but another computation."""

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden * (2 if self.training else 1)


def halved() -> Any:
    model = llama()
    model.lm_head.weight.data.normal_()
    model.model.norm = Halved()
    return model


MODELS: dict[str, Callable[[], Any]] = {
    "mixtral": mixtral,
    "phimoe": phimoe,
    "torch": lambda: noisy(lambda: torch.randn(())),
    "numpy": lambda: noisy(lambda: float(np.random.rand())),
    "python": lambda: noisy(random.random),
    "batch statistics": normalised,
    "another computation": halved,
}


def quiet(policy: Any, value_model: Any = "V") -> tuple[ActorCritic, Any]:
    actor_critic, rollout = ActorCritic(policy, value_model), ragged_rollout()
    quieten(actor_critic, rollout, 1e-4)
    return actor_critic, rollout


def assert_quiet(actor_critic: ActorCritic, rollout: Any) -> None:
    """Log-probs and values in training mode, twice, are to the bit those of evaluation mode."""
    expected = actor_critic.eval()(rollout)
    for found in (actor_critic.train()(rollout), actor_critic.train()(rollout)):
        assert torch.equal(found.logprobs, expected.logprobs)
        assert expected.values is None or torch.equal(found.values, expected.values)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("name", MODELS)
def test_what_makes_training_mode_noisy_stays_out_of_it_and_gradients_come_all_the_same(name: str) -> None:
    policy = load_policy(MODELS[name]())
    plain, rollout = ActorCritic(policy, "V"), ragged_rollout()
    with pytest.raises(AssertionError):
        assert_quiet(plain, rollout)  # there is noise to find
    actor_critic, _ = quiet(policy)
    assert_quiet(actor_critic, rollout)
    actor_critic(rollout).logprobs.sum().backward()
    inner = [p.grad for n, p in policy.named_parameters() if "layers.0.self_attn" in n]
    assert all(gradient is not None and gradient.abs().max() > 0 for gradient in inner)


def test_only_the_noise_is_kept_out_and_nothing_of_a_model_that_has_none() -> None:
    assert quiet(load_policy(llama()))[0].stays_in_evaluation == []
    kinds = {type(module).__name__ for module in quiet(load_policy(mixtral()))[0].stays_in_evaluation}
    assert kinds == {"MixtralSparseMoeBlock"}


def test_the_generators_and_the_mode_are_left_as_they_were() -> None:
    actor_critic, rollout = ActorCritic(load_policy(mixtral()), "V"), ragged_rollout()
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    quieten(actor_critic, rollout, 1e-4)
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == (random.getstate(), np.random.get_state()[1].tolist())
    assert actor_critic.training and actor_critic.policy.training


def test_with_activation_checkpoints_blocks_are_recomputed_and_quiet() -> None:
    policy = load_policy(mixtral())
    actor_critic = ActorCritic(policy, "V")
    actor_critic.gradient_checkpointing_enable()
    rollout = ragged_rollout()
    quieten(actor_critic, rollout, 1e-4)
    assert_quiet(actor_critic, rollout)
    passes: list[int] = []
    policy.model.layers[0].self_attn.register_forward_hook(lambda *_: passes.append(1))
    actor_critic.train()(rollout).logprobs.sum().backward()
    assert len(passes) == 2, "the block was not recomputed"


def test_noise_of_a_block_that_is_recomputed_is_refused_where_it_cannot_be_kept_out() -> None:
    policy = load_policy(llama())
    policy.gradient_checkpointing_enable()
    block = policy.model.layers[0]
    assert block.gradient_checkpointing
    block.register_forward_pre_hook(lambda *_: torch.rand(()) and None)  # draws in any mode
    with pytest.raises(ValueError, match=r"random numbers are drawn by .*LlamaDecoderLayer"):
        quiet(policy)


@pytest.mark.parametrize("critic", ["a model of its own", "adapter"])
def test_a_critic_is_quiet_too(critic: str) -> None:
    policy, value_model = load_policy(llama()), "adapter"
    if critic == "adapter":
        from hfrlhf.models.adapters import add_value_adapter

        policy = with_adapter(load_policy(mixtral()), LoraConfig(target_modules=["q_proj"]))
        add_value_adapter(policy, "adapter", 0)
    else:
        value_model = tf.MixtralForSequenceClassification(
            tf.MixtralConfig(**SIZES, **EXPERTS, router_jitter_noise=0.1, num_labels=1)
        )
    assert_quiet(*quiet(policy, value_model))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_first_step_of_ppo_finds_the_policy_that_sampled(checkpointing: bool, tmp_path: Path) -> None:
    options = {"report_to": [], "disable_tqdm": True, "use_cpu": True, "save_strategy": "no", "logging_steps": 1}
    args = PPOConfig(
        str(tmp_path),
        rollout_batch_size=8,
        max_completion_length=4,
        max_steps=1,
        gradient_checkpointing=checkpointing,
        **options,
    )
    rows = Dataset.from_dict({"prompt": ["the film", "a good story is"] * 4})

    def length(completions: list[str], **_: Any) -> list[float]:
        return [float(len(text)) for text in completions]

    trainer = PPOTrainer(mixtral(output_router_logits=True), length, args, rows, processing_class=word_tokenizer())
    trainer.train()
    first = trainer.state.log_history[0]
    assert first["policy/approx_kl"] < 1e-10
    assert abs(first["objective/kl"]) < 1e-6
