"""The policy as an adapter: built, copied as a frozen `ref`, and switched without losing what trains."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel, get_peft_model

from .dropout import disable_dropout
from .quantization import prepare_quantized, refuse_untrainable

POLICY_ADAPTER = "default"
REFERENCE_ADAPTER = "ref"


def with_adapter(model: Any, peft_config: Any, gradient_checkpointing: bool = False, seed: int = 0) -> Any:
    """The policy that trains: the model itself, or its new adapter where `peft_config` is given.

    A model that already has an adapter starts from it: the adapter is what trains, and a frozen copy of it under the
    name `ref` is the reference, since the base alone is not the policy it starts from (DETAILS 44). `seed` is the
    address of a new adapter's weights.

    Raises:
        ValueError: a quantised model without adapter; an adapter model and `peft_config`; an adapter that is not made
            of weights beside the base (prompt tuning and its kind).
    """
    refuse_untrainable(model, peft_config)
    if isinstance(model, PeftModel):
        return _continue_adapter(model, peft_config)
    if peft_config is None:
        return model
    base = prepare_quantized(model, gradient_checkpointing)
    policy = new_adapter(base, peft_config, seed)
    _refuse_prompt_learning(policy)
    disable_dropout(policy)
    return policy


def new_adapter(base: Any, peft_config: Any, seed: int) -> PeftModel:
    """A fresh adapter on a base, its first weights a function of the seed (PEFT draws from the global generator)."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return get_peft_model(base, peft_config, adapter_name=POLICY_ADAPTER)


def _continue_adapter(model: PeftModel, peft_config: Any) -> PeftModel:
    if peft_config is not None:
        raise ValueError(
            "the model already has an adapter and `peft_config` asks for another; pass one of the two (merge the "
            "first with `model.merge_and_unload()` if it should be part of the base)"
        )
    _refuse_prompt_learning(model)
    if POLICY_ADAPTER not in model.peft_config:
        raise ValueError(f"the adapter to train must be named 'default'; the model has {sorted(model.peft_config)}")
    add_reference_adapter(model)
    return model


def _refuse_prompt_learning(model: PeftModel) -> None:
    config = model.peft_config[POLICY_ADAPTER]
    if config.is_prompt_learning:
        raise ValueError(f"{config.peft_type} changes the prompt, not the weights; use LoRA (peft.LoraConfig) instead")


def add_reference_adapter(model: PeftModel) -> None:
    """A frozen copy, named `ref`, of the adapter the policy starts from."""
    model.add_adapter(REFERENCE_ADAPTER, model.peft_config[POLICY_ADAPTER])
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in parameters.items():
            if f".{REFERENCE_ADAPTER}" in name:
                parameter.copy_(parameters[name.replace(f".{REFERENCE_ADAPTER}", f".{POLICY_ADAPTER}")])
    model.set_adapter(POLICY_ADAPTER)
    for name, parameter in parameters.items():
        if f".{REFERENCE_ADAPTER}" in name or f".{POLICY_ADAPTER}" in name:
            parameter.requires_grad_(f".{POLICY_ADAPTER}" in name)


@contextmanager
def adapter(model: PeftModel, name: str | None) -> Iterator[None]:
    """Another adapter (or none at all: the base) for a while; afterwards everything trains that trained before.

    `set_adapter` switches `requires_grad` off on every adapter but its own, so an optimiser would silently lose them:
    the flags are put back.
    """
    if name is None:
        with model.disable_adapter():
            yield
        return
    active, flags = model.active_adapter, [(p, p.requires_grad) for p in model.parameters()]
    model.set_adapter(name)
    try:
        yield
    finally:
        model.set_adapter(active)
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
