"""What saving will do, tried when a run begins: nobody should hear at its end that its model cannot be written.

A copy without weights is written: configurations as they are, and for every tensor one number, in memory that is shared
where the tensors share theirs.
"""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedTokenizerBase
from transformers.utils import logging

from ..reporting.screen import RunWarning
from .quantization import is_quantized


def repair_generation_config(model: nn.Module) -> None:
    """Make a model's generation settings such that transformers saves them, and say so.

    Many checkpoints carry a temperature or a top_p with `do_sample=False`. Such settings only mean something when
    tokens are sampled, so that is what they are taken for.

    Raises:
        ValueError: they cannot be saved for another reason.
    """
    config = getattr(model, "generation_config", None)
    problem = _refusal(config)
    if config is None or problem is None:
        return
    sampled = copy.deepcopy(config)
    sampled.do_sample = True
    if _refusal(sampled) is not None:
        raise ValueError(
            f"the model's generation settings cannot be saved: {problem}. Set `model.generation_config` right, or to "
            "`transformers.GenerationConfig.from_model_config(model.config)`"
        )
    model.generation_config = sampled
    warnings.warn(
        "the model's generation settings are those of sampling, but with `do_sample=False`, which transformers does "
        "not save; they have `do_sample=True` from now on",
        RunWarning,
        stacklevel=4,
    )


def _refusal(config: GenerationConfig | None) -> str | None:
    """Why a generation configuration cannot be saved; None if it can, or if there is none."""
    if config is None:
        return None
    try:
        config.validate(strict=True)
        config.to_json_string()
    except (ValueError, TypeError) as error:
        return " ".join(str(error).split()).removeprefix("GenerationConfig is invalid: ")
    return None


def check_savable(
    models: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    also: Iterable[Callable[[Path], Any]] = (),
    adapters: list[str] | None = None,
) -> None:
    """Write models without their weights, a tokenizer and the rest of a saved folder, to where it is deleted again.

    Args:
        models: by their roles; what is no model is left out. also: functions that write into the folder they are given.
        adapters: names of the adapters that are saved; all of them by default.

    Raises:
        ValueError: something of it cannot be written; the message names the role, the cause, and what to do.
    """
    try:
        folder = tempfile.TemporaryDirectory(prefix="hfrlhf-")
    except OSError:
        return  # no room for a trial says nothing about the run's own folder
    with folder as name, _quiet():
        for role, model in models.items():
            if isinstance(model, torch.nn.Module):
                _try(role, partial(_save, model, Path(name, role.replace(" ", "_")), adapters))
        _try("tokenizer", partial(tokenizer.save_pretrained, name))
        for write in also:
            _try("settings and card", partial(write, Path(name)))


def _try(role: str, save: Callable[[], Any]) -> None:
    try:
        save()
    except Exception as error:  # whatever a model's own `save_pretrained` may raise: it would be raised at the end
        words = " ".join(str(error).split())[:400]
        raise ValueError(
            f"the {role} cannot be saved, and the run would end without it ({type(error).__name__}: {words}); this was "
            "found out by saving it without weights. Mend it before the trainer is made: "
            "its `save_pretrained(folder)` has to work"
        ) from error


def _save(model: Any, folder: Path, adapters: list[str] | None) -> None:
    if isinstance(model, PeftModel):
        names = list(model.peft_config) if adapters is None else adapters
        model.save_pretrained(str(folder), state_dict=stand_ins(model), selected_adapters=names)
    elif not is_quantized(model):  # nothing quantised is saved but as the base of adapters
        # The format of older files is made of whole tensors, so stand-ins cannot have it.
        model.save_pretrained(folder, state_dict=stand_ins(model), save_original_format=False)


def stand_ins(model: nn.Module) -> dict[str, Tensor]:
    """One number for each tensor that a model would save; one and the same for tensors that are the same memory."""
    made: dict[Any, Tensor] = {}
    named = {}
    for name, tensor in model.state_dict().items():
        if isinstance(tensor, Tensor):
            # transformers refuses to save two names for one memory unless the model says that they are tied: shared
            # memory has to stay shared here. What has none of its own (address 0) is told by its name.
            place = tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.shape
            key = (tensor.device, *place) if place[0] else name
            named[name] = made.setdefault(key, torch.zeros(1))
    return named


@contextmanager
def _quiet() -> Iterator[None]:
    """No bar and no warning: what there is to say is said when the model is saved."""
    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
