"""What a launcher was asked for, and what runs: where they differ, a run stops at its start instead of going wrong.

accelerate, torch and the Trainer accept each of these in silence: one process where several were asked for, several
that each think they are alone (and write the same files), data parallelism where sharding was asked for, and processes
that train with different settings or on different data.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import psutil
from datasets import Dataset
from datasets import disable_progress_bars as disable_bars_of_datasets
from transformers.utils import logging

from ..models.libraries import gather_object

# How many processes torchrun, accelerate and mpirun say they started.
COUNTS = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE")
# A strategy of accelerate, the variable its launcher sets, and the field of TrainingArguments that asks for it too.
STRATEGIES = {"FSDP": ("ACCELERATE_USE_FSDP", "fsdp"), "DEEPSPEED": ("ACCELERATE_USE_DEEPSPEED", "deepspeed")}
REMEDIES = {
    "FSDP": "FSDP needs a GPU for every process; on CPUs launch with `ACCELERATE_USE_CPU=true torchrun "
    "--nproc_per_node N SCRIPT` (DDP), or with a copy of recipes/accelerate/zero2.yaml that has `use_cpu: true`",
    "DEEPSPEED": "unset ACCELERATE_USE_CPU and give the launcher no `--cpu` (on CPUs pass `use_cpu=True` to the "
    "training arguments instead), or launch without DeepSpeed",
}
# Settings that may differ between processes: where one writes and how much it says.
OF_ONE_PROCESS = {
    *("output_dir", "local_rank", "run_name", "report_to", "disable_tqdm", "log_level", "log_level_replica"),
    *("hub_token", "project", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"),
}


def check_launch(args: Any) -> None:
    """Refuse a launch that did not give what it was asked for, before any model is loaded.

    Args:
        args: training arguments that have set up torch.distributed.

    Raises:
        ValueError: FSDP without GPUs, or one process where a launcher started, or was asked for, several; the message
            says how to launch instead.
    """
    if args.device.type == "cpu" and _asked_for("FSDP", args):
        # A model that is loaded for FSDP has no weights on most processes; training it otherwise would not go well.
        raise ValueError(f"FSDP was asked for, but DDP on CPUs would run: {REMEDIES['FSDP']}")
    if args.world_size == 1:
        _check_alone()
        check_data_parallel(args.n_gpu)
    if args.process_index > 0:
        stay_quiet()


def stay_quiet() -> None:
    """One process speaks for all: the others show no bars and no warnings, only errors."""
    disable_bars_of_datasets()
    logging.disable_progress_bar()
    warnings.simplefilter("ignore", UserWarning)
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
    the first: an address that its own environment did not have.
    """
    own = os.environ
    if "ACCELERATE_MIXED_PRECISION" not in own or any(name in own for name in ("LOCAL_RANK", *COUNTS)):
        return False
    return "MASTER_ADDR" in own and own["MASTER_ADDR"] != _environment_of_parent().get("MASTER_ADDR")


def _environment_of_parent() -> dict[str, str]:
    try:
        return psutil.Process(os.getppid()).environ()
    except (psutil.Error, OSError):  # another user's process, or one that has ended
        return {}


def _asked_for(strategy: str, args: Any) -> bool:
    variable, field = STRATEGIES[strategy]
    return os.environ.get(variable, "").lower() == "true" or bool(getattr(args, field, None))


def check_strategy(accelerator: Any, args: Any) -> None:
    """Refuse to train without the sharding that was asked for.

    Raises:
        ValueError: FSDP or DeepSpeed was asked for and something else runs.
    """
    running = accelerator.distributed_type.value
    for name in STRATEGIES:
        if _asked_for(name, args) and running != name:
            what = {"NO": "a single process without it", "MULTI_CPU": "DDP on CPUs", "MULTI_GPU": "DDP"}
            raise ValueError(f"{name} was asked for, but {what.get(running, running)} would run: {REMEDIES[name]}")


def check_same_everywhere(args: Any, datasets: Mapping[str, Any]) -> None:
    """Refuse processes with different settings or data. All of them meet here, and all of them raise.

    Args:
        args: training arguments. datasets: by name, what `fingerprint` takes; None is left out.

    Raises:
        ValueError: the message names each setting or dataset that differs, and what the processes have.
    """
    if args.world_size == 1:
        return
    settings = {name: repr(value) for name, value in args.to_dict().items() if name not in OF_ONE_PROCESS}
    data = {name: fingerprint(dataset) for name, dataset in datasets.items() if dataset is not None}
    everyone = gather_object([(settings, data)])
    wrong_settings = _differences([mine for mine, _ in everyone])
    if wrong_settings:
        raise ValueError(
            f"the processes have different settings: {'; '.join(wrong_settings)}. Give all the same configuration"
        )
    wrong_data = _differences([mine for _, mine in everyone])
    if wrong_data:
        raise ValueError(
            f"the processes have different data: {'; '.join(wrong_data)}. Load the same rows in the same order on each "
            "(same files, a fixed seed where you shuffle); the trainer shares them out itself"
        )


def _differences(everyone: list[dict[str, str]]) -> list[str]:
    """A text for each name under which not all have the same: what they have, and which processes have it."""
    texts = []
    for name in sorted({name for mine in everyone for name in mine}):
        who: dict[str, list[str]] = {}
        for rank, mine in enumerate(everyone):
            who.setdefault(mine.get(name, "nothing"), []).append(str(rank))
        if len(who) > 1:
            said = [f"{value[:80]} on process {' '.join(ranks)}" for value, ranks in who.items()]
            texts.append(f"{name}: {', '.join(said)}")
    return texts


def fingerprint(data: Dataset | Iterable[Any]) -> str:
    """Rows and sha256 of a dataset (as stored: nothing is decoded), of a dict of datasets, or of anything with a repr.

    It does not depend on the files or the chunks that hold the rows.
    """
    if isinstance(data, Mapping):
        return "; ".join(f"{name}: {fingerprint(part)}" for name, part in data.items())
    digest, rows = hashlib.sha256(), 0
    if isinstance(data, Dataset):
        for table in data.with_format("arrow").iter(1000):
            rows += table.num_rows
            digest.update(repr(table.to_pylist()).encode("utf-8", "backslashreplace"))
    else:
        for row in data:
            rows += 1
            digest.update(repr(row).encode("utf-8", "backslashreplace"))
    return f"{rows:,} rows with sha256 {digest.hexdigest()[:12]}"
