"""What is read from the source of dataclasses is what importing them would have said."""

from __future__ import annotations

import ast
import dataclasses
import enum
from typing import Any

import pytest
from transformers import TrainingArguments
from trl import ModelConfig, SFTConfig

from hfrlhf import ALGORITHMS, PolicyGradientConfig, PPOConfig, RewardConfig, TRPOConfig
from hfrlhf.cli.algorithms import rows, settings_of
from hfrlhf.cli.computed import text_of
from hfrlhf.cli.data_arguments import POLICY_PAGE, PolicyArguments
from hfrlhf.cli.help import real_default
from hfrlhf.cli.options import NOT_READ, options_of
from hfrlhf.trainers.family import family_of

PLACES: dict[str, Any] = {
    "hfrlhf.settings.policy_gradient:PPOConfig": PPOConfig,
    "hfrlhf.settings.policy_gradient:TRPOConfig": TRPOConfig,
    "hfrlhf.settings.policy_gradient:PolicyGradientConfig": PolicyGradientConfig,
    "hfrlhf.settings.reward:RewardConfig": RewardConfig,
    "hfrlhf.cli.data_arguments:PolicyArguments": PolicyArguments,
    "trl:SFTConfig": SFTConfig,
    "trl:ModelConfig": ModelConfig,
}


def default_of(field: dataclasses.Field) -> Any:
    value = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    return value.value if isinstance(value, enum.Enum) else value


@pytest.mark.parametrize("place", PLACES)
def test_names_and_defaults_are_those_of_the_class(place):
    read = options_of([place])
    fields = {field.name: field for field in dataclasses.fields(PLACES[place]) if field.init}
    assert set(read) == set(fields)
    wrong = {
        name: (option.default, default_of(fields[name]))
        for name, option in read.items()
        if option.default is not NOT_READ and option.default != default_of(fields[name])
    }
    assert wrong == {}
    assert sum(option.default is NOT_READ for option in read.values()) <= 3  # the page of --help would have holes
    described = [name for name, option in read.items() if option.help]
    assert len(described) == len(read)


@pytest.mark.parametrize("place", [place for place in PLACES if place.startswith("hfrlhf")])
def test_what_helps_says_is_the_real_text(place):
    """Also where the source computes it from tables of other modules."""
    read = options_of([place])
    inherited = {field.name: field for field in dataclasses.fields(TrainingArguments)}
    for field in dataclasses.fields(PLACES[place]):
        text = field.metadata.get("help")
        if field.init and text is not None and text != getattr(inherited.get(field.name), "metadata", {}).get("help"):
            assert read[field.name].help == text, field.name


@pytest.mark.parametrize(
    ("expression", "text"),
    [
        ("'a' + f'b {1 + 1}'", "ab 2"),
        ("'one of {}'.format(', '.join(sorted(NAMES)))", "one of k, z"),
        ("f'{NAMES[\"z\"]!r:>4} of {len(NAMES)}'", "   1 of 2"),
        ("f'One of {GONE}. ' + 'Then ' + GONE.name", "One of …. Then …"),
        ("f'{open(NAMES)}'", "…"),
    ],
)
def test_a_text_that_is_computed(expression, text):
    assert text_of(ast.parse(expression, mode="eval").body, {"NAMES": {"z": 1, "k": "f(x)"}}) == text


def test_the_algorithms_are_those_of_the_table():
    assert list(rows()) == list(ALGORITHMS)
    for name, row in ALGORITHMS.items():
        assert rows()[name]["epochs"] == str(row.epochs)
        assert settings_of(name).endswith(f":{family_of(name)[0].__name__}")


def test_the_page_lists_what_there_is():
    read = options_of(
        ["hfrlhf.settings.policy_gradient:PPOConfig", "hfrlhf.cli.data_arguments:PolicyArguments", "trl:ModelConfig"]
    )
    for names in POLICY_PAGE.values():
        for name in names.split():
            assert any(part in read for part in name.split("|")), name


@pytest.mark.parametrize(
    ("place", "said"),
    [
        (
            "hfrlhf.settings.policy_gradient:PPOConfig",
            {"logging_steps": "one per rollout", "num_train_epochs": "3, unless max_steps is given"},
        ),
        (
            "hfrlhf.settings.reward:RewardConfig",
            {"logging_steps": "10", "num_train_epochs": "1, unless max_steps is given"},
        ),
        ("trl:SFTConfig", {"num_train_epochs": "3, unless max_steps is given"}),
    ],
)
def test_a_default_on_the_page_is_the_one_of_its_own_class(place, said):
    read = options_of([place])
    said = said | {"max_steps": "as many as num_train_epochs gives"}
    assert {name: real_default(read[name], read, None) for name in said} == said
    assert "rollout" not in real_default(read["logging_steps"], read, None) or "PPO" in place
