"""The stages that train: a language model from letters, a reward model from pairs, a policy by PPO.

They take folders and texts, and write folders. Nothing here, nor anything it imports, can reach the gold preference:
what PPO maximises is the reward model's opinion alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import GenerationConfig, LlamaForCausalLM
from trl import SFTConfig, SFTTrainer

from ..data.prompts import prepare_prompts, prompt_batch
from ..experience import Rollout
from ..models.policy.loading import load_policy, load_tokenizer
from ..reporting.curves import plot_curves
from ..reporting.progress import show_on_bar
from ..rollout.generation import TransformersGenerator
from ..settings.policy_gradient import RewardConfig
from ..trainers.family import family_of
from ..trainers.reward import RewardTrainer
from . import world

Settings = Mapping[str, Any]  # a section of demo.yaml
# What every stage shares: the demo keeps each stage's last model, reports by itself, and shows a bar.
COMMON: dict[str, Any] = {
    "report_to": "none",
    "save_strategy": "no",
    "disable_tqdm": False,
    "dataloader_pin_memory": False,
}
# Our own trainers would leave the files of a run; the report has them all in one place.
OURS: dict[str, Any] = COMMON | {"save_curves": False, "save_logs": False}


def train_language_model(folder: Path, prompts: Sequence[str], settings: Settings) -> None:
    """SFT: a model of the village's size learns its letters, and to end them with `<eos>`.

    Args:
        folder: written: model and tokenizer. prompts: one letter is written for each.
        settings: all of demo.yaml; sections `model`, `sft` and `ppo.max_completion_length` are read.
    """
    trainer = language_model_trainer(folder, prompts, settings)
    show_on_bar(trainer, {"loss": "loss"})
    trainer.train()
    trainer.save_model()


def language_model_trainer(folder: Path, prompts: Sequence[str], settings: Settings) -> SFTTrainer:
    """TRL's trainer of a new model on prompts and their letters."""
    seed, tokenizer = settings["seed"], world.make_tokenizer()
    letters = Dataset.from_dict({"prompt": list(prompts), "completion": world.write_letters(prompts, seed)})
    args = SFTConfig(output_dir=str(folder), seed=seed, **COMMON, **settings["sft"])
    model = new_model(tokenizer, settings["model"], settings["ppo"]["max_completion_length"], seed)
    return SFTTrainer(model=model, args=args, train_dataset=letters, processing_class=tokenizer)


def new_model(tokenizer: Any, shape: Settings, max_new_tokens: int, seed: int) -> LlamaForCausalLM:
    """A model with random weights, a function of the seed; it samples by default as PPO does."""
    config = world.model_config(tokenizer, **shape)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    special = {name: getattr(config, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    model.generation_config = GenerationConfig(do_sample=True, top_k=0, max_new_tokens=max_new_tokens, **special)
    return model


def train_reward_model(folder: Path, sft: Path, pairs: Dataset, test_pairs: Dataset, settings: Settings) -> float:
    """A reward model from preference pairs, on the SFT model's trunk; returns its accuracy on the test pairs.

    Args:
        folder: written: reward model and tokenizer. settings: all of demo.yaml.
    """
    args = RewardConfig(output_dir=str(folder), seed=settings["seed"], **OURS, **settings["reward"])
    trainer = RewardTrainer(model=str(sft), args=args, train_dataset=pairs, eval_dataset=test_pairs)
    trainer.interruption.say_nothing_of_resuming()
    trainer.train()
    trainer.save_model()
    return trainer.evaluate()["eval_accuracy"]


def train_policy(
    folder: Path, sft: Path, reward_model: Path, prompts: Sequence[str], settings: Settings
) -> list[dict[str, float]]:
    """PPO, or what `settings` say, from the SFT model on the reward model's scores; returns the log, a row per rollout.

    Args:
        folder: written: policy, critic and tokenizer; `curves.png` goes beside it. settings: all of demo.yaml.
    """
    config, trainer_class = family_of(settings["ppo"].get("algorithm", "ppo_clip"))
    options = {"algorithm": "ppo_clip", "log_completions": False} | OURS | settings["ppo"]
    args = config(output_dir=str(folder), seed=settings["seed"], **options)
    trainer = trainer_class(
        model=str(sft),
        reward_funcs=str(reward_model),
        args=args,
        train_dataset=Dataset.from_dict({"prompt": list(prompts)}),
    )
    trainer.card["example"] = prompts[0]
    trainer.interruption.say_nothing_of_resuming()
    trainer.train()
    trainer.save_model()
    if trainer.is_world_process_zero():
        plot_curves(
            trainer.state.log_history, folder.parent / "curves.png", f"{method(settings)} on the village's letters"
        )
    return trainer.state.log_history


def method(settings: Settings) -> str:
    """What the policy is trained by, in a word."""
    algorithm = settings["ppo"].get("algorithm", "ppo_clip")
    return "PPO" if algorithm == "ppo_clip" else algorithm


def respond(folder: Path, prompts: Sequence[str], address: tuple[int, ...], max_completion_length: int) -> Rollout:
    """One response of a saved model to each prompt, at temperature 1; a function of the address."""
    model, tokenizer = load_policy(str(folder)), load_tokenizer(None, str(folder))
    prepared = prepare_prompts(Dataset.from_dict({"prompt": list(prompts)}), tokenizer, None)
    rows = torch.arange(len(prompts))
    generator = TransformersGenerator(max_completion_length, 1.0, tokenizer.eos_token_id)
    return generator.generate(model.eval(), prompt_batch(prepared, rows, rows), address)
