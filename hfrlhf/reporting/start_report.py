"""What a run is about to do, said before it does it: of a policy, and at the end of the file of a reward model."""

from __future__ import annotations

import math
import warnings

from peft import PeftModel
from torch import nn

from ..models.policy.actor_critic import ActorCritic
from ..settings.policy_gradient import PolicyGradientConfig
from ..settings.reward import RewardConfig
from .facts import PairsRun, Planned, PolicyRun
from .plain_text import printable
from .screen import RunWarning

MIB = 2**20
FEW_ROLLOUTS = 3  # a run with less of them is hardly meant to train


def start_report(trainer: PolicyRun) -> str:
    """Trained parameters per role, episodes, rollouts, optimiser steps, tokens per rollout, memory at least needed."""
    args, actor_critic = trainer.args, trainer.unwrapped()
    rollouts = planned_rollouts(trainer)
    each = args.episodes_per_rollout
    longest = max(map(len, trainer.prompts.ids)) + args.max_completion_length
    lines = [
        f"{args.algorithm} on {_prompts(trainer)}",
        *(f"  {role:<10} {text}" for role, text in roles(trainer, actor_critic).items()),
        f"  plan       {rollouts * each:,} episodes = {counted(rollouts, 'rollout')} × {each} "
        f"({args.num_generations} per prompt); {counted(trainer.planned_steps(), 'optimiser step')} = rollouts × "
        f"{_epochs(args)} × {_mini_batches(args)} of {args.mini_batch_size}",
        f"  tokens     at most {each * longest:,} per rollout, {args.max_tokens_per_micro_batch:,} "
        f"per forward; {args.world_size} process{'es' if args.world_size > 1 else ''} on {args.device}",
        f"  memory     about {estimated_bytes(trainer) / MIB:,.0f} MiB per process for parameters, gradients and "
        "optimiser; activations come on top",
    ]
    return printable("\n".join([*lines, *_short_run(args, trainer.planned_steps())]))


def _short_run(args: PolicyGradientConfig, steps: int) -> list[str]:
    """A line about a run of less than `FEW_ROLLOUTS`, which often comes of taking optimiser steps for rollouts."""
    each = args.steps_per_rollout
    if steps >= FEW_ROLLOUTS * each:
        return []
    rollouts = f"{steps / each:.2g} rollout{'' if steps == each else 's'}"
    asked = f"max_steps={args.max_steps}" if args.max_steps > 0 else f"num_train_epochs={args.num_train_epochs:g}"
    return [
        f"  ATTENTION  {asked} is {rollouts} only: a rollout takes {each} optimiser step{'s' if each > 1 else ''} = "
        f"{_epochs(args)} × {_mini_batches(args)}, and max_steps counts those. "
        f"100 rollouts are max_steps={100 * each}"
    ]


def _prompts(trainer: PolicyRun) -> str:
    count, dropped = len(trainer.prompts.ids), trainer.prompts.dropped
    left_out = f" ({dropped:,} longer than {trainer.args.max_prompt_length} tokens left out)" if dropped else ""
    return f"{count:,} prompt{'s' if count != 1 else ''}{left_out}"


def _epochs(args: PolicyGradientConfig) -> str:
    if not args.value_epochs:
        return f"{args.num_ppo_epochs} epoch{'' if args.num_ppo_epochs == 1 else 's'}"
    return f"({args.num_ppo_epochs} + {args.value_epochs} of the critic alone) epochs"


def _mini_batches(args: PolicyGradientConfig) -> str:
    return f"{args.num_mini_batches} mini-batch{'' if args.num_mini_batches == 1 else 'es'}"


