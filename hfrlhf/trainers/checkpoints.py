"""Folders of runs: never written over by accident, resumed only by the run they belong to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers.trainer_utils import get_last_checkpoint

# What a finished or interrupted run leaves in its output folder.
RUN_FILES = (
    *("model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors", "training_args.json"),
    "completions.jsonl",
)


def check_output_dir(output_dir: str) -> None:
    """Refuse a folder that already holds a run.

    Raises:
        FileExistsError: it has checkpoints or a saved model.
        NotADirectoryError: the path is a file.
    """
    folder = Path(output_dir)
    if folder.is_file():
        raise NotADirectoryError(f"output_dir={output_dir!r} is a file; pass a folder")
    found = sorted(p.name for p in folder.glob("checkpoint-*")) + [f for f in RUN_FILES if (folder / f).exists()]
    if found:
        raise FileExistsError(
            f"output_dir={output_dir!r} already holds a run ({', '.join(found[:3])}); go on with it by "
            "`resume_from_checkpoint=True`, or choose another `output_dir` (nothing is ever overwritten)"
        )


def newest_checkpoint(output_dir: str) -> str:
    """The checkpoint with the highest step in a folder.

    Raises:
        ValueError: there is none.
    """
    found = get_last_checkpoint(output_dir) if Path(output_dir).is_dir() else None
    if found is None:
        raise ValueError(f"resume_from_checkpoint=True, but {output_dir!r} holds no checkpoint-<step> folder")
    return found


def saved_step(checkpoint: str) -> int:
    """The optimiser steps that are behind a checkpoint."""
    return int(json.loads(Path(checkpoint, "trainer_state.json").read_text())["global_step"])


def refuse_changed_settings(state_file: Path, settings: dict[str, Any]) -> None:
    """Refuse to continue a run with another batch arithmetic: its mini-batches would not be the ones it saved.

    Raises:
        FileNotFoundError: the folder is not a checkpoint of ours.
        ValueError: a setting differs; the message names both values.
    """
    if not state_file.is_file():
        raise FileNotFoundError(
            f"{state_file} is missing: {state_file.parent} is not a complete checkpoint of this trainer"
        )
    saved = json.loads(state_file.read_text())["settings"]
    changed = [f"{name}: {saved.get(name)} → {value}" for name, value in settings.items() if saved.get(name) != value]
    if changed:
        raise ValueError(f"this run cannot continue {state_file.parent} with changed {'; '.join(changed)}")


def write_training_args(args: Any, folder: Path) -> None:
    """The settings of the run as JSON, without tokens, where the Trainer would write a pickle."""
    (folder / "training_args.json").write_text(args.to_json_string() + "\n")
