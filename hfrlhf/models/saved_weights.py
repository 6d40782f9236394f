"""Weights from a saved folder into a model in memory, in place: all of them, or an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft import PeftModel, get_peft_model_state_dict, load_peft_weights, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import nn

from .adapters import POLICY_ADAPTER


def load_policy_weights(policy: nn.Module, folder: Path) -> None:
    """The weights of a saved policy, into the policy in place: its `default` adapter, or all of it."""
    if not isinstance(policy, PeftModel):
        return load_weights(policy, folder)
    load_adapter_weights(policy, folder, POLICY_ADAPTER)


def load_adapter_weights(policy: PeftModel, folder: Path, name: str) -> None:
    """A saved adapter's weights into the adapter of that name, in place, and all of them.

    Raises:
        FileNotFoundError: the folder holds no adapter.
        ValueError: the adapter lacks weights of the model's, or has others (PEFT would leave them as they are).
    """
    existing(folder / "adapter_model.safetensors")
    saved = load_peft_weights(str(folder), device="cpu")
    expected = get_peft_model_state_dict(policy, adapter_name=name, save_embedding_layers=False)
    missing = sorted(set(expected) - set(saved))  # before peft, which may take entries out of what it is given
    result: Any = set_peft_model_state_dict(policy, saved, adapter_name=name)
    if missing or result.unexpected_keys:
        raise ValueError(
            f"{folder} does not fit the adapter {name!r}: missing {missing[:3]}, unexpected "
            f"{sorted(result.unexpected_keys)[:3]}; was it saved with another PEFT configuration?"
        )


def load_weights(model: Any, folder: Path) -> None:
    """A saved transformers model's safetensors, one file or several, into the model in place, to the bit."""
    files = sorted(folder.glob("model*.safetensors"))  # one file, or its shards
    if not files:
        raise FileNotFoundError(f"{folder} holds no model*.safetensors with the model's weights")
    tensors = {name: tensor for file in files for name, tensor in load_file(file).items()}
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    tied = {name for name in missing if name in (model.all_tied_weights_keys or {})}
    if unexpected or set(missing) - tied:
        raise ValueError(
            f"{folder} does not fit {type(model).__name__}: missing {sorted(set(missing) - tied)[:3]}, "
            f"unexpected {sorted(unexpected)[:3]}; was it saved from another model?"
        )


def existing(path: Path) -> Path:
    """The path of a file that is there.

    Raises:
        FileNotFoundError: it is not.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: the folder was not saved by this trainer, or not completely")
    return path
