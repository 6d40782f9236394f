"""A reward function by its name on a command line: `FILE.py:FUNCTION` or `package.module:FUNCTION`.

The file is imported as a module: other modules beside it are found, and what stands under `if __name__ == "__main__":`
does not run. A file that trains while it is imported is a script: it is stopped, and named.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from transformers import Trainer


class TrainsOnImport(BaseException):
    """A trainer was made while a file was imported; no `except Exception` of that file holds it up."""


def function_from(place: str, name: str) -> Any:
    """A function of a file or a module.

    Args:
        place: FILE.py, or the name of a module. name: of the function.

    Raises:
        ValueError: the file or the module cannot be imported, builds a trainer, or has no such function; the message
            says where, and which functions it has.
    """
    module = _imported(place)
    function = getattr(module, name, None)
    if callable(function):
        return function
    if hasattr(module, name):
        raise ValueError(f"{name!r} in {place} is no function, but a {type(function).__name__}")
    own = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
    near = difflib.get_close_matches(name, own, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(map(repr, own[:8])) or 'none'}"
    raise ValueError(f"there is no reward function {name!r} in {place}; {hint}")


def _imported(place: str) -> ModuleType:
    try:
        with _no_training():
            return _module(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except TrainsOnImport:
        line = _line_in(place, sys.exc_info()[2])
        raise ValueError(
            f"{place} makes a trainer while it is imported{line}: it is a training script. Put what trains there under "
            '`if __name__ == "__main__":`, or the reward function into a file of its own'
        ) from None
    except FileNotFoundError as error:
        raise ValueError(f"no reward functions can be read from {place!r}: {error.strerror or error}") from None
    except (Exception, SystemExit) as error:
        line = _line_in(place, error.__traceback__)
        what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise ValueError(f"{place} cannot be imported{line}: {what}") from error


def _module(path: Path) -> ModuleType:
    """The file as a module, once per process, with its folder among those that imports are looked for in."""
    path = path.resolve(strict=True)
    name = f"{path.stem}_{hashlib.sha256(str(path).encode(errors='surrogateescape')).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None  # a file that ends in .py has both
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickles look for it there
    folder = str(path.parent)
    sys.path.insert(0, folder)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    finally:
        sys.path.remove(folder)
        sys.path.append(folder)  # last: for what the function imports when it is called, and in nobody's way
    return module


@contextmanager
def _no_training() -> Iterator[None]:
    """Within the block no trainer can be made: of transformers, of TRL, of this package, or of a class made there."""
    inits: dict[Any, Any] = {}

    def close(kind: Any, /, **_: Any) -> None:
        if "__init__" in vars(kind) and kind not in inits:
            inits[kind] = kind.__init__
            kind.__init__ = _refuse

    known: Any = Trainer
    for kind in _with_subclasses(known):
        close(kind)
    known.__init_subclass__ = classmethod(close)
    try:
        yield
    finally:
        del known.__init_subclass__
        for kind, init in inits.items():
            kind.__init__ = init


def _refuse(self: object, *args: object, **kwargs: object) -> None:
    raise TrainsOnImport


def _with_subclasses(kind: type) -> set[Any]:
    below: list[type] = kind.__subclasses__()
    return {kind}.union(*map(_with_subclasses, below))


def _line_in(place: str, trace: Any) -> str:
    """Which line of the file it was, where it was one."""
    name = Path(place).name
    lines = [frame.lineno for frame in traceback.extract_tb(trace) if Path(frame.filename).name == name]
    return f" (line {lines[-1]})" if lines else ""
