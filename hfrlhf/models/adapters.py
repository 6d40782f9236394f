"""The roles that share one base: policy, reference, critic and reward as adapters, switched without losing what trains.

One base, several LoRA adapters, and small heads beside them. Which adapter is active is global to the model, so every
use of another one goes through `adapter()`, and gradient checkpointing through `recompute_with_same_adapter()`.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from torch import nn

from .anatomy.dropout import disable_dropout
from .libraries import BaseTunerLayer
from .quantization import check_prepared, prepare_quantized, refuse_untrainable
from .quiet import quietly

POLICY_ADAPTER = "default"
REFERENCE_ADAPTER = "ref"
VALUE_ADAPTER = "value"
REWARD_ADAPTER = "reward"
TRAINED = (POLICY_ADAPTER, VALUE_ADAPTER)


def with_adapter(
    model: nn.Module, peft_config: PeftConfig | None, gradient_checkpointing: bool = False, seed: int = 0
) -> Any:
    """The policy that trains: the model itself, or its new adapter where `peft_config` is given.

    A model that already has an adapter starts from it: the adapter is what trains, and a frozen copy of it under the
    name `ref` is the reference, since the base alone is not the policy it starts from (DETAILS 44). `seed` is the
    address of a new adapter's weights.

    Raises:
        ValueError: a quantised model without adapter; an adapter model and `peft_config`; one that another trainer
            used and left its adapters on; an adapter that is not made of weights beside the base (prompt tuning and
            its kind), or that changes the base's.
    """
    check_peft_config(peft_config)
    refuse_untrainable(model, peft_config)
    if isinstance(model, PeftModel):
        return _continue_adapter(model, peft_config)
    if peft_config is None:
        return model
    refuse_what_changes_the_base(peft_config, "the policy's adapter")
    if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise ValueError(
            "the model already has an adapter's layers in it: an earlier trainer put one on it in place; pass that "
            "trainer's policy (`trainer.model.policy`) without `peft_config`, or load the base anew"
        )
    config = copy.deepcopy(peft_config)  # PEFT and `disable_dropout` write into it
    config.task_type = "CAUSAL_LM"
    policy = new_adapter(prepare_quantized(model, gradient_checkpointing), config, seed)
    disable_dropout(policy)
    return policy


def check_peft_config(peft_config: object) -> None:
    """Refuse what is no configuration of an adapter.

    Raises:
        TypeError: the message names what was passed.
    """
    if peft_config is not None and not isinstance(peft_config, PeftConfig):
        raise TypeError(
            f"`peft_config` must be a configuration of PEFT, such as peft.LoraConfig(r=16), got {peft_config!r} "
            f"({type(peft_config).__name__})"
        )


def new_adapter(base: nn.Module, peft_config: PeftConfig, seed: int) -> PeftModel:
    """A fresh adapter on a base, its first weights a function of the seed (PEFT draws from the global generator)."""
    # Forked, so that what the caller draws afterwards does not depend on whether an adapter was made here.
    with torch.random.fork_rng(), targets_explained("the policy's adapter", base), quietly():
        torch.manual_seed(seed)
        return get_peft_model(base, peft_config, adapter_name=POLICY_ADAPTER)


@contextmanager
def targets_explained(role: str, base: nn.Module) -> Iterator[None]:
    """Add to PEFT's complaint of target modules whose they were, and which there are."""
    try:
        yield
    except ValueError as error:
        if "arget modules" not in str(error):
            raise
        kinds = (torch.nn.Linear, BaseTunerLayer)
        linear = {name.rpartition(".")[2] for name, module in base.named_modules() if isinstance(module, kinds)}
        there = sorted(linear - {"base_layer", *TRAINED, REFERENCE_ADAPTER, REWARD_ADAPTER})
        raise ValueError(f"{role}: {error} The linear layers here are {there}, or take 'all-linear'") from error


def _continue_adapter(model: PeftModel, peft_config: PeftConfig | None) -> PeftModel:
    if peft_config is not None:
        raise ValueError(
            "the model already has an adapter and `peft_config` asks for another; leave `peft_config` out (in a recipe "
            "`--use_peft`) to go on training the first, or merge that into its base before (`hfrlhf.merge`)"
        )
    refuse_what_changes_the_base(model.peft_config.get(POLICY_ADAPTER), "the policy's adapter")
    check_prepared(model)
    if POLICY_ADAPTER not in model.peft_config:
        raise ValueError(f"the adapter to train must be named 'default'; the model has {sorted(model.peft_config)}")
    left = sorted({REFERENCE_ADAPTER, VALUE_ADAPTER, REWARD_ADAPTER} & model.peft_config.keys())
    if left:
        raise ValueError(
            f"the model still has the adapters {left} of another trainer; save what you need of them and remove them "
            "(`model.delete_adapter(name)`), or load the policy anew from its folder"
        )
    add_reference_adapter(model)
    return model


