"""A real trainer on a tiny real model, for tests of what it promises."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from hfrlhf.settings.policy_gradient import PPOConfig
from hfrlhf.trainers.ppo import PPOTrainer

PROMPTS = [
    *("the film", "a story", "the actor is very", "bad", "a dull film and", "the story was"),
    *("good actor", "the the", "fine .", "a very very good story", "is", "but the film"),
]

CLOCKS = ("_per_second", "_runtime")  # names of what the clock measures end so


def prompts(n: int = 12) -> Dataset:
    """Short prompts of different lengths."""
    return Dataset.from_dict({"prompt": (PROMPTS * n)[:n], "number": list(range(n))})


def reward(completions: list[str], **_: Any) -> list[float]:
    """A score that differs between responses: how often a word of praise occurs, minus a little per word."""
    return [text.count("good") + text.count("fine") - 0.1 * len(text.split()) for text in completions]


def config(folder: Path, **changes: Any) -> PPOConfig:
    """Quick settings: eight episodes of at most six tokens per rollout."""
    settings = {
        "output_dir": str(folder / "run"),
        "rollout_batch_size": 8,
        "num_ppo_epochs": 2,
        "num_mini_batches": 2,
        "max_completion_length": 6,
        "learning_rate": 1e-2,
        "max_steps": 4,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "save_curves": False,  # half a second each
        "seed": 3,
    }
    return PPOConfig(**(settings | changes))


def trainer(model: Any, folder: Path, tokenizer: Any = None, **changes: Any) -> PPOTrainer:
    """A trainer; `changes` are the trainer's own arguments or the configuration's fields."""
    own = {
        "train_dataset",
        "eval_dataset",
        "reward_funcs",
        "value_model",
        "ref_model",
        "callbacks",
        "reward_processing_classes",
        "generator",
    }
    own |= {"peft_config", "quantization_config"}
    given = {name: changes.pop(name) for name in list(changes) if name in own}
    arguments = {"reward_funcs": reward, "train_dataset": prompts()} | given
    return PPOTrainer(model, args=config(folder, **changes), processing_class=tokenizer, **arguments)


def load(folder: Path) -> tuple[Any, Any]:
    """A fresh copy of the tiny model, with its tokenizer."""
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def parameters(built: PPOTrainer) -> dict[str, torch.Tensor]:
    """A copy of everything the actor-critic holds."""
    return {name: p.detach().clone() for name, p in built.unwrapped().named_parameters()}


def training_logs(built: PPOTrainer) -> list[dict[str, float]]:
    """The logs of training without what depends on the clock."""
    return [row for row in whole_log(built) if "loss" in row]


def whole_log(built: Any) -> list[dict[str, float]]:
    """Every log of a run, its end and its evaluations included, without what depends on the clock."""
    logs = built.state.log_history
    return [{k: v for k, v in row.items() if not k.startswith("time/") and not k.endswith(CLOCKS)} for row in logs]
