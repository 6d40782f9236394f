"""What a name or a path stands for, asked before anything is loaded."""

from __future__ import annotations

import os
from typing import Any

from transformers.utils import find_adapter_config_file

HUB_KEYWORDS = ("revision", "token", "trust_remote_code", "cache_dir", "local_files_only", "subfolder")


def as_name(model: Any) -> Any:
    """A path as the string it stands for; names and models as they are."""
    return os.fspath(model) if isinstance(model, os.PathLike) else model


def hub_keywords(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Those of the arguments for `from_pretrained` that say where a file is to be found."""
    return {name: kwargs[name] for name in HUB_KEYWORDS if name in kwargs}


def is_adapter(name: str, kwargs: dict[str, Any]) -> bool:
    """Whether a folder or a repository of the Hub holds an adapter rather than a whole model."""
    where = {k: v for k, v in hub_keywords(kwargs).items() if k != "trust_remote_code"}
    return find_adapter_config_file(name, **where) is not None
