"""Drawing one token per row from its logits, and saying when a model's own sampling settings are not used."""

from __future__ import annotations

import math
import warnings
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ..reporting.screen import RunWarning
from .contract import LanguageModel

# Settings of a model's generation_config that change which token is drawn, with the values at which they do nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "top_k": (0,),
    "top_p": (1.0,),
    "min_p": (0.0,),
    "top_h": (1.0,),
    "typical_p": (1.0,),
    "epsilon_cutoff": (0.0,),
    "eta_cutoff": (0.0,),
    "repetition_penalty": (1.0,),
    "no_repeat_ngram_size": (0,),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "bad_words_ids": (),
    "suppress_tokens": (),
    "begin_suppress_tokens": (),
    "forced_eos_token_id": (),
    "exponential_decay_length_penalty": (),
    "sequence_bias": (),
    "guidance_scale": (1.0,),
    "num_beams": (1,),
}


def draw(logits: Tensor, numbers: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """One token per row by inverse CDF, with its log-prob.

        token = min{i : Σ_{j≤i} π_j > u},  π = softmax(logits / temperature)                             (SPEC §1)

    taken in two steps, each with its own u: first which block of about √V tokens, then which token of the block. The
    CDF over all V tokens has V steps, and a rounding error of 1e-7 in the forward pass moves them all: in a batch of
    another size one token in 10,000 would come out otherwise. The two short CDFs are 40 times less sensitive, and
    cheaper.

    Args:
        logits: [b,V]. numbers: [b,2] uniform in [0,1). temperature: 0 takes the most probable token instead, with its
            log-prob at temperature 1.

    Returns:
        tokens [b] long and log-probs [b] float32.
    """
    # A softmax in 16 bits would neither sum to 1 nor know the small probabilities.
    scaled = logits.float() / (temperature or 1.0)
    probabilities = torch.softmax(scaled, dim=-1)
    token = _sample(probabilities, numbers) if temperature else scaled.argmax(-1)
    return token, probabilities.gather(1, token[:, None]).squeeze(1).log()


def _sample(probabilities: Tensor, numbers: Tensor) -> Tensor:
    """[b] tokens from probabilities [b,V] by two uniform numbers [b,2] each."""
    rows, vocabulary = probabilities.shape
    size = 2 ** round(math.log2(vocabulary) / 2)
    blocks = torch.nn.functional.pad(probabilities, (0, -vocabulary % size)).view(rows, -1, size)
    block = _invert(blocks.sum(-1), numbers[:, 0])
    within = _invert(blocks[torch.arange(rows, device=block.device), block], numbers[:, 1])
    tokens: Tensor = block * size + within
    return tokens.clamp(max=vocabulary - 1)  # only NaN would lead beyond


def _invert(masses: Tensor, u: Tensor) -> Tensor:
    """[b] the first index at which the sum of the masses [b,n] exceeds u times their total."""
    cdf = masses.cumsum(-1, dtype=u.dtype)
    total = cdf[:, -1:]
    # Strictly below the total, even where u was rounded to 1, so that the index found has a mass.
    target = torch.minimum(u[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cdf, target, right=True).squeeze(1).clamp(max=masses.shape[1] - 1)


def warn_of_own_sampling(model: LanguageModel, temperature: float) -> None:
    """Say once what in the model's generation_config is not used because it would change the sampling."""
    config = getattr(model, "generation_config", None)
    found = {name: getattr(config, name, None) for name in NEUTRAL}
    found = {name: value for name, value in found.items() if value is not None and value not in NEUTRAL[name]}
    own_temperature = getattr(config, "temperature", None)
    if own_temperature not in (None, temperature):
        found["temperature"] = own_temperature
    if found:
        listed = ", ".join(f"{name}={value}" for name, value in found.items())
        _warn_once(
            f"the model's generation_config has {listed}; sampling here uses none of it, only temperature="
            f"{temperature}: the log-probs must be those of the sampler"
        )


@cache
def _warn_once(text: str) -> None:
    warnings.warn(text, RunWarning, stacklevel=4)