def counted(count: int, what: str) -> str:
    """A number of things: "1 rollout", "2,000 rollouts"."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def first_rollout_report(kl: float, ratio: float, note: str = "") -> str:
    """The two numbers that must be 0 and 1 before the first update, and what else there is to say."""
    numbers = f"first rollout: KL to the reference {kl:.6f} nats per response, ratio π_θ/π_old {ratio:.6f}"
    return printable("\n".join(filter(None, (numbers, note))))


def planned_rollouts(trainer: Planned) -> int:
    """Rollouts of the whole run; the last may be used in part."""
    return math.ceil(trainer.planned_steps() / trainer.args.steps_per_rollout)


def warn_of_warm_up(trainer: Planned) -> None:
    """Say so where the critic's warm-up takes the whole run: a critic can be trained alone, but it should be meant."""
    rollouts, warm_up = planned_rollouts(trainer), trainer.args.critic_warmup_rollouts
    if 0 < rollouts <= warm_up:
        warnings.warn(
            f"`critic_warmup_rollouts={warm_up}` takes all {rollouts} rollouts of the run, so the policy never trains; "
            "lower it, or raise `max_steps` or `num_train_epochs`, unless only the critic is to learn",
            RunWarning,
            stacklevel=3,
        )


def roles(trainer: PolicyRun, actor_critic: ActorCritic) -> dict[str, str]:
    """Each role of PPO, what plays it, and how much of it is trained."""
    policy, base = actor_critic.policy, parameters_of(actor_critic.policy)
    trained = sum(p.numel() for p in actor_critic.policy_parameters())
    critic = sum(p.numel() for _, p in actor_critic.named_value_parameters() if p.requires_grad)
    return {
        "policy": f"{type(policy).__name__}, {trained:,} of {base:,} parameters trained",
        "reference": trainer.reference.source,
        "critic": f"{_critic(trainer, actor_critic)}, {critic:,} parameters trained" if critic else "none",
        "reward": ", ".join(source.described for source in trainer.reward.sources),
    }


def parameters_of(model: nn.Module) -> int:
    """Parameters of a model; PEFT knows how many a packed 4-bit matrix stands for."""
    if isinstance(model, PeftModel):
        return int(model.get_nb_trainable_parameters()[1])
    return sum(int(p.numel()) for p in model.parameters())


def _critic(trainer: PolicyRun, actor_critic: ActorCritic) -> str:
    if actor_critic.has_value_adapter:
        return "an adapter and a head on the policy's base"
    if actor_critic.value_model is not None:
        return "a model of its own"
    return f"{'a Q head' if trainer.algorithm.critic == 'Q' else 'a head'} on the policy's trunk"


def estimated_bytes(trainer: PolicyRun) -> int:
    """Bytes of every model once, of gradients and Adam's two moments for what is trained."""
    rewards = [model for source in trainer.reward.sources for model in source.own_models]
    models = [trainer.unwrapped(), trainer.reference.model, *rewards]
    parameters = {id(p): p for model in models for p in model.parameters()}.values()
    held = sum(int(p.nbytes) for p in parameters)
    trained = sum(int(p.nbytes) for p in parameters if p.requires_grad)
    return held + 3 * trained


def reward_report(trainer: PairsRun) -> str:
    """Pairs, the model and how much of it is trained, optimiser steps, processes and device."""
    args, model = trainer.args, trainer.accelerator.unwrap_model(trainer.model)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    lines = [
        f"reward model on {_pairs(trainer)}",
        f"  model      {type(model).__name__}, {trained:,} of {parameters_of(model):,} parameters trained",
        f"  plan       {_plan(args, trainer.planned_steps())}",
        f"  tokens     at most {trainer.max_length:,} per prompt and response; {args.world_size} "
        f"process{'es' if args.world_size > 1 else ''} on {args.device}",
    ]
    return printable("\n".join(lines))


def _pairs(trainer: PairsRun) -> str:
    count, dropped = len(trainer.train_dataset), trainer.dropped.get("train", 0)
    left_out = f" ({dropped:,} longer than {trainer.max_length:,} tokens left out)" if dropped else ""
    return f"{count:,} pair{'s' if count != 1 else ''}{left_out}"


def _plan(args: RewardConfig, steps: int) -> str:
    each = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    epochs = args.num_train_epochs
    asked = "max_steps" if args.max_steps > 0 else f"{epochs:g} epoch{'s' if epochs != 1 else ''}"
    return f"{steps:,} optimiser step{'s' if steps != 1 else ''} of {each:,} pairs = {asked}"