def refuse_what_changes_the_base(config: PeftConfig | None, role: str) -> None:
    """Refuse an adapter whose training, or whose first weights, would change the base: other roles stand on it too.

    Raises:
        ValueError: prompt learning, trained biases, or an initialisation that takes something out of the base.
    """
    if config is None:
        return
    if config.is_prompt_learning:
        raise ValueError(f"{config.peft_type} changes the prompt, not the weights; use LoRA (peft.LoraConfig) instead")
    bias = getattr(config, "bias", "none")
    if bias != "none":
        raise ValueError(
            f"{role} has bias={bias!r}: the base's biases would train, and with its adapter off the policy "
            "would no longer be the reference; use bias='none'"
        )
    init = getattr(config, "init_lora_weights", True)
    if isinstance(init, str) and init.lower() not in ("gaussian", "orthogonal"):
        raise ValueError(
            f"{role} has init_lora_weights={init!r}, which rewrites the weights of the base, and every role stands on "
            "them; use True, 'gaussian' or 'orthogonal'"
        )


def add_reference_adapter(model: PeftModel) -> None:
    """A frozen copy, named `ref`, of the adapter the policy starts from."""
    model.add_adapter(REFERENCE_ADAPTER, model.peft_config[POLICY_ADAPTER])
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in parameters.items():
            if f".{REFERENCE_ADAPTER}" in name:
                parameter.copy_(parameters[name.replace(f".{REFERENCE_ADAPTER}", f".{POLICY_ADAPTER}")])
    _activate_policy(model)


def add_value_adapter(model: nn.Module, value_config: PeftConfig | str, seed: int) -> None:
    """The critic's own adapter on the policy's base, new, its first weights a function of the seed.

    Args:
        model: policy with its adapter. value_config: PEFT configuration, or the word "adapter" for the policy's.

    Raises:
        ValueError: the policy has no adapter, or the configuration is not of weights beside the base.
    """
    if not isinstance(model, PeftModel):
        raise ValueError(
            "a critic as an adapter stands on the policy's frozen base, but all of the policy trains; pass "
            "`peft_config=LoraConfig(...)`, or value_model=None for a head on the policy's trunk"
        )
    config = model.peft_config[POLICY_ADAPTER] if isinstance(value_config, str) else value_config
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        add_adapter(model, VALUE_ADAPTER, config)


def add_adapter(model: PeftModel, name: str, config: PeftConfig) -> None:
    """One more adapter, without a head of its own; the policy's is active afterwards, and what trains still trains."""
    refuse_what_changes_the_base(config, f"the adapter {name!r}")
    own: Any = copy.deepcopy(config)
    # PEFT's own idea of a head: with two adapters active in turn, `score()` would silently be the wrong one.
    own.modules_to_save, own.task_type, own.inference_mode = None, "CAUSAL_LM", False
    with targets_explained(f"the adapter {name!r}", model):
        model.add_adapter(name, own)
    disable_dropout(model)
    _activate_policy(model)


def _activate_policy(model: PeftModel) -> None:
    """The policy's adapter active; policy and critic train, reference and reward don't (PEFT trains the active one)."""
    model.set_adapter(POLICY_ADAPTER)
    model.set_requires_grad([name for name in TRAINED if name in model.peft_config])


def roles_of(model: nn.Module) -> dict[str, str]:
    """The adapter that each parameter of an adapter belongs to, by the parameter's name; the base's are not in it."""
    tuned = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    layers = {layer for module in tuned for layer in module.adapter_layer_names} | {"modules_to_save"}
    # PEFT's names have the adapter behind the layer: `…q_proj.lora_A.default.weight`.
    found = {}
    for name, _ in model.named_parameters():
        for layer, role in itertools.pairwise(name.split(".")):
            if layer in layers:
                found[name] = role
    return found


@contextmanager
def adapter(model: PeftModel, name: str | None) -> Iterator[None]:
    """Another adapter (or none at all: the base) for a while; afterwards everything trains that trained before.

    PEFT's own switches, `set_adapter` and the end of `disable_adapter`, set `requires_grad` off on all adapters but the
    active one, so that an optimiser would silently lose the critic's: the flags are put back.
    """
    active = model.active_adapter
    if active == name:
        yield
        return
    flags = [(p, p.requires_grad) for p in model.parameters()]  # of all, heads that PEFT saves among them
    try:
        with model.disable_adapter() if name is None else nullcontext():
            if name is not None:
                model.set_adapter(name)
            yield
    finally:
        if name is not None:
            model.set_adapter(active)
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


Contexts = tuple[AbstractContextManager[None], AbstractContextManager[None]]


def recompute_with_same_adapter(model: PeftModel) -> Callable[[], Contexts]:
    """`context_fn` for gradient checkpointing: a block is recomputed with the adapter it was computed with.

    The backward pass of one role may come when another one's adapter is active; without this its blocks would be
    recomputed with the wrong adapter, and no error.
    """

    def contexts() -> Contexts:
        """For the forward pass, and for the recomputation of the same block."""
        return nullcontext(), adapter(model, str(model.active_adapter))

    return contexts
