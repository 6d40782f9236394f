"""What is refused at construction: tokens, lengths and weights that cannot work together."""

from __future__ import annotations

import warnings
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from ...reporting.screen import RunWarning
from ..anatomy.positions import positions_of
from ..anatomy.sizes import embeddings_of


def check_positions(models: dict[str, Any], prompt: int, completion: int) -> None:
    """Refuse prompts and responses that are longer than a model has positions for.

    Args:
        models: by their roles; what is no model (a critic that is a head) has no limit.
        prompt: tokens of the longest prompt, for training or evaluation. completion: tokens a response may have.

    Raises:
        ValueError: together they are too long.
    """
    for role, model in models.items():
        most = positions_of(model) if isinstance(model, nn.Module) else None
        if most is not None and prompt + completion > most:
            raise ValueError(
                f"the longest prompt has {prompt} tokens and max_completion_length={completion}, but the {role} has "
                f"positions for {most}; {_that_fits(most, completion)}"
            )


def _that_fits(most: int, completion: int) -> str:
    if completion >= most:
        return f"set a `max_completion_length` below {most}, and a `max_prompt_length`"
    return f"set `max_prompt_length={most - completion}` or a lower `max_completion_length`"


def check_trainable(model: nn.Module, role: str) -> None:
    """Refuse a model in which nothing trains; warn where what trains is stored in half precision.

    Raises:
        ValueError: no parameter requires a gradient.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise ValueError(
            f"no parameter of the {role} requires a gradient, so nothing would train; call "
            "`model.requires_grad_(True)`, or pass `peft_config=LoraConfig(...)` to train an adapter on it"
        )
    half = sorted({str(parameter.dtype) for parameter in trained if parameter.dtype.itemsize < 4})
    if half:
        warnings.warn(
            f"weights of the {role} that train are in {', '.join(half)}, where Adam's small steps round to nothing; "
            "pass the model's name, or `model.float()`, and `bf16=True` to compute in bfloat16",
            RunWarning,
            stacklevel=3,
        )


def stop_token_of(tokenizer: PreTrainedTokenizerBase, policy: nn.Module, chosen: int | None) -> int:
    """The token that ends a response: the one that was chosen, else the tokenizer's EOS.

    Raises:
        ValueError: there is none, or none that a response could ever hold.
    """
    stop = tokenizer.eos_token_id if chosen is None else chosen
    if stop is None:
        raise ValueError("the tokenizer has no EOS token; say which token ends a response by `stop_token_id`")
    check_stop_token(stop, tokenizer, policy)
    warn_of_other_stops(policy, tokenizer, stop)
    return int(stop)


def check_stop_token(stop_token_id: int, tokenizer: PreTrainedTokenizerBase, model: nn.Module) -> None:
    """Refuse a stop token that no response could ever hold.

    Raises:
        ValueError: it is no id of the tokenizer, or the model has no embedding for it.
    """
    known, size = set(tokenizer.get_vocab().values()), embeddings_of(model)
    if stop_token_id not in known or stop_token_id >= size:
        raise ValueError(
            f"`stop_token_id={stop_token_id!r}` is no token: the tokenizer's ids go from {min(known)} to {max(known)}, "
            f"the model's to {size - 1}; find an id with `tokenizer.convert_tokens_to_ids(token)`"
        )


def warn_of_other_stops(model: nn.Module, tokenizer: PreTrainedTokenizerBase, stop_token_id: int) -> None:
    """Say so where the model was made to stop at several tokens (chat models): a response here ends at one."""
    ends = getattr(model.generation_config, "eos_token_id", None)
    others = sorted(set(ends if isinstance(ends, list) else [ends]) - {stop_token_id, None})
    if others:
        names = ", ".join(f"{tokenizer.convert_ids_to_tokens(i)!r} ({i})" for i in others)
        warnings.warn(
            f"responses end at {tokenizer.convert_ids_to_tokens(stop_token_id)!r} ({stop_token_id}) alone; the model's "
            f"generation config also stops at {names}: if that is what ends its turns, pass it as `stop_token_id`",
            RunWarning,
            stacklevel=5,
        )
