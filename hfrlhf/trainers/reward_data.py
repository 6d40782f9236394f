"""Pairs in: what the trainer of a reward model takes as datasets, and in which order it reads them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import Sampler

from ..data.ordering import EpochOrder, grouped_by_length, rows_left, shuffled
from ..data.preferences import IDS, batch_size, first_pairs, prepare_pairs
from ..models.anatomy.vocabulary import check_ids
from ..models.libraries import gather_object
from ..runs.guard import Batch
from ..settings.reward import RewardConfig


class PairReader:
    """Makes token ids of raw pairs.

    Args:
        tokenizer: of the reward model. vocabulary: how many tokens the model knows. max_length: tokens that a prompt
            and a response may have together; pairs with more are left out.
    """

    def __init__(self, tokenizer: Any, vocabulary: int, max_length: int) -> None:
        self.tokenizer, self.vocabulary, self.max_length = tokenizer, vocabulary, max_length
        self.dropped: dict[str, int] = {}  # pairs left out as too long, by dataset

    def read(self, dataset: Any, name: str, known: Any = None) -> Any:
        """Tokenised pairs of a raw dataset, or of each in a dict; what is prepared already passes.

        Args:
            dataset: of pairs; for an evaluation also a dict of such by name, None, or one of the names in `known`.
            name: what to call it in messages ("train", "eval", "test", …). known: the trainer's evaluation datasets.

        Raises:
            TypeError, ValueError: as `prepare_pairs`; no dataset to train on; a name that no dataset has.
        """
        if name == "train" and dataset is None:
            raise ValueError("`train_dataset` is None: there is nothing to train on; pass pairs")
        if isinstance(dataset, Mapping) and name != "train":
            return {key: self.read(part, f"{name} {key}") for key, part in dataset.items()}
        if dataset is None or set(IDS) <= set(getattr(dataset, "column_names", None) or []):
            return dataset
        if isinstance(dataset, str) and name != "train":
            return _named(dataset, known)
        pairs = prepare_pairs(dataset, self.tokenizer, self.max_length, name)
        self.dropped[name] = pairs.dropped
        for column in IDS:
            check_ids(pairs.dataset[column], self.tokenizer, self.vocabulary, "reward model", f"{name} dataset")
        return pairs.dataset


def _named(name: str, known: Any) -> str:
    if not isinstance(known, Mapping) or name not in known:
        names = sorted(known) if isinstance(known, Mapping) else "no datasets by name"
        raise ValueError(f"there is no evaluation dataset {name!r}: the trainer's `eval_dataset` has {names}")
    return name


def training_order(args: RewardConfig, pairs: Any, epoch: Callable[[], int]) -> Sampler[int] | None:
    """An order that is a function of (seed, epoch): a resumed run reads the pairs that it would have read.

    Args:
        pairs: prepared. epoch: tells the number of the epoch that begins.

    Returns:
        None where the order does not depend on chance.
    """
    seed = args.seed if args.data_seed is None else args.data_seed
    orders: dict[str, Callable[[int], list[int]]] = {"random": lambda epoch: shuffled(len(pairs), (seed, epoch))}
    if "length" in pairs.column_names:
        lengths = pairs["length"][:]
        together = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        orders["group_by_length"] = lambda epoch: grouped_by_length(lengths, together, (seed, epoch))
    order = orders.get(args.train_sampling_strategy)
    return None if order is None else EpochOrder(len(pairs), order, epoch)


def spread(pairs: Any, count: int) -> list[list[int]]:
    """The chosen responses of at most so many pairs, evenly spread over all of them, the shortest first."""
    rows = torch.linspace(0, len(pairs) - 1, min(len(pairs), count)).long().tolist()
    return sorted(pairs.select(rows)["chosen_ids"][:], key=len)


def without_repeated(batch: dict[str, Tensor], pairs: int, args: RewardConfig) -> dict[str, Tensor]:
    """The last micro-batch of an epoch without the pairs that fill it up.

    Where the pairs do not divide by the processes' micro-batches, accelerate takes some from the epoch's beginning. One
    process would not read them, so they are cut off here.

    Args:
        batch: of this process. pairs: of the epoch.
    """
    return first_pairs(batch, rows_left(pairs, batch_size(batch), args.world_size, args.process_index))


def inspected(batches: Sequence[Mapping[str, Tensor]], tokenizer: Any) -> Batch:
    """The micro-batches of a step of all processes, and their texts; each process comes here with its own."""
    everyone = gather_object([[{k: v.cpu() for k, v in batch.items()} for batch in batches]])
    named = {f"process {p}, batch {i}": batch for p, mine in enumerate(everyone) for i, batch in enumerate(mine)}
    tensors = {f"{place}/{name}": tensor for place, batch in named.items() for name, tensor in batch.items()}
    texts = {
        place: tokenizer.batch_decode(batch["input_ids"], skip_special_tokens=True) for place, batch in named.items()
    }
    return tensors, {"texts": texts}


class PairTally:
    """How the pairs were judged since the last log: accuracy and margin, over all processes."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []  # [3] of each micro-batch: pairs, right ones (ties ½), sum of margins

    def add(self, chosen: Tensor, rejected: Tensor) -> None:
        """Scores of a micro-batch."""
        right = (chosen > rejected).double() + (chosen == rejected).double() / 2
        self.seen.append(torch.stack([torch.ones_like(right), right, (chosen - rejected).double()], -1).sum(0))

    def drain(self, accelerator: Accelerator) -> dict[str, float]:
        """The means, after which nothing is left; all processes come here."""
        if not self.seen:
            return {}
        pairs, right, margins = accelerator.reduce(torch.stack(self.seen).sum(0), "sum").tolist()
        self.seen = []
        return {"accuracy": right / pairs, "margin": margins / pairs}

    def state(self) -> list[list[float]]:
        """What JSON can hold of it."""
        return [seen.tolist() for seen in self.seen]

    def restore(self, state: list[list[float]], device: torch.device) -> None:
        """Go on from what `state` gave."""
        self.seen = [torch.tensor(row, dtype=torch.float64, device=device) for row in state]
