"""What a row of Ψ or of a policy loss says that it reads is what it reads: its keyword arguments, and no more."""

import pytest
import torch

from hfrlhf.core.advantages import PSI
from hfrlhf.core.policy_losses import POLICY_LOSSES
from hfrlhf.core.rows import options_of, rows

MASK = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 1, 1]]).bool()
REWARDS = torch.tensor([[1.0, -2.0, 4.0], [0.5, 3.0, 0.0], [-1.0, 0.0, 0.0], [2.0, 0.0, 5.0]])
VALUES = torch.tensor([[0.3, 1.0, -0.5], [2.0, 0.7, 0.0], [1.5, 0.0, 0.0], [-0.2, 0.9, 1.1]])
# Two values of every option that is there.
OF_PSI = {
    "gamma": (0.5, 0.25),
    "gae_lambda": (0.5, 0.25),
    "n_step": (1, 2),
    "group_size": (2, 4),
    "exclude_self": (False, True),
    "bootstrap_values": (None, torch.tensor([2.0, 1.0, 0.0, -3.0])),
    "grad_sq_norms": (torch.ones(4), torch.tensor([1.0, 2.0, 3.0, 4.0])),
    "best_values": (VALUES, 2 * VALUES),
    "expected_values": (VALUES, 3 * VALUES),
}
OF_LOSSES = {"clip_low": (0.2, 0.3), "clip_high": (0.2, 0.4), "dual_clip": (None, 2.0), "penalty_coef": (1.0, 0.5)}
RATIOS = torch.tensor([[4.0, 4.0], [0.25, 0.25]]).log()
SIGNS = torch.tensor([[1.0, -1.0], [1.0, -1.0]])
CASES = [
    *((PSI[name], (REWARDS, VALUES, MASK), OF_PSI) for name in PSI),
    *((POLICY_LOSSES[name], (RATIOS, torch.zeros(2, 2), SIGNS), OF_LOSSES) for name in POLICY_LOSSES),
]


@pytest.mark.parametrize(("row", "tensors", "options"), CASES, ids=[*PSI, *POLICY_LOSSES])
def test_the_options_that_a_row_names_are_those_that_matter(row, tensors, options):
    first = {name: values[0] for name, values in options.items()}
    before = row(*tensors, first)
    changed = {n for n in options if not torch.equal(before, row(*tensors, first | {n: options[n][1]}))}
    assert changed == options_of(row)


def test_a_row_gets_what_it_names_alone():
    def psi(x, y, z, *, tau, shift=0.5):
        """τ·x + shift"""
        return tau * x + shift

    row = rows("PSI", {"mine": psi})["mine"]
    assert options_of(row) == {"tau", "shift"} and row.__doc__ == "τ·x + shift"
    one = torch.ones(1)
    assert row(one, one, one, {"tau": 2.0, "gamma": 9.0}).item() == 2.5
    assert row(one, one, one, {"tau": 2.0, "shift": 1.0}).item() == 3.0
    with pytest.raises(ValueError, match=r"PSI\['mine'\] needs .*tau.*, which was not given"):
        row(one, one, one, {"shift": 1.0})
