"""A reward model from preference pairs, on the ordinary `transformers.Trainer`.

    L = Σ_pairs −log σ(r(x, y_w) − r(x, y_l) − m) / N                                                      (SPEC §2.1)

Both sides of a pair go through one forward, so that neither sees other padding than the other; N counts the pairs of
the whole optimiser step on all processes, so that the gradient does not depend on micro-batches.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import EvalPrediction, Trainer

from ..core.preference_losses import pairwise_loss
from ..data.preferences import REPEATED, PairCollator, pad_right
from ..evaluation.pairwise_accuracy import score_metrics
from ..learning.optimizer import OptimizerDuties
from ..models.anatomy.forward import forward_flags
from ..models.anatomy.sizes import embeddings_of
from ..models.libraries import TRAINING_ARGS_NAME
from ..models.policy.loading import load_tokenizer
from ..models.quiet import quietly
from ..models.reward.scoring import fold_normalization, reward_shift_of, save_adapter_settings, with_padding_token
from ..reporting.model_card import write_model_card
from ..reporting.progress import lines_above_bar
from ..reporting.run_files import files_of_pairs
from ..runs.checkpoints import write_training_args
from ..runs.guard import GuardedUpdates
from ..runs.interruption import Interruption
from ..runs.processes import check_same_everywhere, check_strategy
from ..settings.old_names import REWARD_ARGUMENTS
from ..settings.reward import RewardConfig
from ..settings.unknown_names import checks_names
from .callbacks import LastStepLog
from .reward_data import RewardData
from .reward_setup import longest_input, reward_card, trainable_reward_model
from .reward_state import RewardState
from .saving_checks import check_saving_reward
from .trainer_checks import check_settings_class

logger = logging.getLogger(__name__)

REFERENCE_ROWS = 1024  # chosen responses over which the scores are normalised (SPEC §2.1)
SMALLEST_STD = 1e-6  # scores that spread less are all the same; dividing by that would only blow up rounding errors


class RewardTrainer(RewardData, RewardState, GuardedUpdates, OptimizerDuties, Trainer):
    """Trains a reward model on pairs of a chosen and a rejected response.

    Args:
        model: Hub name, local path or model: a causal language model (it gets a new head; one in memory is copied), or
            a reward model to go on with (one in memory is trained in place).
        args: settings.
        train_dataset: columns `chosen`, `rejected`, optionally `prompt` and `margin`; text or chat messages.
        eval_dataset: the same, or a dict of such datasets by name.
        processing_class: tokenizer; by default the one saved with the model.
        callbacks, optimizers, optimizer_cls_and_kwargs: as for `transformers.Trainer`; an optimiser must hold the new
            head, too, so a class with its settings is the simpler way.
        peft_config: train this adapter and the head instead of all weights.
        quantization_config: load the base quantised, with its head in float32 (needs `model` as a name, `peft_config`).

    Raises:
        TypeError, ValueError: at construction, for input that cannot work; the message says what was passed and what
            to do.
    """

    loss_is_scaled_for_ga = True  # the loss is divided by the pairs of the whole optimiser step in compute_loss
    args: RewardConfig
    model: Any
    train_dataset: Any
    data_collator: Any

    @checks_names(REWARD_ARGUMENTS, RewardConfig)
    def __init__(
        self,
        model: Any,
        args: RewardConfig,
        train_dataset: Any,
        eval_dataset: Any = None,
        processing_class: Any = None,
        callbacks: list[Any] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        peft_config: Any = None,
        quantization_config: Any = None,
        optimizer_cls_and_kwargs: tuple[Any, dict[str, Any]] | None = None,
    ):
        check_settings_class(args, RewardConfig, RewardConfig, type(self).__name__)
        model = str(model) if isinstance(model, Path) else model
        tokenizer = load_tokenizer(processing_class, model)
        reward_model = trainable_reward_model(model, tokenizer, args, peft_config, quantization_config)
        self.vocabulary = embeddings_of(reward_model)
        self.processing_class = with_padding_token(tokenizer, self.vocabulary)
        reward_model.trained_with = self.processing_class  # so that PPO in the same process reads as this training does
        self.max_length = longest_input(args.max_length, reward_model)
        self.dropped: dict[str, int] = {}  # pairs left out as too long, by dataset
        self.card: dict[str, Any] = {}  # more facts for the model card: datasets, command, license, …
        self._seen: list[Tensor] = []  # pairs, right ones and sum of margins of each micro-batch since the last log
        super().__init__(
            model=reward_model,
            args=args,
            data_collator=PairCollator(reward_model.config.get_text_config().pad_token_id),
            train_dataset=self.prepare(train_dataset, "train"),
            eval_dataset=self.prepare(eval_dataset, "eval"),
            processing_class=self.processing_class,
            compute_metrics=self.pair_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
            optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
        )
        self.interruption, self.files = Interruption(self), files_of_pairs(self)
        for callback in (self.interruption, self.files, LastStepLog()):
            self.add_callback(callback)
        check_strategy(self.accelerator, args)
        self.strategy.check()
        check_same_everywhere(args, {"train dataset": self.train_dataset, "eval dataset": self.eval_dataset})
        check_saving_reward(self)

    def _prepare_inputs(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """To the device, without casting: under DeepSpeed a cast would round margins."""
        return {name: tensor.to(self.args.device) for name, tensor in inputs.items()}

    # ---- The objective ------------------------------------------------------------------------------------------

    def scores(self, model: Any, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """[B] float32 scores of right-padded rows, through the model's own forward: any wrapper around it works."""
        flags = forward_flags(self.accelerator.unwrap_model(self.model), use_cache=False)
        logits = model(input_ids=input_ids, attention_mask=attention_mask, **flags).logits
        return logits.squeeze(-1).float() - reward_shift_of(self.model)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """The sum of the pairs' losses / N (SPEC §2.1).

        Args:
            model: the reward model, wrapped or not. inputs: a batch of `PairCollator`. return_outputs: also give the
            scores. num_items_in_batch: N, pairs of the optimiser step over all processes; by default this batch's.
        """
        chosen, rejected = self.scores(model, inputs["input_ids"], inputs["attention_mask"]).chunk(2)
        losses = self.pair_losses(chosen, rejected, inputs.get("margin"))
        if REPEATED in inputs:  # the sum of no losses still has a backward, in which the other processes take part
            chosen, rejected, losses = chosen[:0], rejected[:0], losses[:0]
        pairs = len(losses) * self.accelerator.num_processes if num_items_in_batch is None else num_items_in_batch
        self._seen.append(_summary(chosen.detach(), rejected.detach()))
        # Data-parallel wrappers average over the processes what is to be a sum.
        loss = losses.sum() / pairs * self.accelerator.num_processes
        return (loss, {"chosen": chosen, "rejected": rejected}) if return_outputs else loss

    def pair_losses(self, chosen: Tensor, rejected: Tensor, margin: Tensor | None) -> Tensor:
        """[pairs] losses with the settings of the run."""
        args = self.args
        return pairwise_loss(chosen, rejected, margin, args.center_rewards_coefficient, args.label_smoothing)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add accuracy and margin of the pairs trained on since the last log."""
        if "loss" in logs and self._seen:
            pairs, right, margins = self.accelerator.reduce(torch.stack(self._seen).sum(0), "sum").tolist()
            logs |= {"accuracy": right / pairs, "margin": margins / pairs}
            self._seen.clear()
        super().log(logs, start_time)

    # ---- Evaluation ---------------------------------------------------------------------------------------------

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Loss, accuracy, margin and score distribution of pairs, under the names of `score_metrics`."""
        return super().evaluate(self.prepare(eval_dataset, "eval"), ignore_keys, metric_key_prefix)

    def predict(self, test_dataset: Any, ignore_keys: list[str] | None = None, metric_key_prefix: str = "test") -> Any:
        """Scores [pairs, 2] (chosen, rejected) and metrics of a preference dataset."""
        return super().predict(self.prepare(test_dataset, "test"), ignore_keys, metric_key_prefix)

    @torch.no_grad()
    def prediction_step(
        self, model: Any, inputs: dict[str, Tensor], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[None, Tensor, Tensor]:
        """Scores [n,2] and margins [n] of a batch; its mean loss is left out, for it would weigh a short batch like a
        full one: `pair_metrics` has the loss of all pairs."""
        inputs = self._prepare_inputs(inputs)
        with self.compute_loss_context_manager():
            scores = self.scores(model, inputs["input_ids"], inputs["attention_mask"])
        margins = inputs.get("margin", torch.zeros(len(scores) // 2, device=scores.device))
        return None, torch.stack(scores.chunk(2), dim=-1), margins

    def pair_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        """Metrics of all pairs of an evaluation together."""
        chosen, rejected = torch.from_numpy(prediction.predictions).unbind(-1)
        losses = self.pair_losses(chosen, rejected, torch.from_numpy(prediction.label_ids))
        return {"loss": float(losses.double().mean()), **score_metrics(chosen, rejected)}

    # ---- Normalisation ------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train, or go on from a checkpoint; then normalise the scores (SPEC §2.1).

        Raises:
            FileExistsError: the output folder holds another run and no resume was asked for.
            ValueError: resume was asked for, and there is no whole checkpoint, or one of another batch arithmetic.
            Interrupted: SIGTERM or SIGINT stopped the run; its checkpoint is complete.
        """
        with self.interruption, self.files.kept(), lines_above_bar():
            result = self.files.results(super().train(resume_from_checkpoint, *args, **kwargs))
        self.normalize()
        return result

    def normalize(self) -> None:
        """Give the chosen responses mean 0 (and variance 1), as `args.normalize_scores` says."""
        if self.args.normalize_scores is None or self.train_dataset is None:
            return
        scores = self.reference_scores()
        std = float(scores.std(correction=0)) if self.args.normalize_scores == "mean_std" else None
        if std is not None and std < SMALLEST_STD:
            logger.warning("all chosen responses score the same (spread %.1e): the scores are shifted, not scaled", std)
            std = None
        fold_normalization(self.accelerator.unwrap_model(self.model), float(scores.mean()), std)

    @torch.no_grad()
    def reference_scores(self) -> Tensor:
        """[≤ 1,024] float64 scores of chosen responses, evenly spread over the training pairs.

        Every process scores all of them: each needs the result, and where weights are sharded each must take part.
        """
        pairs = self.train_dataset
        rows = torch.linspace(0, len(pairs) - 1, min(len(pairs), REFERENCE_ROWS)).long().tolist()
        chosen = sorted(pairs.select(rows)["chosen_ids"][:], key=len)
        size = self.args.eval_batch_size
        model = self.model_wrapped
        self.optimizer_mode("eval")
        model.eval()  # by itself: that of DeepSpeed's engine returns nothing
        parts = []
        for start in range(0, len(chosen), size):
            batch = self._prepare_inputs(pad_right(chosen[start : start + size], self.data_collator.pad_token_id))
            with self.compute_loss_context_manager():
                parts.append(self.scores(model, **batch))
        return torch.cat(parts).double().cpu()

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """A checkpoint's config says how to read it: with the shift of its own scores. Its weights, and the scores the
        training goes on with, stay as they are."""
        config = self.accelerator.unwrap_model(self.model).config
        before = reward_shift_of(self.model)
        if self.args.normalize_scores is not None:
            config.reward_shift = before + float(self.reference_scores().mean())
        try:
            super()._save_checkpoint(model, trial)
        finally:
            config.reward_shift = before

    # ---- Saving -------------------------------------------------------------------------------------------------

    @quietly()
    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        super()._save(output_dir, state_dict)
        if not self.args.should_save:
            return
        folder = Path(output_dir or str(self.args.output_dir))
        (folder / TRAINING_ARGS_NAME).unlink(missing_ok=True)  # a pickle runs code when it is read; JSON does not
        write_training_args(self.args, folder)
        model = self.accelerator.unwrap_model(self.model)
        if isinstance(model, PeftModel):
            save_adapter_settings(model, folder)
        write_model_card(folder, reward_card(self))

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write our card where the Trainer, on a push, would write its own."""
        if self.is_world_process_zero():
            write_model_card(str(self.args.output_dir), reward_card(self))


def _summary(chosen: Tensor, rejected: Tensor) -> Tensor:
    """[3] pairs, pairs preferred rightly (ties ½), sum of margins."""
    right = (chosen > rejected).double() + (chosen == rejected).double() / 2
    return torch.stack([torch.ones_like(right), right, (chosen - rejected).double()], -1).sum(0)
