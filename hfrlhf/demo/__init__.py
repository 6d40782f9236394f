"""The embedded default: a small self-made world in which the whole of RLHF runs in minutes, without a download."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def run_demo(*args: Any, **kwargs: Any) -> Path:
    """`hfrlhf.demo.run.run_demo`, loaded on first use."""
    # Importing a module of this package must not import the gold preference along with it.
    from .run import run_demo as run

    return run(*args, **kwargs)
