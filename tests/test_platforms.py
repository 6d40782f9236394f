"""The package is imported where Python lacks what only Unix has."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import hfrlhf

UNIX_ONLY = ("fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty")
# The libraries ask themselves on which system they are; only what this package imports is missing here.
IMPORT_ALL = """
import builtins, importlib, pkgutil, sys

unix_only, real = set(sys.argv[1:]), builtins.__import__

def without(name, globals=None, *rest, **named):
    if name.partition(".")[0] in unix_only and (globals or {}).get("__name__", "").startswith("hfrlhf"):
        raise ModuleNotFoundError(f"No module named {name!r}, which {globals['__name__']} imports")
    return real(name, globals, *rest, **named)

builtins.__import__ = without
import hfrlhf
for module in pkgutil.walk_packages(hfrlhf.__path__, "hfrlhf."):
    importlib.import_module(module.name)
    print(module.name)
for name in hfrlhf.__all__:
    getattr(hfrlhf, name)
"""


@pytest.mark.slow  # every library is imported once more
def test_every_module_is_imported_without_what_only_unix_has():
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, *UNIX_ONLY], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    files = {path.stem for path in Path(hfrlhf.__file__).parent.rglob("*.py")} - {"__init__"}
    assert files <= {line.rpartition(".")[2] for line in done.stdout.split()}
