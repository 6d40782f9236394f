"""Which releases of the libraries are installed where: the lowest that we promise, and the set that CI passed with.

python .ci/releases.py lowest   pyproject.toml's lower bounds as pins, for `pip install -c`
python .ci/releases.py set      what is installed around this Python, of all that hfrlhf and its tests need, as pins
python .ci/releases.py check    whether constraints.txt is that set, as far as it is for this Python

constraints.txt is moved by the environment of CI's part `versions` that has the newest releases, once it has passed:

    KEEP=1 bash .ci/run versions && SCRATCH=… && $SCRATCH/newest/bin/python .ci/releases.py set > constraints.txt
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
CONSTRAINTS = ROOT / "constraints.txt"
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
# What every Python brings itself, and what torch's build for a machine does.
NOT_OURS = re.compile(r"(pip|setuptools|wheel|triton|(nvidia|cuda)-.*)")
HEADER = """\
# The releases that CI has passed with, written by `python .ci/releases.py set`:   pip install -c constraints.txt -e .
# A line for one Python alone stands beside the lowest release that we promise, where the tested one is not for it.
"""


def direct(project: str) -> dict[str, Requirement]:
    """The dependencies of pyproject.toml, those of every extra included, by name."""
    first = project.partition("\ndependencies = [")[2].partition("\n]")[0]
    extras = project.partition("\n[project.optional-dependencies]")[2].partition("\n[")[0]
    lines = re.findall(r'"([A-Za-z0-9][\w.-]*[<>=][^"]*)"', first + extras)
    return {canonicalize_name(requirement.name): requirement for requirement in map(Requirement, lines)}


def lowest(requirement: Requirement) -> str:
    """The lower bound of a dependency."""
    return next(part.version for part in requirement.specifier if part.operator == ">=")


def installed(names: list[str]) -> dict[str, str]:
    """Name and version of these distributions, and of all that they need here, without local build tags (`+cpu`)."""
    found: dict[str, str] = {}
    seen: set[Requirement] = set()
    waiting = [Requirement(name) for name in names]
    while waiting:
        wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
        try:
            dist = distribution(name)
        except PackageNotFoundError:  # of another platform, or of an extra that is not here
            continue
        if wanted in seen or NOT_OURS.fullmatch(name):
            continue
        seen.add(wanted)
        found[name] = dist.version.partition("+")[0]
        extras = wanted.extras or {""}  # `fsspec[http]` needs what fsspec alone does not
        waiting += [
            r
            for r in map(Requirement, dist.requires or [])
            if r.marker is None or any(r.marker.evaluate({"extra": extra}) for extra in {"", *extras})
        ]
    return found


def pins(project: str) -> Iterator[str]:
    """The lines of constraints.txt."""
    bounds = direct(project)
    for name, version in sorted(installed(list(bounds)).items()):
        known = SpecifierSet(distribution(name).metadata.get("Requires-Python") or "")
        first = next(python for python in PYTHONS if known.contains(f"{python}.99"))
        if first == PYTHONS[0]:
            yield f"{name}=={version}"
            continue
        yield f'{name}=={version}; python_version >= "{first}"'
        if name in bounds:
            yield f'{name}=={lowest(bounds[name])}; python_version < "{first}"'


def unlike(lines: list[str]) -> list[str]:
    """The pins that hold for this Python and are not what is installed here."""
    pinned = {canonicalize_name(r.name): r for r in map(Requirement, lines) if r.marker is None or r.marker.evaluate()}
    here = installed(list(direct((ROOT / "pyproject.toml").read_text(encoding="utf-8"))))
    wrong = [
        f"{r} is pinned, {here[name]} is installed"
        for name, r in pinned.items()
        if name in here and here[name] not in r.specifier
    ]
    return wrong + [
        f"{name}=={version} is installed and not pinned" for name, version in here.items() if name not in pinned
    ]


def main(what: str) -> None:
    """Print what was asked for, or end with an error."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    if what == "lowest":
        print("\n".join(f"{name}=={lowest(requirement)}" for name, requirement in direct(project).items()))
    elif what == "set":
        print(HEADER + "\n".join(pins(project)))
    elif what == "check":
        lines = [line for line in CONSTRAINTS.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
        sys.exit("\n".join(unlike(lines)) or 0)
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main(*sys.argv[1:2] or [""])
