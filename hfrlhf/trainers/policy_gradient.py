"""The template of the family: ∇J = E[ Σ_t ∇log π_θ(a_t|s_t) · Ψ_t ], on the ordinary `transformers.Trainer`.

`make_experience` is a rollout in five stages; `compute_loss` is the objective; `RolloutLoop` keeps the clock between
them. What distinguishes one algorithm from another is its row in `ALGORITHMS`.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from ..algorithms import algorithm_named
from ..core.advantages import PSI, PsiOptions
from ..core.kl import kl_penalty
from ..core.kl_coefficients import PenaltyCoefficient, kl_coefficient
from ..core.masking import at_least_float32, masked_sum, masked_whiten
from ..core.policy_losses import POLICY_LOSSES, PolicyLossOptions, approx_kl, clip_fraction, ratio
from ..core.reward_shaping import RunningMoments, clip_scores, missing_eos, token_rewards
from ..core.value_losses import (
    CRITIC_TARGETS,
    clipped_squared_error,
    explained_variance,
    squared_error,
    value_clip_fraction,
)
from ..data.prompts import prepare_prompts
from ..experience import OLD_LOGPROBS, EvaluatedRollout, Experience, Prompts, Rollout, chunks_by_length, concatenate
from ..learning.evaluation import chosen_prompts, evaluate_each, evaluate_prompts, prepare_evaluation, prompt_sets
from ..learning.prompt_checks import check_prompts
from ..learning.reward_checks import ending_note
from ..learning.sampler_guard import SamplerGuard
from ..learning.start_checks import check_roles
from ..models.adapters import POLICY_ADAPTER, VALUE_ADAPTER, with_adapter
from ..models.anatomy.precision import mismatch_bound
from ..models.anatomy.vocabulary import check_vocabulary, tokens_drawn
from ..models.libraries import memory_tracker
from ..models.policy.actor_critic import ActorCritic, Evaluation
from ..models.policy.checks import check_stop_token, check_trainable, warn_of_other_stops
from ..models.policy.loading import load_policy, load_tokenizer, load_value_model
from ..models.policy.reference import make_reference
from ..models.policy.score_gradients import score_gradient_sq_norms
from ..models.savable import repair_generation_config
from ..reporting.cards import policy_card
from ..reporting.metrics import check_start, kl_per_response, rollout_metrics, sampler_mismatch, short_names, timed
from ..reporting.model_card import CardFacts
from ..reporting.progress import show_on_bar
from ..reporting.start_report import start_report, warn_of_warm_up
from ..rewards.completions import completions_of
from ..rewards.notes import RewardNotes
from ..rewards.source import RewardRun
from ..rewards.sources import Completions, reward_source
from ..rollout.contract import Generator, Sampling
from ..rollout.generators import check_generator, generator_of, sample
from ..runs.agreement import together
from ..runs.checkpoints import model_settings
from ..runs.guard import check_kl
from ..runs.processes import check_same_everywhere, check_strategy, fingerprint, sums_over_processes
from ..runs.state import ExtraState
from ..settings.algorithm_checks import check_value_model
from ..settings.declarations import resumed_settings
from ..settings.old_names import POLICY_ARGUMENTS
from ..settings.policy_gradient import PolicyGradientConfig
from ..settings.unknown_names import checks_names
from .rollout_loop import Cycle, RolloutLoop
from .run_trainer import RunTrainer
from .trainer_checks import check_trainer


class PolicyGradientTrainer(RolloutLoop, RunTrainer):
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
    STATE_FILE, TENSORS_FILE = "rollout_state.json", "rollout_buffer.safetensors"
    args: PolicyGradientConfig

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
        check_value_model(value_model, args.algorithm, self.algorithm)
        tokenizer = load_tokenizer(processing_class, model)
        policy = load_policy(model, quantization_config)
        check_vocabulary(policy, tokenizer, "policy")
        self._prepare_data(train_dataset, eval_dataset, tokenizer, args)
        vocabulary = tokens_drawn(policy, tokenizer), tokenizer
        policy = with_adapter(policy, peft_config, bool(args.gradient_checkpointing), args.seed)
        check_trainable(policy, "policy")
        self.reference = make_reference(policy, None if ref_model is model else ref_model, *vocabulary)
        self.reward = reward_source(
            *(reward_funcs, tokenizer, reward_processing_classes, args.reward_weights),
            *(args.max_tokens_per_micro_batch, policy, args.reward_timeout),
        )
        critic: Any = self.algorithm.critic
        if critic == "V":
            critic = load_value_model(value_model, policy, args.seed, *vocabulary)
        models = {"policy": policy, "reference": self.reference.model, "value model": critic}
        sets = {"train dataset": self.prompts, **prompt_sets(self.eval_prompts)}
        check_prompts(sets, models, tokenizer, args.max_completion_length)
        super().__init__(
            model=ActorCritic(policy, critic, args.temperature, vocabulary[0]),
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=tokenizer,
            callbacks=callbacks,
            optimizers=optimizers,
            optimizer_cls_and_kwargs=optimizer_cls_and_kwargs,
        )
        self._start(tokenizer, generator)

    def _prepare_data(self, train_dataset: Any, eval_dataset: Any, tokenizer: Any, args: PolicyGradientConfig) -> None:
        self.prompts = prepare_prompts(train_dataset, tokenizer, args.max_prompt_length, "train")
        self.eval_prompts = prepare_evaluation(eval_dataset, tokenizer, args.max_prompt_length)

    def _start(self, tokenizer: Any, generator: Generator | str | None) -> None:
        args = self.args
        check_strategy(self.accelerator, args)
        self.strategy.check()
        self.strategy.check_own_rates()
        prompts = {"train dataset": self.prompts} | prompt_sets(self.eval_prompts)
        self.reward.check_prompts(prompts, args.max_completion_length)
        rows = {name: these.rows for name, these in prompts.items()}
        check_same_everywhere(args, {"tokens of the train prompts": self.prompts.ids} | rows)
        self.notes = RewardNotes(lambda: self.state)  # a resume puts another state in its place
        self.reward.join(RewardRun(rows, self.notes, partial(together, self.accelerator)))
        stop = tokenizer.eos_token_id if args.stop_token_id is None else args.stop_token_id
        if stop is None:
            raise ValueError("the tokenizer has no EOS token; say which token ends a response by `stop_token_id`")
        check_stop_token(stop, tokenizer, self.model.policy)
        warn_of_other_stops(self.model, tokenizer, stop)
        self.sampling = Sampling(args.max_completion_length, args.temperature, stop, self.model.vocabulary)
        self.generator = generator_of(generator, args.generator, self.sampling)
        self.kl_coef = kl_coefficient(args.kl_coef, args.kl_target, args.kl_horizon)
        self.penalty = PenaltyCoefficient(1.0, args.penalty_target)
        self.moments = RunningMoments()
        for part in (self.reference, self.reward):
            part.to(args.device)
        if "gradient_norms" in self.algorithm.needs:
            self.strategy.check_whole(args.algorithm, "a gradient per response")
        if self.algorithm.critic == "Q":
            self.strategy.check_whole(args.algorithm, "single rows of the Q head, so")
        bound = mismatch_bound(self.model.policy, args.bf16 or args.fp16)
        self.sampler_guard = SamplerGuard(bound, args.max_skipped_updates)
        show_on_bar(self, short_names())
        self.start_loop()
        self._check_saving()
        self.roles_tried = False
        if next(self.model.policy.parameters()).device.type == args.device.type:
            self.try_roles()

    def _check_saving(self) -> None:
        models = self.unwrapped()
        if not isinstance(models.policy, PeftModel):  # an adapter is saved without generation settings
            repair_generation_config(models.policy)
        adapters = [POLICY_ADAPTER, *([VALUE_ADAPTER] if models.has_value_adapter else [])]
        roles = {"policy": models.policy, "value model": models.value_model}
        self.check_saving(roles, adapters)

    def try_roles(self) -> None:
        """What is assumed of the models, tried once, where they compute: some come there with the training."""
        if not self.roles_tried:
            read = partial(self.describe, prompts=self.prompts)
            half = self.args.bf16 or self.args.fp16
            models = self.unwrapped(), self.reference, self.reward.sources
            check_roles(*models, read, self.prompts, half, self.accelerator.autocast)
        self.roles_tried = True

    # ---- A rollout in five stages -------------------------------------------------------------------------------

    def make_experience(self, prompts: Prompts, address: tuple[int, ...]) -> Experience:
        """Responses, scores, log-probs and values, rewards, advantages: of all processes, the same on each."""
        with self.whole_model():
            self.try_roles()
            with timed(self.metrics, "time/generate"):
                rollout = self.generate(prompts, address)
            with timed(self.metrics, "time/score"):
                completions = self.describe(rollout, self.prompts)
                scores, parts = self.score(completions)
                if self.state.global_step == 0:
                    total, penalty = partial(sums_over_processes, self.accelerator), self.args.missing_eos_penalty
                    self.first_note = ending_note(self.reward.sources, completions, parts, penalty, total)
                evaluated = self.with_gradient_norms(self.evaluate_rollout(rollout, scores, parts))
        self.samples = completions.examples(scores, 4, self.notes.columns)
        self.metrics.update(self.notes.means())
        seen = self.gather(evaluated)
        self.sampler_guard.look(sampler_mismatch(seen), self.state.global_step)
        self.equal_scores.look(self.reward.names, seen.parts, self.samples, self.is_world_process_zero())
        return self.shape_and_estimate(seen)

    def generate(self, prompts: Prompts, address: tuple[int, ...]) -> Rollout:
        """One response per prompt from the policy, its randomness a function of the address."""
        self.model.eval()
        with self.accelerator.autocast():
            return sample(self.generator, self.model.policy, prompts.to(self.args.device), address, self.sampling)

    def score(self, completions: Completions) -> tuple[Tensor, Tensor]:
        """[B] weighted scores of the reward functions, and [B,S] what each of them said."""
        self.notes.begin()
        parts = {name: part.float().cpu() for name, part in self.reward.parts(completions).items()}
        with together(self.accelerator):
            scores = self.reward.combine(parts)
            self.notes.check(len(scores))
        return scores, torch.stack(list(parts.values()), -1)

    @torch.no_grad()
    def evaluate_rollout(self, rollout: Rollout, scores: Tensor, parts: Tensor) -> EvaluatedRollout:
        """Log-probs under π_old and π_ref, entropy and values of a rollout, by the training forward without dropout."""
        self.model.eval()
        chunks = chunks_by_length(rollout.lengths, self.args.max_tokens_per_micro_batch)
        seen = [self._evaluate_chunk(rollout.select(rows), scores=scores[rows], parts=parts[rows]) for rows in chunks]
        return concatenate(seen).select(torch.cat(chunks).argsort())

    def _evaluate_chunk(self, rollout: Rollout, **scored: Tensor) -> EvaluatedRollout:
        with self.accelerator.autocast():
            here = rollout.to(self.args.device)
            now: Evaluation = self.model(here, need_expected_values="expected_values" in self.algorithm.needs)
            ref_logprobs = self.reference.logprobs(here, self.args.temperature)
        none = torch.zeros_like(now.logprobs)
        seen: dict[str, Any] = {
            "logprobs": now.logprobs,
            "ref_logprobs": ref_logprobs,
            "entropy": now.entropy,
            "values": none if now.values is None else now.values,
            "bootstrap_values": none[:, 0] if now.bootstrap_values is None else now.bootstrap_values,
            "best_values": now.best_values,
            "expected_values": now.expected_values,
        }
        wide = {name: at_least_float32(tensor).cpu() for name, tensor in seen.items() if tensor is not None}
        return EvaluatedRollout(**rollout.tensors(), **scored, **wide)

    def with_gradient_norms(self, seen: EvaluatedRollout) -> EvaluatedRollout:
        """The same with ‖∇log π(τ)‖² of each response, for the algorithm that asks for it (SPEC §3.3)."""
        if "gradient_norms" not in self.algorithm.needs:
            return seen
        self.model.eval()
        with self.accelerator.autocast():
            norms = score_gradient_sq_norms(
                self.unwrapped(), seen.to(self.args.device), self.unwrapped().policy_parameters()
            )
        return dataclasses.replace(seen, grad_sq_norms=norms)

    def shape_and_estimate(self, seen: EvaluatedRollout) -> Experience:
        """Scores and KL to per-token rewards (SPEC §2.2), rewards and values to Ψ and returns (SPEC §3, 4)."""
        args, mask = self.args, seen.action_mask
        kl = kl_penalty(seen.logprobs, seen.ref_logprobs, args.estimator)
        in_reward = self.kl_coef.coef if args.kl_in == "reward" else 0.0
        rewards = token_rewards(self.shape_scores(seen), kl, in_reward, mask)
        shaped = masked_whiten(rewards, mask, shift_mean=False) if args.whiten_rewards else rewards
        psi = PSI[self.algorithm.psi](shaped, seen.values, mask, self.psi_options(seen))
        returns = CRITIC_TARGETS[self.algorithm.critic](psi, shaped, seen.values, mask, args.gamma)
        advantages = masked_whiten(psi, mask) if args.whiten_advantages else psi
        self.metrics.update(rollout_metrics(seen, rewards, self.kl_coef.coef, self.reward.names))
        if self.algorithm.critic:
            self.metrics.add("value/explained_variance", float(explained_variance(seen.values, returns, mask)))
        check_start(self, seen)
        step = self.state.global_step
        last_rollout = step - args.steps_per_rollout
        check_kl(float(kl_per_response(seen).mean()), args.kl_limit, step, last_rollout, self.folder)
        return Experience(
            **{name: getattr(seen, name) for name in Rollout.__dataclass_fields__},
            scores=seen.scores,
            old_logprobs=getattr(seen, OLD_LOGPROBS[args.old_logprobs]),
            ref_logprobs=seen.ref_logprobs,
            values=seen.values,
            rewards=shaped,
            advantages=advantages,
            returns=returns,
            kl=kl_per_response(seen),
        )

    def psi_options(self, seen: EvaluatedRollout) -> PsiOptions:
        """What the rows of `core.advantages.PSI` may read, of the settings and of the rollout."""
        args = self.args
        return PsiOptions(
            gamma=args.gamma,
            gae_lambda=args.gae_lambda,
            n_step=args.n_step,
            group_size=args.num_generations,
            bootstrap_values=torch.where(seen.terminated, 0.0, seen.bootstrap_values)
            if args.bootstrap_truncated
            else None,
            exclude_self=args.exclude_self,
            grad_sq_norms=seen.grad_sq_norms,
            best_values=seen.best_values,
            expected_values=seen.expected_values,
        )

    def shape_scores(self, seen: EvaluatedRollout) -> Tensor:
        """[B] scores after the missing-EOS penalty (SPEC §2.5), clipping and running normalisation (SPEC §2.6)."""
        args = self.args
        scores = missing_eos(seen.scores, seen.terminated, args.missing_eos_penalty or 0.0)
        if args.reward_clip is not None:
            scores = clip_scores(scores, args.reward_clip)
        if args.normalize_scores:
            self.moments.update(scores)
            scores = self.moments.normalize(scores)
        return scores

    def describe(self, rollout: Rollout, prompts: Any) -> Completions:
        """The rollout as reward functions see it: texts or chat messages, token ids, and the dataset's columns."""
        return completions_of(self.processing_class, rollout, prompts)

    # ---- The objective ------------------------------------------------------------------------------------------

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """L = Σ_tokens (L_policy + c_v·L_value − c_e·H + β·KL) / N, the KL only with `kl_in="loss"` (SPEC §6.7, 6.9).

        Args:
            model: the actor-critic, wrapped or not. inputs: fields of an `Experience`. return_outputs: also give the
            per-token quantities, for the metrics. num_items_in_batch: N over the optimiser step and all processes.
        """
        args, batch = self.args, Experience(**inputs)
        now = model(batch, need_entropy=args.ent_coef > 0, detach_trunk=self.only_critic_learns)
        policy_loss = POLICY_LOSSES[self.algorithm.loss]
        terms = {"policy": policy_loss(now.logprobs, batch.old_logprobs, batch.advantages, self.policy_loss_options)}
        weights = {"policy": 0.0 if self.policy_rests else 1.0, "value": args.vf_coef or 0.0}
        if now.values is not None:
            terms["value"] = self.value_loss(now.values, batch)
        if args.ent_coef > 0:
            terms["entropy"], weights["entropy"] = now.entropy, -args.ent_coef
        if args.kl_in == "loss":
            terms["kl"], weights["kl"] = kl_penalty(now.logprobs, batch.ref_logprobs, args.estimator), self.kl_coef.coef
        per_token = torch.stack([weights[name] * term for name, term in terms.items()]).sum(0)
        loss = masked_sum(per_token, batch.action_mask) / num_items_in_batch * self.accelerator.num_processes
        return (loss, self.observe(now, batch, terms)) if return_outputs else loss

    @property
    def policy_loss_options(self) -> PolicyLossOptions:
        """What the rows of `core.policy_losses.POLICY_LOSSES` read: settings, and the penalty as it is now."""
        return dataclasses.replace(self.args.policy_loss_options, penalty_coef=self.penalty.coef)

    def value_loss(self, values: Tensor, batch: Experience) -> Tensor:
        """[B,A] squared error of the values against the returns, clipped around the old values (SPEC §6.5)."""
        if not self.args.clip_range_value:
            return squared_error(values, batch.returns)
        return clipped_squared_error(values, batch.values, batch.returns, self.args.clip_range_value)

    @torch.no_grad()
    def observe(self, now: Evaluation, batch: Experience, terms: dict[str, Tensor]) -> dict[str, Tensor]:
        """Sums over response tokens of what the metrics show; padding is in none of them (DETAILS 37)."""
        per_token = {f"{name}/loss": term for name, term in terms.items()}
        per_token["policy/ratio"] = ratio(now.logprobs, batch.old_logprobs)
        per_token["deviation"] = (per_token["policy/ratio"] - 1).abs()
        per_token["policy/approx_kl"] = approx_kl(now.logprobs, batch.old_logprobs)
        per_token["policy/clip_fraction"] = clip_fraction(
            now.logprobs, batch.old_logprobs, batch.advantages, *self.args.clip_ranges
        )
        if now.values is not None and self.args.clip_range_value:
            per_token["value/clip_fraction"] = value_clip_fraction(
                now.values, batch.values, batch.returns, self.args.clip_range_value
            )
        return {name: masked_sum(at_least_float32(x), batch.action_mask) for name, x in per_token.items()}

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
        prompts = chosen_prompts(self, eval_dataset)
        if isinstance(prompts, dict):
            return evaluate_each(self, prompts, metric_key_prefix)
        memory_tracker(self).start()
        metrics = evaluate_prompts(self, prompts, metric_key_prefix)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        memory_tracker(self).stop_and_update_metrics(metrics)
        return metrics

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """Refused: the stock loop would feed prompts to the model as if they were labelled rows."""
        raise TypeError("a policy has no predict(); use trainer.evaluate(), or trainer.model.generate(...) for text")

    # ---- What the run needs to know of it -----------------------------------------------------------------------

    def start_report(self) -> str:
        """Roles, plan and memory."""
        warn_of_warm_up(self)
        return start_report(self)

    def begin(self) -> None:
        """No rollout, sums or numbers are left of a run before this one."""
        self.cycle = None
        self.metrics.pending.clear()
        self.sums.clear()

    def shared_settings(self) -> dict[str, Any]:
        """Those that decide on prompts, batches, random draws and what the adapters are."""
        known = {"processes": self.args.world_size, "prompts": self.prompts_read}
        return resumed_settings(self.args) | known | model_settings(self.unwrapped().policy)

    @cached_property
    def prompts_read(self) -> str:
        """How many prompts there are, and a hash of them: the next ones must be those that would have come."""
        return fingerprint(self.prompts.ids)

    def extra_state(self) -> ExtraState:
        """The experience in use, the coefficients and what the next log will show."""
        facts = {
            "stopped": self.cycle is not None and self.cycle.stopped,
            "kl_coef": self.kl_coef.state_dict(),
            "penalty": self.penalty.state_dict(),
            "moments": self.moments.state_dict(),
            "pending": self.metrics.pending,
            "samples": self.samples,
            "before": self.comparison.state_dict(),
            "spent": self.cycle.spent if self.cycle else 0.0,
        }
        in_use = self.cycle is not None and self.step_in_cycle != 0
        return ExtraState(facts, self.cycle.experience.tensors() if self.cycle is not None and in_use else {})

    def restore(self, state: ExtraState) -> None:
        """Go on in the middle of a rollout, or before the next."""
        facts = state.facts
        self.kl_coef.load_state_dict(facts["kl_coef"])
        self.penalty.load_state_dict(facts["penalty"])
        self.moments.load_state_dict(facts["moments"])
        self.metrics.pending = facts["pending"]
        self.samples = facts["samples"]
        self.comparison.load_state_dict(facts.get("before"))
        self.cycle = None
        if self.step_in_cycle != 0:
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
