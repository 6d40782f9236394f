"""Text from strangers, made harmless to show: prompts, completions and names may hold what terminals obey."""

from __future__ import annotations

import unicodedata

# Control, format (writing direction among it), surrogate, private, unassigned, line and paragraph separator.
NOT_SHOWN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
KEPT = "\n\t\u200c\u200d"  # zero-width (non-)joiners are part of words in many scripts, and of emoji


def printable(text: str) -> str:
    """The text with every control character but line breaks and tabs as �.

    Escape sequences colour, move and erase what a terminal shows, some retitle it; marks of writing direction show
    words in another order; lone surrogates cannot be written to a file.
    """
    return "".join("\ufffd" if unicodedata.category(c) in NOT_SHOWN and c not in KEPT else c for c in text)
