"""What a reward model's training leaves behind and goes on from."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from torch.utils.data import Sampler
from transformers import TrainerState
from transformers.utils import logging

from ..data.ordering import EpochOrder, grouped_by_length, rows_left, shuffled
from ..data.preferences import batch_size, counted_pairs, first_pairs
from ..models.adapters import POLICY_ADAPTER
from ..models.libraries import TrainOutput
from ..models.quantization import quantization_of
from ..models.saved_weights import load_adapter_weights, load_weights
from ..reporting.screen import say
from ..reporting.start_report import reward_report
from ..runs.checkpoints import adapter_settings, check_output_dir, saved_state
from ..runs.lock import alone
from ..runs.processes import fingerprint
from ..runs.safe_checkpoints import SafeCheckpoints
from ..runs.whole_run_loss import WholeRunLoss
from ..settings.declarations import resumed_settings

logger = logging.get_logger(__name__)

STATE_FILE = "reward_state.json"


class RewardState(WholeRunLoss, SafeCheckpoints):
    """Mixin before `transformers.Trainer`: how the training of a reward model starts, goes on and is saved."""

    STATE_FILE = STATE_FILE
    trainings: int = 0  # calls of `train` that trained

    @alone
    def train(self: Any, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train, or go on exactly where a checkpoint ends.

        Called again, it trains on from the weights as they are: a run of its own, with its own schedule.

        Raises:
            FileExistsError: the output folder holds another run and no resume was asked for.
            FolderInUse: another process trains in it.
            ValueError: no whole checkpoint to resume from, or one of another batch arithmetic.
        """
        checkpoint = self.checkpoint_to_resume(resume_from_checkpoint)
        if checkpoint is None:
            check_output_dir(str(self.args.output_dir), self.trainings > 0)
        if checkpoint and saved_state(checkpoint)["global_step"] >= self.planned_steps():
            return self.finished(checkpoint)
        report = reward_report(self)
        if self.is_world_process_zero():
            say(report)
        self.trainings += 1
        self._seen.clear()
        return super().train(checkpoint, *args, **kwargs)  # type: ignore[misc]

    def planned_steps(self: Any) -> int:
        """Optimiser steps of the whole run."""
        if self.args.max_steps > 0:
            return int(self.args.max_steps)
        steps = math.ceil(len(self.get_train_dataloader()) / self.args.gradient_accumulation_steps)
        return math.ceil(self.args.num_train_epochs * steps)

    def finished(self: Any, checkpoint: str) -> TrainOutput:
        """A run that is complete is only loaded."""
        self._load_from_checkpoint(checkpoint)
        self.state = TrainerState.load_from_json(str(Path(checkpoint, "trainer_state.json")))
        logger.warning(
            f"{checkpoint} is the end of this run ({self.state.global_step} steps): nothing is left to train"
        )
        return TrainOutput(self.state.global_step, 0.0, {})

    def _get_train_sampler(self: Any, train_dataset: Any = None) -> Sampler | None:
        """Orders that are a function of (seed, epoch): a resumed run reads the pairs that it would have read."""
        rows = self.train_dataset if train_dataset is None else train_dataset
        args, strategy = self.args, self.args.train_sampling_strategy
        seed = args.seed if args.data_seed is None else args.data_seed
        orders: dict[str, Callable[[int], list[int]]] = {"random": lambda epoch: shuffled(len(rows), (seed, epoch))}
        if "length" in rows.column_names:
            lengths = rows["length"][:]
            together = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
            orders["group_by_length"] = lambda epoch: grouped_by_length(lengths, together, (seed, epoch))
        if strategy not in orders:
            return super()._get_train_sampler(train_dataset)  # type: ignore[misc]
        return EpochOrder(len(rows), orders[strategy], lambda: int(self.state.epoch or 0))

    def get_batch_samples(
        self: Any, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor]:
        """The micro-batches of the next optimiser step, and how many pairs it has over all processes.

        Where the pairs do not divide by the processes' micro-batches, accelerate fills an epoch's last one with pairs
        from its beginning. One process would not read them, so they are cut off here.
        """
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)  # type: ignore[misc]
        at_end = self.accelerator.gradient_state.end_of_dataloader and not self.args.dataloader_drop_last
        if batches and at_end and self.args.world_size > 1:
            shares = len(self.train_dataset), batch_size(batches[-1]), self.args.world_size, self.args.process_index
            batches[-1] = first_pairs(batches[-1], rows_left(*shares))
        pairs = torch.tensor(sum(map(counted_pairs, batches)), device=device)
        return batches, self.accelerator.gather(pairs).sum()

    @cached_property
    def pairs_read(self: Any) -> str:
        """How many pairs there are, and a hash of them: the next ones must be those that would have come."""
        return fingerprint(self.train_dataset)

    def settings(self: Any) -> dict[str, Any]:
        """What a resumed run must share with the run it continues."""
        model = self.accelerator.unwrap_model(self.model)
        return resumed_settings(self.args) | {
            "processes": self.args.world_size,
            "pairs": self.pairs_read,
            "quantization": quantization_of(model),
            "adapters": adapter_settings(model),
        }

    def _save_rng_state(self: Any, output_dir: str) -> None:
        """Beside the generators' state: what the next log will show of the steps since the last one."""
        super()._save_rng_state(output_dir)
        losses, pending = self.losses_so_far(), self._from_all([seen.tolist() for seen in self._seen])
        if self.args.should_save:
            state = {"settings": self.settings(), "losses": losses, "pending": pending}
            Path(output_dir, STATE_FILE).write_text(json.dumps(state, indent=1), encoding="utf-8")

    def _load_rng_state(self: Any, checkpoint: str | None) -> None:
        """Beside the generators' state: what `_save_rng_state` wrote, each process its own part."""
        super()._load_rng_state(checkpoint)
        if checkpoint is None:
            return
        state = json.loads(Path(checkpoint, STATE_FILE).read_text(encoding="utf-8"))
        seen = state["pending"][self.args.process_index]
        self._seen = [torch.tensor(row, dtype=torch.float64, device=self.args.device) for row in seen]

    def _load_from_checkpoint(self: Any, resume_from_checkpoint: str, model: Any = None) -> None:
        """The model's weights, in place, and all of them."""
        own = self.accelerator.unwrap_model(self.model)
        if self.strategy.is_prepared(self.model_wrapped):
            super()._load_from_checkpoint(resume_from_checkpoint, model)  # type: ignore[misc]
        elif isinstance(own, PeftModel):
            load_adapter_weights(own, Path(resume_from_checkpoint), POLICY_ADAPTER)
        else:
            load_weights(own, Path(resume_from_checkpoint))
