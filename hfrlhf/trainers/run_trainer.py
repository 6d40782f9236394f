"""The life of a training run, written once for every trainer of this package, on the ordinary `transformers.Trainer`.

What a trainer adds stands in the hooks at the top. The overridden methods of the Trainer below them are a few lines
each, and call the collaborators that do the work: `runs` (folder, lock, checkpoints, interruption, guard) and
`learning.optimizer`.
"""

from __future__ import annotations

import dataclasses
import math
from abc import abstractmethod
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerState
from transformers.utils import logging

from ..learning import optimizer as duties
from ..models.libraries import TrainOutput, losses_of, set_losses
from ..models.quiet import quietly
from ..models.savable import check_savable
from ..models.sharding import in_pieces, strategy_of
from ..reporting.model_card import CardFacts, write_model_card
from ..reporting.progress import lines_above_bar
from ..reporting.run_files import RunFiles
from ..runs.agreement import Agreement, together
from ..runs.checkpoints import best_by_name, check_output_dir, check_output_path, saved_state, write_training_args
from ..runs.guard import Batch, UpdateGuard
from ..runs.input_checks import check_callbacks, check_evaluation, check_metrics
from ..runs.interruption import Interruption
from ..runs.lock import RunLock
from ..runs.processes import leave_cleanly
from ..runs.resuming import Resuming
from ..runs.safe_checkpoints import SafeCheckpoints
from ..runs.state import ExtraState, read_state, write_state

logger = logging.get_logger(__name__)


