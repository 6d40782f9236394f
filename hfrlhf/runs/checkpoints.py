"""Folders of runs: never written over by accident, resumed only by the run they belong to, thinned out with care."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from peft import PeftModel
from transformers import TrainerState
from transformers.utils import logging

from ..models.quantization import quantization_of
from .folder import damage, discard, replaced_aside

logger = logging.get_logger(__name__)

# What a finished or interrupted run leaves in its output folder.
RUN_FILES = ("model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors", "training_args.json")
CHECKPOINT = re.compile(r"checkpoint-(\d+)")
# What of a PEFT configuration decides on the shape and the effect of the adapter's weights.
ADAPTER_SETTINGS = (
    "peft_type",
    "r",
    "lora_alpha",
    "target_modules",
    "modules_to_save",
    "layers_to_transform",
    "rank_pattern",
    "alpha_pattern",
    "use_rslora",
    "use_dora",
)


def check_output_path(output_dir: str) -> None:
    """Refuse a path at which nothing can be written, before any work is done.

    Raises:
        NotADirectoryError: the path, or one above it, is a file.
        PermissionError: the folder, or the one it would be made in, takes no new files.
    """
    path = Path(output_dir).absolute()
    there = next(p for p in (path, *path.parents) if os.path.lexists(p))  # the root at least
    if not there.is_dir():
        where = "is a file" if there == path else f"lies under {str(there)!r}, which is a file"
        raise NotADirectoryError(f"output_dir={output_dir!r} {where}; pass a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(
            f"output_dir={output_dir!r}: nothing can be written to {str(there)!r}; pass another folder"
        )


def check_output_dir(output_dir: str, trained_before: bool = False) -> None:
    """Refuse a folder that already holds a run.

    Args:
        trained_before: whether that run is an earlier one of the same trainer.

    Raises:
        FileExistsError: it has checkpoints or a saved model.
        NotADirectoryError, PermissionError: it cannot be written.
    """
    check_output_path(output_dir)
    folder = Path(output_dir)
    resumable = sorted(p.name for p in folder.glob("checkpoint-*"))
    resumable += [path.relative_to(folder).as_posix() for path in replaced_aside(folder)]  # killed between two renames
    found = resumable + [name for name in RUN_FILES if (folder / name).exists()]
    if found and trained_before:
        raise FileExistsError(
            f"this trainer has trained before, and output_dir={output_dir!r} holds that run ({', '.join(found[:3])}). "
            "To go on with it, raise `trainer.args.max_steps` and call `train(resume_from_checkpoint=True)`; to train "
            "the model as it is now, set `trainer.args.output_dir` to another folder first (nothing is overwritten)"
        )
    if found:
        how = (
            "go on with it by `resume_from_checkpoint=True`, or" if resumable else "it has no checkpoint to go on from:"
        )
        raise FileExistsError(
            f"output_dir={output_dir!r} already holds a run ({', '.join(found[:3])}); {how} choose another "
            "`output_dir`, or remove this one (nothing is ever overwritten)"
        )


def checkpoints_in(run: Path) -> list[Path]:
    """The checkpoint folders of a run, the highest step first, whatever state they are in."""
    found = [path for path in run.glob("checkpoint-*") if CHECKPOINT.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=step_of, reverse=True)


def step_of(checkpoint: Path) -> int:
    """The optimiser step that a folder's name gives; -1 for another name."""
    match = CHECKPOINT.fullmatch(checkpoint.name)
    return int(match[1]) if match else -1


def saved_state(checkpoint: str | Path) -> dict[str, Any]:
    """The Trainer's state in a checkpoint: `global_step`, `max_steps`, `num_train_epochs`, …"""
    state: dict[str, Any] = json.loads(Path(checkpoint, "trainer_state.json").read_text(encoding="utf-8"))
    return state


def best_by_name(state: TrainerState, run: Path, staged: Path) -> TrainerState:
    """The state with the best checkpoint under the name it will have: the Trainer saw the folder aside.

    Args:
        run: the run's folder. staged: the checkpoint that was written aside a moment ago.
    """
    best = run / f"checkpoint-{state.best_global_step}"
    if state.best_global_step and (best.name == staged.name or best.is_dir()):
        return replace(state, best_model_checkpoint=str(best))
    return state


def changed_settings(state_file: Path, settings: Mapping[str, Any]) -> str | None:
    """What of a run's settings is not as in the checkpoint, as "name: old → new"; None where all are the same."""
    saved = json.loads(state_file.read_text(encoding="utf-8"))["settings"]
    now = json.loads(json.dumps(dict(settings)))  # as they would be read back
    changed = [f"{name}: {saved.get(name)} → {value}" for name, value in now.items() if saved.get(name) != value]
    return "; ".join(changed) or None


def model_settings(model: Any) -> dict[str, Any]:
    """What of a model a resumed run must share: how its base is quantised, and what its adapters are."""
    return {"quantization": quantization_of(model), "adapters": adapter_settings(model)}


def adapter_settings(model: Any) -> dict[str, dict[str, Any]]:
    """For each adapter on a model (policy, reference, critic, reward) what makes its weights what they are."""
    if not isinstance(model, PeftModel):
        return {}
    return {
        role: {name: _plain(getattr(config, name, None)) for name in ADAPTER_SETTINGS}
        for role, config in sorted(model.peft_config.items())
    }


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set | list | tuple) else getattr(value, "value", value)


def rotate(run: Path, limit: int | None, newest: Path, best: str | None, just_sealed: bool = False) -> list[Path]:
    """Delete the oldest checkpoints beyond `save_total_limit`, never the last one that is whole.

    The newest and the best one stay, as with the stock Trainer; where none of those that would stay is whole (a disk
    may spoil what was written to it), the newest whole one stays too.

    Args:
        just_sealed: sealing has read every byte of the newest a moment ago, so that it is not read once more.

    Returns:
        what was to be deleted.
    """
    found = checkpoints_in(run)
    if not limit or limit < 0 or len(found) <= limit:
        return []
    kept = [path for path in found if path == newest or str(path) == best]
    others = [path for path in found if path not in kept]
    kept += others[: max(0, limit - len(kept))]
    if damage(newest, contents=not just_sealed) and all(damage(path) for path in kept):
        kept += [path for path in others if path not in kept and damage(path) is None][:1]
    gone = [path for path in found if path not in kept]
    for path in gone:
        try:
            discard(path)
        except OSError as error:
            logger.warning(f"{path}, beyond `save_total_limit={limit}`, could not be deleted: {error}")
    return gone


class Settings(Protocol):
    """Training arguments as far as they can be written."""

    def to_json_string(self) -> str:
        """As JSON, without tokens."""


def write_training_args(args: Settings, folder: Path) -> None:
    """The settings of the run as JSON, without tokens, where the Trainer would write a pickle."""
    (folder / "training_args.json").write_text(args.to_json_string() + "\n", encoding="utf-8")
