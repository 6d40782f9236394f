"""The hooks of `transformers.Trainer` that this package's trainers override are those of the installed release.

`TRAINER_HOOKS` names each with what it is given. A hook that was renamed would silently no longer be called; one that
is given something more would fail in the middle of a run; and a new name of the Trainer's may be one of ours.
"""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from typing import Any

import pytest
from transformers import Trainer, TrainingArguments

import hfrlhf
from hfrlhf import PolicyGradientTrainer, PPOTrainer, RewardTrainer, TRPOTrainer
from hfrlhf.models.libraries import TRAINER_HOOKS
from tests.contracts.test_libraries import Sum

OURS = (PolicyGradientTrainer, PPOTrainer, TRPOTrainer, RewardTrainer)
# What a user calls, and the Trainer itself does not, at least not as a method of its own.
NOT_CALLED_BY_IT = {"train", "predict", "_get_train_sampler", "_get_eval_sampler"}
# The attributes of the Trainer that are set here on purpose, as its documentation says or its own methods do.
SET_ON_PURPOSE = {"control", "loss_is_scaled_for_ga", "processing_class", "state"}
SOURCE = inspect.getsource(Trainer)


def overridden(trainer: type) -> set[str]:
    """The names of the Trainer that a trainer, or a mixin before the Trainer, defines for itself."""
    before = trainer.__mro__[: trainer.__mro__.index(Trainer)]
    own = {name for cls in before for name in vars(cls)}
    return {name for name in own & set(dir(Trainer)) if not name.startswith("__")}


CASES = [(trainer, name) for trainer in OURS for name in sorted(overridden(trainer)) if name in TRAINER_HOOKS]


@pytest.mark.parametrize("name", TRAINER_HOOKS)
def test_a_hook_is_given_what_it_was(name: str) -> None:
    """libraries.TRAINER_HOOKS"""
    assert tuple(p for p in inspect.signature(getattr(Trainer, name)).parameters if p != "self") == TRAINER_HOOKS[name]


@pytest.mark.parametrize("name", sorted(set(TRAINER_HOOKS) - NOT_CALLED_BY_IT))
def test_the_trainer_calls_its_hook(name: str) -> None:
    assert f"self.{name}(" in SOURCE


@pytest.mark.parametrize(("trainer", "name"), CASES, ids=lambda x: getattr(x, "__name__", x))
def test_an_overridden_hook_can_be_called_as_the_stock_one(trainer: type, name: str) -> None:
    """By position and by name, with all arguments or the required ones."""
    stock = [p for n, p in inspect.signature(getattr(Trainer, name)).parameters.items() if n != "self"]
    ours = inspect.signature(getattr(trainer, name))
    all_names, required = [p.name for p in stock], [p.name for p in stock if p.default is inspect.Parameter.empty]
    for names in (all_names, required):
        ours.bind("self", *names)
        ours.bind("self", **dict.fromkeys(names))
    own = [p for p in ours.parameters.values() if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD][1:]
    assert [p.name for p in own] == all_names[: len(own)]  # what is read here stands where it stood


@pytest.mark.parametrize("trainer", OURS)
def test_every_override_is_a_hook_that_is_named(trainer: type) -> None:
    assert overridden(trainer) - SET_ON_PURPOSE <= set(TRAINER_HOOKS)


def test_every_hook_that_is_named_is_overridden() -> None:
    assert set(TRAINER_HOOKS) == {name for _, name in CASES}


@pytest.mark.parametrize("trainer", OURS)
@pytest.mark.parametrize("name", ["_inner_training_loop", "_run_epoch", "push_to_hub", "_maybe_log_save_evaluate"])
def test_the_loop_itself_is_the_trainers(trainer: type, name: str) -> None:
    assert getattr(trainer, name) is getattr(Trainer, name)


def test_no_attribute_of_ours_is_one_of_the_trainers(tmp_path: Path) -> None:
    """A release that gives the Trainer an attribute of a name that is ours would have both write it."""
    built: Any = Trainer(Sum(), TrainingArguments(str(tmp_path), report_to="none", use_cpu=True))
    theirs = set(vars(built)) | {name for name in dir(Trainer) if not name.startswith("__")}
    ours = set()
    for path in sorted((Path(hfrlhf.__file__).parent / "trainers").glob("*.py")):
        for cls in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(cls, ast.ClassDef) and cls.name in {base.__name__ for t in OURS for base in t.__mro__}:
                ours |= {
                    node.attr
                    for node in ast.walk(cls)
                    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
                    if ast.unparse(node.value) == "self"
                }
    assert len(ours) > 20
    assert ours & theirs <= SET_ON_PURPOSE


PUBLIC_ATTRIBUTES = ["accelerator", "callback_handler", "is_deepspeed_enabled", "is_fsdp_enabled", "model_wrapped"]


@pytest.mark.parametrize("name", PUBLIC_ATTRIBUTES)
def test_an_attribute_that_is_read_is_there(name: str, tmp_path: Path) -> None:
    assert hasattr(Trainer(Sum(), TrainingArguments(str(tmp_path), report_to="none", use_cpu=True)), name)
