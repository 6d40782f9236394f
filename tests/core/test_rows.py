"""A row of a table gets the options that it names by its keyword arguments, and no more."""

import pytest
import torch

from hfrlhf.core.rows import options_of, rows


def test_a_row_gets_what_it_names_alone():
    def psi(x, y, z, *, tau, shift=0.5):
        """τ·x + shift"""
        return tau * x + shift

    row = rows("PSI", {"mine": psi})["mine"]
    assert options_of(row) == {"tau", "shift"} and row.__doc__ == "τ·x + shift"
    one = torch.ones(1)
    assert row(one, one, one, {"tau": 2.0, "gamma": 9.0}).item() == 2.5
    assert row(one, one, one, {"tau": 2.0, "shift": 1.0}).item() == 3.0
    with pytest.raises(ValueError, match=r"PSI\['mine'\] needs the option 'tau', which was not given"):
        row(one, one, one, {"shift": 1.0})
