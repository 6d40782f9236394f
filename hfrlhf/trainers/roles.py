"""Who plays which role of a run: from what a user passes to models, rewards and prompts that go together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator
from datasets import Dataset
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from ..algorithms import Algorithm
from ..data.prompts import Prepared, PromptSet, prepare_prompts, prompt_sets
from ..learning.evaluation import prepare_evaluation
from ..learning.start_checks import check_prompts
from ..models.adapters import POLICY_ADAPTER, VALUE_ADAPTER, with_adapter
from ..models.anatomy.vocabulary import check_vocabulary, tokens_drawn
from ..models.policy.actor_critic import ActorCritic
from ..models.policy.checks import check_trainable
from ..models.policy.loading import load_policy, load_tokenizer, load_value_model
from ..models.policy.reference import Reference, make_reference
from ..models.savable import repair_generation_config
from ..models.strategies.data_parallel import DataParallel
from ..rewards.sources import WeightedSum, reward_source
from ..runs.processes import check_same_everywhere, check_strategy
from ..settings.algorithm_checks import check_value_model
from ..settings.policy_gradient import PolicyGradientConfig


@dataclass(frozen=True)
class Passed:
    """What a trainer was given for its roles, as its constructor's arguments of the same names."""

    model: Any
    reward_funcs: Any
    train_dataset: Any
    eval_dataset: Any
    processing_class: Any
    reward_processing_classes: Any
    value_model: Any
    ref_model: Any
    peft_config: Any
    quantization_config: Any


@dataclass(frozen=True)
class Roles:
    """Policy and critic, reference, rewards, and the prompts that they all can read."""

    actor_critic: ActorCritic
    reference: Reference
    reward: WeightedSum
    tokenizer: PreTrainedTokenizerBase
    prompts: PromptSet
    eval_prompts: Prepared


def cast_roles(passed: Passed, row: Algorithm, args: PolicyGradientConfig) -> Roles:
    """Load what is named, check that it goes together, and make the reference before anything is wrapped or trained.

    Args:
        row: whose critic is needed.

    Raises:
        TypeError, ValueError: what was passed cannot work; the message says what it was, and what to do.
    """
    check_value_model(passed.value_model, args.algorithm, row)
    tokenizer = load_tokenizer(passed.processing_class, passed.model)
    policy = load_policy(passed.model, passed.quantization_config)
    check_vocabulary(policy, tokenizer, "policy")
    prompts = prepare_prompts(passed.train_dataset, tokenizer, args.max_prompt_length, "train")
    eval_prompts = prepare_evaluation(passed.eval_dataset, tokenizer, args.max_prompt_length)
    vocabulary = tokens_drawn(policy, tokenizer), tokenizer
    policy = with_adapter(policy, passed.peft_config, bool(args.gradient_checkpointing), args.seed)
    check_trainable(policy, "policy")
    # A `ref_model` that is the policy itself, in memory, would train with it: the copy of its start is meant.
    reference = make_reference(policy, None if passed.ref_model is passed.model else passed.ref_model, *vocabulary)
    reward = reward_source(
        passed.reward_funcs,
        tokenizer,
        passed.reward_processing_classes,
        args.reward_weights,
        args.max_tokens_per_micro_batch,
        policy,
        args.reward_timeout,
    )
    critic: Any = row.critic
    if critic == "V":
        critic = load_value_model(passed.value_model, policy, args.seed, *vocabulary)
    sets = {"train dataset": prompts, **prompt_sets(eval_prompts)}
    readers = {"policy": policy, "reference": reference.model, "value model": critic}
    check_prompts(sets, readers, tokenizer, args.max_completion_length)
    actor_critic = ActorCritic(policy, critic, args.temperature, vocabulary[0])
    return Roles(actor_critic, reference, reward, tokenizer, prompts, eval_prompts)


def check_run(
    roles: Roles, row: Algorithm, args: PolicyGradientConfig, strategy: DataParallel, accelerator: Accelerator
) -> dict[str, Dataset]:
    """What can only be told once the processes and their devices are known; the models that judge go to their device.

    Returns:
        the rows of prompts that reward functions will see, by the name of their dataset.

    Raises:
        ValueError: this strategy cannot run the algorithm, a reward model cannot read the prompts, or the processes
            have different settings or data.
    """
    check_strategy(accelerator, args)
    strategy.check()
    strategy.check_own_rates()
    sets = {"train dataset": roles.prompts} | prompt_sets(roles.eval_prompts)
    roles.reward.check_prompts(sets, args.max_completion_length)
    rows = {name: prompts.rows for name, prompts in sets.items()}
    check_same_everywhere(args, {"tokens of the train prompts": roles.prompts.ids} | rows)
    if "gradient_norms" in row.needs:
        strategy.check_whole(args.algorithm, "a gradient per response")
    if row.critic == "Q":
        strategy.check_whole(args.algorithm, "single rows of the Q head, so")
    for part in (roles.reference, roles.reward):
        part.to(args.device)
    return rows


def saved_parts(actor_critic: ActorCritic) -> tuple[dict[str, Any], list[str]]:
    """The models that a save writes, by their roles, and the policy's adapters, once what can be mended is mended."""
    policy = actor_critic.policy
    if not isinstance(policy, PeftModel):  # an adapter is saved without generation settings
        repair_generation_config(policy)
    adapters = [POLICY_ADAPTER, *([VALUE_ADAPTER] if actor_critic.has_value_adapter else [])]
    return {"policy": policy, "value model": actor_critic.value_model}, adapters
