"""What the training of a reward model is about to do, said before it does it."""

from __future__ import annotations

from typing import Any

from .plain_text import printable
from .start_report import parameters_of


def reward_report(trainer: Any) -> str:
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


def _pairs(trainer: Any) -> str:
    count, dropped = len(trainer.train_dataset), trainer.dropped.get("train", 0)
    left_out = f" ({dropped:,} longer than {trainer.max_length:,} tokens left out)" if dropped else ""
    return f"{count:,} pair{'s' if count != 1 else ''}{left_out}"


def _plan(args: Any, steps: int) -> str:
    each = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    epochs = args.num_train_epochs
    asked = "max_steps" if args.max_steps > 0 else f"{epochs:g} epoch{'s' if epochs != 1 else ''}"
    return f"{steps:,} optimiser step{'s' if steps != 1 else ''} of {each:,} pairs = {asked}"
