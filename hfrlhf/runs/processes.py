"""Processes of one run look at each other before it starts: the same sharding as asked for, settings and data.

accelerate and the Trainer accept data parallelism where sharding was asked for, and processes that train with different
settings or on different data, in silence.
"""

from __future__ import annotations

import atexit
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import TypeAlias

import torch
import torch.distributed as dist
from accelerate import Accelerator
from datasets import Dataset
from transformers import TrainingArguments

from ..models.libraries import gather_object
from ..models.sharding import STRATEGIES

# A dataset, a dict of datasets, or rows of anything that says by its repr what is in it.
Data: TypeAlias = Dataset | Iterable[object]

# Settings that may differ between processes: where one writes and how much it says.
OF_ONE_PROCESS = {
    "output_dir",
    "local_rank",
    "run_name",
    "report_to",
    "disable_tqdm",
    "log_level",
    "log_level_replica",
    "hub_token",
    "project",
    "trackio_space_id",
    "trackio_bucket_id",
    "trackio_static_space_id",
}


def check_strategy(accelerator: Accelerator, args: TrainingArguments) -> None:
    """Refuse to train without the sharding that was asked for.

    Raises:
        ValueError: FSDP or DeepSpeed was asked for and something else runs.
    """
    running = accelerator.distributed_type.value
    instead = {"NO": "a single process without it", "MULTI_CPU": "DDP on CPUs", "MULTI_GPU": "DDP"}
    for name, strategy in STRATEGIES.items():
        if strategy.asked_for(args) and running != name:
            raise ValueError(f"{name} was asked for, but {instead.get(running, running)} would run: {strategy.remedy}")


def check_same_everywhere(args: TrainingArguments, datasets: Mapping[str, Data | None]) -> None:
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


def sums_over_processes(accelerator: Accelerator, numbers: Sequence[float]) -> list[float]:
    """Each number summed over all processes, which all take part; in float32, since some devices have no float64."""
    here = torch.tensor(numbers, dtype=torch.float32, device=accelerator.device)
    return [float(number) for number in accelerator.reduce(here, "sum").tolist()]


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


def fingerprint(data: Data) -> str:
    """Rows and sha256 of a dataset (as stored: nothing is decoded), of a dict of datasets, or of anything with a repr.

    It does not depend on the files or the chunks that hold the rows. `Dataset._fingerprint` does: it names how the rows
    came about (paths, times of change, transformations), so that of two processes with the same rows it would say that
    they differ, and of a resumed run that its data has changed.
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


def leave_cleanly(accelerator: Accelerator) -> None:
    """At the end of this process, take leave of the others: torch does not, and gloo's threads then end some by abort.

    A run on CPUs that has done all its work would now and then end with SIGABRT ("terminate called without an active
    exception"), and with it the launcher's exit code. NCCL's groups are left to torch: to destroy one may wait for a
    process that is gone.
    """
    if accelerator.num_processes > 1 and dist.is_initialized() and dist.get_backend() == "gloo":
        atexit.unregister(_leave)  # once, however many trainers there are
        atexit.register(_leave)


def _leave() -> None:
    if dist.is_initialized():
        with suppress(RuntimeError, ValueError):  # the others may have gone, or the script has done it
            dist.destroy_process_group()
