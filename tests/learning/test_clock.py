"""Who learns in which optimiser step: worked by hand for small cycles."""

from __future__ import annotations

import pytest

from hfrlhf.learning.clock import Clock, Phase

JOINT, CRITIC, REST = Phase.JOINT, Phase.CRITIC, Phase.REST


def test_steps_fall_into_rollouts_epochs_and_mini_batches():
    clock = Clock(policy_epochs=2, value_epochs=1, mini_batches=2, warmup_rollouts=0, episodes=8)
    assert clock.steps == 6
    seen = [clock.at(step) for step in range(8)]
    assert [moment.rollout for moment in seen] == [0, 0, 0, 0, 0, 0, 1, 1]
    assert [moment.k for moment in seen] == [0, 1, 2, 3, 4, 5, 0, 1]
    assert [(moment.epoch, moment.mini_batch) for moment in seen[:6]] == [
        (0, 0),
        (0, 1),
        (1, 0),
        (1, 1),
        (2, 0),
        (2, 1),
    ]
    assert [moment.phase for moment in seen] == [JOINT] * 4 + [CRITIC] * 2 + [JOINT] * 2
    assert [moment.policy_epochs_over for moment in seen[:6]] == [False] * 4 + [True] * 2
    assert [moment.is_last for moment in seen] == [False] * 5 + [True, False, False]


def test_in_the_warm_up_only_the_critic_learns():
    clock = Clock(policy_epochs=1, value_epochs=0, mini_batches=1, warmup_rollouts=2, episodes=4)
    assert [clock.at(step).phase for step in range(4)] == [CRITIC, CRITIC, JOINT, JOINT]
    assert [clock.at(step).warming_up for step in range(4)] == [True, True, False, False]


def test_a_policy_that_was_stopped_rests_and_the_critics_own_passes_go_on():
    clock = Clock(policy_epochs=2, value_epochs=1, mini_batches=1, warmup_rollouts=0, episodes=4)
    assert [clock.at(step, stopped=True).phase for step in range(3)] == [REST, REST, CRITIC]
    assert all(clock.at(step, stopped=True).policy_rests for step in range(3))
    assert not clock.at(0).policy_rests


def test_where_a_search_moves_the_policy_the_optimiser_moves_the_critic_alone():
    clock = Clock(policy_epochs=1, value_epochs=1, mini_batches=1, warmup_rollouts=1, episodes=4, policy_moves=False)
    assert {clock.at(step).phase for step in range(6)} == {CRITIC}


@pytest.mark.parametrize(("step", "episodes"), [(0, 0), (1, 8), (2, 8), (3, 16), (4, 16)])
def test_the_rollout_in_use_counts_whole(step: int, episodes: int):
    clock = Clock(policy_epochs=2, value_epochs=0, mini_batches=1, warmup_rollouts=0, episodes=8)
    assert clock.episodes_after(step) == episodes
