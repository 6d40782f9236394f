"""Random numbers with an address: each is a function of where it is used, not of what was drawn before.

An address is a tuple of non-negative integers such as (seed, rollout). The same address gives the same numbers in any
process, batch, order or resumed run; the global generators are neither read nor moved. The counter-based Philox4x64
generator (Salmon 2011) of numpy, whose raw output is the same in every version and on every platform, does the work.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

# What the numbers are for, as first word of the address, so that no two functions ever share a stream.
_UNIFORMS, _PERMUTATION = 1, 2


def uniforms(address: tuple[int, ...], rows: Tensor, length: int) -> Tensor:
    """Uniform numbers in [0, 1) for each row: u[b, t] = f(address, rows[b], t).

    Row b depends on the address and `rows[b]` alone, so it is the same in any batch; a larger `length` appends numbers
    and changes none.
    Shapes: rows [B] non-negative integers (for instance global episode indices) -> [B, length] float64 on the CPU.

    Raises:
        ValueError: a negative number in the address or the rows.
    """
    raw = [_philox(_UNIFORMS, (*address, int(row))).random_raw(length) for row in rows.tolist()]
    bits = np.stack(raw) if raw else np.empty((0, length), dtype=np.uint64)
    # The upper 53 bits fill the mantissa of a float64 exactly; 1.0 itself cannot occur.
    return torch.from_numpy((bits >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def permutation(n: int, address: tuple[int, ...]) -> Tensor:
    """A uniformly random order of 0 … n−1, a function of (n, address).

    Shapes: -> [n] int64 on the CPU.

    Raises:
        ValueError: n or a number in the address is negative.
    """
    if n < 0:
        raise ValueError(f"permutation() needs a length of at least 0, got {n}")
    # The order of n independent 64-bit keys is uniform; a tie (probability n²/2⁶⁵) is broken by index.
    keys = _philox(_PERMUTATION, address).random_raw(n)
    return torch.from_numpy(np.argsort(keys, kind="stable").astype(np.int64))


def _philox(purpose: int, address: tuple[int, ...]) -> np.random.Philox:
    """The generator at an address."""
    if any(number < 0 for number in address):
        raise ValueError(f"the address {address} of a random number holds a negative number; use integers from 0 on")
    # A SeedSequence reads its integers as one zero-padded string of 32-bit words: (1,) and (1, 0), or (2**32,) and
    # (0, 1), would be one seed. The length and two words per number keep all addresses apart.
    words = [word for number in address for word in (number % 2**32, number // 2**32)]
    return np.random.Philox(np.random.SeedSequence([purpose, len(address), *words]))
