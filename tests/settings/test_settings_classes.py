"""Which settings a trainer takes, and subclasses of ours with defaults of their own."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from transformers import TrainingArguments
from trl import GRPOConfig

from hfrlhf import PolicyGradientConfig, PolicyGradientTrainer, PPOConfig, PPOTrainer, TRPOConfig, TRPOTrainer
from hfrlhf.algorithms import ALGORITHMS
from hfrlhf.settings.algorithm_checks import TRAINERS
from hfrlhf.trainers.family import FAMILY
from tests.trainers.helpers import prompts, reward


def plain(tmp_path) -> dict:
    return {"output_dir": str(tmp_path / "run"), "use_cpu": True, "report_to": "none"}


# ---- Trainers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["vpg", "reinforce", "rloo", "grpo", "a2c"])
def test_ppo_trainer_runs_ppo_alone(tmp_path, algorithm):
    args = PolicyGradientConfig(**plain(tmp_path), algorithm=algorithm, num_generations=2, rollout_batch_size=8)
    with pytest.raises(TypeError, match=f"PPOTrainer does not run `algorithm='{algorithm}'`.*PolicyGradientTrainer"):
        PPOTrainer("no model is looked for", reward, args, prompts())


@pytest.mark.parametrize("settings", [PPOConfig, PolicyGradientConfig])
@pytest.mark.parametrize("trainer", [PPOTrainer, PolicyGradientTrainer])
def test_ppo_is_run_whatever_the_class_of_its_settings(tiny_model_folder, tmp_path, settings, trainer):
    args = settings(**plain(tmp_path), algorithm="ppo_clip", rollout_batch_size=8, max_completion_length=6)
    assert trainer(str(tiny_model_folder), reward, args, prompts()).algorithm is ALGORITHMS["ppo_clip"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (None, "got nothing"),
        ({"output_dir": "run"}, "got dict"),
        (PPOConfig, "PPOConfig itself, not one that was made"),
        (TrainingArguments, "transformers.training_args.TrainingArguments itself"),
    ],
)
@pytest.mark.parametrize("trainer", [PolicyGradientTrainer, PPOTrainer, TRPOTrainer])
def test_what_are_no_settings_of_ours(trainer, given, said):
    with pytest.raises(TypeError, match=f"`args` of {trainer.__name__} must be hfrlhf's .*Config, got .*{said[4:]}"):
        trainer("no model is looked for", reward, given, prompts())


@pytest.mark.parametrize("theirs", [TrainingArguments, GRPOConfig])
def test_settings_of_other_libraries(tmp_path, theirs):
    args = theirs(output_dir=str(tmp_path), use_cpu=True, bf16=False)
    with pytest.raises(TypeError, match=rf"must be hfrlhf's PPOConfig, got .*\.{theirs.__name__}; it has every field"):
        PPOTrainer("no model is looked for", reward, args, prompts())


def test_the_tables_of_who_runs_what_agree():
    for row in ALGORITHMS.values():
        config, trainer = FAMILY[row.update]
        assert TRAINERS[row.update] == f"{trainer.__name__} with a {config.__name__}"


# ---- Defaults of a subclass -----------------------------------------------------------------------------------------


@dataclass
class Own(PolicyGradientConfig):
    """Another default for every field that only some algorithms read."""

    gae_lambda: float = 1.0
    n_step: int = 3
    exclude_self: bool = True
    bootstrap_truncated: bool = True
    clip_range: float = 0.1
    clip_range_high: float | None = 0.3
    dual_clip: float | None = 3.0
    penalty_target: float = 0.02
    vf_coef: float | None = 0.5
    value_learning_rate: float | None = 1e-4
    clip_range_value: float | None = None
    critic_warmup_rollouts: int = 2
    value_epochs: int = 1
    target_kl: float | None = 0.1
    num_generations: int = 2
    per_device_train_batch_size: int = 4


@pytest.mark.parametrize("algorithm", [name for name, row in ALGORITHMS.items() if row.update == "gradient"])
def test_a_subclass_has_defaults_of_its_own_with_every_algorithm(tmp_path, algorithm):
    args = Own(**plain(tmp_path), algorithm=algorithm, rollout_batch_size=16)
    has_critic = ALGORITHMS[algorithm].critic is not None
    assert (args.critic_warmup_rollouts, args.value_epochs) == ((2, 1) if has_critic else (0, 0))
    assert args.target_kl == (0.1 if args.num_ppo_epochs > 1 else None)
    assert args.per_device_train_batch_size == 16
    assert args.steps_per_rollout == args.num_ppo_epochs + args.value_epochs


def test_what_an_algorithm_has_no_use_for_is_back_with_one_that_has(tmp_path):
    without = Own(**plain(tmp_path), algorithm="rloo")
    again = replace(without, algorithm="vpg")
    assert (again.critic_warmup_rollouts, again.value_epochs) == (2, 1)


@pytest.mark.parametrize("changes", [{"gae_lambda": 0.95}, {"clip_range": 0.2}, {"value_epochs": 2}, {"dual_clip": 2}])
def test_what_is_set_beside_a_subclass_default_is_refused_as_ever(tmp_path, changes):
    with pytest.raises(ValueError, match="would do nothing"):
        Own(**plain(tmp_path), algorithm="rloo", **changes)


def test_a_subclass_of_trpo_without_the_line_search_of_its_default(tmp_path):
    @dataclass
    class Short(TRPOConfig):
        max_backtracks: int = 5

    assert Short(**plain(tmp_path), algorithm="natural_policy_gradient").max_backtracks == 5
    with pytest.raises(ValueError, match="max_backtracks"):
        Short(**plain(tmp_path), algorithm="natural_policy_gradient", max_backtracks=10)
