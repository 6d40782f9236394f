"""What options of models and data name: whether it is given, and whether it is there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..rewards.unnamed import without_function

# Options that name a model or data, and what may stand there.
NAMED = {
    "model_name_or_path": "a model's folder or its name on the Hub",
    "dataset_name": "a folder with train.jsonl, a file, or a dataset's name on the Hub",
    "reward_funcs": "a reward model's folder or Hub name, or FILE.py:FUNCTION",
    "value_model": "`adapter`, or a model's folder or Hub name",
}
FILES = (".py", ".jsonl", ".json", ".csv", ".parquet", ".gz", ".zst", ".xz", ".bz2")


def missing(name: str) -> str:
    """What to say where an option is not given that must be."""
    return f"--{name} is missing: give {NAMED[name]}, or a --config that has it"


def not_there(settings: Mapping[str, Any], given: Mapping[str, list[str]], file: str | None) -> Iterator[str]:
    """Paths of models and data that lead nowhere."""
    for name, what in NAMED.items():
        values = given.get(name, settings.get(name))
        for value in values if isinstance(values, list) else [values]:
            path = str(value or "").removeprefix("own:")
            place = path.rpartition(":")[0]
            path = place if place.endswith(".py") else path
            if path and _is_path(path) and not Path(path).expanduser().exists():
                yield f"{name}: there is no {path!r} (looked from {Path.cwd()}); " + (
                    f"give {what}"
                    if name in given
                    else f"{file} names what does not come with it: put {what} in its place, or give it as --{name}"
                )


def unnamed(settings: Mapping[str, Any], given: Mapping[str, list[str]]) -> Iterator[str]:
    """Files of reward functions without the function's name."""
    values = given.get("reward_funcs", settings.get("reward_funcs"))
    for value in values if isinstance(values, list) else [values]:
        said = without_function(str(value or ""))
        if said:
            yield f"reward_funcs: {said}"


def _is_path(name: str) -> bool:
    """Whether a name can only be a path: a Hub name has one slash at most, and no such beginning."""
    written = name.startswith((".", "/", "~", "runs/")) or name.count("/") > 1 or "\\" in name
    return written or name.endswith(FILES)
