"""A reward model from preference pairs, on the ordinary `transformers.Trainer`.

    L = Σ_pairs −log σ(r(x, y_w) − r(x, y_l) − m) / N                                                      (SPEC §2.1)

Both sides of a pair go through one forward, so that neither sees other padding than the other; N counts the pairs of
the whole optimiser step on all processes, so that the gradient does not depend on micro-batches.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler, SequentialSampler
from transformers import EvalPrediction

from ..core.preference_losses import pairwise_loss
from ..data.preferences import IDS, REPEATED, PairCollator, counted_pairs, pad_right
from ..evaluation.pairwise_accuracy import score_metrics
from ..models.anatomy.forward import forward_flags
from ..models.anatomy.sizes import embeddings_of
from ..models.libraries import keep_columns
from ..models.policy.loading import load_tokenizer
from ..models.reward.scoring import fold_normalization, reward_shift_of, with_padding_token
from ..models.saved_weights import load_policy_weights
from ..reporting.cards import reward_card
from ..reporting.model_card import CardFacts
from ..reporting.run_files import files_of_pairs
from ..reporting.start_report import reward_report
from ..runs.checkpoints import model_settings
from ..runs.guard import Batch
from ..runs.processes import check_same_everywhere, check_strategy, fingerprint
from ..runs.state import ExtraState
from ..settings.declarations import resumed_settings
from ..settings.old_names import REWARD_ARGUMENTS
from ..settings.reward import RewardConfig
from ..settings.unknown_names import checks_names
from .callbacks import LastStepLog
from .reward_data import PairReader, PairTally, inspected, spread, training_order, without_repeated
from .reward_model import longest_input, save_reward_model, trainable_reward_model
from .run_trainer import RunTrainer
from .trainer_checks import check_settings_class

logger = logging.getLogger(__name__)

REFERENCE_ROWS = 1024  # chosen responses over which the scores are normalised (SPEC §2.1)
SMALLEST_STD = 1e-6  # scores that spread less are all the same; dividing by that would only blow up rounding errors


class RewardTrainer(RunTrainer):
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

    STATE_FILE = "reward_state.json"
    args: RewardConfig
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
        model = trainable_reward_model(model, tokenizer, args, peft_config, quantization_config)
        vocabulary = embeddings_of(model)
        tokenizer = with_padding_token(tokenizer, vocabulary)
        model.trained_with = tokenizer  # so that PPO in the same process reads as this training does
        self.pairs = PairReader(tokenizer, vocabulary, longest_input(args.max_length, model))
        self.tally = PairTally()
        self._batches: list[dict[str, Tensor]] = []  # of the optimiser step in progress
        super().__init__(
            model=model,
            args=args,
            data_collator=PairCollator(model.config.get_text_config().pad_token_id),
            train_dataset=self.pairs.read(train_dataset, "train"),
            eval_dataset=self.pairs.read(eval_dataset, "eval"),
            processing_class=tokenizer,
            compute_metrics=self.pair_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
            optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
        )
        self.files = files_of_pairs(self)
        for callback in (self.files, LastStepLog()):
            self.add_callback(callback)
        check_strategy(self.accelerator, args)
        self.strategy.check()
        check_same_everywhere(args, {"train dataset": self.train_dataset, "eval dataset": self.eval_dataset})
        self.check_saving({"reward model": self.unwrapped()})

    @property
    def dropped(self) -> dict[str, int]:
        """Pairs left out as too long, by dataset."""
        return self.pairs.dropped

    @property
    def max_length(self) -> int:
        """Tokens that a prompt and a response may have together."""
        return self.pairs.max_length

    # ---- The pairs of a step ------------------------------------------------------------------------------------

    def _set_signature_columns_if_needed(self) -> None:
        keep_columns(self, [*IDS, "length", "margin"])  # what the collator and the sampler read

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """Orders that are a function of (seed, epoch)."""
        rows = self.train_dataset if train_dataset is None else train_dataset
        order = training_order(self.args, rows, lambda: int(self.state.epoch or 0))
        return super()._get_train_sampler(train_dataset) if order is None else order

    def _get_eval_sampler(self, eval_dataset: Any) -> Sampler[int]:
        return SequentialSampler(eval_dataset)  # grouped by length, predictions would not come in the order of the data

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Tensor]:
        """The micro-batches of the next optimiser step, and how many pairs it has over all processes."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        at_end = self.accelerator.gradient_state.end_of_dataloader and not self.args.dataloader_drop_last
        if batches and at_end and self.args.world_size > 1:
            batches[-1] = without_repeated(batches[-1], len(self.train_dataset), self.args)
        self._batches = batches
        pairs = torch.tensor(sum(map(counted_pairs, batches)), device=device)
        return batches, self.accelerator.gather(pairs).sum()

    def batch_for_inspection(self) -> Batch:
        """The micro-batches of the step, and their texts."""
        return inspected(self._batches, self.processing_class)

    # ---- The objective ------------------------------------------------------------------------------------------

    def scores(self, model: Any, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """[B] float32 scores of right-padded rows, through the model's own forward: any wrapper around it works."""
        flags = forward_flags(self.unwrapped(), use_cache=False)
        logits: Tensor = model(input_ids=input_ids, attention_mask=attention_mask, **flags).logits
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
        self.tally.add(chosen.detach(), rejected.detach())
        # Data-parallel wrappers average over the processes what is to be a sum.
        loss = losses.sum() / pairs * self.accelerator.num_processes
        return (loss, {"chosen": chosen, "rejected": rejected}) if return_outputs else loss

    def pair_losses(self, chosen: Tensor, rejected: Tensor, margin: Tensor | None) -> Tensor:
        """[pairs] losses with the settings of the run."""
        args = self.args
        return pairwise_loss(chosen, rejected, margin, args.center_rewards_coefficient, args.label_smoothing)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add accuracy and margin of the pairs trained on since the last log."""
        if "loss" in logs:
            logs |= self.tally.drain(self.accelerator)
        super().log(logs, start_time)

    # ---- Evaluation ---------------------------------------------------------------------------------------------

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Loss, accuracy, margin and score distribution of pairs, under the names of `score_metrics`."""
        return super().evaluate(self._evaluated(eval_dataset, "eval"), ignore_keys, metric_key_prefix)

    def predict(self, test_dataset: Any, ignore_keys: list[str] | None = None, metric_key_prefix: str = "test") -> Any:
        """Scores [pairs, 2] (chosen, rejected) and metrics of a preference dataset."""
        return super().predict(self._evaluated(test_dataset, "test"), ignore_keys, metric_key_prefix)

    def _evaluated(self, dataset: Any, name: str) -> Any:
        return self.pairs.read(dataset, name, known=self.eval_dataset)

    def evaluation_metric_names(self) -> list[str]:
        """What an evaluation will give, without the prefix."""
        return list(self.pair_metrics(EvalPrediction(np.zeros((2, 2)), np.zeros(2))))

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
        """As `RunTrainer.train`; then the scores are normalised (SPEC §2.1)."""
        result = super().train(resume_from_checkpoint, *args, **kwargs)
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
        fold_normalization(self.unwrapped(), float(scores.mean()), std)

    @torch.no_grad()
    def reference_scores(self) -> Tensor:
        """[≤ 1,024] float64 scores of chosen responses, evenly spread over the training pairs.

        Every process scores all of them: each needs the result, and where weights are sharded each must take part.
        """
        chosen = spread(self.train_dataset, REFERENCE_ROWS)
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
        config = self.unwrapped().config
        before = reward_shift_of(self.model)
        if self.args.normalize_scores is not None:
            config.reward_shift = before + float(self.reference_scores().mean())
        try:
            super()._save_checkpoint(model, trial)
        finally:
            config.reward_shift = before

    # ---- What the run needs to know of it -----------------------------------------------------------------------

    def start_report(self) -> str:
        """Pairs, model and plan."""
        return reward_report(self)

    def begin(self) -> None:
        """No numbers are left of a run before this one."""
        self.tally = PairTally()

    def shared_settings(self) -> dict[str, Any]:
        """Those that decide on pairs, batches and what the adapter is."""
        known = {"processes": self.args.world_size, "pairs": self.pairs_read}
        return resumed_settings(self.args) | known | model_settings(self.unwrapped())

    @cached_property
    def pairs_read(self) -> str:
        """How many pairs there are, and a hash of them: the next ones must be those that would have come."""
        return fingerprint(self.train_dataset)

    def extra_state(self) -> ExtraState:
        """What the next log will show of the steps since the last one, of each process."""
        return ExtraState({"pending": self.agreement.from_all(self.tally.state())})

    def restore(self, state: ExtraState) -> None:
        """Each process its own part."""
        self.tally.restore(state.facts["pending"][self.args.process_index], self.args.device)

    def save_weights(self, folder: Path, state_dict: Mapping[str, Tensor] | None) -> None:
        """The model, or its adapter and head."""
        save_reward_model(self.unwrapped(), folder, state_dict)

    def load_weights(self, checkpoint: Path) -> None:
        """All of them."""
        load_policy_weights(self.unwrapped(), checkpoint)

    def card_facts(self) -> CardFacts:
        """What pairs, settings and log say."""
        return reward_card(self)
