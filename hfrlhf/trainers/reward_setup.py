"""Before and after the training of a reward model: what trains, how long a sequence may be, what the card says."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel

from ..models.adapters import check_peft_config, new_adapter
from ..models.anatomy.positions import positions_of
from ..models.anatomy.vocabulary import check_vocabulary
from ..models.libraries import name_or_path
from ..models.quantization import prepare_quantized, refuse_untrainable
from ..models.reward.building import ENDS_WITH_EOS
from ..models.reward.scoring import load_reward_model
from ..reporting.model_card import CardFacts
from ..settings.declarations import shown_settings
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


REMARKS = """\
A reward model: it scores a prompt and a response, which ends with EOS, read at the last token. The score is the model's
one output minus reward_shift of its configuration, so that the chosen responses of the training data have mean 0.
Differences between scores of the same prompt are log-odds of being preferred.
"""


def reward_card(trainer: Any) -> CardFacts:
    """What the model card of a reward model says; `trainer.card` adds to it (`datasets`, `command`, `license`, …)."""
    args, model = trainer.args, trainer.accelerator.unwrap_model(trainer.model)
    evaluations = [entry for entry in trainer.state.log_history if "eval_accuracy" in entry] or [{}]
    metrics = {k: v for k, v in evaluations[-1].items() if k.startswith("eval_") and "per_second" not in k}
    left_out = {f"pairs left out of {name} as too long": count for name, count in trainer.dropped.items()}
    facts: dict[str, Any] = {
        "model_name": args.hub_model_id or args.output_dir,
        "task": "text-classification",
        "method": "reward modelling",
        "library": "peft" if isinstance(model, PeftModel) else "transformers",
        "base_model": name_or_path(model.config) or None,
        "remarks": REMARKS,
        "metrics": {name: value for name, value in metrics.items() if name != "eval_runtime"},
        "hyperparameters": shown_settings(args) | left_out,
    }
    return CardFacts(**facts | trainer.card)
