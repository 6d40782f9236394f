"""The worked numbers of tests/vectors, from an implementation that is not ours.

A test that asks for `<file>_vector` runs once for every case of vectors/<file>.json.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

VECTORS = Path(__file__).parent.parent / "vectors"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    for name in metafunc.fixturenames:
        if name.endswith("_vector"):
            cases = json.loads((VECTORS / f"{name.removesuffix('_vector')}.json").read_text())["cases"]
            metafunc.parametrize(name, [_tensors(case) for case in cases], ids=range(len(cases)))


def _tensors(value: Any) -> Any:
    """The case with every list as a tensor: float64, or bool where it says so; single numbers stay as they are."""
    if isinstance(value, dict):
        mask = {key: torch.tensor(entry, dtype=torch.bool) for key, entry in value.items() if key == "action_mask"}
        return {key: _tensors(entry) for key, entry in value.items()} | mask
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return [_tensors(entry) for entry in value]
    if isinstance(value, list):
        tensor = torch.tensor(value)
        return tensor if tensor.dtype == torch.bool else torch.tensor(value, dtype=torch.float64)
    return value


@pytest.fixture
def close() -> Any:
    """Equality to the last digits of float64."""

    def check(actual: Any, expected: Any, atol: float = 1e-12) -> None:
        torch.testing.assert_close(
            torch.as_tensor(actual, dtype=torch.float64).detach(),
            torch.as_tensor(expected, dtype=torch.float64),
            rtol=0,
            atol=atol,
        )

    return check
