"""What a run would only find out later, looked at when its trainer is made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft import PeftModel

from ..models.adapters import POLICY_ADAPTER, VALUE_ADAPTER
from ..models.savable import check_savable, repair_generation_config
from ..reporting.model_card import write_model_card
from ..reporting.policy_card import policy_card
from ..runs.checkpoints import write_training_args
from ..runs.guard import together
from .reward_setup import reward_card


def check_saving_policy(trainer: Any) -> None:
    """Try what saving a policy will do.

    Raises:
        ValueError: it would fail.
    """
    models = trainer.unwrapped()
    if not isinstance(models.policy, PeftModel):  # an adapter is saved without generation settings
        repair_generation_config(models.policy)
    adapters = [POLICY_ADAPTER, *([VALUE_ADAPTER] if models.has_value_adapter else [])]
    roles = {"policy": models.policy, "value model": models.value_model}
    _try(trainer, roles, policy_card, adapters)


def check_saving_reward(trainer: Any) -> None:
    """Try what saving a reward model will do.

    Raises:
        ValueError: it would fail.
    """
    _try(trainer, {"reward model": trainer.accelerator.unwrap_model(trainer.model)}, reward_card, None)


def _try(trainer: Any, models: dict[str, Any], card: Any, adapters: list[str] | None) -> None:
    def settings(folder: Path) -> None:
        write_training_args(trainer.args, folder)

    def page(folder: Path) -> None:
        write_model_card(str(folder), card(trainer))

    with together(trainer.accelerator):
        check_savable(models, trainer.processing_class, [settings, page], adapters)