class RunTrainer(Trainer):
    """Trains, resumes, saves and stops as every trainer of this package does.

    Args: as for `transformers.Trainer`, by name.

    Raises:
        TypeError, ValueError: callbacks that are none; evaluations or a best metric that cannot be; an optimiser that
            lacks something that trains, a schedule of another one, or both an optimiser and a class.
        NotADirectoryError, PermissionError: nothing can be written to `output_dir`.
    """

    STATE_FILE: ClassVar[str]  # in a checkpoint: what `extra_state` gives, and the settings that a resume must share
    TENSORS_FILE: ClassVar[str] = "state.safetensors"
    has_named_groups: ClassVar[bool] = False  # whether the names of the optimiser's groups are read
    loss_is_scaled_for_ga: bool | None = True  # `compute_loss` divides by the items of the whole optimiser step
    model: Any
    args: Any
    processing_class: Any
    files: RunFiles  # which a trainer makes, of what it has to show

    def __init__(
        self,
        *,
        model: nn.Module,
        args: Any,
        callbacks: Any = None,
        eval_dataset: Any = None,
        optimizers: Any = None,
        optimizer_cls_and_kwargs: Any = None,
        **stock: Any,
    ) -> None:
        check_output_path(str(args.output_dir))
        check_evaluation(args, eval_dataset)
        stock |= {"eval_dataset": eval_dataset, "callbacks": check_callbacks(callbacks)}
        moved = self.moved_by_optimizer(model)
        pair, self.given_optimizer = duties.checked(optimizers, optimizer_cls_and_kwargs, model, moved, args)
        super().__init__(model=model, args=args, optimizers=pair, **stock)
        self.strategy = strategy_of(self.accelerator)
        leave_cleanly(self.accelerator)
        names = self.evaluation_metric_names()
        check_metrics(args, eval_dataset, names, self.evaluate, self.callback_handler.callbacks)
        # What `optim` names is looked up, so that what is not installed is heard of here and not in train(). A subclass
        # from outside may have its own way to say which optimiser it is, and need more than there is by now.
        if pair[0] is None and type(self).get_optimizer_cls_and_kwargs.__module__.startswith("hfrlhf."):
            self.get_optimizer_cls_and_kwargs(args, self.model)
        duties.check_groups_are_ours(pair[0], self.has_named_groups, self.strategy)
        self.trainings = 0  # calls of `train` that trained
        self.card: dict[str, Any] = {}  # what a script knows and the model card should say: datasets, command, license
        self._step_loss, self._skipped = 0.0, 0  # of the step in progress; updates left out since the last log
        # From here on: the life of the run, by collaborators that know the accelerator and not this trainer.
        self.agreement = Agreement(self.accelerator)
        self.lock, self.checkpoints = RunLock(self.agreement), SafeCheckpoints(self.agreement)
        self.resuming = Resuming(self.agreement, self.lock, self.STATE_FILE)
        # Of the model as it will be: the Trainer puts a sharded one in its place when training begins.
        self.guard = self._guard_of(args)
        self.interruption = Interruption(args, self.accelerator)
        self.add_callback(self.interruption)

    # ---- What a trainer says of itself --------------------------------------------------------------------------

    @abstractmethod
    def shared_settings(self) -> dict[str, Any]:
        """What a resumed run must share with the run it continues."""

    @abstractmethod
    def start_report(self) -> str:
        """What the run is about to do, in a few lines; all processes come here, the first one says it."""

    @abstractmethod
    def card_facts(self) -> CardFacts:
        """What the model card says, now."""

    @abstractmethod
    def load_weights(self, checkpoint: Path) -> None:
        """Everything that trains, in place, from a checkpoint; not asked of a model that lies in pieces."""

    @abstractmethod
    def save_weights(self, folder: Path, state_dict: Mapping[str, Tensor] | None) -> None:
        """The model as stock transformers or peft load it; of a model in pieces `state_dict` has it whole."""

    @abstractmethod
    def evaluation_metric_names(self) -> list[str]:
        """What an evaluation will give, without the prefix."""

    @abstractmethod
    def batch_for_inspection(self) -> Batch:
        """The batch of the optimiser step in progress, of all processes; each process comes here."""

    def extra_state(self) -> ExtraState:
        """What a checkpoint holds of the trainer's own; every process comes here, the first one writes it."""
        return ExtraState()

    def restore(self, state: ExtraState) -> None:
        """Go on from what `extra_state` gave. The counter of steps is the checkpoint's already."""

    def begin(self) -> None:
        """Before a training: nothing is left of one before it, which may have ended in the middle of a step."""

    def micro_batch(self, model: nn.Module, inputs: dict[str, Tensor], items: Tensor | int | None) -> Tensor:
        """Forward and backward of one micro-batch; the loss, detached."""
        return super().training_step(model, inputs, items)

    def end_of_step(self, loss: float) -> bool:
        """After a step's last backward, with its loss here; whether it has gradients that the guard should look at."""
        return True

    # ---- A run --------------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train, or go on exactly where a checkpoint ends.

        Called again, it trains on from the weights as they are, with the optimiser and the coefficients as they are: a
        run of its own, with its own schedule and steps from 0 on.

        Raises:
            FileExistsError: the output folder holds another run and no resume was asked for.
            FolderInUse: another process trains in it.
            ValueError: no whole checkpoint to resume from, or one of another batch arithmetic.
            Interrupted: SIGTERM or SIGINT stopped the run; its checkpoint is complete.
        """
        with self.lock.held(self.folder):
            checkpoint = self.checkpoint_to_resume(resume_from_checkpoint)
            if checkpoint is None:
                check_output_dir(str(self.args.output_dir), self.trainings > 0)
            elif saved_state(checkpoint)["global_step"] >= self.planned_steps():
                return self._finished(checkpoint)
            self.agreement.say(self.start_report())
            self.trainings += 1
            self._step_loss, self._skipped = 0.0, 0  # a run before this one may have ended in the middle of a step
            self.guard = self._guard_of(self.args)
            self.begin()
            with self.interruption, self.files.kept(), lines_above_bar():
                return self.files.results(super().train(checkpoint, *args, **kwargs))

    def _finished(self, checkpoint: str) -> TrainOutput:
        """A run that is complete is only loaded: the stock loop would take one more step."""
        self._load_from_checkpoint(checkpoint)
        self.state = TrainerState.load_from_json(str(Path(checkpoint, "trainer_state.json")))
        logger.warning(
            f"{checkpoint} is the end of this run ({self.state.global_step} steps): nothing is left to train"
        )
        return TrainOutput(self.state.global_step, 0.0, {})

    def checkpoint_to_resume(self, asked: str | bool | None) -> str | None:
        """The checkpoint that `train(resume_from_checkpoint=asked)` would go on from."""
        # A new run is asked for nothing: to hash all its data would keep it waiting.
        return self.resuming.checkpoint(asked, self.folder, self.shared_settings()) if asked else None

    def planned_steps(self) -> int:
        """Optimiser steps of the whole run."""
        if self.args.max_steps > 0:
            return int(self.args.max_steps)
        steps = math.ceil(len(self.get_train_dataloader()) / self.args.gradient_accumulation_steps)
        return math.ceil(self.args.num_train_epochs * steps)  # type: ignore[no-any-return]

    @property
    def folder(self) -> Path:
        """The run's."""
        return Path(str(self.args.output_dir))

    def unwrapped(self) -> Any:
        """The model itself, without what was put around it to distribute or compile it."""
        return self.accelerator.unwrap_model(self.model)

    def _guard_of(self, args: Any) -> UpdateGuard:
        return UpdateGuard(self.accelerator, lambda: self.model, args.max_skipped_updates, bool(args.fp16))

    # ---- A step -------------------------------------------------------------------------------------------------

    def training_step(
        self, model: nn.Module, inputs: dict[str, Tensor], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """A micro-batch; after the last one of an optimiser step what is due then, and the guard."""
        loss = self.micro_batch(model, inputs, num_items_in_batch)
        self._step_loss += float(loss)
        if self.accelerator.sync_gradients:
            of_step, self._step_loss = self._step_loss, 0.0
            if self.end_of_step(of_step):
                at = self.state.global_step, self.folder
                self._skipped += self.guard.leaves_out(of_step, self.batch_for_inspection, *at)
        return loss

    def _prepare_inputs(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """To the device, without casting: under DeepSpeed the stock one rounds old log-probs and margins."""
        return {name: tensor.to(self.args.device) for name, tensor in inputs.items()}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the updates left out since the last log; at the end, the mean loss of the whole run.

        The Trainer's own is over the steps of this call of `train`, also where that went on from a checkpoint.
        """
        if "loss" in logs and self._skipped:
            logs["skipped_updates"] = logs.get("skipped_updates", 0) + self._skipped
            self._skipped = 0
        if "train_loss" in logs:
            logs["train_loss"] = losses_of(self)[1] / max(self.state.global_step, 1)
        super().log(logs, start_time)

    # ---- Its optimiser ------------------------------------------------------------------------------------------

    def moved_by_optimizer(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """What the optimiser has to hold: everything that trains."""
        return {name: p for name, p in model.named_parameters() if p.requires_grad}

    def parameter_groups(self, model: nn.Module, rate: float, weight_decay: float) -> list[dict[str, Any]]:
        """What trains, as the groups of an optimiser."""
        decays = set(self.get_decay_parameter_names(model))
        return duties.parameter_groups(model.named_parameters(), decays, rate, weight_decay)

    def get_optimizer_cls_and_kwargs(  # type: ignore[override]  # which is static with the Trainer
        self, args: Any, model: Any = None
    ) -> duties.Factory:
        """The class and settings passed to the trainer, or those that `optim` names, over the trainer's own groups.

        Raises:
            ValueError: it makes groups itself, and the names of ours are read.
        """
        groups = partial(self.parameter_groups, model or self.model)
        if self.given_optimizer is None:
            cls, settings = super().get_optimizer_cls_and_kwargs(args, model)
        else:
            cls, settings = duties.on_groups(self.given_optimizer, args, groups)
        if self.has_named_groups:
            rates = duties.rates_of(cls, settings, args, passed=self.given_optimizer is not None)
            settings |= {"params": groups(*rates)}
        return cls, settings

    def create_optimizer(self, model: Any = None) -> Any:
        """The Trainer's, and then a look at whether it holds what trains: a subclass may have made its own."""
        optimizer = super().create_optimizer(model)
        duties.check_holds(optimizer, model or self.model, self.moved_by_optimizer(model or self.model))
        return optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The Trainer's, after a last look at the optimiser: a subclass may make its own without asking us."""
        if self.optimizer is not None and not self.strategy.in_pieces:  # elsewhere its tensors are pieces
            duties.check_holds(self.optimizer, self.model, self.moved_by_optimizer(self.model))
        return super().create_scheduler(num_training_steps, optimizer)

    def optimizer_mode(self, mode: str) -> None:
        """Tell an optimiser that has modes which weights are due: "train" for a step, "eval" for every other use."""
        duties.switch_mode(self.optimizer, mode)

    # ---- A save -------------------------------------------------------------------------------------------------

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """The Trainer's checkpoint and the trainer's own state, written aside, sealed, renamed; then the push."""
        # The state first: its parts are exchanged, and a process that fails while it writes exchanges nothing any more.
        run, state = Path(self._get_output_dir(trial)), self._own_state()
        with self.checkpoints.written(run, self.state.global_step) as staged:
            self.optimizer_mode("eval")  # the optimiser's own state is saved beside the weights that belong to it
            super()._save_checkpoint(model, trial)
            self.state = best_by_name(self.state, run, staged)
            if self.args.should_save:
                self.state.save_to_json(str(staged / "trainer_state.json"))
                if not self.args.save_only_model:
                    write_state(state, *self._state_files(staged))
        self.checkpoints.rotate(run / staged.name, self.args.save_total_limit, self.state.best_model_checkpoint)
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(run / staged.name))

    def _own_state(self) -> ExtraState:
        """What is the trainer's own, and what the next log and `train_loss` will show; of all processes."""
        pending, total, logged = losses_of(self)
        losses = {"total": total, "pending": self.agreement.from_all(float(pending)), "logged": logged}
        own = self.extra_state()
        facts = {"settings": self.shared_settings(), "losses": losses, "skipped": self._skipped, **own.facts}
        return ExtraState(facts, own.tensors)

    def _get_output_dir(self, trial: Any) -> str:
        """The run's folder; while a checkpoint is written, the one aside."""
        return str(self.checkpoints.staged or super()._get_output_dir(trial))

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """To the Hub goes what is under its final name."""
        if self.checkpoints.staged is None:
            super()._push_from_checkpoint(checkpoint_folder)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As in the stock Trainer, the weights that are to be used."""
        with self.checkpoints.noting():
            self.optimizer_mode("eval")
            super().save_model(output_dir, _internal_call)

    @quietly()
    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """The weights as stock transformers or peft load them; beside them tokenizer, settings (JSON) and card.

        Args:
            state_dict: of the whole model, gathered, where its parameters lie in pieces: the first process has it.
        """
        sharded = in_pieces(self.unwrapped())
        if not self.args.should_save or (sharded and state_dict is None):
            return
        folder = Path(output_dir or self.folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.save_weights(folder, state_dict if sharded else None)
        self.processing_class.save_pretrained(folder)
        self._describe(folder)

    def _describe(self, folder: Path) -> None:
        write_training_args(self.args, folder)
        write_model_card(folder, self.card_facts())

    def check_saving(self, models: dict[str, Any], adapters: list[str] | None = None) -> None:
        """Try what saving will do: nobody should hear at the end of a run that its model cannot be written.

        Args:
            models: by their roles, as messages name them. adapters: the names of those that are saved; None for all.

        Raises:
            ValueError: it would fail.
        """
        with together(self.accelerator):
            check_savable(models, self.processing_class, [self._describe], adapters)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write our card where the Trainer, on a push, would write its own."""
        if self.is_world_process_zero():
            write_model_card(self.folder, self.card_facts())

    # ---- A resume -----------------------------------------------------------------------------------------------

    def _state_files(self, checkpoint: str | Path) -> tuple[Path, Path]:
        return Path(checkpoint, self.STATE_FILE), Path(checkpoint, self.TENSORS_FILE)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """The weights, in place."""
        if self.strategy.is_prepared(self.model_wrapped):  # and loads it, for it knows the pieces
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            self.load_weights(Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        """The weights of the best checkpoint, in place."""
        if self.strategy.is_prepared(self.model_wrapped):
            super()._load_best_model()
        else:
            self.load_weights(Path(str(self.state.best_model_checkpoint)))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Beside optimiser and schedule: the trainer's own state, and the rates of a run that has a new length."""
        # Not with the generators' state: in the middle of an epoch the Trainer reads that after the first batch.
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        planned, now = saved_state(checkpoint)["max_steps"], self.state.max_steps
        if planned != now:
            self.agreement.say(
                f"{checkpoint}: the run was planned for {planned:,} steps and goes on with the schedule of {now:,}"
            )
            duties.follow_schedule(self.optimizer, self.lr_scheduler)
        state = read_state(*self._state_files(checkpoint))
        self._skipped = state.facts.get("skipped", 0)  # checkpoints of earlier versions have none
        self.restore(state)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Beside the generators' state, which the Trainer reads after it has set its sums of losses to 0: the sums."""
        super()._load_rng_state(checkpoint)
        if checkpoint is None:
            return
        losses = read_state(*self._state_files(checkpoint)).facts["losses"]
        pending = torch.full_like(losses_of(self)[0], losses["pending"][self.args.process_index])
        set_losses(self, pending, losses["total"], losses["logged"])

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        """The end of a run: the loss of all its steps and processes, and the best checkpoint if that is whole.

        The Trainer loads the best one here and, with `save_total_limit=1`, keeps it alone. A run that a signal stopped
        is not at its end: it goes on from its last checkpoint, and loads and deletes none.
        """
        pending, total, logged = losses_of(self)
        set_losses(self, self.accelerator.reduce(pending, "mean"), total, logged)
        self.optimizer_mode("eval")  # what is left after a training are the weights that are to be used
        best, stopped = self.state.best_model_checkpoint, self.interruption.stopped_at is not None
        if not stopped and (self.args.load_best_model_at_end or self.args.save_total_limit == 1):
            best = self.resuming.best(best)
        self.state = dataclasses.replace(self.state, best_model_checkpoint=None if stopped else best)
        try:
            result = super()._finalize_training(*args, **kwargs)  # type: ignore[no-untyped-call]
        finally:
            self.state = dataclasses.replace(self.state, best_model_checkpoint=best)
        return result._replace(training_loss=result.metrics["train_loss"])
