"""The template of the family: ∇J = E[ Σ_t ∇log π_θ(a_t|s_t) · Ψ_t ], on the ordinary `transformers.Trainer`.

The Trainer asks for the micro-batches of each optimiser step: `get_batch_samples` is where a rollout is made, by
`learning.experience_maker`, and where a mini-batch comes from; `micro_batch` takes it through `learning.objective`.
Who learns in which step is the clock's to say (`learning.clock`), and the life of the run is `RunTrainer`'s. What
distinguishes one algorithm from another is its row in `ALGORITHMS`.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..algorithms import algorithm_named
from ..core.kl_coefficients import AdaptiveKLController, FixedKLCoefficient
from ..core.masking import LOSS_ITEMS
from ..data.prompts import PromptSet, RolloutSampler, prompt_batch
from ..experience import Experience, Prompts, Rollout
from ..learning import optimizer as duties
from ..learning.batches import COMPARISON, SAMPLING, Share, mini_batch
from ..learning.clock import Clock, Cycle, Moment, Phase
from ..learning.coefficients import Coefficients
from ..learning.evaluation import Evaluator
from ..learning.experience_maker import ExperienceMaker
from ..learning.objective import Weights, objective, observe, total
from ..learning.start_checks import check_roles
from ..learning.update import Tally, Update
from ..learning.watch import SamplerGuard, Start, Watch
from ..models.anatomy.precision import mismatch_bound
from ..models.libraries import clear_device_cache, memory_tracker, speed_metrics
from ..models.policy.actor_critic import ActorCritic
from ..models.policy.checks import stop_token_of
from ..reporting.cards import policy_card
from ..reporting.comparison import Comparison
from ..reporting.curves import plot_curves
from ..reporting.metrics import evaluation_metric_names, short_names
from ..reporting.model_card import CardFacts
from ..reporting.progress import show_on_bar
from ..reporting.run_files import RunFiles, curves_title
from ..reporting.start_report import first_rollout_report, start_report, warn_of_warm_up
from ..rewards.checks import EqualScores, ending_note
from ..rewards.completions import Completions
from ..rewards.notes import RewardNotes
from ..rewards.source import RewardRun
from ..rollout.contract import Generator, Sampling
from ..rollout.generators import check_generator, generator_of
from ..runs.agreement import together
from ..runs.checkpoints import model_settings
from ..runs.guard import Batch
from ..runs.processes import fingerprint, sums_over_processes
from ..runs.state import ExtraState
from ..settings.declarations import resumed_settings
from ..settings.old_names import POLICY_ARGUMENTS
from ..settings.policy_gradient import PolicyGradientConfig
from ..settings.unknown_names import checks_names
from .callbacks import StepEnd
from .roles import Passed, cast_roles, check_run, saved_parts
from .run_trainer import RunTrainer
from .trainer_checks import check_trainer


class PolicyGradientTrainer(RunTrainer):
    """Trains a causal language model on rewards with the algorithm that `args.algorithm` names.

    Args:
        model: policy: Hub name, local path, or a transformers/peft model. It is trained in place.
        reward_funcs: reward model (name, path, object), function, or a list, summed with `args.reward_weights`. A
            function `f(prompts, completions, completion_ids, **columns) -> list[float | None]` (sync or async) gets the
            keywords it names: `completions` are texts, or for chats lists of one message, `[{"role": "assistant",
            "content": …}]`; `completion_ids` end with the stop token; `columns` are the dataset's others. As with TRL,
            it may name `trainer_state`, `log_extra` and `log_metric`, too (docs/REWARDS.md).
        args: settings.
        train_dataset: column `prompt` (text or chat messages); other columns reach the reward functions, `tools` and
            `chat_template_kwargs` the chat template.
        eval_dataset: as `train_dataset`, or a dict of such by name; sampled and scored by `evaluate()`.
        processing_class: tokenizer; by default the one saved with the model.
        reward_processing_classes: tokenizers of the reward models, where they are not saved with them.
        value_model: None for a head on the policy's trunk; the word "adapter" (or a PEFT configuration) for an adapter
            of its own on the same base; else name, path or model of a critic of its own.
        ref_model: π_ref (name, path or model) where it is not the policy training starts from.
        callbacks, optimizers, optimizer_cls_and_kwargs: as for `transformers.Trainer`; an optimiser must hold all that
            trains, the trainer's own heads and adapters too, so a class with its settings is the simpler way.
        peft_config: train this adapter instead of all weights; the reference is then the policy with its adapter off.
        quantization_config: load the policy quantised (needs `peft_config`).
        generator: who samples, in place of `args.generator`: any object with `generate` (`rollout/contract.py`).

    Raises:
        TypeError, ValueError: at construction, for input that cannot work; the message says what was passed and what
            to do.
    """

    CONFIG = PolicyGradientConfig
    STATE_FILE = "rollout_state.json"
    TENSORS_FILE = "rollout_buffer.safetensors"
    has_named_groups = True
    policy_moves = True  # whether the optimiser moves the policy
    args: PolicyGradientConfig
    evaluation_metric_names = staticmethod(evaluation_metric_names)

    @checks_names(POLICY_ARGUMENTS, PolicyGradientConfig)
    def __init__(
        self,
        model: Any,
        reward_funcs: Any,
        args: PolicyGradientConfig,
        train_dataset: Any,
        eval_dataset: Any = None,
        processing_class: Any = None,
        reward_processing_classes: Any = None,
        value_model: Any = None,
        ref_model: Any = None,
        callbacks: list[Any] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        peft_config: Any = None,
        quantization_config: Any = None,
        optimizer_cls_and_kwargs: tuple[Any, dict[str, Any]] | None = None,
        generator: Generator | str | None = None,
    ):
        check_trainer(args, self.CONFIG, type(self).__name__)
        check_generator(generator, args.generator)
        self.algorithm = algorithm_named(args.algorithm)
        data = train_dataset, eval_dataset, processing_class, reward_processing_classes
        passed = Passed(model, reward_funcs, *data, value_model, ref_model, peft_config, quantization_config)
        roles = cast_roles(passed, self.algorithm, args)
        self.reference, self.reward = roles.reference, roles.reward
        self.prompts, self.eval_prompts = roles.prompts, roles.eval_prompts
        super().__init__(
            model=roles.actor_critic,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=roles.tokenizer,
            callbacks=callbacks,
            optimizers=optimizers,
            optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
        )
        rows = check_run(roles, self.algorithm, args, self.strategy, self.accelerator)
        self._set_up_rollouts(roles.actor_critic, rows, generator)
        self._set_up_steps(roles.actor_critic)
        self._listen()
        self.check_saving(*saved_parts(roles.actor_critic))
        if next(roles.actor_critic.policy.parameters()).device.type == args.device.type:
            self.try_roles()

    def _set_up_rollouts(
        self, actor_critic: ActorCritic, rows: dict[str, Dataset], generator: Generator | str | None
    ) -> None:
        """Who samples and scores, and which prompts a rollout takes."""
        args = self.args
        self.notes = RewardNotes(lambda: self.state)  # a resume puts another state in its place
        self.reward.join(RewardRun(rows, self.notes, partial(together, self.accelerator)))
        stop = stop_token_of(self.processing_class, actor_critic.policy, args.stop_token_id)
        self.sampling = Sampling(args.max_completion_length, args.temperature, stop, actor_critic.vocabulary)
        self.generator = generator_of(generator, args.generator, self.sampling)
        seed = args.seed if args.data_seed is None else args.data_seed
        self.sampler = RolloutSampler(len(self.prompts.ids), args.prompts_per_rollout, seed)
        self.rollouts_per_epoch = math.ceil(len(self.prompts.ids) / args.prompts_per_rollout)
        self.coefficients = Coefficients.of(args)
        self.equal_scores, self.first_note = EqualScores(), ""  # what is noticed of the rewards
        self.samples: list[dict[str, Any]] = []  # a few completions of the newest rollout, with their scores
        self.roles_tried = False

    def _set_up_steps(self, actor_critic: ActorCritic) -> None:
        """Clock, share of the work, and what a step does."""
        args, half = self.args, self.args.bf16 or self.args.fp16
        self.clock = Clock.of(args, self.policy_moves)
        self.share = Share(args.process_index, args.world_size, args.gradient_accumulation_steps)
        self.tally, budget = Tally(), args.max_tokens_per_micro_batch
        self.update = Update(self.accelerator, self.strategy, budget, self.unwrapped, self.tally)
        sampler = SamplerGuard(mismatch_bound(actor_critic.policy, half), args.max_skipped_updates)
        shared = self.reference.model is actor_critic.policy
        start = Start(self.reference.source, self.reference.exact, shared, half)
        half = half or actor_critic.policy.dtype.itemsize < 4
        looks = sampler, self.tally, start, half, lambda: duties.has_modes(self.optimizer)
        self.watch = Watch(args, self.accelerator, *looks)
        self.evaluator = Evaluator(self.eval_prompts, lambda: self.maker, self.share, args)
        self.cycle: Cycle | None = None
        self.value_rate: dict[str, float] = {}  # the critic's learning rate of the last step, for the log

    def _listen(self) -> None:
        """Who is told of the run's steps."""
        show_on_bar(self, short_names())
        self.comparison = Comparison(self, COMPARISON)
        self.files = RunFiles(self, plot_curves, lambda: curves_title(self), self.comparison)
        self.add_callback(StepEnd(self.after_step))
        self.add_callback(self.files)

    @property
    def maker(self) -> ExperienceMaker:
        """Makes experience of prompts, with the collaborators as they are now."""
        return ExperienceMaker(
            lambda: self.model,
            self.unwrapped,
            self.generator,
            self.sampling,
            self.reward,
            self.reference,
            self.notes,
            self.processing_class,
            self.prompts,
            self.algorithm,
            self.args,
            self.coefficients,
            self.accelerator,
        )

    @property
    def kl_coef(self) -> AdaptiveKLController | FixedKLCoefficient:
        """β, as it is now: `.coef` (SPEC §2.4)."""
        return self.coefficients.kl

    @property
    def moment(self) -> Moment:
        """Which rollout, epoch and mini-batch the next optimiser step belongs to, and who learns in it."""
        return self.clock.at(self.state.global_step, self.cycle is not None and self.cycle.stopped)

    def try_roles(self) -> None:
        """What is assumed of the models, tried once, where they compute: some come there with the training."""
        if not self.roles_tried:
            read = partial(self.describe, prompts=self.prompts)
            half = self.args.bf16 or self.args.fp16
            models = self.unwrapped(), self.reference, self.reward.sources
            check_roles(*models, read, self.prompts, half, self.accelerator.autocast)
        self.roles_tried = True

    # ---- A rollout ----------------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Keeps time only: as many entries as an epoch (one pass over the prompts) has micro-batches."""
        steps = self.rollouts_per_epoch * self.clock.steps
        return DataLoader(range(steps * self.args.gradient_accumulation_steps), batch_size=1)  # type: ignore[arg-type]

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Tensor]], int]:
        """This process's micro-batches of the next optimiser step, and the step's items over all processes."""
        for _ in range(num_batches):
            next(epoch_iterator, None)
        if self.moment.k == 0:
            self.comparison.begin()
            self.begin_cycle(*self.make_experience(*self.training_prompts(self.moment.rollout)))
        experience, rows = self.in_use.experience, self.step_rows()
        items = LOSS_ITEMS[self.args.loss_normalization](experience.action_mask[rows])
        mine = self.share.micro_batches(rows, experience.lengths)
        return [experience.select(part).tensors() for part in mine], items

    def training_prompts(self, rollout: int) -> tuple[Prompts, tuple[int, ...]]:
        """This process's prompts of a rollout, and the address of its random draws."""
        rows = self.sampler.indices(rollout).repeat_interleave(self.args.num_generations)
        mine = self.share.of(torch.arange(len(rows)))
        return prompt_batch(self.prompts, rows[mine], mine), (self.args.seed, SAMPLING, rollout)

    def make_experience(self, prompts: Prompts, address: tuple[int, ...]) -> tuple[Experience, float]:
        """The experience of all processes, the same on each, and the seconds that it took to sample and score."""
        with self.whole_model():
            self.try_roles()
            experience, report = self.maker.make(prompts, address)
            if self.state.global_step == 0:
                total, said = partial(sums_over_processes, self.accelerator), (report.completions, report.parts)
                self.first_note = ending_note(self.reward.sources, *said, self.args.missing_eos_penalty, total)
        self.samples = report.samples
        is_first = self.state.global_step == 0 and self.is_in_train and self.trainings == 1
        self.watch.rollout(report, self.state.global_step, self.folder, is_first)
        speaks = self.is_world_process_zero()
        self.equal_scores.look(self.reward.names, report.seen.parts, self.samples, speaks)
        return experience, report.seconds

    def begin_cycle(self, experience: Experience, spent: float = 0.0) -> None:
        """From here on steps are taken on an experience, which took some seconds to sample and score."""
        self.cycle = Cycle(experience, started=time.perf_counter(), spent=spent)
        self.after_rollout(experience)

    def after_rollout(self, experience: Experience) -> None:
        """Called with each new experience, before the first step on it; for subclasses and scripts."""

    @property
    def in_use(self) -> Cycle:
        """The rollout that steps are taken on."""
        assert self.cycle is not None, "there is no rollout before the first optimiser step"
        return self.cycle

    def step_rows(self) -> Tensor:
        """Rows of the experience that the current optimiser step uses."""
        return mini_batch(len(self.in_use.experience), self.moment, self.args.num_mini_batches, self.args.seed)

    def generate(self, prompts: Prompts, address: tuple[int, ...]) -> Rollout:
        """One response per prompt from the policy, its randomness a function of the address."""
        return self.maker.generate(prompts, address)

    def describe(self, rollout: Rollout, prompts: PromptSet) -> Completions:
        """The rollout as reward functions see it: texts or chat messages, token ids, and the dataset's columns."""
        return self.maker.describe(rollout, prompts)

    def whole_model(self) -> AbstractContextManager[None]:
        """Every parameter at hand on every process, for a rollout or an evaluation; all enter and leave together."""
        self.optimizer_mode("eval")
        return self.strategy.whole(self.model_wrapped, self.args.device)

    # ---- An optimiser step --------------------------------------------------------------------------------------

    def micro_batch(self, model: nn.Module, inputs: dict[str, Tensor], items: Tensor | int | None) -> Tensor:
        """Forward and backward of one micro-batch, a chunk of similar lengths at a time."""
        model.train()
        self.optimizer_mode("train")
        every = self.args.torch_empty_cache_steps
        if every is not None and self.state.global_step % every == 0:
            clear_device_cache()
        if self.update.nothing_learns(self.moment):
            return torch.zeros((), device=self.args.device)
        batch = Experience(**self._prepare_inputs(inputs))
        loss_of = partial(self.compute_loss, model, return_outputs=True, num_items_in_batch=items)
        return self.update.micro_batch(model, batch, loss_of)

    def compute_loss(
        self,
        model: Any,
        inputs: Experience | Mapping[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """L = Σ_tokens (L_policy + c_v·L_value − c_e·H + β·KL) / N, the KL only with `kl_in="loss"` (SPEC §6.7, 6.9).

        Args:
            model: the actor-critic, wrapped or not. inputs: an `Experience`, or its fields. return_outputs: also give
            sums over tokens, for the metrics. num_items_in_batch: N over the optimiser step and all processes.
        """
        args, moment = self.args, self.moment
        batch = inputs if isinstance(inputs, Experience) else Experience(**inputs)
        now = model(batch, need_entropy=args.ent_coef > 0, detach_trunk=moment.phase is Phase.CRITIC)
        terms = objective(now, batch, self.algorithm, args, self.coefficients.penalty.coef)
        weights = Weights(0.0 if moment.policy_rests else 1.0, args.vf_coef or 0.0, args.ent_coef, self.kl_coef.coef)
        summed = total(terms, weights, batch.action_mask)
        # Data-parallel wrappers average over the processes what is to be a sum.
        loss = summed / num_items_in_batch * self.accelerator.num_processes
        return (loss, observe(now, batch, terms, args)) if return_outputs else loss

    def end_of_step(self, loss: float) -> bool:
        """After the last micro-batch of a step: metrics, `target_kl`, and no gradient for what rests."""
        took_part, moment = bool(self.tally.sums), self.moment
        self.tally.close(moment, int(self.in_use.experience.action_mask[self.step_rows()].sum()), loss)
        if self.state.global_step == 0 or self.args.target_kl is not None or self.tally.is_full:
            step = self.watch.settle()[-1]
            if self.state.global_step == 0 and took_part:
                kl = self.watch.metrics.pending["objective/kl"][0]
                self.agreement.say(first_rollout_report(kl, step.means["policy/ratio"], self.first_note))
            if self.watch.is_too_far(step, self.in_use.stopped):
                self.cycle = dataclasses.replace(self.in_use, stopped=True)
        assert self.optimizer is not None
        groups = self.optimizer.param_groups
        critic = [group["lr"] for group in groups if group.get("name", "").startswith("value/")]
        self.value_rate = {"value_learning_rate": critic[0]} if critic else {}
        self.update.leave_at_rest(self.moment, groups, took_part)
        if moment.is_last and not moment.warming_up:
            self.coefficients.follow(self.in_use.experience)
        return took_part

    def batch_for_inspection(self) -> Batch:
        """The mini-batch of the current step: its experience, prompts and completions."""
        batch = self.in_use.experience.select(self.step_rows())
        decode = self.processing_class.batch_decode
        texts = {"prompts": decode(batch.prompt_lists()), "completions": decode(batch.completion_lists())}
        return batch.tensors(), {"texts": texts}

    def after_step(self) -> None:
        """The step counter has moved on: at 0 in the next cycle, the last one is over."""
        if self.moment.k == 0:
            self.after_cycle()

    def after_cycle(self) -> None:
        """After the last step on a rollout: its times; the penalty of PPO-Penalty follows the policy's move."""
        experience, update = self.in_use.experience, time.perf_counter() - self.in_use.started
        tokens = int(experience.action_mask.sum())
        self.watch.metrics.update({"time/update": update, "tokens": tokens, "seconds": update + self.in_use.spent})
        warmed_up = not self.clock.at(self.state.global_step - 1).warming_up
        if "penalty" in self.algorithm.needs and warmed_up:
            self.model.eval()
            with self.whole_model():
                mine = experience.select(self.share.of(torch.arange(len(experience))))
                kl = self.update.moved_by(self.model, mine, tokens)
            self.watch.metrics.update({"policy/kl_after": kl, "policy/penalty_coef": self.coefficients.penalty.coef})
            self.coefficients.penalty.update(kl)

    def parameter_groups(self, model: nn.Module, rate: float, weight_decay: float) -> list[dict[str, Any]]:
        """Policy and critic × decay and no decay, each with its learning rate."""
        critic = {name for name, _ in self.unwrapped().named_value_parameters()}
        rates = {"policy": rate, "value": self.args.value_learning_rate or rate}
        decays = set(self.get_decay_parameter_names(model))
        return duties.policy_and_critic_groups(model, critic, decays, rates, weight_decay)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add what is pending to a training log: the means since the last one, over all processes."""
        if "loss" in logs:
            self.watch.settle()
            pending = self.watch.metrics.drain()
            logs["loss"] = pending.pop("loss", logs["loss"])
            logs |= pending
            logs |= self.value_rate
            logs["episode"] = self.clock.episodes_after(self.state.global_step)
        super().log(logs, start_time)

    # ---- Evaluation ---------------------------------------------------------------------------------------------

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Sample one response for each evaluation prompt, always with the same draws, and score them.

        Args:
            eval_dataset: in place of the trainer's: a dataset, a dict of them (their names go into those of the
                metrics), or the name of one in the trainer's dict.

        Raises:
            ValueError: there is no evaluation dataset.
        """
        prompts = self.evaluator.chosen(eval_dataset)
        if isinstance(prompts, dict):
            return self._evaluate_each(prompts, metric_key_prefix)
        memory_tracker(self).start()
        started = time.time()
        with self.whole_model():
            metrics = self.evaluator.metrics(prompts, metric_key_prefix, self._after_part)
        # How long it took stands in the log alone: the metrics are the same whenever they are asked for.
        self.log(metrics | speed_metrics(metric_key_prefix, started, num_samples=len(prompts)))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        memory_tracker(self).stop_and_update_metrics(metrics)
        return metrics

    def _evaluate_each(self, prompts: dict[str, PromptSet], prefix: str) -> dict[str, float]:
        """The metrics of each set, its name in theirs, as the stock Trainer has it."""
        metrics: dict[str, float] = {}
        for name, part in prompts.items():
            metrics |= self.evaluate(self.evaluator.name_of(name, part), metric_key_prefix=f"{prefix}_{name}")
        return metrics

    def _after_part(self) -> None:
        self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """Refused: the stock loop would feed prompts to the model as if they were labelled rows."""
        raise TypeError("a policy has no predict(); use trainer.evaluate(), or trainer.model.generate(...) for text")

    # ---- What the run needs to know of it -----------------------------------------------------------------------

    def start_report(self) -> str:
        """Roles, plan and memory."""
        warn_of_warm_up(self)
        return start_report(self)

    def begin(self) -> None:
        """No rollout, sums or numbers are left of a run before this one, and its settings are those of now."""
        self._set_up_steps(self.unwrapped())

    def shared_settings(self) -> dict[str, Any]:
        """Of the settings those that decide on prompts, batches and random draws."""
        known = {"processes": self.args.world_size, "prompts": self.prompts_read}
        return resumed_settings(self.args) | known | model_settings(self.unwrapped().policy)

    @cached_property
    def prompts_read(self) -> str:
        """How many prompts there are, and a hash of them: the next ones must be those that would have come."""
        return fingerprint(self.prompts.ids)

    def extra_state(self) -> ExtraState:
        """The experience in use, the coefficients and what the next log will show."""
        self.watch.settle()  # all processes are here: a checkpoint holds the numbers of all
        facts = self.coefficients.state_dict() | {
            "stopped": self.cycle is not None and self.cycle.stopped,
            "pending": self.watch.metrics.pending,
            "samples": self.samples,
            "before": self.comparison.state_dict(),
            "spent": self.cycle.spent if self.cycle else 0.0,
        }
        in_use = self.cycle is not None and self.moment.k != 0
        return ExtraState(facts, self.in_use.experience.tensors() if in_use else {})

    def restore(self, state: ExtraState) -> None:
        """Go on in the middle of a rollout, or before the next."""
        facts = state.facts
        self.coefficients.load_state_dict(facts)
        self.watch.metrics.restore(facts["pending"])
        self.samples = facts["samples"]
        self.comparison.load_state_dict(facts.get("before"))
        self.cycle = None
        if self.moment.k != 0:
            now = time.perf_counter()
            self.cycle = Cycle(Experience(**state.tensors), facts["stopped"], now, facts.get("spent", 0.0))

    def save_weights(self, folder: Path, state_dict: Mapping[str, Tensor] | None) -> None:
        """The policy, and beside it the critic."""
        self.unwrapped().save_pretrained(folder, state_dict)

    def load_weights(self, checkpoint: Path) -> None:
        """Policy and critic."""
        self.unwrapped().load_saved(checkpoint)

    def card_facts(self) -> CardFacts:
        """What policy, rewards and log say."""
        return policy_card(self)
