"""The most memory that a process has held, as each operating system tells it."""

from __future__ import annotations

import sys

import psutil


def peak_memory_gb() -> float:
    """The most memory this process has held so far, in GB (10⁹ bytes)."""
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset / 1e9
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e9 if sys.platform == "darwin" else 1e9 / 1024)  # bytes on macOS, KiB on Linux
