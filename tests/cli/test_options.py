"""What is read from the source of dataclasses is what importing them would have said."""

from __future__ import annotations

import dataclasses
import enum
from typing import Any

import pytest
from trl import ModelConfig, SFTConfig

from hfrlhf import ALGORITHMS, PolicyGradientConfig, PPOConfig, RewardConfig, TRPOConfig
from hfrlhf.cli.algorithms import rows, settings_of
from hfrlhf.cli.data_arguments import POLICY_PAGE, PolicyArguments
from hfrlhf.cli.options import NOT_READ, options_of
from hfrlhf.trainers.family import family_of

PLACES: dict[str, Any] = {
    "hfrlhf.trainers.configs:PPOConfig": PPOConfig,
    "hfrlhf.trainers.configs:TRPOConfig": TRPOConfig,
    "hfrlhf.trainers.configs:PolicyGradientConfig": PolicyGradientConfig,
    "hfrlhf.trainers.reward_config:RewardConfig": RewardConfig,
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


def test_what_helps_says_is_the_first_part_of_the_real_text():
    read = options_of(["hfrlhf.trainers.configs:PPOConfig"])
    for field in dataclasses.fields(PPOConfig):
        beginning = read[field.name].help.partition("…")[0]
        assert field.metadata["help"].startswith(beginning), field.name


def test_the_algorithms_are_those_of_the_table():
    assert list(rows()) == list(ALGORITHMS)
    for name, row in ALGORITHMS.items():
        assert rows()[name]["epochs"] == str(row.epochs)
        assert settings_of(name).endswith(f":{family_of(name)[0].__name__}")


def test_the_page_lists_what_there_is():
    read = options_of(
        ["hfrlhf.trainers.configs:PPOConfig", "hfrlhf.cli.data_arguments:PolicyArguments", "trl:ModelConfig"]
    )
    for names in POLICY_PAGE.values():
        for name in names.split():
            assert any(part in read for part in name.split("|")), name
