"""What this package takes of other libraries that is private, or that moves from release to release.

The rule: a name of transformers, trl, peft, accelerate, bitsandbytes, deepspeed or datasets that begins with an
underscore, or that has to be imported from inside the library (`peft.tuners.tuners_utils`) and not from its top
(`peft`), stands in this file and in no other; so do private names of torch and argparse. The other files take from here
what it is called here. `tests/contracts` tells of each name, in seconds, whether the installed releases still have it
and whether it still is what it is taken for; CI asks that of the lowest, of the tested and of the newest releases.

The hooks of `transformers.Trainer` and `evaluate.Metric` that this package overrides stand where they are overridden;
the tables at the end name them.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from accelerate.utils.memory import clear_device_cache
from datasets.exceptions import DatasetGenerationError
from huggingface_hub.utils import (
    HFValidationError,
    are_progress_bars_disabled,
    enable_progress_bars,
    validate_repo_id,
)
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import SAFETENSORS_WEIGHTS_NAME, ModulesToSaveWrapper
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn
from transformers import PreTrainedConfig, Trainer, cache_utils
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer
from transformers.integrations import deepspeed as transformers_deepspeed
from transformers.trainer_pt_utils import get_length_grouped_indices
from transformers.trainer_utils import TrainOutput, speed_metrics
from transformers.utils import cached_file, find_adapter_config_file

__all__ = [
    "DROPOUT_MODULE",
    "EMPTY_LAYER",
    "METRIC_HOOKS",
    "MODEL_HOOKS",
    "SAFETENSORS_WEIGHTS_NAME",
    "TRAINER_HOOKS",
    "BaseTunerLayer",
    "Cache",
    "DatasetGenerationError",
    "DynamicLayer",
    "DynamicSlidingWindowLayer",
    "HFValidationError",
    "ModulesToSaveWrapper",
    "TrainOutput",
    "actions_of",
    "are_progress_bars_disabled",
    "attention_of",
    "broadcast_object_list",
    "clear_device_cache",
    "dequantize_module_weight",
    "enable_progress_bars",
    "find_adapter_config_file",
    "gather_object",
    "gathered_parameters",
    "get_length_grouped_indices",
    "gradients_stay",
    "is_stateful",
    "keep_columns",
    "keep_training_format",
    "losses_of",
    "memory_tracker",
    "name_or_path",
    "optional_file",
    "set_last_rates",
    "set_losses",
    "speed_metrics",
    "unsplit_blocks",
    "validate_repo_id",
    "without_deepspeed_config",
    "without_zero_hooks",
]

# ---- Models -------------------------------------------------------------------------------------------------------

# The class that every nn.Dropout variant derives from.
DROPOUT_MODULE = nn.modules.dropout._DropoutNd


# The class of a cache's layer that keeps nothing, because its model's layer reads another's (Gemma 3n) or has no state;
# transformers < 5.24 has none, and such layers are empty ones of the kind of the others.
EMPTY_LAYER: type = getattr(cache_utils, "DummyLayer", DynamicLayer)


def name_or_path(config: Any) -> str:
    """Where a model or a tokenizer was loaded from, as its configuration remembers it; "" where it does not."""
    return getattr(config, "_name_or_path", None) or ""


def attention_of(config: PreTrainedConfig) -> str:
    """The implementation of attention that a loaded model uses ("sdpa", "eager", …)."""
    return getattr(config, "_attn_implementation", None) or "sdpa"


def is_stateful(model: nn.Module) -> bool:
    """Whether a model keeps what it remembers inside itself, and gives back no cache (RecurrentGemma)."""
    return bool(getattr(model, "_is_stateful", False))


def unsplit_blocks(model: nn.Module) -> set[str]:
    """The classes of a model's blocks, which stay in one piece on a device."""
    return set(getattr(model, "_no_split_modules", None) or ())


def optional_file(name: str, file: str, **where: Any) -> str | None:
    """The local path of a file beside a model, fetched from the Hub where that is its home; None where there is none.

    Args:
        name: folder or Hub name. where: `revision`, `subfolder` and the like, for the Hub.
    """
    return cached_file(name, file, _raise_exceptions_for_missing_entries=False, **where)


def keep_training_format(model: Any) -> None:
    """Keep 4-bit weights on a CPU in the one format that has a gradient.

    On processors with AVX512-BF16 bitsandbytes repacks a layer's weights at its first evaluation. From then on no
    gradient flows through the layer, also in training mode, and saving the model, which undoes the packing, changes the
    weights (a score of 1.61 became 1.19). Rollouts and evaluations come between the training steps here.
    """
    for module in model.modules():
        if getattr(module, "support_avx512bf16_for_cpu", False):
            module.support_avx512bf16_for_cpu = False


# ---- The Trainer's and the accelerator's state ----------------------------------------------------------------------


