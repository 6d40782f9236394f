"""An adapter merged into its base: one plain model, for those who serve it without peft or bitsandbytes."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, load_peft_weights
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from .anatomy.forward import forward_flags, return_records
from .anatomy.names import as_name, is_adapter, loading_options
from .anatomy.sizes import embeddings_of
from .libraries import keep_training_format
from .quantization import is_quantized, saved_quantization
from .quiet import quietly
from .savable import repair_generation_config

PROBE_TOKENS = 64


@quietly()
def merge(adapter: Any, output_dir: str | Path, dtype: torch.dtype = torch.float32) -> float:
    """Write a policy adapter and its base as one plain model; returns how far its logits are from the adapter's.

    A 4-bit or 8-bit base is dequantised first and merged then: the policy was trained on the weights that those bits
    stand for, and merging into the bits would round it once more (differences of 0.5 to 2 in the logits). The sum is
    made in float32. The model loads with stock `AutoModelForCausalLM`, and has the adapter's tokenizer beside it. The
    folder appears when it is complete.

    Args:
        adapter: folder or Hub name of a policy adapter that a trainer saved. output_dir: new or empty.
        dtype: what the weights are written in; in bfloat16 the folder is half as large and the logits differ by
            bfloat16's rounding.

    Returns:
        the largest absolute difference between the logits of adapter and merged model, over every token of the
        vocabulary at 64 positions.

    Raises:
        ValueError: no adapter, a reward model's, or one that does not say what base it stands on.
        FileExistsError: the output folder holds something already.
        OSError: the base it stands on is not there.
    """
    name, target = str(as_name(adapter)), Path(output_dir)
    check_merge_target(target)
    _check_policy_adapter(name)
    before = _logits(PeftModel.from_pretrained(_base(name), name))
    merged: Any = PeftModel.from_pretrained(_untied(_dequantised(_base(name)), name), name).merge_and_unload()
    target.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target, on the same file system: then the last step is a rename, and nobody finds half a model.
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as staging:
        staged = Path(staging, "model")
        merged.to(dtype).save_pretrained(staged)
        _tokenizer(name).save_pretrained(staged)
        # Of what was written, not of what was meant to be: a weight lost in saving would show.
        after = _logits(AutoModelForCausalLM.from_pretrained(staged, dtype=torch.float32, use_safetensors=True))
        staged.rename(target)  # on to an empty folder it is allowed
    return float((after - before).abs().max())


def check_merge_target(target: Path) -> None:
    """Refuse a folder in which something is already, before there is anything to lose.

    Raises:
        FileExistsError: the path is a file, or a folder that is not empty.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(
            f"{target} holds something already; remove it, or merge to another folder by `hfrlhf.merge`"
        )


def _check_policy_adapter(name: str) -> None:
    if not is_adapter(name, {}):
        raise ValueError(f"{name} holds no adapter (adapter_config.json); pass what a trainer with `peft_config` saved")
    config: Any = PeftConfig.from_pretrained(name)
    if config.task_type == "SEQ_CLS":
        raise ValueError(f"{name} is a reward model's adapter; a policy's is merged into a language model")
    if not config.base_model_name_or_path:
        raise ValueError(
            f"the adapter {name} does not say what base it stands on: its policy was a model in memory without a name; "
            "write the base's folder or Hub name as `base_model_name_or_path` into its adapter_config.json"
        )


def _tokenizer(name: str) -> Any:
    """The one saved with the adapter, else the base's."""
    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError):
        config: Any = PeftConfig.from_pretrained(name)
        return AutoTokenizer.from_pretrained(config.base_model_name_or_path, trust_remote_code=False)


def _base(name: str) -> Any:
    """The adapter's base as it was trained on: in float32, or quantised in the same way."""
    config: Any = PeftConfig.from_pretrained(name)
    how: dict[str, Any] = {"dtype": torch.float32}
    if (saved := saved_quantization(name)) is not None:
        how["quantization_config"] = saved
    place = config.base_model_name_or_path
    base = AutoModelForCausalLM.from_pretrained(place, **loading_options(place, how))
    keep_training_format(base)
    repair_generation_config(base)
    return_records(base)
    return base


def _dequantised(base: Any) -> Any:
    """In float32, and in the machine's memory: a GPU that holds the base in 4 bits need not hold it in 32."""
    return base.dequantize().cpu().float() if is_quantized(base) else base


def _untied(base: Any, name: str) -> Any:
    """The base with a vocabulary head of its own where the adapter changes head or embedding, and they were one."""
    changed = {part for key in load_peft_weights(name, device="cpu") for part in key.split(".")}
    head, embedding = base.get_output_embeddings(), base.get_input_embeddings()
    names = {n.rpartition(".")[2] for n, module in base.named_modules() if module is head or module is embedding}
    # With one weight for both, what the adapter adds to the one would be added to the other too.
    if head.weight is embedding.weight and names & changed:
        head.weight = torch.nn.Parameter(head.weight.detach().clone())
        base.config.tie_word_embeddings = False
    return base


@torch.no_grad()
def _logits(model: Any) -> Tensor:
    """[64,V] at tokens spread over the vocabulary."""
    size = embeddings_of(model)
    ids = torch.linspace(0, size - 1, PROBE_TOKENS).long()[None]
    logits: Tensor = model.eval()(ids.to(model.device), **forward_flags(model, use_cache=False)).logits[0]
    return logits.float().cpu()
