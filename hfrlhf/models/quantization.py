"""4-bit and 8-bit base models: loaded by transformers, prepared by peft, and never trained without an adapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftModel, prepare_model_for_kbit_training
from torch import nn
from transformers import BitsAndBytesConfig

from .libraries import keep_training_format, optional_file

QUANTIZATION_FILE = "quantization.json"


def is_quantized(model: nn.Module) -> bool:
    """Whether a model's weights are quantised (4-bit or 8-bit)."""
    return bool(getattr(model, "is_quantized", False) or getattr(model, "quantization_method", None))


def quantization_of(model: nn.Module) -> dict[str, Any] | None:
    """What a model's weights are quantised to, as far as it changes what they compute; None in full precision."""
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    config = getattr(base.config, "quantization_config", None)
    if config is None or not is_quantized(base):
        return None
    return _relevant(config if isinstance(config, dict) else config.to_dict())


def _relevant(said: dict[str, Any]) -> dict[str, Any]:
    names = ("quant_method", "load_in_4bit", "load_in_8bit", "bnb_4bit_quant_type", "bnb_4bit_use_double_quant")
    return {name: str(getattr(said.get(name), "value", said.get(name))) for name in names if name in said}


def quantization_arguments(model: nn.Module) -> dict[str, Any]:
    """The arguments of `BitsAndBytesConfig` that load a model's base as it is; none in full precision."""
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    if not is_quantized(base):
        return {}
    config: Any = base.config.quantization_config
    said = config if isinstance(config, dict) else config.to_dict()
    names = [name for name in ("load_in_4bit", "load_in_8bit") if said.get(name)]
    if "load_in_4bit" in names:
        names += [name for name in ("bnb_4bit_quant_type", "bnb_4bit_use_double_quant") if said.get(name)]
    return {name: getattr(said[name], "value", said[name]) for name in names}


def save_quantization(model: nn.Module, folder: str | Path) -> None:
    """Write beside an adapter how its base was quantised, where it was: the adapter fits those weights alone."""
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    if is_quantized(base):
        settings: Any = base.config.quantization_config
        text = json.dumps(settings if isinstance(settings, dict) else settings.to_dict(), indent=2, default=str)
        (Path(folder) / QUANTIZATION_FILE).write_text(text + "\n", encoding="utf-8")


def saved_quantization(name: str) -> BitsAndBytesConfig | None:
    """How the base of a saved adapter was quantised; None where nothing was said about it.

    Args:
        name: folder or Hub name of the adapter.
    """
    saved = optional_file(name, QUANTIZATION_FILE)
    return BitsAndBytesConfig.from_dict(json.loads(Path(saved).read_text(encoding="utf-8"))) if saved else None


def check_saved_quantization(name: str, given: Any) -> None:
    """Refuse to put an adapter on a base of another quantisation than the one it was saved with.

    Args:
        name: folder or Hub name of the adapter. given: the quantisation that the base is to be loaded with, or None.

    Raises:
        ValueError: they differ; nothing is said about an adapter that was saved without a word on it.
    """
    saved = saved_quantization(name)
    if saved is None:
        return
    theirs = _relevant(saved.to_dict())
    ours = None if given is None else _relevant(given if isinstance(given, dict) else given.to_dict())
    if theirs != ours:
        raise ValueError(
            f"the adapter {name} was trained on a base of another quantisation: {difference(theirs, ours)}. Its policy "
            "would be another, too; pass `quantization_config=BitsAndBytesConfig(...)` with its settings, or merge it "
            "first (`hfrlhf.merge`)"
        )


def difference(theirs: dict[str, Any] | None, ours: dict[str, Any] | None) -> str:
    """In words, in what an adapter's quantisation differs from that of the base it is to be put on."""
    if not theirs or not ours:
        return f"it was trained in {_words(theirs)}, the base is in {_words(ours)}"
    names = [name for name in theirs | ours if theirs.get(name) != ours.get(name)]
    return "; ".join(f"{name} was {theirs.get(name)} and is {ours.get(name)}" for name in names)


def _words(quantisation: dict[str, Any] | None) -> str:
    if not quantisation:
        return "full precision"
    return "4 bits" if quantisation.get("load_in_4bit") == "True" else "8 bits"


def refuse_untrainable(model: nn.Module, peft_config: PeftConfig | None) -> None:
    """Refuse a quantised model without an adapter: its weights hold no gradient.

    Raises:
        ValueError: the model is quantised, `peft_config` is None and the model has no adapter.
    """
    if is_quantized(model) and peft_config is None and not isinstance(model, PeftModel):
        raise ValueError(
            "the model is quantised and its weights cannot be trained; pass `peft_config=LoraConfig(...)` to train an "
            "adapter on it, or load it without `quantization_config`"
        )


def check_prepared(model: PeftModel) -> None:
    """Refuse a quantised base that an adapter was put on without peft's preparation.

    Raises:
        ValueError: parts of the base that are not quantised (norms, embeddings) are in half precision, or train.
    """
    if not is_quantized(model.get_base_model()):
        return
    keep_training_format(model)
    adapters = [f".{name}" for name in model.peft_config]
    for name, parameter in model.named_parameters():
        of_base = parameter.is_floating_point() and not any(f"{adapter}." in f"{name}." for adapter in adapters)
        if of_base and (parameter.dtype.itemsize < 4 or parameter.requires_grad):
            raise ValueError(
                f"the quantised base was not prepared for training: {name} is in {parameter.dtype}"
                f"{' and would train' if parameter.requires_grad else ''}; call "
                "`peft.prepare_model_for_kbit_training(base)` before the adapter is put on, or pass the base's name "
                "with `quantization_config` and `peft_config`"
            )


def prepare_quantized(model: nn.Module, gradient_checkpointing: bool) -> Any:
    """Freeze a quantised base and put its norms and head in float32 (peft's preparation); others pass unchanged."""
    if not is_quantized(model):
        return model
    keep_training_format(model)
    return prepare_model_for_kbit_training(model, use_gradient_checkpointing=gradient_checkpointing)
