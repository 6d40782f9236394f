"""What a run leaves behind and goes on from: checkpoints with the rollout in use, the saved model, its card."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import TrainerState
from transformers.utils import logging

from ..experience import Experience
from ..models.libraries import TrainOutput
from ..models.quantization import quantization_of
from ..models.quiet import quietly
from ..models.sharding import in_pieces
from ..reporting.model_card import write_model_card
from ..reporting.policy_card import policy_card
from ..reporting.progress import lines_above_bar
from ..reporting.screen import say
from ..reporting.start_report import planned_steps, start_report, warn_of_warm_up
from ..runs.checkpoints import adapter_settings, check_output_dir, saved_state, write_training_args
from ..runs.lock import alone
from ..runs.processes import fingerprint
from ..runs.safe_checkpoints import SafeCheckpoints
from ..runs.whole_run_loss import WholeRunLoss
from ..settings.declarations import resumed_settings

logger = logging.get_logger(__name__)

STATE_FILE, BUFFER_FILE = "rollout_state.json", "rollout_buffer.safetensors"


@dataclass
class Cycle:
    """A rollout in use: its experience, and whether `target_kl` has put the policy to rest until the next one."""

    experience: Experience
    stopped: bool = False
    started: float = 0.0  # when the first update began, on the clock of time.perf_counter
    spent: float = 0.0  # seconds that sampling and scoring took


class RunState(WholeRunLoss, SafeCheckpoints):
    """Mixin before `transformers.Trainer`: what is saved, and how a run starts or goes on."""

    STATE_FILE = STATE_FILE
    cycle: Cycle | None = None
    trainings: int = 0  # calls of `train` that trained

    @alone
    def train(self: Any, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train, or go on exactly where a checkpoint ends.

        Called again, it trains on from the weights as they are, with the optimiser and the coefficients as they are: a
        run of its own, with its own schedule and steps from 0 on; the reference stays what it was.

        Raises:
            FileExistsError: the output folder holds another run and no resume was asked for.
            FolderInUse: another process trains in it.
            ValueError: no whole checkpoint to resume from, or one of another batch arithmetic.
            Interrupted: SIGTERM or SIGINT stopped the run; its checkpoint is complete.
        """
        warn_of_warm_up(self)
        checkpoint = self.checkpoint_to_resume(resume_from_checkpoint)
        if checkpoint is None:
            check_output_dir(self.args.output_dir, self.trainings > 0)
        elif saved_state(checkpoint)["global_step"] >= planned_steps(self):
            return self.finished(checkpoint)
        if self.is_world_process_zero():
            say(start_report(self))
        self._begin()
        with self.interruption, self.files.kept(), lines_above_bar():
            return self.files.results(super().train(checkpoint, *args, **kwargs))  # type: ignore[misc]

    def _begin(self: Any) -> None:
        """Nothing is left of a run before this one, which may have ended in the middle of a step."""
        self.trainings += 1
        self.cycle, self.step_loss = None, 0.0
        self.metrics.pending.clear()
        self.sums.clear()

    def finished(self: Any, checkpoint: str) -> TrainOutput:
        """A run that is complete is only loaded: the stock loop would take one more step."""
        self._load_from_checkpoint(checkpoint)
        self.state = TrainerState.load_from_json(str(Path(checkpoint, "trainer_state.json")))
        logger.warning(
            f"{checkpoint} is the end of this run ({self.state.global_step} steps): nothing is left to train"
        )
        return TrainOutput(self.state.global_step, 0.0, {})

    @cached_property
    def prompts_read(self: Any) -> str:
        """How many prompts there are, and a hash of them: the next ones must be those that would have come."""
        return fingerprint(self.prompts.ids)

    def settings(self: Any) -> dict[str, Any]:
        """What a resumed run must share with the run it continues."""
        policy = self.unwrapped().policy
        return resumed_settings(self.args) | {
            "processes": self.args.world_size,
            "prompts": self.prompts_read,
            "quantization": quantization_of(policy),
            "adapters": adapter_settings(policy),
        }

    def _save_rng_state(self: Any, output_dir: str) -> None:
        """Beside the generators' state: the experience in use, the coefficients and what the next log will show."""
        super()._save_rng_state(output_dir)
        losses = self.losses_so_far()
        if not self.args.should_save:
            return
        state = {
            "settings": self.settings(),
            "losses": losses,
            "stopped": self.cycle is not None and self.cycle.stopped,
            "kl_coef": self.kl_coef.state_dict(),
            "penalty": self.penalty.state_dict(),
            "moments": self.moments.state_dict(),
            "pending": self.metrics.pending,
            "samples": self.samples,
            "before": self.comparison.state_dict(),
            "spent": self.cycle.spent if self.cycle else 0.0,
        }
        Path(output_dir, STATE_FILE).write_text(json.dumps(state, indent=1), encoding="utf-8")
        if self.cycle is not None and self.step_in_cycle != 0:
            tensors = {name: t.contiguous() for name, t in self.cycle.experience.tensors().items()}
            save_file(tensors, Path(output_dir, BUFFER_FILE))

    def _load_optimizer_and_scheduler(self: Any, checkpoint: str | None) -> None:
        """Beside optimiser and schedule: what `_save_rng_state` wrote."""
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        state = json.loads(Path(checkpoint, STATE_FILE).read_text(encoding="utf-8"))
        self.kl_coef.load_state_dict(state["kl_coef"])
        self.penalty.load_state_dict(state["penalty"])
        self.moments.load_state_dict(state["moments"])
        self.metrics.pending = state["pending"]
        self.samples = state["samples"]
        self.comparison.load_state_dict(state.get("before"))
        self.cycle = None
        if self.step_in_cycle != 0:
            experience = Experience(**load_file(Path(checkpoint, BUFFER_FILE)))
            self.cycle = Cycle(experience, state["stopped"], time.perf_counter(), state.get("spent", 0.0))

    @quietly()
    def _save(self: Any, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """The policy as stock transformers or peft load it; beside it critic, tokenizer and settings (JSON).

        Args:
            state_dict: of the whole model, gathered, where its parameters lie in pieces: the first process has it.
        """
        sharded = in_pieces(self.unwrapped())
        if not self.args.should_save or (sharded and state_dict is None):
            return
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        self.unwrapped().save_pretrained(folder, state_dict if sharded else None)
        self.processing_class.save_pretrained(folder)
        write_training_args(self.args, folder)
        write_model_card(folder, policy_card(self))

    def create_model_card(self: Any, *args: Any, **kwargs: Any) -> None:
        """Write our card where the Trainer, on a push, would write its own."""
        if self.is_world_process_zero():
            write_model_card(self.args.output_dir, policy_card(self))

    def _load_from_checkpoint(self: Any, resume_from_checkpoint: str, model: Any = None) -> None:
        """Policy and critic from a checkpoint, in place; under FSDP from its own file, which knows the pieces."""
        if self.is_sharded:
            super()._load_from_checkpoint(resume_from_checkpoint, model)  # type: ignore[misc]
        else:
            self.unwrapped().load_saved(resume_from_checkpoint)

    def _load_best_model(self: Any) -> None:
        """Policy and critic of the best checkpoint, in place."""
        if self.is_sharded:
            super()._load_best_model()  # type: ignore[misc]
        else:
            self._load_from_checkpoint(self.state.best_model_checkpoint)

    @property
    def is_sharded(self: Any) -> bool:
        """Whether the strategy holds the model by now, and loads it."""
        return self.strategy.is_prepared(self.model_wrapped)
