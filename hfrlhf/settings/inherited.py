"""Every field that the settings inherit from `TrainingArguments`: followed, or refused with what to do instead.

A setting that is accepted and does nothing would be worse than an error. A test holds these tables against the
installed `TrainingArguments`; a field that a later release brings is none of them, and is warned of where it is set.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, NamedTuple

from transformers import TrainingArguments

from ..reporting.screen import RunWarning
from .declarations import default_of


class Refused(NamedTuple):
    """The values of a field that are accepted, and what to do instead of setting another."""

    accepted: tuple[Any, ...]
    advice: str


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Read by the stock Trainer's loop, by accelerate, by trackers or by the Hub's client, which work here as they do there.
FOLLOWED = _names(
    """
    output_dir per_device_train_batch_size per_device_eval_batch_size num_train_epochs max_steps learning_rate
    lr_scheduler_type lr_scheduler_kwargs warmup_steps optim optim_args weight_decay adam_beta1 adam_beta2
    adam_epsilon gradient_accumulation_steps max_grad_norm bf16 fp16 tf32 activation_checkpointing
    activation_checkpointing_kwargs gradient_checkpointing gradient_checkpointing_kwargs torch_empty_cache_steps
    logging_strategy logging_steps logging_first_step log_on_each_node include_num_input_tokens_seen log_level
    log_level_replica disable_tqdm report_to run_name project trackio_space_id trackio_bucket_id
    trackio_static_space_id eval_strategy eval_steps eval_delay eval_on_start save_only_model save_strategy
    save_steps save_on_each_node save_total_limit push_to_hub hub_token hub_private_repo hub_model_id
    hub_strategy hub_always_push hub_revision load_best_model_at_end metric_for_best_model greater_is_better
    restore_callback_states_from_checkpoint full_determinism seed data_seed use_cpu accelerator_config
    dataloader_pin_memory ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph
    ddp_backend ddp_timeout fsdp fsdp_config deepspeed debug skip_memory_metrics do_train do_eval do_predict
    resume_from_checkpoint local_rank
    """
)

_CHECKPOINTS = "a run saves and stops at SIGTERM as it is"
_LENGTHS = "the lengths are the trainer's own"
# By no trainer of this package.
_BY_NONE = {
    "average_tokens_across_devices": Refused((True,), "losses are divided by what all processes have; leave it on"),
    "batch_eval_metrics": Refused((False,), "metrics need all of an evaluation at once; leave it off"),
    "prediction_loss_only": Refused((False,), "the metrics need the scores; leave it off"),
    "eval_do_concat_batches": Refused((True,), "metrics need all of an evaluation in one piece; leave it on"),
    "eval_use_gather_object": Refused((False,), "what is gathered are tensors; leave it off"),
    "include_for_metrics": Refused(([], None), "metrics are made of scores alone; leave it empty"),
    "enable_jit_checkpoint": Refused((False,), f"it would save in the middle of a step; leave it off: {_CHECKPOINTS}"),
    "ignore_data_skip": Refused((False,), "a resumed run goes on exactly where it was; leave it off"),
    "parallelism_config": Refused((None,), "a loss is made of whole sequences; use ZeRO or FSDP for large models"),
    "label_names": Refused((None,), "there are no labels; leave it out"),
    "length_column_name": Refused(("length",), f"{_LENGTHS}; leave it out"),
    "use_cache": Refused((False,), "training uses no cache and rollouts always do; leave it off"),
}

POLICY_REFUSED: Mapping[str, Refused] = _BY_NONE | {
    "auto_find_batch_size": Refused(
        (False,), "the rollout is what it is; less memory is needed with a lower `max_tokens_per_micro_batch`"
    ),
    "label_smoothing_factor": Refused((0.0,), "a policy learns from scores, and has no labels to smooth"),
    "bf16_full_eval": Refused((False,), "evaluation computes as training does: set `bf16`"),
    "fp16_full_eval": Refused((False,), "evaluation computes as training does: set `bf16` or `fp16`"),
    **dict.fromkeys(
        ("torch_compile", "torch_compile_backend", "torch_compile_mode"),
        Refused((False, None), "every chunk of a rollout has a shape of its own, to be compiled anew; leave it out"),
    ),
    **dict.fromkeys(
        ("use_liger_kernel", "liger_kernel_config"),
        Refused((False, None), "the vocabulary head is computed in chunks as it is; patch the policy itself"),
    ),
    "neftune_noise_alpha": Refused(
        (None,),
        "noise on the embeddings would be in the log-probs of training and not in those of sampling, so that no ratio "
        "would be 1; leave it out (supervised fine-tuning before is the place for it)",
    ),
    "logging_nan_inf_filter": Refused((False,), "a loss that is not finite should be seen; leave it off"),
    "eval_accumulation_steps": Refused((None,), "an evaluation leaves the device part by part as it is; leave it out"),
    "dataloader_drop_last": Refused((False,), "prompts come in an endless stream, and none is dropped; leave it off"),
    **{
        name: Refused((value,), "prompts are read and tokenised once, and no worker loads them; leave it out")
        for name, value in (
            ("dataloader_num_workers", 0),
            ("dataloader_persistent_workers", False),
            ("dataloader_prefetch_factor", None),
            ("dataloader_multiprocessing_context", None),
            ("dataloader_in_order", True),
        )
    },
    "remove_unused_columns": Refused((False,), "must stay False: reward functions see the dataset's columns"),
    "train_sampling_strategy": Refused(
        ("random",), "prompts are shuffled by `seed` (or `data_seed`), and micro-batches sorted by length as it is"
    ),
    "optim_target_modules": Refused((None,), "optimisers with target modules make their own groups; use LoRA"),
}

# What the stock Trainer's loaders and its evaluation, which a reward model keeps, read beside `FOLLOWED`.
FOLLOWED_BY_REWARD = FOLLOWED | _names(
    """
    bf16_full_eval fp16_full_eval torch_compile torch_compile_backend torch_compile_mode use_liger_kernel
    liger_kernel_config neftune_noise_alpha logging_nan_inf_filter eval_accumulation_steps dataloader_drop_last
    dataloader_num_workers dataloader_persistent_workers dataloader_prefetch_factor
    dataloader_multiprocessing_context dataloader_in_order remove_unused_columns optim_target_modules
    """
)

REWARD_REFUSED: Mapping[str, Refused] = _BY_NONE | {
    "auto_find_batch_size": Refused(
        (False,),
        "a run's batches are part of what a resume goes on with; set a smaller `per_device_train_batch_size` "
        "and more `gradient_accumulation_steps`: the gradient is the same",
    ),
    "label_smoothing_factor": Refused(
        (0.0,), "it smooths class labels; the smoothing of preferences is `label_smoothing`"
    ),
    "train_sampling_strategy": Refused(
        ("random", "group_by_length", "sequential"), "use 'random', 'group_by_length' or 'sequential'"
    ),
}

# What an AcceleratorConfig may say beside its defaults.
ACCELERATOR_FOLLOWED = {"gradient_accumulation_kwargs", "use_configured_state", "non_blocking"}


def check_inherited(
    args: TrainingArguments, followed: frozenset[str], refused: Mapping[str, Refused], owner: str
) -> None:
    """Refuse inherited settings that the trainer does not follow, before anything is made of them.

    Args:
        args: settings. followed, refused: the trainer's tables. owner: its name.

    Raises:
        ValueError: the message says what was set, and what to do instead.
    """
    for field in fields(TrainingArguments):
        name, value = field.name, getattr(args, field.name)
        if name in refused:
            value = getattr(value, "value", value)
            if not any(value == accepted for accepted in refused[name].accepted):
                raise ValueError(f"`{name}={value!r}` is not used by {owner}: {refused[name].advice}")
        elif name not in followed and value != default_of(args, name):
            warnings.warn(
                f"`{name}={value!r}`: this release of hfrlhf does not know the field; {owner} may not follow it",
                RunWarning,
                stacklevel=5,
            )


def check_accelerator_config(args: TrainingArguments, owner: str) -> None:
    """Refuse what accelerate would do to batches that the trainer makes, and counts, itself.

    Args:
        args: settings whose `accelerator_config` is an object by now.

    Raises:
        ValueError: another value than accelerate's default where it would not be followed.
    """
    config: Any = args.accelerator_config
    given, default = config.to_dict(), type(config)().to_dict()
    for name, value in given.items():
        if name not in ACCELERATOR_FOLLOWED and value != default.get(name):
            raise ValueError(
                f"`accelerator_config={{{name!r}: {value!r}}}` is not used by {owner}: batches are made and counted by "
                "the trainer itself; leave it out"
            )
    if "num_steps" in (given.get("gradient_accumulation_kwargs") or {}):
        raise ValueError("`num_steps` in `accelerator_config`: set `gradient_accumulation_steps` instead")


# Schedules that follow a metric of the evaluations.
_BY_METRIC = ("reduce_lr_on_plateau", "greedy")


def best_metric(
    args: TrainingArguments, metric: str, lower_is_better: tuple[str, ...]
) -> tuple[str | None, bool | None]:
    """What `load_best_model_at_end` and its like look at where nothing is said: transformers would take 'loss'.

    Args:
        args: settings, before transformers has settled them. metric: the default. lower_is_better: how metrics end of
            which less is better; transformers knows that of losses alone.

    Returns:
        `metric_for_best_model` and `greater_is_better`.
    """
    schedule = getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)
    saves_best = getattr(args.save_strategy, "value", args.save_strategy) == "best"
    best = args.metric_for_best_model
    if best is None and (args.load_best_model_at_end or saves_best or schedule in _BY_METRIC):
        best = metric
    if best is not None and args.greater_is_better is None:
        return best, not best.endswith(("loss", *lower_is_better))
    return best, args.greater_is_better
