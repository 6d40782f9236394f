"""Policies and value models from names, paths or objects, checked before anything is built on them."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any

import torch
from peft import PeftConfig, PeftModel
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ..adapters import add_value_adapter
from ..anatomy.dropout import disable_dropout
from ..anatomy.forward import return_records
from ..anatomy.names import as_name, config_options, hub_keywords, is_adapter, loading_options
from ..anatomy.vocabulary import check_same_tokens
from ..libraries import name_or_path
from ..quantization import check_saved_quantization, is_quantized, prepare_quantized
from ..quiet import quietly
from ..reward.head import head_of, with_score_head
from ..reward.scoring import load_reward_model
from ..sharding import check_whole, loaded_whole
from .checks import check_trainable


@quietly()
@loaded_whole()
def load_policy(model: Any, quantization_config: Any = None, **kwargs: Any) -> Any:
    """A causal language model without dropout (a ratio or a KL of two dropout masks would be noise).

    Args:
        model: Hub name, local path (of a model or an adapter) or a model in memory.
        quantization_config: passed on when loading; refused for a model in memory.
        **kwargs: for `from_pretrained` (`dtype`, `revision`, `attn_implementation`, …). Weights come in float32 unless
            a `dtype` is given or they are quantised.

    Raises:
        TypeError: neither a name nor a model.
        ValueError: encoder–decoder, no vocabulary head, or loading options for a model in memory.
    """
    if quantization_config is not None:
        kwargs["quantization_config"] = quantization_config
    model = as_name(model)
    if isinstance(model, str):
        model = _load_causal(model, kwargs)
    elif kwargs:
        raise ValueError(f"{sorted(kwargs)} apply when a model is loaded: pass the model's name or path with them")
    if not isinstance(model, PreTrainedModel | PeftModel):
        hint = "; of another trainer's model pass its `policy`" if hasattr(model, "policy") else ""
        raise TypeError(
            f"`model` must be a name, a path or a transformers/peft model, got {type(model).__name__}{hint}"
        )
    _refuse_encoder_decoder(model.config, type(model).__name__)
    if model.get_output_embeddings() is None:
        raise ValueError(f"{type(model).__name__} has no vocabulary head; pass an AutoModelForCausalLM model")
    check_whole(model, "model")
    return_records(model)
    disable_dropout(model)
    return model


def _load_causal(name: str, kwargs: dict[str, Any]) -> Any:
    where = hub_keywords(kwargs)
    if is_adapter(name, kwargs):
        place: Any = PeftConfig.from_pretrained(name, **where).base_model_name_or_path
        check_saved_quantization(name, kwargs.get("quantization_config"))
        options = _trainable_precision(AutoConfig.from_pretrained(place, trust_remote_code=False), kwargs)
        elsewhere = {key: value for key, value in options.items() if key not in ("revision", "subfolder")}
        base = AutoModelForCausalLM.from_pretrained(place, **loading_options(place, elsewhere))
        return PeftModel.from_pretrained(prepare_quantized(base, False), name, is_trainable=True, **where)
    config = AutoConfig.from_pretrained(name, **config_options(kwargs))
    _refuse_encoder_decoder(config, name)
    return AutoModelForCausalLM.from_pretrained(name, **loading_options(name, _trainable_precision(config, kwargs)))


def _trainable_precision(config: PreTrainedConfig, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The loading options with float32 weights by default, also of a checkpoint in half precision.

    Adam's small steps would round to nothing in bfloat16; `bf16=True` computes in it all the same.
    """
    quantized = kwargs.get("quantization_config") or getattr(config, "quantization_config", None)
    return kwargs if quantized else {"dtype": torch.float32} | kwargs


def _refuse_encoder_decoder(config: PreTrainedConfig, name: str) -> None:
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(f"{name} is an encoder–decoder model: only decoder language models are supported")


def load_tokenizer(processing_class: Any, model: Any) -> Any:
    """The given tokenizer, that of the given processor, or the one saved with the model.

    Raises:
        ValueError: none was given and the model's folder has none. TypeError: what was given is no tokenizer.
    """
    if processing_class is not None:
        return tokenizer_of(processing_class)
    model = as_name(model)
    name = model if isinstance(model, str) else name_or_path(getattr(model, "config", None))
    if not name:
        raise ValueError("pass the tokenizer as `processing_class`: the model in memory does not say where it is from")
    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ValueError(_no_tokenizer(name)) from error


