"""The clock between rollouts and optimiser steps, kept by `transformers.Trainer` itself.

`state.global_step` is the only clock. With M = num_mini_batches and E epochs of the policy, K of the critic alone:
rollout r = step // ((E + K)·M), place in its cycle k = step % ((E + K)·M), epoch and mini-batch = divmod(k, M). The
Trainer asks for the micro-batches of each optimiser step (`get_batch_samples`): that is where a rollout is made and
where a mini-batch comes from.

Everything random is a function of (seed, rollout, episode): a resumed run reads the same prompts, draws the same tokens
and shuffles alike, whatever the number of processes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers.utils import logging

from ..core.masking import LOSS_ITEMS, masked_sum
from ..core.policy_losses import approx_kl
from ..core.randomness import permutation
from ..data.prompts import RolloutSampler, prompt_batch
from ..experience import Experience, Prompts, chunks_by_length, concatenate
from ..learning.optimizer import has_modes, is_class
from ..learning.reward_checks import EqualScores
from ..models.libraries import clear_device_cache, gather_object, gradients_stay
from ..reporting.comparison import Comparison
from ..reporting.curves import plot_curves
from ..reporting.metrics import Metrics, check_first_ratio, evaluation_metric_names
from ..reporting.run_files import RunFiles, curves_title
from ..reporting.screen import say
from ..reporting.start_report import first_rollout_report
from ..runs.guard import Batch
from .callbacks import CycleEnd

logger = logging.get_logger(__name__)

# The second word of every address, so that no two uses share their random numbers.
SAMPLING, SHUFFLING, EVALUATION, COMPARISON = 1, 2, 3, 4


@dataclass
class Cycle:
    """A rollout in use: its experience, and whether `target_kl` has put the policy to rest until the next one."""

    experience: Experience
    stopped: bool = False
    started: float = 0.0  # when the first update began, on the clock of time.perf_counter
    spent: float = 0.0  # seconds that sampling and scoring took


class RolloutLoop:
    """Mixin before `RunTrainer`: rollouts, mini-batches, two learning rates."""

    has_named_groups = True
    evaluation_metric_names = staticmethod(evaluation_metric_names)
    cycle: Cycle | None = None

    def start_loop(self: Any) -> None:
        """Set up the clockwork; at the end of the trainer's construction."""
        args = self.args
        self.metrics = Metrics()
        self.samples: list[dict[str, Any]] = []  # a few completions of the newest rollout, with their scores
        self.cycle = None
        self.equal_scores, self.first_note = EqualScores(), ""  # what is noticed of the rewards
        self.sums: dict[str, Tensor] = {}  # of the optimiser step in progress, over its response tokens
        self.value_rate: dict[str, float] = {}  # the critic's learning rate of the last step, for the log
        seed = args.seed if args.data_seed is None else args.data_seed
        self.sampler = RolloutSampler(len(self.prompts.ids), args.prompts_per_rollout, seed)
        self.rollouts_per_epoch = math.ceil(len(self.prompts.ids) / args.prompts_per_rollout)
        self.comparison = Comparison(self, COMPARISON)
        self.files = RunFiles(self, plot_curves, lambda: curves_title(self), self.comparison)
        for callback in (CycleEnd(self), self.files):
            self.add_callback(callback)

    # ---- The clock ----------------------------------------------------------------------------------------------

    @property
    def rollout_index(self: Any) -> int:
        """r: how many rollouts are behind us."""
        return self.state.global_step // self.args.steps_per_rollout

    @property
    def step_in_cycle(self: Any) -> int:
        """k: how many optimiser steps of the current rollout are behind us."""
        return self.state.global_step % self.args.steps_per_rollout

    @property
    def episodes_so_far(self: Any) -> int:
        """Episodes of all rollouts made so far; the one in use counts whole."""
        return math.ceil(self.state.global_step / self.args.steps_per_rollout) * self.args.rollout_batch_size

    @property
    def warming_up(self: Any) -> bool:
        """Whether only the critic learns yet."""
        return self.rollout_index < self.args.critic_warmup_rollouts

    @property
    def only_critic_learns(self: Any) -> bool:
        """Whether this step is the critic's alone: in the warm-up, and in the value epochs after the policy's."""
        return self.warming_up or self.step_in_cycle >= self.args.policy_steps_per_rollout

    @property
    def policy_rests(self: Any) -> bool:
        """Whether the policy stays as it is in this step."""
        return self.only_critic_learns or (self.cycle is not None and self.cycle.stopped)

    def get_train_dataloader(self: Any) -> DataLoader:
        """Keeps time only: as many entries as an epoch (one pass over the prompts) has micro-batches."""
        steps = self.rollouts_per_epoch * self.args.steps_per_rollout
        return DataLoader(range(steps * self.args.gradient_accumulation_steps), batch_size=1)  # type: ignore[arg-type]

    def get_batch_samples(
        self: Any, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Tensor]], int]:
        """This process's micro-batches of the next optimiser step, and the step's items over all processes."""
        for _ in range(num_batches):
            next(epoch_iterator, None)
        if self.step_in_cycle == 0:
            self.comparison.begin()
            experience = self.make_experience(*self.training_prompts(self.rollout_index))
            self.after_rollout(experience)
        experience = self.cycle.experience
        rows = self.mini_batch_rows(len(experience))
        items = LOSS_ITEMS[self.args.loss_normalization](experience.action_mask[rows])
        return [experience.select(r).tensors() for r in self.deal(rows)], items

    def training_prompts(self: Any, rollout: int) -> tuple[Prompts, tuple[int, ...]]:
        """This process's prompts of a rollout, and the address of its random draws."""
        rows = self.sampler.indices(rollout).repeat_interleave(self.args.num_generations)
        mine = torch.arange(len(rows)).tensor_split(self.args.world_size)[self.args.process_index]
        return prompt_batch(self.prompts, rows[mine], mine), (self.args.seed, SAMPLING, rollout)

    def evaluation_prompts(self: Any, prompts: Any) -> tuple[Prompts, tuple[int, ...]]:
        """This process's share of the evaluation prompts, and the address of their draws, always the same."""
        if len(prompts.ids) < self.args.world_size:
            raise ValueError(f"{len(prompts.ids)} evaluation prompts for {self.args.world_size} processes: give more")
        mine = torch.arange(len(prompts.ids)).tensor_split(self.args.world_size)[self.args.process_index]
        return prompt_batch(prompts, mine, mine), (self.args.seed, EVALUATION)

    def gather(self: Any, record: Any) -> Any:
        """The records of all processes as one, in the order of their episodes, the same on every process."""
        if self.args.world_size == 1:
            return record
        return concatenate([type(record)(**fields) for fields in gather_object([record.tensors()])])

    def after_rollout(self: Any, experience: Experience) -> None:
        """Start the cycle of a new rollout."""
        spent = sum(self.metrics.pending.get(f"time/{part}", [0.0])[-1] for part in ("generate", "score"))
        self.cycle = Cycle(experience, started=time.perf_counter(), spent=spent)

    def mini_batch_rows(self: Any, episodes: int) -> Tensor:
        """Rows of the experience that the current optimiser step uses: a part of this epoch's permutation."""
        epoch, mini_batch = divmod(self.step_in_cycle, self.args.num_mini_batches)
        order = permutation(episodes, (self.args.seed, SHUFFLING, self.rollout_index, epoch))
        return order.chunk(self.args.num_mini_batches)[mini_batch]

    def deal(self: Any, rows: Tensor) -> list[Tensor]:
        """This process's G parts of a mini-batch: equal numbers of rows, about equal numbers of tokens for everyone."""
        piles = self.args.world_size * self.args.gradient_accumulation_steps
        by_length = rows[self.cycle.experience.lengths[rows].argsort(descending=True, stable=True)].view(-1, piles)
        by_length[1::2] = by_length[1::2].flip(1)  # there and back again, as cards are dealt in a snake
        first = self.args.process_index * self.args.gradient_accumulation_steps
        return [by_length[:, first + i] for i in range(self.args.gradient_accumulation_steps)]

    # ---- An optimiser step --------------------------------------------------------------------------------------

    def micro_batch(self: Any, model: Any, inputs: dict[str, Tensor], items: Any) -> Tensor:
        """Forward and backward of one micro-batch, a chunk of similar lengths at a time."""
        model.train()
        self.optimizer_mode("train")
        self._empty_cache()
        total = torch.zeros((), device=self.args.device)
        if self.whole_model_rests():
            return total
        batch = Experience(**self._prepare_inputs(inputs))
        chunks = chunks_by_length(batch.lengths, self.args.max_tokens_per_micro_batch)
        count = self.strategy.passes(len(chunks))
        for i in range(count):
            idle = i >= len(chunks)  # the shortest rows once more, for nothing
            chunk = batch.select(chunks[-1] if idle else chunks[i])
            with nullcontext() if i == count - 1 else gradients_stay(self.accelerator, model):
                total += self._chunk_step(model, chunk, items, idle)
        return total

    def _empty_cache(self: Any) -> None:
        """Free the device's cached memory in the steps that `torch_empty_cache_steps` names."""
        every = self.args.torch_empty_cache_steps
        if every is not None and self.state.global_step % every == 0:
            clear_device_cache()

    def _chunk_step(self: Any, model: Any, chunk: Experience, num_items: Any, idle: bool = False) -> Tensor:
        loss, sums = self.compute_loss(model, chunk.tensors(), return_outputs=True, num_items_in_batch=num_items)
        if idle:
            loss, sums = loss * 0, {}
        self.strategy.backward(loss, self.accelerator.sync_gradients)
        for name, value in sums.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        return loss.detach()

    def whole_model_rests(self: Any) -> bool:
        """Whether nothing at all learns in this step: the cycle was stopped, and the critic's trunk with it."""
        return self.trunk_rests and not self.unwrapped().critic_is_apart

    @property
    def trunk_rests(self: Any) -> bool:
        """Whether `target_kl` has stopped a step of policy and critic together; the critic's own passes go on."""
        return self.cycle.stopped and not self.only_critic_learns

    def end_of_step(self: Any, loss: float) -> bool:
        """After the last micro-batch of a step: metrics, `target_kl`, and no gradient for a policy that rests."""
        self.metrics.add("loss", self._mean_over_processes(loss))
        critic = [g["lr"] for g in self.optimizer.param_groups if g.get("name", "").startswith("value/")]
        self.value_rate = {"value_learning_rate": critic[0]} if critic else {}
        took_part = bool(self.sums)
        if took_part:
            self._note(self._token_means())
        self.sums = {}
        if took_part and self.strategy.owns_gradients:
            self.strategy.step(self.resting_groups())
        elif self.policy_rests:
            # Adam moves what has a gradient of 0 too; None is what leaves a weight as it is.
            self.unwrapped().stop_policy_gradients(whole=self.trunk_rests)
        if self.step_in_cycle == self.args.steps_per_rollout - 1:
            self._finish_cycle()
        return took_part

    def batch_for_inspection(self: Any) -> Batch:
        """The mini-batch of the step in progress: its experience, prompts and completions."""
        experience = self.cycle.experience
        batch = experience.select(self.mini_batch_rows(len(experience)))
        decode = self.processing_class.batch_decode
        texts = {"prompts": decode(batch.prompt_lists()), "completions": decode(batch.completion_lists())}
        return batch.tensors(), {"texts": texts}

    def resting_groups(self: Any) -> list[str]:
        """The parameter groups that stay as they are in this step, where an engine owns their gradients."""
        trunk = self.trunk_rests and not self.unwrapped().critic_is_apart
        rests = {"policy": self.policy_rests, "value": self.policy_rests and trunk}
        names = [group["name"] for group in self.optimizer.param_groups]
        return [name for name in names if rests[name.split("/")[0]]]

    def _finish_cycle(self: Any) -> None:
        """The last step of a rollout: β moves by the rollout's KL (SPEC §2.4), not while only the critic learns."""
        if not self.warming_up:
            self.kl_coef.update(float(self.cycle.experience.kl.mean()), len(self.cycle.experience))

    def _mean_over_processes(self: Any, value: float) -> float:
        return float(self.accelerator.reduce(torch.tensor(value, device=self.args.device), "mean"))

    def _token_means(self: Any) -> dict[str, float]:
        """Means over the response tokens of this optimiser step on all processes."""
        rows = self.mini_batch_rows(len(self.cycle.experience))
        count = max(1, int(self.cycle.experience.action_mask[rows].sum()))
        sums = {name: self.accelerator.reduce(value, "sum") for name, value in self.sums.items()}
        return {name: float(value) / count for name, value in sums.items()}

    def _note(self: Any, means: dict[str, float]) -> None:
        args, kl, deviation = self.args, means["policy/approx_kl"], means.pop("deviation")
        alone = self.step_in_cycle >= args.policy_steps_per_rollout  # the policy's part of the cycle is over
        self.metrics.update({name: x for name, x in means.items() if not (alone and name.startswith("policy/"))})
        if self.step_in_cycle == 0 and not has_modes(
            self.optimizer
        ):  # with modes, steps start from other weights than rollouts
            is_half = args.bf16 or args.fp16 or self.unwrapped().policy.dtype.itemsize < 4
            check_first_ratio(deviation, is_half)
        if self.state.global_step == 0 and self.is_world_process_zero():
            kl_at_start = self.metrics.pending["objective/kl"][0]
            say(first_rollout_report(kl_at_start, means["policy/ratio"], self.first_note))
        if args.target_kl is not None and not alone and kl > 1.5 * args.target_kl and not self.cycle.stopped:
            self.cycle.stopped = True
            self.metrics.add("policy/stopped_at", self.step_in_cycle)

    def _note_times(self: Any) -> None:
        update = time.perf_counter() - self.cycle.started
        self.metrics.add("time/update", update)
        tokens = int(self.cycle.experience.action_mask.sum())
        self.metrics.update({"tokens": tokens, "seconds": update + self.cycle.spent})

    @torch.no_grad()
    def after_cycle(self: Any) -> None:
        """After the last optimiser step of a rollout: its times; the penalty of PPO-Penalty follows the policy's move.

        The mean over all tokens of the rollout of [(ρ − 1) − log ρ], with the policy as it is now (SPEC §6.4).
        """
        self._note_times()
        warmed_up = self.rollout_index > self.args.critic_warmup_rollouts  # the counter is at the next one already
        if "penalty" not in self.algorithm.needs or not warmed_up:
            return
        self.model.eval()
        seen = self.cycle.experience
        mine = seen.select(torch.arange(len(seen)).tensor_split(self.args.world_size)[self.args.process_index])
        total = torch.zeros((), device=self.args.device)
        with self.whole_model():
            for rows in chunks_by_length(mine.lengths, self.args.max_tokens_per_micro_batch):
                chunk = mine.select(rows).to(self.args.device)
                with self.accelerator.autocast():
                    logprobs = self.model(chunk, need_entropy=False).logprobs
                total += masked_sum(approx_kl(logprobs, chunk.old_logprobs), chunk.action_mask)
        kl = float(self.accelerator.reduce(total, "sum")) / max(1, int(seen.action_mask.sum()))
        self.metrics.update({"policy/kl_after": kl, "policy/penalty_coef": self.penalty.coef})
        self.penalty.update(kl)

    def whole_model(self: Any) -> AbstractContextManager:
        """Every parameter at hand on every process, for a rollout or an evaluation; all enter and leave together."""
        self.optimizer_mode("eval")
        return self.strategy.whole(self.model_wrapped, self.args.device)

    # ---- Two learning rates -------------------------------------------------------------------------------------

    def get_optimizer_cls_and_kwargs(self: Any, args: Any, model: Any = None) -> tuple[Any, dict[str, Any]]:
        """The optimiser passed as a class, or the one that `optim` names, over `parameter_groups`.

        Raises:
            ValueError: an optimiser that brings its own parameter groups, and would ignore ours.
        """
        cls, kwargs = super().get_optimizer_cls_and_kwargs(args, model)  # type: ignore[misc]
        passed = self.given_optimizer is not None
        if not is_class(cls) or (not passed and {"params", "model", "optimizer_dict"} & kwargs.keys()):
            name = getattr(cls, "__name__", cls) if passed else f"optim={getattr(args.optim, 'value', args.optim)!r}"
            raise ValueError(
                f"{name} makes its own parameter groups, so that policy and critic could not have "
                "their own learning rates; use 'adamw_torch', 'adamw_bnb_8bit' or another plain optimiser"
            )
        rates = kwargs.get("lr", args.learning_rate), kwargs.get("weight_decay", args.weight_decay)
        return cls, kwargs | {"params": self.parameter_groups(model or self.model, *rates)}

    def parameter_groups(self: Any, model: Any, rate: float, weight_decay: float) -> list[dict[str, Any]]:
        """Policy and critic × decay and no decay, each with its learning rate."""
        decays = set(self.get_decay_parameter_names(model))
        critic = {name for name, _ in self.unwrapped().named_value_parameters()}
        rates = {"policy": rate, "value": self.args.value_learning_rate or rate}
        groups: dict[tuple[str, bool], list[Any]] = {}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                groups.setdefault(("value" if name in critic else "policy", name in decays), []).append(parameter)
        return [
            {"params": groups[key], "lr": rates[key[0]], "weight_decay": weight_decay if key[1] else 0.0}
            | {"name": f"{key[0]}/{'decay' if key[1] else 'no_decay'}"}
            for key in sorted(groups, key=lambda k: (k[0] != "policy", not k[1]))
        ]

    def log(self: Any, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add what is pending to a training log: the means since the last one, over all processes."""
        if "loss" in logs:
            pending = self.metrics.drain()
            logs["loss"] = pending.pop("loss", logs["loss"])
            logs |= pending
            logs |= self.value_rate
            logs["episode"] = self.episodes_so_far
        super().log(logs, start_time)  # type: ignore[misc]
