"""An adapter merged into its base: one plain model, for those who serve it without peft or bitsandbytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, load_peft_weights
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from transformers.utils import cached_file

from .names import as_name, is_adapter
from .quantization import QUANTIZATION_FILE, is_quantized, keep_training_format

PROBE_TOKENS = 64


def merge(adapter: Any, output_dir: str | Path) -> float:
    """Write a policy adapter and its base as one plain model; returns how far its logits are from the adapter's.

    A 4-bit or 8-bit base is dequantised first and merged then: the policy was trained on the weights that those bits
    stand for, and merging into the bits would round it once more (differences of 0.5 to 2 in the logits). The model is
    in float32, loads with stock `AutoModelForCausalLM`, and has the adapter's tokenizer beside it.

    Args:
        adapter: folder or Hub name of a policy adapter that a trainer saved. output_dir: new or empty.

    Returns:
        the largest absolute difference between the logits of adapter and merged model, over every token of the
        vocabulary at 64 positions.

    Raises:
        ValueError: no adapter, or a reward model's. FileExistsError: the output folder holds something already.
    """
    name, target = str(as_name(adapter)), Path(output_dir)
    if not is_adapter(name, {}):
        raise ValueError(f"{name} holds no adapter (adapter_config.json); pass what a trainer with `peft_config` saved")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"{target} holds something already; choose another folder for the merged model")
    if PeftConfig.from_pretrained(name).task_type == "SEQ_CLS":
        raise ValueError(f"{name} is a reward model's adapter; a policy's is merged into a language model")
    tokenizer = AutoTokenizer.from_pretrained(name)
    before = _logits(PeftModel.from_pretrained(_base(name), name))
    merged: Any = PeftModel.from_pretrained(_untied(_dequantised(_base(name)), name), name).merge_and_unload()
    merged.save_pretrained(target)
    tokenizer.save_pretrained(target)
    # Of what was written, not of what was meant to be: a weight lost in saving would show.
    return float((_logits(AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32)) - before).abs().max())


def _base(name: str) -> Any:
    """The adapter's base as it was trained on: in float32, or quantised in the same way."""
    config: Any = PeftConfig.from_pretrained(name)
    saved = cached_file(name, QUANTIZATION_FILE, _raise_exceptions_for_missing_entries=False)
    how: dict[str, Any] = {"dtype": torch.float32}
    if saved:
        settings = json.loads(Path(saved).read_text(encoding="utf-8"))
        how["quantization_config"] = BitsAndBytesConfig.from_dict(settings)
    base = AutoModelForCausalLM.from_pretrained(config.base_model_name_or_path, **how)
    keep_training_format(base)
    return base


def _dequantised(base: Any) -> Any:
    return base.dequantize().float() if is_quantized(base) else base


def _untied(base: Any, name: str) -> Any:
    """The base with a vocabulary head of its own where the adapter changes head or embedding, and they were one."""
    changed = {part for key in load_peft_weights(name, device="cpu") for part in key.split(".")}
    head, embedding = base.get_output_embeddings(), base.get_input_embeddings()
    names = {n.rpartition(".")[2] for n, module in base.named_modules() if module is head or module is embedding}
    if head.weight is embedding.weight and names & changed:
        head.weight = torch.nn.Parameter(head.weight.detach().clone())
        base.config.tie_word_embeddings = False
    return base


@torch.no_grad()
def _logits(model: Any) -> Tensor:
    """[64,V] at tokens spread over the vocabulary."""
    size = model.get_input_embeddings().num_embeddings
    ids = torch.linspace(0, size - 1, PROBE_TOKENS).long()[None]
    return model.eval()(ids.to(model.device)).logits[0].float().cpu()
