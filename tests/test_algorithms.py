import pytest

from hfrlhf.algorithms import ALGORITHMS, algorithm_named, algorithm_table
from hfrlhf.core.advantages import PSI
from hfrlhf.core.policy_losses import POLICY_LOSSES
from hfrlhf.core.value_losses import CRITIC_TARGETS

NATURAL = "natural_policy_gradient"
# The members that the library promises.
FAMILY = {
    *("reinforce", "reinforce_constant", "reinforce_minimal_variance"),
    *("reward_to_go", "reward_to_go_constant", "reward_to_go_time_dependent", "rloo", "grpo", "vpg"),
    *("td_actor_critic", "a2c", "gae_actor_critic", "q_actor_critic", "expected_baseline_actor_critic"),
    *("importance_weighted", "importance_weighted_per_decision", "importance_weighted_sequence"),
    *("ppo_clip", "ppo_penalty", "natural_policy_gradient", "trpo"),
}


def test_the_family_is_complete():
    assert set(ALGORITHMS) >= FAMILY


@pytest.mark.parametrize("row", ALGORITHMS.values(), ids=ALGORITHMS)
def test_every_row_is_made_of_known_parts(row):
    assert row.psi in PSI
    assert row.loss in POLICY_LOSSES
    assert row.critic in {None, *CRITIC_TARGETS}
    assert row.update in {"gradient", "natural", "trust_region"}
    assert set(row.needs) <= {"batch", "groups", "gradient_norms", "expected_values", "penalty"}
    assert row.epochs >= 1
    assert row.source


def test_only_a_ratio_allows_several_steps_on_one_rollout():
    weighted = {"importance_weighted", "importance_weighted_per_decision", "importance_weighted_sequence"}
    reuse = {name for name in FAMILY if ALGORITHMS[name].reuses_rollouts}
    assert reuse == weighted | {"grpo", "ppo_clip", "ppo_penalty"}
    assert all(row.reuses_rollouts for row in ALGORITHMS.values() if row.epochs > 1)


def test_what_psi_and_loss_read_is_what_their_row_provides():
    needs = dict.fromkeys(
        ("constant_baseline", "reward_to_go_constant_baseline", "time_dependent_baseline"), ("batch",)
    )
    needs |= dict.fromkeys(("leave_one_out", "group_normalised"), ("groups",))
    needs |= {"minimal_variance_baseline": ("batch", "gradient_norms"), "expected_baseline": ("expected_values",)}
    critics = dict.fromkeys(("value_baseline", "td_error", "n_step", "gae"), "V")
    critics |= dict.fromkeys(("action_value", "expected_baseline"), "Q")
    for row in map(ALGORITHMS.get, FAMILY):
        of_loss = ("penalty",) if row.loss == "ppo_penalty" else ()
        assert row.needs == needs.get(row.psi, ()) + of_loss
        assert row.critic == critics.get(row.psi)


def test_a_row_is_found_by_its_name():
    assert algorithm_named("rloo").psi == "leave_one_out"


@pytest.mark.parametrize(
    ("wrong", "near"),
    [
        *(("reinforce_constnt", "reinforce_constant"), ("PPO-clip", "ppo_clip"), ("rlo", "rloo"), ("TRPO", "trpo")),
        *(("RLOO", "rloo"), ("GRPO", "grpo"), ("PPO", "ppo_clip"), ("ppo", "ppo_clip"), ("natural", NATURAL)),
    ],
)
def test_a_wrong_name_gets_the_nearest_one_and_all_of_them(wrong, near):
    with pytest.raises(ValueError, match=f"no algorithm is called '{wrong}'; did you mean '{near}'") as error:
        algorithm_named(wrong)
    assert all(name in str(error.value) for name in FAMILY)


def test_the_table_has_six_columns_and_a_row_for_each():
    heading, *rows = algorithm_table()
    assert heading == ("algorithm", "Ψ", "loss", "critic", "epochs", "source")
    assert [row[0] for row in rows] == list(ALGORITHMS)
    assert all(len(row) == 6 and all(row) for row in rows)
    by_name = {row[0]: row[1:] for row in rows}
    assert by_name["reward_to_go"] == ("R_t", "score function", "none", "1", "Sutton 1999; SPEC §3.2")
    assert by_name["q_actor_critic"][:4] == ("Q(s_t, a_t)", "score function", "Q", "1")
    assert by_name["trpo"][1:4] == ("importance weighted, trust region step", "V", "1")
