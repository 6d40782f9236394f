"""What other libraries say while we load and save, and nobody can do anything about."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from transformers.utils import logging

from .libraries import are_progress_bars_disabled, enable_progress_bars


@contextmanager
def quietly() -> Iterator[None]:
    """Without transformers' bars ("Loading weights", "Writing model shards") and notices of its next releases.

    Around a call of ours, or as the decorator of a function. What was switched off is switched on again; downloads
    keep their bars, and warnings of another kind are seen.
    """
    showed_bars, hub_showed_bars = logging.is_progress_bar_enabled(), not are_progress_bars_disabled()
    logging.disable_progress_bar()  # which switches off the Hub's as well
    if hub_showed_bars:
        enable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        if showed_bars:
            logging.enable_progress_bar()
