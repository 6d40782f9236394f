"""What a name or a path stands for, and how it may be loaded: asked before anything is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..libraries import SAFETENSORS_WEIGHTS_NAME, find_adapter_config_file, optional_file

HUB_KEYWORDS = ("revision", "token", "trust_remote_code", "cache_dir", "local_files_only", "subfolder")


def as_name(model: Any) -> Any:
    """A path as the string it stands for; names and models as they are.

    Raises:
        FileNotFoundError: it can only be a local folder, and there is none (better than a search of the Hub for it),
            or a folder without a model.
    """
    name = os.fspath(model) if isinstance(model, os.PathLike) else model
    if isinstance(name, str) and not os.path.exists(name) and _is_local(name):
        raise FileNotFoundError(f"there is no folder {name!r} (from {os.getcwd()}); a name on the Hub is `owner/model`")
    if isinstance(name, str) and os.path.isdir(name):
        _refuse_empty(name)
    return name


def _refuse_empty(folder: str) -> None:
    """A folder that holds neither model nor adapter: transformers would speak of a `model_type`."""
    if any(os.path.exists(os.path.join(folder, file)) for file in ("config.json", "adapter_config.json")):
        return
    checkpoints = sorted(path.name for path in Path(folder).glob("checkpoint-*"))
    hint = f"; it has {', '.join(checkpoints)}: pass one of them, or save with `trainer.save_model()`"
    raise FileNotFoundError(
        f"{folder!r} holds no model (config.json) and no adapter (adapter_config.json){hint if checkpoints else ''}"
    )


def _is_local(name: str) -> bool:
    """Whether a name cannot be the Hub's `model` or `owner/model`, or begins with a folder that is here."""
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name or os.path.isabs(name):
        return True
    return "/" in name and os.path.isdir(name.split("/")[0])


def hub_keywords(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Those of the arguments for `from_pretrained` that say where a file is to be found."""
    return {name: kwargs[name] for name in HUB_KEYWORDS if name in kwargs}


def config_options(kwargs: dict[str, Any]) -> dict[str, Any]:
    """How a configuration is loaded: without code from its repository, unless the caller says otherwise."""
    return {"trust_remote_code": False} | hub_keywords(kwargs)


def loading_options(name: str, kwargs: dict[str, Any]) -> dict[str, Any]:
    """How a whole model is loaded: without code from its repository unless the caller says otherwise, and never from a
    pickle, for reading one runs the code in it.

    Raises:
        ValueError: a local folder that has its weights as a pickle alone.
    """
    folder = Path(name, kwargs.get("subfolder") or "")
    pickles = sorted(path.name for path in folder.glob("*.bin")) if folder.is_dir() else []
    if pickles and not any(folder.glob("*.safetensors")):
        raise ValueError(
            f"{folder} has its weights as a pickle ({pickles[0]}), and reading one runs whatever code is in it: only "
            "safetensors are loaded. If you trust the folder, convert it once: "
            "`AutoModelForCausalLM.from_pretrained(folder).save_pretrained(another)`"
        )
    return {"trust_remote_code": False} | kwargs | {"use_safetensors": True}


def is_adapter(name: str, kwargs: dict[str, Any]) -> bool:
    """Whether a folder or a repository of the Hub holds an adapter rather than a whole model.

    Raises:
        ValueError: an adapter whose weights are no safetensors, but perhaps a pickle.
    """
    where = {k: v for k, v in hub_keywords(kwargs).items() if k != "trust_remote_code"}
    if find_adapter_config_file(name, **where) is None:
        return False
    if optional_file(name, SAFETENSORS_WEIGHTS_NAME, **where) is None:
        raise ValueError(
            f"the adapter {name} has no {SAFETENSORS_WEIGHTS_NAME}; weights in a pickle (adapter_model.bin) are not "
            "loaded, for reading one runs whatever code is in it. If you trust it, convert it once: "
            "`PeftModel.from_pretrained(base, adapter).save_pretrained(another)`"
        )
    return True
