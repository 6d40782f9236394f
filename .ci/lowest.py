"""Prints pyproject.toml's lower bounds as pins, one a line: a constraints file of the oldest releases that we promise.

python .ci/lowest.py > lowest.txt && pip install -c lowest.txt -e ".[test]"
"""

import re
import sys
from pathlib import Path

PYPROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"
REQUIREMENT = re.compile(r'^\s*"([A-Za-z0-9._-]+)>=([0-9.]+)', re.MULTILINE)
LISTS = re.compile(r"^(\w+) = \[(.*?)\]", re.MULTILINE | re.DOTALL)


def lower_bounds(project: str) -> dict[str, str]:
    """Name and lowest version of every dependency and of every extra; the build system is pip's affair."""
    _, _, text = project.partition("[project]")
    return dict(REQUIREMENT.findall(text))


if __name__ == "__main__":
    bounds = lower_bounds(PYPROJECT.read_text(encoding="utf-8"))
    sys.stdout.writelines(f"{name}=={version}\n" for name, version in bounds.items())
