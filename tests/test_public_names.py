"""`import hfrlhf`: quick, quiet, and every name it lists is there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import hfrlhf

ROOT = Path(__file__).resolve().parents[1]
PROMISED = {
    *("PPOTrainer", "PPOConfig", "PolicyGradientTrainer", "PolicyGradientConfig", "RewardTrainer", "RewardConfig"),
    *("TRPOTrainer", "TRPOConfig", "ALGORITHMS", "Rollout", "Experience", "load_reward_model", "merge", "__version__"),
}


def test_the_list_is_the_promised_one() -> None:
    assert set(hfrlhf.__all__) == set(dir(hfrlhf)) == PROMISED


@pytest.mark.parametrize("name", sorted(PROMISED))
def test_every_name_resolves(name: str) -> None:
    value = getattr(hfrlhf, name)
    assert getattr(value, "__name__", name) == name
    assert getattr(value, "__module__", "hfrlhf").startswith("hfrlhf")


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'DPOTrainer'; it offers .*PPOTrainer"):
        hfrlhf.DPOTrainer  # noqa: B018


def test_importing_prints_nothing_and_loads_no_library() -> None:
    program = (
        "import sys, hfrlhf; print(sorted({'torch', 'transformers', 'trl', 'peft', 'numpy'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_bitsandbytes_advises_nobody_and_says_all_else() -> None:
    """Its line on a package of kernels, where there is no GPU, comes as PEFT is imported; other lines are seen."""
    program = (
        "import logging, hfrlhf.trainers.ppo, bitsandbytes.backends.cpu.ops as ops\n"
        "logging.getLogger('bitsandbytes.autograd._functions').warning('MatMul8bitLt: %s be cast', 'inputs will')\n"
        "assert logging.getLogger(ops.__name__).level == logging.NOTSET\n"
        "logging.getLogger(ops.__name__).warning('a fault')"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr.splitlines() == ["a fault"]
