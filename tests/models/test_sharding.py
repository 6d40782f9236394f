"""Models in pieces: loaded whole all the same, or refused; settings under which nothing would be saved.

What several processes do with the pieces is in tests/distributed.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM
from transformers.integrations import deepspeed as transformers_deepspeed

from hfrlhf.models.policy.actor_critic import ActorCritic
from hfrlhf.models.policy.loading import load_policy
from hfrlhf.models.reward.scoring import load_reward_model
from hfrlhf.models.sharding import loaded_whole, strategy_of
from hfrlhf.models.strategies.data_parallel import broken_parameters


class Zero3:
    """Settings that make transformers load every model in pieces."""

    def is_zero3(self) -> bool:
        return True


def test_models_load_whole_where_transformers_would_load_pieces(tiny_model_folder: Path) -> None:
    settings = Zero3()
    transformers_deepspeed.set_hf_deepspeed_config(settings)
    try:
        for load in (load_policy, load_reward_model):
            assert all(p.numel() for p in load(str(tiny_model_folder)).parameters())
        with pytest.raises(RuntimeError), loaded_whole():
            assert not transformers_deepspeed.is_deepspeed_zero3_enabled()
            raise RuntimeError
        assert transformers_deepspeed.is_deepspeed_zero3_enabled()
    finally:
        transformers_deepspeed.unset_hf_deepspeed_config()


@pytest.mark.parametrize("load", [load_policy, load_reward_model])
def test_a_model_that_is_in_pieces_is_refused(tiny_model_folder: Path, load: Any) -> None:
    model: Any = LlamaForCausalLM.from_pretrained(tiny_model_folder)
    if load is load_reward_model:
        model = load_reward_model(model)
    next(model.parameters()).ds_id = 0  # how DeepSpeed marks a piece
    with pytest.raises(ValueError, match=r"loaded in pieces .* pass its name or path"):
        load(model)


def deepspeed(**settings: Any) -> Any:
    return SimpleNamespace(distributed_type="DEEPSPEED", deepspeed_plugin=SimpleNamespace(deepspeed_config=settings))


def fsdp(version: int, kind: str) -> Any:
    plugin = SimpleNamespace(fsdp_version=version, state_dict_type=kind)
    return SimpleNamespace(distributed_type="FSDP", state=SimpleNamespace(fsdp_plugin=plugin))


def test_settings_under_which_no_model_would_be_saved_are_refused() -> None:
    gathers = {"stage3_gather_16bit_weights_on_model_save": True}
    with pytest.raises(ValueError, match="zero3_save_16bit_model: true"):
        strategy_of(deepspeed(zero_optimization={"stage": 3})).check()
    for stage, more in ((2, {}), (3, gathers)):
        strategy_of(deepspeed(zero_optimization={"stage": stage} | more)).check()
    for accelerator in (fsdp(1, "FULL_STATE_DICT"), fsdp(2, "SHARDED_STATE_DICT")):
        with pytest.raises(ValueError, match="fsdp_state_dict_type: FULL_STATE_DICT"):
            strategy_of(accelerator).check()
    strategy_of(fsdp(2, "StateDictType.FULL_STATE_DICT")).check()
    strategy_of(SimpleNamespace(distributed_type="MULTI_GPU")).check()


@pytest.mark.parametrize("own", ["optimizer", "scheduler"])
def test_an_optimiser_or_schedule_of_deepspeeds_is_refused(own: str) -> None:
    with pytest.raises(ValueError, match=rf"its own {own}, .* separate learning rates"):
        strategy_of(deepspeed(zero_optimization={"stage": 2}, **{own: {"type": "AdamW"}})).check_own_rates()
    strategy_of(deepspeed(zero_optimization={"stage": 2})).check_own_rates()


@pytest.mark.parametrize("accelerator", [deepspeed(), fsdp(2, "FULL_STATE_DICT")])
def test_what_needs_whole_parameters_is_refused_where_they_lie_in_pieces(accelerator: Any) -> None:
    kind = accelerator.distributed_type
    with pytest.raises(ValueError, match=rf"`algorithm='trpo'` needs gradients of whole parameters, which {kind}"):
        strategy_of(accelerator).check_whole("trpo", "gradients")
    strategy_of(SimpleNamespace(distributed_type="MULTI_CPU")).check_whole("trpo", "gradients")


@pytest.mark.parametrize("value, broken", [(1e30, False), (float("inf"), True), (float("nan"), True), (0.0, False)])
def test_a_gradient_is_broken_where_a_number_of_it_is_not_finite_and_not_where_its_square_is_not(
    value: float, broken: bool
) -> None:
    model, plain = torch.nn.Linear(3, 2), strategy_of(SimpleNamespace(distributed_type="NO"))
    assert plain.broken_gradient(model, scaled=False) == (False, True), "no gradient at all"
    model.weight.grad = torch.ones(2, 3)
    model.weight.grad[1, 2] = value
    assert plain.broken_gradient(model, scaled=False) == (broken, True)
    assert plain.broken_gradient(model, scaled=True) == (False, True), "the scaler's own business"
    assert broken_parameters(model) == ["weight"] * broken
    model.weight.grad[1, 2], model.bias.grad = 0.0, torch.full((2,), 2.0)
    assert plain.gradient_norm(model) == pytest.approx((5 + 8) ** 0.5)


def test_a_whole_model_is_left_alone_and_brought_to_its_device(tiny_model_folder: Path) -> None:
    model = load_policy(str(tiny_model_folder))
    before = {name: p.clone() for name, p in model.named_parameters()}
    plain = strategy_of(SimpleNamespace(distributed_type="NO"))
    with plain.whole(model, "cpu"):
        assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    with plain.whole(model, "meta"):
        assert {p.device.type for p in model.parameters()} == {"meta"}


def test_gathered_tied_weights_are_saved_once(tiny_model_folder: Path, tmp_path: Path) -> None:
    config = LlamaForCausalLM.from_pretrained(tiny_model_folder).config
    config.tie_word_embeddings = True
    built = ActorCritic(LlamaForCausalLM(config))
    gathered = {name: tensor.clone() for name, tensor in built.state_dict().items()}
    assert "policy.lm_head.weight" in gathered
    built.save_pretrained(tmp_path, gathered)
    saved = load_file(tmp_path / "model.safetensors")
    assert "lm_head.weight" not in saved and torch.equal(
        saved["model.embed_tokens.weight"], gathered["policy.model.embed_tokens.weight"]
    )
