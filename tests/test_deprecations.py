"""The plugin in `tests/deprecations.py` hears what a library says of this package's calls, and of no others."""

from __future__ import annotations

import logging
import types
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests import deprecations
from tests.deprecations import DeprecatedCall

LIBRARY = """
import logging, warnings

def old():
    warnings.warn("old is deprecated, use new", FutureWarning)

def deep():
    return old()

def said():
    logging.getLogger("transformers").warning("`said` will be removed in v6")

def other():
    warnings.warn("something else", UserWarning)

def allowed():
    warnings.warn("`gradient_checkpointing` is deprecated", FutureWarning)
"""


def module(name: str, source: str) -> Any:
    """A module whose frames are of the package that its name says."""
    made = types.ModuleType(name)
    exec(compile(source, name, "exec"), made.__dict__)
    return made


library = module("transformers.modeling", LIBRARY)
ours = module("hfrlhf.models.bad", "def call(f): return f()")
peft = module("peft.tuners", "def call(f): return f()")


@pytest.fixture(autouse=True)
def plugin() -> Iterator[None]:
    class Config:
        add_cleanup = staticmethod(lambda undo: undone.append(undo))

    undone: list[Any] = []
    before = warnings.warn, logging.Logger.handle
    deprecations.pytest_configure(Config)  # type: ignore[arg-type]
    yield
    for undo in undone:
        undo()
    assert (warnings.warn, logging.Logger.handle) == before


@pytest.mark.parametrize("name", ["old", "deep", "said"])
def test_what_a_library_says_of_our_call_is_an_error(name: str) -> None:
    with pytest.raises(DeprecatedCall, match=r"use new|will be removed"):
        ours.call(getattr(library, name))


def test_a_module_is_called_by_torch_on_our_behalf() -> None:
    class Module(torch.nn.Module):
        forward = staticmethod(library.old)

    with pytest.raises(DeprecatedCall):
        ours.call(Module())


def test_torch_itself_is_heard() -> None:
    with pytest.raises(DeprecatedCall, match="deprecated"):
        ours.call(module("hfrlhf.core.bad", "import torch\ndef f(): torch.nn.init.uniform(torch.zeros(2))").f)


@pytest.mark.filterwarnings("ignore")
def test_what_is_no_call_of_ours_is_no_error() -> None:
    ours.call(library.other)
    ours.call(library.allowed)
    ours.call(lambda: peft.call(library.old))
    library.old()
