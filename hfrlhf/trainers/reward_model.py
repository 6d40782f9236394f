"""A reward model that trains: what of it does, how long a sequence may be, and how it is saved."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from ..models.adapters import check_peft_config, new_adapter
from ..models.anatomy.positions import positions_of
from ..models.anatomy.vocabulary import check_vocabulary
from ..models.quantization import prepare_quantized, refuse_untrainable
from ..models.reward.building import ENDS_WITH_EOS
from ..models.reward.scoring import load_reward_model, save_adapter_settings
from ..settings.reward import RewardConfig

UNLIMITED = 2**31


def trainable_reward_model(
    model: Any, tokenizer: Any, args: RewardConfig, peft_config: Any, quantization_config: Any = None
) -> Any:
    """The reward model that trains: all of it, or an adapter and the head.

    Raises:
        ValueError: a tokenizer with ids the model does not know, a quantised model without adapter, quantisation of a
            model in memory, two adapters, or an adapter that is not made of weights beside the base.
    """
    if quantization_config is not None and not isinstance(model, str | Path):
        raise ValueError(
            "`quantization_config` applies when a model is loaded by name or path; load the one in memory quantised, "
            "with `load_reward_model(name, quantization_config=...)`"
        )
    # Weights in float32, also of checkpoints in half precision: there Adam's small steps would round to nothing.
    # `bf16=True` computes in bfloat16 all the same.
    by_name: dict[str, Any] = {"dtype": torch.float32} if isinstance(model, str | Path) else {}
    if quantization_config is not None:
        by_name = {"quantization_config": quantization_config}
    reward_model = load_reward_model(model, tokenizer, args.seed, **by_name)
    setattr(reward_model.config, ENDS_WITH_EOS, True)  # so are all responses encoded (`data.responses`)
    check_vocabulary(reward_model, tokenizer, "reward model")
    check_peft_config(peft_config)
    refuse_untrainable(reward_model, peft_config)
    if peft_config is None:
        return reward_model
    if isinstance(reward_model, PeftModel):
        raise ValueError("the model already has an adapter and `peft_config` asks for another; pass one of the two")
    if peft_config.is_prompt_learning:
        raise ValueError(f"{peft_config.peft_type} changes the prompt, not the weights; use LoRA (peft.LoraConfig)")
    peft_config = copy.deepcopy(peft_config)
    peft_config.task_type = "SEQ_CLS"  # with it PEFT trains and saves the head too, whatever the task type was
    return new_adapter(prepare_quantized(reward_model, bool(args.gradient_checkpointing)), peft_config, args.seed)


def longest_input(max_length: int | None, model: Any) -> int:
    """Tokens a sequence may have: the setting, or the number of positions the model knows if that is less."""
    return min(limit for limit in (max_length, positions_of(model), UNLIMITED) if limit and limit > 0)


def save_reward_model(model: Any, folder: Path, state_dict: Mapping[str, Tensor] | None) -> None:
    """The model as stock transformers or peft load it; beside an adapter what a whole model has in its config.

    Args:
        state_dict: of the whole model where it lies in pieces, else None.
    """
    model.save_pretrained(folder, state_dict=state_dict)
    if isinstance(model, PeftModel):
        save_adapter_settings(model, folder)