def tokenizer_of(processing_class: Any) -> Any:
    """A tokenizer, or that of a processor (of a model that also takes images or sound), with the processor's template.

    Raises:
        TypeError: neither a tokenizer nor a processor that has one.
    """
    if isinstance(processing_class, PreTrainedTokenizerBase):
        return processing_class
    tokenizer = getattr(processing_class, "tokenizer", None)
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        kind = type(processing_class).__name__
        raise TypeError(f"`processing_class` must be a tokenizer, or a processor that has one, got {kind}")
    template = getattr(processing_class, "chat_template", None)
    if template and not tokenizer.chat_template:
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.chat_template = template
    return tokenizer


@quietly()
def _no_tokenizer(name: str) -> str:
    if os.path.isdir(name):
        return f"the folder {name!r} has no tokenizer that could be loaded; pass it as `processing_class`"
    return (
        f"there is no folder {name!r} (looked from {os.getcwd()}), and as a name on the Hub it gave no tokenizer: is "
        "it spelt right, and the Hub reached? If the model has no tokenizer beside it, pass one as `processing_class`"
    )


@loaded_whole()
def load_value_model(
    value_model: Any,
    policy: nn.Module,
    seed: int = 0,
    vocabulary: int | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> nn.Module | str:
    """What `ActorCritic` takes as critic.

    Args:
        value_model: None for a head on the policy's trunk; the word "adapter" or a PEFT configuration for an adapter of
            its own on the policy's base (which gets it here); else name, path or model: a sequence-classification model
            with one output (a reward model: body and head are used; an adapter is merged into its base, since all of a
            critic trains), or a language model (its body, and a head of zeros). Any width; the vocabulary must be the
            policy's. A model in memory is copied.
        policy: as it trains, with its adapter. seed: address of a new adapter's weights.
        vocabulary: how many tokens there are (`vocabulary.py`), known by `tokenizer`; with None critic and policy have
            embeddings for as many.

    Raises:
        ValueError: another vocabulary than the policy's, quantised weights, or an adapter without one of the policy's.
    """
    value_model = as_name(value_model)
    if value_model is None:
        return "V"
    if value_model == "adapter" or isinstance(value_model, PeftConfig):
        add_value_adapter(policy, value_model, seed)
        return "adapter"
    if (
        isinstance(value_model, str)
        and not os.path.exists(value_model)
        and get_close_matches(value_model.lower(), ["adapter"], cutoff=0.8)
    ):
        raise ValueError(
            f"value_model={value_model!r}: there is no such model; the word for a LoRA critic is 'adapter'"
        )
    with naming("value_model", value_model):
        critic, is_new_head = _load_critic(value_model)
    check_same_tokens(critic, policy, "value model", vocabulary, tokenizer)
    if is_new_head:
        nn.init.zeros_(head_of(critic).weight)
    disable_dropout(critic)
    critic.requires_grad_(True)
    check_trainable(critic, "value model")
    return critic


@contextmanager
def naming(argument: str, value: Any) -> Iterator[None]:
    """A model that cannot be had is told by the argument that asked for it.

    Raises:
        TypeError: it is neither a name nor a model. OSError: there is no such model.
    """
    if not isinstance(value, str | nn.Module):
        raise TypeError(f"`{argument}` must be a name, a path or a model, got {value!r} ({type(value).__name__})")
    try:
        yield
    except OSError as error:
        reason = " ".join(str(error).split())
        raise OSError(f"`{argument}={value!r}` could not be loaded; is its name or path right? ({reason})") from error


def _load_critic(value_model: Any) -> tuple[nn.Module, bool]:
    """A reward model all of whose weights can train, and whether its head is new."""
    if isinstance(value_model, str):
        # All of a critic trains, so the base of an adapter comes in full precision, whatever it was in training.
        precision: dict[str, Any] = {"dtype": torch.float32}
        precision |= {"quantization_config": None} if is_adapter(value_model, {}) else {}
        critic, is_new_head = load_reward_model(value_model, return_new_head=True, **precision)
        _refuse_quantized_critic(critic)
    else:
        _refuse_quantized_critic(value_model)
        check_whole(value_model, "value model")
        critic, is_new_head = load_reward_model(copy.deepcopy(value_model), return_new_head=True)
    return with_score_head(critic.merge_and_unload() if isinstance(critic, PeftModel) else critic), is_new_head


def _refuse_quantized_critic(model: nn.Module) -> None:
    if is_quantized(model.get_base_model() if isinstance(model, PeftModel) else model):
        raise ValueError(
            "the value model is quantised and its weights cannot be trained; load it without `quantization_config`, or "
            "pass value_model=None for a head on the policy's trunk"
        )
