"""The parts a reward model is built from: a checkpoint, an adapter on its base, or the trunk of a language model."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftModel, load_peft_weights
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from ..anatomy.names import config_options, is_adapter, loading_options
from ..libraries import keep_training_format, optional_file
from ..quantization import (
    check_saved_quantization,
    is_quantized,
    prepare_quantized,
    saved_quantization,
)
from .head import head_of, with_score_head, without_wrapper

# Written beside an adapter, whose folder must have no config.json: with one, transformers would take the folder for a
# whole model and look for its weights.
ADAPTER_SETTINGS = "reward_model.json"
ENDS_WITH_EOS = "reward_ends_with_eos"  # in a config: whether every response it was trained on ended with EOS


def from_name(name: str, kwargs: dict[str, Any]) -> tuple[Any, bool]:
    """A reward model from a name or path, and whether its head is new; an adapter comes on its base."""
    if is_adapter(name, kwargs):
        return _from_adapter(name, kwargs), False
    config = AutoConfig.from_pretrained(name, **config_options(kwargs))
    _refuse_config(config, name)
    with _quiet_transformers():  # its report of a new head and a dropped vocabulary head would alarm for nothing
        model, info = AutoModelForSequenceClassification.from_pretrained(
            name, num_labels=1, output_loading_info=True, **loading_options(name, kwargs)
        )
    missing = set(info["missing_keys"])
    new_head = {key for key in missing if key.split(".")[0] == "score"}
    if missing - new_head:
        raise ValueError(f"{name} lacks weights that {type(model).__name__} needs: {sorted(missing - new_head)[:5]}")
    keep_training_format(model)  # scores in full precision, and saving leaves the weights as they are
    return with_score_head(model), bool(new_head)


def _from_adapter(name: str, kwargs: dict[str, Any]) -> PeftModel:
    peft_config = PeftConfig.from_pretrained(name)
    if peft_config.task_type != "SEQ_CLS":
        raise ValueError(
            f"the adapter {name} is of task type {peft_config.task_type}, a reward model's is SEQ_CLS; to build a "
            "reward model on it, merge it into its base first (`merge_and_unload`)"
        )
    given = kwargs.get("quantization_config")
    if given is not None:
        check_saved_quantization(name, given)
    elif "quantization_config" not in kwargs and saved_quantization(name) is not None:
        kwargs = kwargs | {"quantization_config": saved_quantization(name)}
    base, _ = from_name(peft_config.base_model_name_or_path, kwargs)
    if not any(".score." in key for key in load_peft_weights(name, device="cpu")):
        raise ValueError(
            f"the reward adapter {name} has no head (`score`) among its weights: its scores cannot be read; train it "
            "with hfrlhf's RewardTrainer, which saves both together"
        )
    model = PeftModel.from_pretrained(prepare_quantized(base, False), name, is_trainable=True)
    saved = optional_file(name, ADAPTER_SETTINGS)
    settings = json.loads(Path(saved).read_text(encoding="utf-8")) if saved else {}
    model.config.reward_shift = settings.get("reward_shift", 0.0)
    setattr(model.config, ENDS_WITH_EOS, settings.get(ENDS_WITH_EOS, True))
    model.config.get_text_config().pad_token_id = settings.get("pad_token_id", model.config.pad_token_id)
    return model


def from_object(model: Any) -> tuple[Any, bool]:
    """A reward model from one in memory, and whether its head is new: only then is it a copy."""
    if not isinstance(model, PreTrainedModel | PeftModel):
        raise TypeError(f"`model` must be a name, a path or a transformers/peft model, got {type(model).__name__}")
    _refuse_config(model.config, type(model).__name__)
    inner = without_wrapper(model)
    if hasattr(inner, "score"):
        head_of(model)
        with_score_head(inner)
        return model, False
    if isinstance(model, PeftModel):
        raise ValueError("the adapter model has no reward head; pass its merged model (`merge_and_unload`) or its base")
    if is_quantized(model):
        raise ValueError(
            f"{type(model).__name__} is quantised in memory, and a reward model cannot be made of a copy of its trunk; "
            "pass the model's name or path and `quantization_config`"
        )
    if model.get_output_embeddings() is None:
        raise ValueError(
            f"{type(model).__name__} is neither a reward model nor a plain causal language model; pass one of them, or "
            "a name or path"
        )
    return _copied_with_head(model), True


def _copied_with_head(language_model: Any) -> Any:
    """A reward model on a copy of a language model's trunk: the original can go on as policy or reference."""
    config = copy.deepcopy(language_model.config)
    config.num_labels = 1
    reward = AutoModelForSequenceClassification.from_config(config, dtype=language_model.dtype)
    reward.base_model.load_state_dict(language_model.base_model.state_dict())
    return with_score_head(reward.to(language_model.device))


def _refuse_config(config: PreTrainedConfig, name: str) -> None:
    if config.is_encoder_decoder:
        raise ValueError(f"{name} is an encoder–decoder: only decoder language models are supported")
    is_classifier = any("ForSequenceClassification" in a for a in config.architectures or [])
    if is_classifier and config.num_labels != 1:
        raise ValueError(
            f"{name} classifies into {config.num_labels} labels; a reward model has one output. Pass a reward model, "
            "or the language model to build one on"
        )


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
