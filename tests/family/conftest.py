"""The small worlds whose every episode is known, made once."""

import pytest

from tests.family import enumeration


@pytest.fixture(scope="session")
def world() -> enumeration.World:
    """Two prompts of different lengths, responses of one to three tokens: 30 episodes."""
    return enumeration.world()


@pytest.fixture(scope="session")
def one_prompt() -> enumeration.World:
    """One prompt, 15 episodes: few enough for every batch of eight."""
    return enumeration.world(number_of_prompts=1)


@pytest.fixture(scope="session")
def one_token() -> enumeration.World:
    """Responses of one token."""
    return enumeration.world(limit=1)
