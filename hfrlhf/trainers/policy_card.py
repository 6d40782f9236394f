"""What the model card of a trained policy says."""

from __future__ import annotations

from typing import Any

from peft import PeftModel

from ..hub.model_card import CardFacts

REMARKS = """\
A language model trained by reinforcement learning: {algorithm} raised the score of its responses while β times the KL
divergence from the model it started from was subtracted. Sample at temperature {temperature:g}; other temperatures were
not trained for. A high score means that the reward source likes the text, not that the text is true or harmless.
"""

_SHOWN = (
    *("algorithm", "learning_rate", "value_learning_rate", "rollout_batch_size", "num_generations", "num_ppo_epochs"),
    *("num_mini_batches", "max_completion_length", "temperature", "missing_eos_penalty", "kl_coef", "kl_target"),
    *("gamma", "gae_lambda", "clip_range", "clip_range_value", "vf_coef", "ent_coef", "whiten_advantages", "seed"),
)


def policy_card(trainer: Any) -> CardFacts:
    """The facts; `trainer.card` adds to them (`datasets`, `command`, `license`, `figures`, …)."""
    args, policy = trainer.args, trainer.unwrapped().policy
    rollouts = [row for row in trainer.state.log_history if "objective/score" in row]
    shown = {k: v for k, v in (rollouts or [{}])[-1].items() if k.startswith("objective/") or k == "episode"}
    facts: dict[str, Any] = {
        "model_name": args.hub_model_id or args.output_dir,
        "task": "text-generation",
        "method": "PPO" if args.algorithm.startswith("ppo") else args.algorithm,
        "library": "peft" if isinstance(policy, PeftModel) else "transformers",
        "base_model": policy.config._name_or_path or None,
        "remarks": REMARKS.format(algorithm=args.algorithm, temperature=args.temperature),
        "samples": trainer.samples,
        "metrics": shown,
        "hyperparameters": {name: getattr(args, name) for name in _SHOWN},
    }
    return CardFacts(**facts | trainer.card)