def losses_of(trainer: Trainer) -> tuple[Tensor, float, int]:
    """What `train_loss` is made of: the losses since the last log, those logged, and the step of the last log."""
    return trainer._tr_loss, trainer._total_loss_scalar, trainer._globalstep_last_logged


def memory_tracker(trainer: Trainer) -> Any:
    """What `skip_memory_metrics=False` measures with; its methods look at the name of the method that calls them."""
    return trainer._memory_tracker


def set_losses(trainer: Trainer, pending: Tensor, total: float, logged: int) -> None:
    """Go on from what `losses_of` gave."""
    trainer._tr_loss, trainer._total_loss_scalar, trainer._globalstep_last_logged = pending, total, logged


def keep_columns(trainer: Trainer, columns: list[str]) -> None:
    """The columns of a dataset that the Trainer leaves in it."""
    trainer._signature_columns = columns  # type: ignore[assignment]


def set_last_rates(schedule: Any, rates: list[Any]) -> None:
    """What a schedule of torch says that its last learning rates were."""
    schedule._last_lr = rates


@contextmanager
def gradients_stay(accelerator: Accelerator, model: nn.Module) -> Iterator[None]:
    """Gradients stay on this process: no reduction over processes, no step of an engine that steps itself."""
    state, synced = accelerator.gradient_state, accelerator.sync_gradients
    state._set_sync_gradients(False)
    try:
        with accelerator.no_sync(model):
            yield
    finally:
        state._set_sync_gradients(synced)


# ---- The command line ------------------------------------------------------------------------------------------------


def actions_of(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """The options of a parser (trl's adds two for a switch that is on by default)."""
    return parser._actions


# ---- DeepSpeed ----------------------------------------------------------------------------------------------------


@contextmanager
def without_deepspeed_config() -> Iterator[None]:
    """Models loaded meanwhile are whole: the DeepSpeed settings that transformers remembers are out of its sight."""
    configured = transformers_deepspeed._hf_deepspeed_config_weak_ref
    transformers_deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        transformers_deepspeed._hf_deepspeed_config_weak_ref = configured


@contextmanager
def gathered_parameters(parameters: Iterable[Any], modifier_rank: int | None = None) -> Iterator[None]:
    """ZeRO-3's pieces put together on every process; with a `modifier_rank`, what that one changes is everyone's."""
    import deepspeed

    with deepspeed.zero.GatheredParameters(list(parameters), modifier_rank=modifier_rank):
        yield


@contextmanager
def without_zero_hooks(engine: nn.Module) -> Iterator[None]:
    """ZeRO-3's engine without the hooks by which each forward fetches its parameters, and then lets go of them."""
    from trl.models.utils import add_hooks, remove_hooks

    remove_hooks(engine)
    try:
        yield
    finally:
        add_hooks(engine)


# ---- What is overridden, by its library's name ----------------------------------------------------------------------

# Of `transformers.Trainer`: what each hook is given, beside the instance.
TRAINER_HOOKS: dict[str, tuple[str, ...]] = {
    "compute_loss": ("model", "inputs", "return_outputs", "num_items_in_batch"),
    "create_model_card": (
        "language",
        "license",
        "tags",
        "model_name",
        "finetuned_from",
        "tasks",
        "dataset_tags",
        "dataset",
        "dataset_args",
    ),
    "create_optimizer": ("model",),
    "create_scheduler": ("num_training_steps", "optimizer"),
    "evaluate": ("eval_dataset", "ignore_keys", "metric_key_prefix"),
    "get_batch_samples": ("epoch_iterator", "num_batches", "device"),
    "get_optimizer_cls_and_kwargs": ("args", "model"),
    "get_train_dataloader": (),
    "log": ("logs", "start_time"),
    "predict": ("test_dataset", "ignore_keys", "metric_key_prefix"),
    "prediction_step": ("model", "inputs", "prediction_loss_only", "ignore_keys"),
    "save_model": ("output_dir", "_internal_call"),
    "train": ("resume_from_checkpoint", "trial", "ignore_keys_for_eval"),
    "training_step": ("model", "inputs", "num_items_in_batch"),
    "_finalize_training": ("trial", "num_train_samples", "start_time"),
    "_get_eval_sampler": ("eval_dataset",),
    "_get_output_dir": ("trial",),
    "_get_train_sampler": ("train_dataset",),
    "_load_best_model": (),
    "_load_from_checkpoint": ("resume_from_checkpoint", "model"),
    "_load_optimizer_and_scheduler": ("checkpoint",),
    "_load_rng_state": ("checkpoint",),
    "_prepare_inputs": ("inputs",),
    "_push_from_checkpoint": ("checkpoint_folder",),
    "_save": ("output_dir", "state_dict"),
    "_save_checkpoint": ("model", "trial"),
    "_set_signature_columns_if_needed": (),
}
# Of `evaluate.Metric`.
METRIC_HOOKS = ("_info", "_compute")
# What accelerate and transformers ask a model for, and the actor-critic answers.
MODEL_HOOKS = ("_no_split_modules",)
