"""Pairs in: what the trainer of a reward model takes as datasets, and in which order it evaluates them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch.utils.data import Sampler, SequentialSampler
from transformers import EvalPrediction

from ..data.preferences import IDS, prepare_pairs
from ..models.anatomy.vocabulary import check_ids
from ..models.libraries import keep_columns


class RewardData:
    """Mixin before `transformers.Trainer`: raw pairs become token ids."""

    def prepare(self: Any, dataset: Any, name: str) -> Any:
        """Tokenised pairs of a raw dataset, or of each in a dict; what is prepared already passes.

        Args:
            dataset: of pairs; for an evaluation also a dict of such by name, None, or one of the names in the trainer's
                dict. name: what to call it in messages ("train", "eval", "test", …).

        Raises:
            TypeError, ValueError: as `prepare_pairs`; no dataset to train on; a name that no dataset has.
        """
        if name == "train" and dataset is None:
            raise ValueError("`train_dataset` is None: there is nothing to train on; pass pairs")
        if isinstance(dataset, Mapping) and name != "train":
            return {key: self.prepare(part, f"{name} {key}") for key, part in dataset.items()}
        if dataset is None or set(IDS) <= set(getattr(dataset, "column_names", None) or []):
            return dataset
        if isinstance(dataset, str) and name != "train":
            return self._named(dataset)
        pairs = prepare_pairs(dataset, self.processing_class, self.max_length, name)
        self.dropped[name] = pairs.dropped
        for column in IDS:
            check_ids(pairs.dataset[column], self.processing_class, self.vocabulary, "reward model", f"{name} dataset")
        return pairs.dataset

    def evaluation_metric_names(self: Any) -> list[str]:
        """What an evaluation will give, without the prefix."""
        return list(self.pair_metrics(EvalPrediction(np.zeros((2, 2)), np.zeros(2))))

    def _named(self: Any, name: str) -> str:
        own = getattr(self, "eval_dataset", None)
        if not isinstance(own, Mapping) or name not in own:
            names = sorted(own) if isinstance(own, Mapping) else "no datasets by name"
            raise ValueError(f"there is no evaluation dataset {name!r}: the trainer's `eval_dataset` has {names}")
        return name

    def _set_signature_columns_if_needed(self: Any) -> None:
        keep_columns(self, [*IDS, "length", "margin"])  # what the collator and the sampler read

    def _get_eval_sampler(self: Any, eval_dataset: Any) -> Sampler | None:
        return SequentialSampler(eval_dataset)  # grouped by length, predictions would not come in the order of the data
