"""What a name or a path stands for, asked before anything is loaded."""

from __future__ import annotations

import os
from typing import Any

from transformers.utils import find_adapter_config_file

HUB_KEYWORDS = ("revision", "token", "trust_remote_code", "cache_dir", "local_files_only", "subfolder")


def as_name(model: Any) -> Any:
    """A path as the string it stands for; names and models as they are.

    Raises:
        FileNotFoundError: it can only be a local folder, and there is none: better than a search of the Hub for it.
    """
    name = os.fspath(model) if isinstance(model, os.PathLike) else model
    if isinstance(name, str) and not os.path.exists(name) and _is_local(name):
        raise FileNotFoundError(f"there is no folder {name!r} (from {os.getcwd()}); a name on the Hub is `owner/model`")
    return name


def _is_local(name: str) -> bool:
    """Whether a name cannot be the Hub's `model` or `owner/model`, or begins with a folder that is here."""
    return (
        name.startswith((".", "/", "~")) or name.count("/") > 1 or ("/" in name and os.path.isdir(name.split("/")[0]))
    )


def hub_keywords(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Those of the arguments for `from_pretrained` that say where a file is to be found."""
    return {name: kwargs[name] for name in HUB_KEYWORDS if name in kwargs}


def is_adapter(name: str, kwargs: dict[str, Any]) -> bool:
    """Whether a folder or a repository of the Hub holds an adapter rather than a whole model."""
    where = {k: v for k, v in hub_keywords(kwargs).items() if k != "trust_remote_code"}
    return find_adapter_config_file(name, **where) is not None
