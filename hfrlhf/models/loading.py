"""Policies and value models from names, paths or objects, checked before anything is built on them."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

from peft import AutoPeftModelForCausalLM, PeftModel
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from .dropout import disable_dropout
from .reward_head import head_of
from .reward_model import load_reward_model


def load_policy(model: Any, quantization_config: Any = None, **kwargs: Any) -> Any:
    """A causal language model without dropout (a ratio or a KL of two dropout masks would be noise).

    Args:
        model: Hub name, local path (of a model or an adapter) or a model in memory.
        quantization_config: passed on when loading; refused for a model in memory.
        **kwargs: for `from_pretrained` (`dtype`, `revision`, `attn_implementation`, …).

    Raises:
        TypeError: neither a name nor a model.
        ValueError: encoder–decoder, no vocabulary head, or loading options for a model in memory.
    """
    if quantization_config is not None:
        kwargs["quantization_config"] = quantization_config
    if isinstance(model, str | Path):
        model = _load_causal(str(model), kwargs)
    elif kwargs:
        raise ValueError(f"{sorted(kwargs)} apply when a model is loaded: pass the model's name or path with them")
    if not isinstance(model, PreTrainedModel | PeftModel):
        raise TypeError(f"`model` must be a name, a path or a transformers/peft model, got {type(model).__name__}")
    _refuse_encoder_decoder(model.config, type(model).__name__)
    if model.get_output_embeddings() is None:
        raise ValueError(f"{type(model).__name__} has no vocabulary head; pass an AutoModelForCausalLM model")
    disable_dropout(model)
    return model


def _load_causal(name: str, kwargs: dict[str, Any]) -> Any:
    if (Path(name) / "adapter_config.json").is_file():
        return AutoPeftModelForCausalLM.from_pretrained(name, is_trainable=True, **kwargs)
    _refuse_encoder_decoder(AutoConfig.from_pretrained(name), name)
    return AutoModelForCausalLM.from_pretrained(name, **kwargs)


def _refuse_encoder_decoder(config: Any, name: str) -> None:
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(f"{name} is an encoder–decoder model: only decoder language models are supported")


def load_tokenizer(processing_class: Any, model: Any) -> Any:
    """The given tokenizer, or the one saved with the model.

    Raises:
        ValueError: none was given and the model's folder has none.
    """
    if processing_class is not None:
        return processing_class
    name = model if isinstance(model, str) else getattr(model.config, "_name_or_path", "")
    if not name:
        raise ValueError("pass the tokenizer as `processing_class`: the model in memory does not say where it is from")
    try:
        return AutoTokenizer.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ValueError(f"no tokenizer could be loaded from {name!r}; pass it as `processing_class`") from error


def check_vocabulary(model: Any, tokenizer: Any, role: str) -> None:
    """Refuse a tokenizer with ids the model has no embedding for.

    Raises:
        ValueError: the largest id of the tokenizer is outside the model's vocabulary.
    """
    size = model.get_input_embeddings().num_embeddings
    largest = max(tokenizer.get_vocab().values())
    if largest >= size:
        raise ValueError(
            f"the tokenizer has ids up to {largest}, the {role}'s vocabulary ends at {size - 1}: they do not belong "
            f"together, or the {role} lacks `resize_token_embeddings({largest + 1})`"
        )


def check_positions(model: Any, prompt: int, completion: int) -> None:
    """Refuse prompts and responses that are longer than the model has positions for.

    Args:
        prompt: tokens of the longest prompt. completion: tokens a response may have.

    Raises:
        ValueError: together they are too long.
    """
    most = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if most is not None and prompt + completion > most:
        raise ValueError(
            f"the longest prompt has {prompt} tokens and max_completion_length={completion}, but the model has "
            f"positions for {most}; set `max_prompt_length={most - completion}` or a lower `max_completion_length`"
        )


def warn_of_other_stops(model: Any, tokenizer: Any, stop_token_id: int) -> None:
    """Say so where the model was made to stop at several tokens (chat models): a response here ends at one."""
    ends = getattr(model.generation_config, "eos_token_id", None)
    others = sorted(set(ends if isinstance(ends, list) else [ends]) - {stop_token_id, None})
    if others:
        names = ", ".join(f"{tokenizer.convert_ids_to_tokens(i)!r} ({i})" for i in others)
        warnings.warn(
            f"responses end at {tokenizer.convert_ids_to_tokens(stop_token_id)!r} ({stop_token_id}) alone; the model's "
            f"generation config also stops at {names}: if that is what ends its turns, pass it as `stop_token_id`",
            stacklevel=4,
        )


def load_value_model(value_model: Any, policy: Any) -> nn.Module | str:
    """What `ActorCritic` takes as critic.

    Args:
        value_model: None for a head on the policy's trunk; else name, path or model: a sequence-classification model
            with one output (a reward model: body and head are used), or a language model (its body, and a head of
            zeros). Any width; the vocabulary must be the policy's.

    Raises:
        ValueError: another vocabulary than the policy's.
    """
    if value_model is None:
        return "head"
    critic = value_model if isinstance(value_model, str) else copy.deepcopy(value_model)
    critic, is_new_head = load_reward_model(critic, return_new_head=True)
    theirs, ours = (m.get_input_embeddings().num_embeddings for m in (critic, policy))
    if theirs != ours:
        raise ValueError(
            f"the value model has a vocabulary of {theirs}, the policy one of {ours}: a critic reads the policy's "
            "tokens, so they must share the vocabulary (another width or depth is fine)"
        )
    if is_new_head:
        nn.init.zeros_(head_of(critic).weight)
    disable_dropout(critic)
    return critic.requires_grad_(True)
