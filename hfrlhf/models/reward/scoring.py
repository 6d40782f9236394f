"""Reward models: built from any checkpoint, read at the last real token, normalised, loaded back.

A reward model is a stock `…ForSequenceClassification` with one output. Its score is the output minus
`config.reward_shift`; nothing else is added to what transformers knows, so that a saved folder loads without us.
"""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from ..anatomy.forward import forward_flags, return_records
from ..anatomy.names import as_name
from ..anatomy.padding import with_padding_token
from ..anatomy.sizes import embeddings_of
from ..base_fingerprint import base_fingerprint
from ..quantization import quantization_of, save_quantization
from ..quiet import quietly
from ..sharding import check_whole, gathered, loaded_whole
from .building import ADAPTER_SETTINGS, ENDS_WITH_EOS, from_name, from_object
from .head import backbone_of, head_of, init_reward_head, score_module

__all__ = [
    "backbone_of",
    "ends_with_eos",
    "fold_normalization",
    "head_of",
    "init_reward_head",
    "last_states",
    "last_token_scores",
    "load_reward_model",
    "reward_shift_of",
    "save_adapter_settings",
    "with_padding_token",
]


@quietly()
@loaded_whole()
def load_reward_model(
    model: Any,
    tokenizer: PreTrainedTokenizerBase | None = None,
    seed: int = 0,
    return_new_head: bool = False,
    **kwargs: Any,
) -> Any:
    """A reward model from a name, a path or an object.

    Args:
        model: Hub name or local path of a reward model, an adapter of one, or a causal language model (which gets a new
            head, SPEC §2.1); or such a model in memory: a reward model is used as it is, a language model is copied.
        tokenizer: if given, `config.pad_token_id` becomes an id that never ends a sequence (`with_padding_token`).
        seed: address of a new head's random weights.
        return_new_head: also say whether the head is new.
        **kwargs: for `from_pretrained` (`dtype`, `quantization_config`, `revision`, …); only with a name or path. The
            base of an adapter is quantised as it was in training; `quantization_config=None` loads it in full
            precision all the same.

    Raises:
        TypeError: neither a name nor a model.
        ValueError: encoder–decoder, a head with several outputs, an adapter of another kind or on a base of another
            quantisation than its own, weights that do not fit.
    """
    model = as_name(model)
    if isinstance(model, str):
        loaded, new_head = from_name(model, kwargs)
    elif kwargs:
        raise ValueError(f"{sorted(kwargs)} apply when a model is loaded by name or path, not to one in memory")
    else:
        loaded, new_head = from_object(model)
    check_whole(loaded, "reward model")
    return_records(loaded)
    if new_head:
        init_reward_head(loaded, seed)
    config = loaded.config
    config.reward_shift = float(getattr(config, "reward_shift", 0.0))
    if tokenizer is not None:
        vocabulary = embeddings_of(loaded)
        config.get_text_config().pad_token_id = with_padding_token(tokenizer, vocabulary).pad_token_id
    return (loaded, new_head) if return_new_head else loaded


# ---- Reading ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def last_token_scores(model: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """The score of each sequence, read at its last real token, without dropout (SPEC §2.1).

        r(x, y) = w·h_last + b − reward_shift

    The mask alone says where a row ends, so padding may lie on either side and hold any id.

    Shapes: input_ids, attention_mask [B,L] (at least one real token per row) -> [B] float32, reward units.
    """
    with evaluating(model):
        scores: Tensor = score_module(model)(last_states(backbone_of(model), input_ids, attention_mask))
    return scores.squeeze(-1).float() - reward_shift_of(model)


def last_states(backbone: nn.Module, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
    """[B,d] hidden states of each row's last real token, wherever its padding lies and whatever it holds.

    Shapes: input_ids, attention_mask [B,L], at least one real token per row.
    """
    mask = attention_mask.bool()
    # Padding may hold an id outside the vocabulary, and positions count real tokens only (DETAILS 2, 3).
    ids = torch.where(mask, input_ids, 0)
    positions = {"position_ids": (mask.long().cumsum(-1) - 1).clamp(min=0)}
    last = (torch.arange(mask.shape[1], device=mask.device) * mask).argmax(-1)
    accepted = inspect.signature(backbone.forward).parameters  # models with ALiBi take no positions
    extra = {name: value for name, value in positions.items() if name in accepted} | forward_flags(backbone, False)
    hidden: Tensor = backbone(ids, attention_mask=mask.long(), **extra).last_hidden_state
    return hidden[torch.arange(len(ids), device=ids.device), last]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Dropout off for a while: scores are never noisy."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        if was_training:
            model.train()


def reward_shift_of(model: nn.Module) -> float:
    """What is subtracted from the head's output to give the score; 0 for models that say nothing."""
    return float(getattr(model.config, "reward_shift", 0.0))


def ends_with_eos(config: PreTrainedConfig) -> bool:
    """Whether a reward model was trained on responses that all end with EOS: so are ours and TRL's, and so is taken for
    granted of any other whose config does not say `reward_ends_with_eos: false`."""
    return bool(getattr(config, ENDS_WITH_EOS, True))


# ---- Normalisation ---------------------------------------------------------------------------------


@torch.no_grad()
def fold_normalization(model: Any, mean: float, std: float | None = None) -> None:
    """Make r' = (r − mean)/std the model's score: the scale goes into the head, the shift into its config (SPEC §2.1).

    Args:
        model: reward model, changed in place.
        mean, std: of the reference scores as they are read now, in reward units; std None shifts only.

    Raises:
        ValueError: a mean that is not finite, or a std that is not finite and positive.
    """
    scale = 1.0 if std is None else std
    if not math.isfinite(mean) or not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"scores cannot be normalised with mean {mean} and standard deviation {std}")
    head = head_of(model)
    with gathered((head.weight, head.bias)):
        for parameter in (head.weight, head.bias):
            if parameter is not None:
                parameter.div_(scale)
    model.config.reward_shift = (reward_shift_of(model) + mean) / scale


# ---- Saving -------------------------------------------------------------------------------------------------------


def save_adapter_settings(model: PeftModel, folder: str | Path) -> None:
    """Write beside an adapter what a whole reward model keeps in its config.json."""
    settings = {
        "reward_shift": reward_shift_of(model),
        ENDS_WITH_EOS: ends_with_eos(model.config),
        "pad_token_id": model.config.get_text_config().pad_token_id,
        "quantization": quantization_of(model),
        "base_fingerprint": base_fingerprint(model),
    }
    save_quantization(model, folder)
    (Path(folder) / ADAPTER_SETTINGS).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
