"""What a launcher was asked for, and what runs: where they differ, a run stops at its start instead of going wrong.

accelerate, torch and the Trainer accept each of these in silence: one process where several were asked for, several
that each think they are alone (and write the same files), and FSDP where there is no GPU. What needs the processes to
look at each other is in `runs/processes.py`.
"""

from __future__ import annotations

import os
import warnings

import psutil
from datasets import disable_progress_bars as disable_bars_of_datasets
from transformers import TrainingArguments
from transformers.utils import logging

from ..models.sharding import STRATEGIES
from ..reporting.screen import RunWarning

# How many processes torchrun, accelerate and mpirun say they started.
COUNTS = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE")


def check_launch(args: TrainingArguments) -> None:
    """Refuse a launch that did not give what it was asked for, before any model is loaded.

    Args:
        args: training arguments that have set up torch.distributed.

    Raises:
        ValueError: FSDP without GPUs, or one process where a launcher started, or was asked for, several; the message
            says how to launch instead.
    """
    for strategy in STRATEGIES.values():
        if strategy.needs_gpus and args.device.type == "cpu" and strategy.asked_for(args):
            # A model that is loaded for FSDP has no weights on most processes; training it otherwise would not go well.
            raise ValueError(f"{strategy.kind} was asked for, but DDP on CPUs would run: {strategy.remedy}")
    if args.world_size == 1:
        _check_alone()
        check_data_parallel(args.n_gpu)
    if args.process_index > 0:
        stay_quiet()


def stay_quiet() -> None:
    """One process speaks for all: the others show no bars, and none of our warnings, which would say the same again.

    What other libraries, and the user's own code, warn of is shown by each: it may be true of one process alone.
    """
    disable_bars_of_datasets()
    logging.disable_progress_bar()
    warnings.simplefilter("ignore", RunWarning)
    logging.get_logger("hfrlhf").setLevel(logging.ERROR)


def check_data_parallel(gpus: int) -> None:
    """Refuse several GPUs in one process, among which torch's DataParallel would split each batch.

    A rollout is no batch of tensors that could be split so; and a process for each GPU is the faster way anyway.

    Args:
        gpus: how many this process would train on.

    Raises:
        ValueError: more than one.
    """
    if gpus > 1:
        raise ValueError(
            f"one process sees {gpus} GPUs, and would split every batch among them (DataParallel), which is not "
            f"supported; launch a process for each, `torchrun --nproc_per_node {gpus} SCRIPT`, or let it see one: "
            "CUDA_VISIBLE_DEVICES=0"
        )


def _check_alone() -> None:
    started = next((int(os.environ[name]) for name in COUNTS if os.environ.get(name, "").isdigit()), 1)
    if started > 1:
        raise ValueError(
            f"{started} processes were started, but each thinks it is alone: all would train the same run and write "
            "the same files. On a machine without GPUs set ACCELERATE_USE_CPU=true (with DeepSpeed: pass "
            "`use_cpu=True` to the training arguments); with GPUs, check that torch sees them"
        )
    if _launcher_wanted_several():
        raise ValueError(
            "`accelerate launch` was asked for several processes and started one: with `--cpu`, `use_cpu: true` or no "
            "GPU it starts no others. Launch with `ACCELERATE_USE_CPU=true torchrun --nproc_per_node N SCRIPT`, or ask "
            "for one process (`--num_processes 1`)"
        )


def _launcher_wanted_several() -> bool:
    """Whether `accelerate launch` meant this to be one process of several.

    The launcher for one process tells its child no number, but where more than one was asked for it adds the address of
    the first: an address that its own environment did not have. No variable says so by itself (clusters set the same
    one for every process), so the launcher's own environment is read, that of the parent.
    """
    own = os.environ
    if "ACCELERATE_MIXED_PRECISION" not in own or any(name in own for name in ("LOCAL_RANK", *COUNTS)):
        return False
    return "MASTER_ADDR" in own and own["MASTER_ADDR"] != _environment_of_parent().get("MASTER_ADDR")


def _environment_of_parent() -> dict[str, str]:
    try:
        return dict(psutil.Process(os.getppid()).environ())
    except (psutil.Error, OSError):  # another user's process, or one that has ended
        return {}
