"""A saved reward adapter on the policy's base: what has to fit, and the head that comes with it."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftModel, load_peft_weights, set_peft_model_state_dict
from torch import Tensor, nn
from transformers.utils import logging

from ..adapters import REWARD_ADAPTER, add_adapter, roles_of
from ..base_fingerprint import base_fingerprint, other_weights
from ..libraries import name_or_path, optional_file
from ..quantization import difference, quantization_of
from .building import ADAPTER_SETTINGS, ENDS_WITH_EOS
from .head import ScoreHead, without_wrapper

logger = logging.get_logger(__name__)

OWN_BASE = "own:"  # before a reward adapter's path: load it with a base of its own


@dataclass(frozen=True)
class RewardRole:
    """What a reward adapter brings beside its matrices: its head, its score's shift, and whether every response of its
    training ended with EOS."""

    head: nn.Linear
    shift: float
    ends_with_eos: bool


def add_reward_adapter(policy: PeftModel, name: str) -> RewardRole:
    """Load a reward adapter onto the policy's base, frozen.

    Args:
        policy: with its own adapter. name: folder or Hub name of what `RewardTrainer` saved with a `peft_config`.

    Raises:
        ValueError: a second reward adapter, one of another base (weights, shape or quantisation) or of another kind,
            one that changed its base besides, or one without its head.
    """
    config: Any = PeftConfig.from_pretrained(name)
    if config.task_type != "SEQ_CLS":
        raise ValueError(f"the adapter {name} is of task type {config.task_type}; a reward model's is SEQ_CLS")
    _refuse_more_than_lora(name, config)
    if REWARD_ADAPTER in policy.peft_config:
        raise ValueError(f"one reward adapter shares the policy's base; pass the other as {_apart(name)}")
    settings = _settings(name)
    _refuse_other_base(policy, name, config.base_model_name_or_path, settings)
    weights = load_peft_weights(name, device="cpu")
    head = _head(name, {key: tensor for key, tensor in weights.items() if ".score." in key})
    _refuse_other_shapes(policy, name, weights)
    config.init_lora_weights = True  # what it began with does not matter, and some beginnings rewrite the base
    add_adapter(policy, REWARD_ADAPTER, config)
    # PEFT saves the base's embedding beside an adapter on it; that of the policy's base is the same.
    body = {key: tensor for key, tensor in weights.items() if not {"score", "base_layer"} & set(key.split("."))}
    try:
        _refuse_other_parts(policy, name, body)
    except ValueError:
        policy.delete_adapter(REWARD_ADAPTER)  # a policy in memory is left as it was
        raise
    set_peft_model_state_dict(policy, body, adapter_name=REWARD_ADAPTER)
    return RewardRole(head, float(settings.get("reward_shift", 0.0)), bool(settings.get(ENDS_WITH_EOS, True)))


def _refuse_more_than_lora(name: str, config: Any) -> None:
    """What a reward adapter changes besides its own matrices would be changed for every role."""
    more = sorted(set(config.modules_to_save or []) - {"score", "classifier"})
    if getattr(config, "trainable_token_indices", None):
        more.append("single tokens")  # PEFT cannot save the policy's adapter beside one that has some
    if more or getattr(config, "bias", "none") != "none":
        also = ", ".join(more) or f"the biases (bias={config.bias!r})"
        raise ValueError(
            f"the reward adapter {name} also trained {also} of its base, which the policy's base cannot take over; "
            f"train it without, or pass {_apart(name)}"
        )


def _refuse_other_parts(policy: PeftModel, name: str, body: dict[str, Tensor]) -> None:
    takes = sum(role == REWARD_ADAPTER for role in roles_of(policy).values())
    if len(body) != takes:
        raise ValueError(
            f"the reward adapter {name} has {len(body)} matrices where the policy's base takes {takes}: it was trained "
            f"on another base; pass {_apart(name)}"
        )


def _apart(name: str) -> str:
    return f"`load_reward_model({name!r})` (in a recipe `{OWN_BASE}{name}`), which loads it with a base of its own"


def _settings(name: str) -> dict[str, Any]:
    saved = optional_file(name, ADAPTER_SETTINGS)
    if saved:
        settings: dict[str, Any] = json.loads(Path(saved).read_text(encoding="utf-8"))
        return settings
    logger.warning(
        f"the reward adapter {name} has no {ADAPTER_SETTINGS} beside it, so nothing is known of its score's shift (0 "
        "is taken), of its base's weights or quantisation: its scores may be off. RewardTrainer saves that file"
    )
    return {}


def _refuse_other_base(policy: PeftModel, name: str, base: str, settings: dict[str, Any]) -> None:
    theirs, ours = settings.get("quantization"), quantization_of(policy)
    if "quantization" in settings and theirs != ours:
        raise ValueError(
            f"the reward adapter {name} was trained on a base of another quantisation: {difference(theirs, ours)}. Its "
            f"scores would be others; load the policy with the same quantisation, or pass {_apart(name)}"
        )
    _refuse_other_weights(policy, name, base, settings.get("base_fingerprint"))


def _refuse_other_weights(policy: PeftModel, name: str, base: str, fingerprint: dict[str, float] | None) -> None:
    """By the weights where the adapter says what its base's were, else by the base's name."""
    own: str = name_or_path(without_wrapper(policy).config)
    ours = base_fingerprint(policy)
    if fingerprint and ours:
        differ = other_weights(ours, fingerprint)
        if differ:
            raise ValueError(
                f"the reward adapter {name} was trained on {base!r}, and the weights of the policy's base ({own!r}) "
                f"are others ({len(differ)} of {len(ours)} matrices looked at differ, {differ[0]} among them)"
                f"{_perhaps_dtype(policy)}; train it on the policy's base, or pass {_apart(name)}"
            )
    elif _place(base) != _place(own):
        raise ValueError(
            f"the reward adapter {name} was trained on {base!r}, the policy's base is {own!r}; train it on the "
            f"policy's base, or pass {_apart(name)}"
        )


def _perhaps_dtype(policy: PeftModel) -> str:
    return " — weights quantised from another `dtype` are others too" if quantization_of(policy) else ""


def _place(name: str) -> str:
    return os.path.realpath(name) if os.path.isdir(name) else name


def _refuse_other_shapes(policy: PeftModel, name: str, weights: dict[str, Tensor]) -> None:
    """LoRA's A reads a module's input, its B writes the output: their widths are the module's."""
    modules = dict(policy.get_base_model().named_modules())
    for key, tensor in weights.items():
        place, _, matrix = key.removeprefix("base_model.model.").rpartition(".lora_")
        if matrix not in ("A.weight", "B.weight"):
            continue
        module: Any = modules.get(place)
        width = getattr(module, "in_features" if matrix[0] == "A" else "out_features", None)
        if module is None or (width is not None and width != tensor.shape[1 if matrix[0] == "A" else 0]):
            raise ValueError(
                f"the reward adapter {name} does not fit the policy's base: {place} has "
                f"{'no counterpart' if module is None else f'width {width} there'}; train it on the policy's base, or "
                f"pass {_apart(name)}"
            )


def _head(name: str, weights: dict[str, Tensor]) -> nn.Linear:
    parts = {key.rpartition(".")[2]: tensor for key, tensor in weights.items()}
    if "weight" not in parts:
        raise ValueError(
            f"the reward adapter {name} has no head (`score`) among its weights: its scores cannot be read; train it "
            "with hfrlhf's RewardTrainer, which saves both together"
        )
    head = ScoreHead(parts["weight"].shape[1], 1, bias="bias" in parts)
    head.load_state_dict(parts)
    return head.requires_grad_(False).eval()
