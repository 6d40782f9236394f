"""constraints.txt, pyproject.toml and the README speak of the same releases."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
LINES = [
    line for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if not line.startswith("#")
]
PYTHONS = ("3.10", "3.11", "3.12", "3.13")


def direct() -> list[Requirement]:
    """The dependencies, with those of every extra."""
    project: dict[str, Any] = pytest.importorskip("tomllib").loads((ROOT / "pyproject.toml").read_text("utf-8"))[
        "project"
    ]
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    return [Requirement(line) for line in project["dependencies"] + extras]


def pinned(python: str) -> dict[str, str]:
    """What constraints.txt says for a Python."""
    found: dict[str, str] = {}
    for requirement in map(Requirement, LINES):
        if requirement.marker is None or requirement.marker.evaluate({"python_version": python}):
            assert canonicalize_name(requirement.name) not in found, requirement
            [part] = requirement.specifier
            assert part.operator == "=="
            found[canonicalize_name(requirement.name)] = part.version
    return found


@pytest.mark.parametrize("python", PYTHONS)
def test_every_dependency_is_pinned_within_its_range(python: str) -> None:
    pins = pinned(python)
    assert len(pins) > 50
    for requirement in direct():
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), requirement


def test_what_an_extra_of_a_library_needs_is_pinned_too() -> None:
    """datasets asks for `fsspec[http]`, which is fsspec and aiohttp."""
    assert {"fsspec", "aiohttp", "yarl"} <= pinned("3.11").keys()


def test_a_pin_is_of_no_machine() -> None:
    """No build tag, no address, no path: the same file serves a CPU, a GPU and another system."""
    for line in LINES:
        assert re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*(; python_version (<|>=) \"3\.1\d\")?", line), line


def test_the_lowest_releases_are_the_lower_bounds() -> None:
    command = [sys.executable, str(ROOT / ".ci" / "releases.py"), "lowest"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    bounds = {}
    for requirement in direct():
        [bounds[canonicalize_name(requirement.name)]] = [p.version for p in requirement.specifier if p.operator == ">="]
    assert dict(line.split("==") for line in done.stdout.split()) == bounds


@pytest.mark.parametrize(
    ("file", "heading"), [("README.md", "Run it"), ("README.md", "Test it"), ("CONTRIBUTING.md", "Set up")]
)
def test_what_is_read_installs_what_was_tested(file: str, heading: str) -> None:
    text = (ROOT / file).read_text(encoding="utf-8")
    [block] = re.findall(rf"^## {heading}\n.*?```bash\n(.*?)```", text, re.S | re.M)
    torch, package = (line for line in block.splitlines() if line.startswith("pip install"))
    assert torch.split()[2] == f"torch=={pinned('3.12')['torch']}"
    assert package.startswith("pip install -c constraints.txt -e ")
