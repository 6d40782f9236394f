"""Reward models: built from any checkpoint, read at the last real token, normalised, loaded back.

A reward model is a stock `…ForSequenceClassification` with one output. Its score is the output minus
`config.reward_shift`; nothing else is added to what transformers knows, so that a saved folder loads without us.
"""

from __future__ import annotations

import copy
import inspect
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel
from transformers.utils import cached_file, find_adapter_config_file
from transformers.utils import logging as transformers_logging

from .padding import with_padding_token
from .quantization import keep_training_format
from .reward_head import backbone_of, head_of, init_reward_head, score_module, with_score_head, without_wrapper

__all__ = [
    "backbone_of",
    "fold_normalization",
    "head_of",
    "init_reward_head",
    "last_token_scores",
    "load_reward_model",
    "reward_shift_of",
    "save_adapter_settings",
    "with_padding_token",
]

# Written beside an adapter, whose folder must have no config.json: with one, transformers would take the folder for a
# whole model and look for its weights.
ADAPTER_SETTINGS = "reward_model.json"

_HUB_KEYWORDS = ("revision", "token", "trust_remote_code", "cache_dir", "local_files_only", "subfolder")


def load_reward_model(
    model: Any, tokenizer: Any = None, seed: int = 0, return_new_head: bool = False, **kwargs: Any
) -> Any:
    """A reward model from a name, a path or an object.

    Args:
        model: Hub name or local path of a reward model, an adapter of one, or a causal language model (which gets a new
            head, SPEC §2.1); or such a model in memory: a reward model is used as it is, a language model is copied.
        tokenizer: if given, `config.pad_token_id` becomes an id that never ends a sequence (`with_padding_token`).
        seed: address of a new head's random weights.
        return_new_head: also say whether the head is new.
        **kwargs: for `from_pretrained` (`dtype`, `quantization_config`, `revision`, …); only with a name or path.

    Raises:
        TypeError: neither a name nor a model.
        ValueError: encoder–decoder, a head with several outputs, an adapter of another kind, weights that do not fit.
    """
    if isinstance(model, str | Path):
        loaded, new_head = _from_name(str(model), kwargs)
    elif kwargs:
        raise ValueError(f"{sorted(kwargs)} apply when a model is loaded by name or path, not to one in memory")
    else:
        loaded, new_head = _from_object(model)
    if new_head:
        init_reward_head(loaded, seed)
    config = loaded.config
    config.reward_shift = float(getattr(config, "reward_shift", 0.0))
    if tokenizer is not None:
        vocabulary = loaded.get_input_embeddings().num_embeddings
        config.get_text_config().pad_token_id = with_padding_token(tokenizer, vocabulary).pad_token_id
    return (loaded, new_head) if return_new_head else loaded


# ---- Reading ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def last_token_scores(model: Any, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """The score of each sequence, read at its last real token, without dropout (SPEC §2.1).

        r(x, y) = w·h_last + b − reward_shift

    The mask alone says where a row ends, so padding may lie on either side and hold any id.

    Shapes: input_ids, attention_mask [B,L] (at least one real token per row) -> [B] float32, reward units.
    """
    mask = attention_mask.bool()
    # Padding may hold an id outside the vocabulary, and positions count real tokens only (DETAILS 2, 3).
    ids = torch.where(mask, input_ids, 0)
    positions = {"position_ids": (mask.long().cumsum(-1) - 1).clamp(min=0)}
    last = (torch.arange(mask.shape[1], device=mask.device) * mask).argmax(-1)
    with _evaluating(model):
        backbone = backbone_of(model)
        accepted = inspect.signature(backbone.forward).parameters  # models with ALiBi take no positions
        extra = {name: value for name, value in positions.items() if name in accepted}
        hidden = backbone(ids, attention_mask=mask.long(), use_cache=False, **extra).last_hidden_state
        scores = score_module(model)(hidden[torch.arange(len(ids), device=ids.device), last])
    return scores.squeeze(-1).float() - reward_shift_of(model)


def reward_shift_of(model: Any) -> float:
    """What is subtracted from the head's output to give the score; 0 for models that say nothing."""
    return float(getattr(model.config, "reward_shift", 0.0))


# ---- Normalisation ---------------------------------------------------------------------------------


@torch.no_grad()
def fold_normalization(model: Any, mean: float, std: float | None = None) -> None:
    """Make r' = (r − mean)/std the model's score: the scale goes into the head, the shift into its config (SPEC §2.1).

    Args:
        model: reward model, changed in place.
        mean, std: of the reference scores as they are read now, in reward units; std None shifts only.

    Raises:
        ValueError: a mean that is not finite, a std that is not finite and positive, or a std and a head that is spread
            over processes.
    """
    scale = 1.0 if std is None else std
    if not math.isfinite(mean) or not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"scores cannot be normalised with mean {mean} and standard deviation {std}")
    head = head_of(model)
    if std is not None and head.weight.numel() == 0:
        raise ValueError("the head's weights are not at hand (ZeRO-3 keeps them apart): use `normalize_scores='mean'`")
    for parameter in (head.weight, head.bias):
        if parameter is not None:
            parameter.div_(scale)
    model.config.reward_shift = (reward_shift_of(model) + mean) / scale


# ---- Building -----------------------------------------------------------------------------------------------------


def _from_name(name: str, kwargs: dict[str, Any]) -> tuple[Any, bool]:
    hub = {k: kwargs[k] for k in _HUB_KEYWORDS if k in kwargs}
    if find_adapter_config_file(name, **{k: v for k, v in hub.items() if k != "trust_remote_code"}) is not None:
        return _from_adapter(name, kwargs), False
    config = AutoConfig.from_pretrained(name, **hub)
    _refuse_config(config, name)
    with _quiet_transformers():  # its report of a new head and a dropped vocabulary head would alarm for nothing
        model, info = AutoModelForSequenceClassification.from_pretrained(
            name, num_labels=1, output_loading_info=True, **kwargs
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
    base, _ = _from_name(peft_config.base_model_name_or_path, kwargs)
    model = PeftModel.from_pretrained(base, name, is_trainable=True)
    saved = cached_file(name, ADAPTER_SETTINGS, _raise_exceptions_for_missing_entries=False)
    settings = json.loads(Path(saved).read_text(encoding="utf-8")) if saved else {}
    model.config.reward_shift = settings.get("reward_shift", 0.0)
    model.config.get_text_config().pad_token_id = settings.get("pad_token_id", model.config.pad_token_id)
    return model


def save_adapter_settings(model: PeftModel, folder: str | Path) -> None:
    """Write beside an adapter what a whole reward model keeps in its config.json."""
    settings = {"reward_shift": reward_shift_of(model), "pad_token_id": model.config.get_text_config().pad_token_id}
    (Path(folder) / ADAPTER_SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _from_object(model: Any) -> tuple[Any, bool]:
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
    if model.get_output_embeddings() is None or getattr(model, "is_quantized", False):
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


def _refuse_config(config: Any, name: str) -> None:
    if config.is_encoder_decoder:
        raise ValueError(f"{name} is an encoder–decoder: only decoder language models are supported")
    is_classifier = any("ForSequenceClassification" in a for a in config.architectures or [])
    if is_classifier and config.num_labels != 1:
        raise ValueError(
            f"{name} classifies into {config.num_labels} labels; a reward model has one output. Pass a reward model, "
            "or the language model to build one on"
        )


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Dropout off for a while: scores are never noisy."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        if was_training:
            model.train()


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
