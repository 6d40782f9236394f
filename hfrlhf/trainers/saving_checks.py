"""What a run would only find out later, looked at when its trainer is made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from transformers import TrainingArguments

from ..models.savable import check_savable
from ..reporting.model_card import CardFacts, write_model_card
from ..runs.agreement import together
from ..runs.checkpoints import write_training_args


def check_saving(
    models: dict[str, Any],
    tokenizer: Any,
    args: TrainingArguments,
    facts: Callable[[], CardFacts],
    accelerator: Accelerator,
    adapters: list[str] | None = None,
) -> None:
    """Try what saving will do.

    Args:
        models: by their roles, as messages name them. facts: of the model card. adapters: the names of those that are
            saved; None for all.

    Raises:
        ValueError: it would fail.
    """

    def settings(folder: Path) -> None:
        write_training_args(args, folder)

    def page(folder: Path) -> None:
        write_model_card(str(folder), facts())

    with together(accelerator):
        check_savable(models, tokenizer, [settings, page], adapters)
