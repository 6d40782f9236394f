"""What the model card of a trained policy says, and that of a reward model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft import PeftModel

from ..algorithms import algorithm_named
from ..models.libraries import name_or_path
from ..models.quantization import quantization_arguments
from ..rewards.sources import WeightedSum
from ..settings.algorithm_checks import unread_settings
from ..settings.declarations import shown_settings
from ..settings.policy_gradient import PolicyGradientConfig
from .curves import CURVES
from .facts import ComparedRun, JudgedPairs, PolicyRun, Sample
from .model_card import CardFacts
from .samples import as_text

POLICY_REMARKS = """\
A language model trained by reinforcement learning: {algorithm} was to raise the score of its responses, less β times
the KL divergence from the model it started from. Sample at temperature {temperature:g}; other temperatures were
not trained for. A high score means that the reward source likes the text, not that the text is true or harmless.
"""

EXAMPLES, LONGEST_EXAMPLE = 32, 300  # prompts looked at for one to try, and its characters at most


def _settings(args: PolicyGradientConfig) -> dict[str, Any]:
    """The settings worth knowing, without those that the algorithm does not read."""
    unread = unread_settings(args, algorithm_named(args.algorithm))
    return {k: value for k, value in shown_settings(args).items() if k not in unread and value is not None}


def _rewards(reward: WeightedSum) -> str:
    """Each reward by its name, with its weight."""
    pairs = zip(reward.sources, reward.weights, strict=True)
    return ", ".join(f"{source.name} × {weight:g}" for source, weight in pairs)


def _samples(trainer: ComparedRun) -> list[Sample]:
    """The same prompts before and after training; while it goes on, some of the newest rollout. A chat is its turns."""
    rows = trainer.comparison.rows or trainer.samples
    texts = {"prompt", "completion", "before", "after"}
    return [
        {key: as_text(value) if key in texts else value for key, value in row.items() if value is not None}
        for row in rows
    ]


def _example(prompts: list[Any]) -> Any:
    """A prompt of the run's own data, one of moderate length where there is one."""
    short = [prompt for prompt in prompts if len(as_text(prompt)) <= LONGEST_EXAMPLE]
    chosen = (short or prompts)[0]
    if isinstance(chosen, str):
        return chosen[:LONGEST_EXAMPLE]
    return [{"role": turn["role"], "content": turn["content"]} for turn in chosen]


def _newest(trainer: PolicyRun, prefix: str) -> list[tuple[str, float]]:
    """The metrics with this prefix in the newest log that has them."""
    rows = [row for row in trainer.state.log_history if f"{prefix}score" in row]
    return [(k, v) for k, v in (rows or [{}])[-1].items() if k.startswith(prefix)]


def policy_card(trainer: ComparedRun) -> CardFacts:
    """The facts; `trainer.card` adds to them (`datasets`, `command`, `license`, `figures`, …)."""
    args, policy = trainer.args, trainer.unwrapped().policy
    shown = {f"{k} (last training rollout)": v for k, v in _newest(trainer, "objective/")}
    shown |= {f"{k} (evaluation prompts)": v for k, v in _newest(trainer, "eval_objective/")}
    left_out = {"prompts left out as too long": trainer.prompts.dropped} if trainer.prompts.dropped else {}
    facts: dict[str, Any] = {
        "model_name": args.hub_model_id or args.output_dir,
        "task": "text-generation",
        "method": "PPO" if args.algorithm == "ppo_clip" else args.algorithm,
        "library": "peft" if isinstance(policy, PeftModel) else "transformers",
        "base_model": name_or_path(policy.config) or None,
        "quantization": quantization_arguments(policy),
        "remarks": POLICY_REMARKS.format(algorithm=args.algorithm, temperature=args.temperature),
        "samples": _samples(trainer),
        "figures": [CURVES] if Path(str(args.output_dir), CURVES).exists() else [],  # not beside a checkpoint's card
        "example": _example(trainer.prompts.rows["prompt"][:EXAMPLES]),
        "metrics": shown,
        "hyperparameters": {"rewards": _rewards(trainer.reward)} | _settings(args) | left_out,
    }
    return CardFacts(**facts | trainer.card)


REWARD_REMARKS = """\
A reward model: it scores a prompt and a response, which ends with EOS, read at the last token. The score is the model's
one output minus reward_shift of its configuration, so that the chosen responses of the training data have mean 0.
Differences between scores of the same prompt are log-odds of being preferred.
"""


def reward_card(trainer: JudgedPairs) -> CardFacts:
    """What the model card of a reward model says; `trainer.card` adds to it (`datasets`, `command`, `license`, …)."""
    args, model = trainer.args, trainer.accelerator.unwrap_model(trainer.model)
    evaluations = [entry for entry in trainer.state.log_history if "eval_accuracy" in entry] or [{}]
    metrics = {k: v for k, v in evaluations[-1].items() if k.startswith("eval_") and "per_second" not in k}
    left_out = {f"pairs left out of {name} as too long": count for name, count in trainer.dropped.items()}
    facts: dict[str, Any] = {
        "model_name": args.hub_model_id or args.output_dir,
        "task": "text-classification",
        "method": "reward modelling",
        "library": "peft" if isinstance(model, PeftModel) else "transformers",
        "base_model": name_or_path(model.config) or None,
        "remarks": REWARD_REMARKS,
        "metrics": {name: value for name, value in metrics.items() if name != "eval_runtime"},
        "hyperparameters": shown_settings(args) | left_out,
    }
    return CardFacts(**facts | trainer.card)
