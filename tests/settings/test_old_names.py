"""Names of other trainers, and misspelt ones: all refused at once, each with its name here or why there is none."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import yaml

from hfrlhf import PolicyGradientConfig, PPOConfig, PPOTrainer, RewardConfig, RewardTrainer, TRPOConfig, TRPOTrainer
from hfrlhf.cli.command_line import parse_command_line
from hfrlhf.settings.old_names import POLICY_SETTINGS
from tests.trainers.helpers import prompts, reward

# ---- What a user sees -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [PolicyGradientConfig, PPOConfig, TRPOConfig])
def test_all_unknown_names_are_said_at_once(tmp_path, settings):
    given = yaml.safe_load(
        "{beta: 0.04, learning_rate: 1.0e-5, num_iterations: 2, learnin_rate: 1, use_vllm: true, vllm_mode: server}"
    )
    with pytest.raises(TypeError) as error:
        settings(output_dir=str(tmp_path), use_cpu=True, **given)
    assert str(error.value).splitlines() == [
        f"{settings.__name__} has none of these 5:",
        "  'beta'; its name here is: " + POLICY_SETTINGS["beta"],
        "  'num_iterations'; its name here is: num_ppo_epochs",
        "  'learnin_rate'; did you mean learning_rate?",
        "  'use_vllm', 'vllm_mode'; there is none here: responses are sampled in the training process itself; an "
        "engine beside it is an object for `generator=`",
    ]


@pytest.mark.parametrize(
    ("settings", "name", "said"),
    [
        (PPOConfig, "learnin_rate", "PPOConfig has no 'learnin_rate'; did you mean learning_rate?"),
        (PPOConfig, "Num-Generations", "did you mean num_generations?"),
        (PPOConfig, "reward_funcs", "its name here is: the trainer's `reward_funcs`"),
        (PPOConfig, "quite_unlike", r"help\(PPOConfig\) lists what there is"),
        (RewardConfig, "centre_rewards_coefficient", "did you mean center_rewards_coefficient?"),
        (RewardConfig, "pad_token", "RewardConfig has no 'pad_token'; there is none here: set `pad_token` of the tok"),
        (RewardConfig, "evaluation_strategy", "its name here is: eval_strategy"),
    ],
)
def test_one_unknown_name(tmp_path, settings, name, said):
    with pytest.raises(TypeError, match=said):
        settings(str(tmp_path), **{name: 1})


@pytest.mark.parametrize("trainer", [PPOTrainer, TRPOTrainer])
def test_arguments_of_other_trainers(trainer):
    given = {"tools": [], "rollout_func": print, "tokenizer": None, "reward_function": reward, "max_steps": 3}
    with pytest.raises(TypeError) as error:
        trainer("m", args=None, train_dataset=prompts(), **given)
    said = str(error.value)
    assert said.startswith(f"{trainer.__name__} has none of these 5:\n") and len(said.splitlines()) == 6
    for words in ("'tokenizer'; its name here is: processing_class", "'reward_function'; did you mean reward_funcs?"):
        assert words in said
    assert "'tools'; there is none here: a response is one turn" in said
    assert "'max_steps'; its name here is: args.max_steps" in said


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("data_collator", "there is none here: pairs are batched by the trainer"),
        ("max_length", "its name here is: args.max_length"),
        ("train_datasets", "did you mean train_dataset?"),
    ],
)
def test_arguments_that_the_reward_trainer_does_not_take(name, said):
    with pytest.raises(TypeError, match=f"RewardTrainer has no '{name}'; {said}"):
        RewardTrainer("m", args=None, **{name: 1})


def test_a_subclass_may_have_names_of_its_own(tmp_path):
    @dataclass
    class Mine(PPOConfig):
        beta: float = 0.5
        """Not TRL's: this one's own."""

    class MineToo(PPOConfig):
        def __init__(self, tools=(), **kwargs):
            super().__init__(**kwargs)
            self.tools = tools

    class Trainer(PPOTrainer):
        def __init__(self, *args, tools=(), **kwargs):
            super().__init__(*args, **kwargs)

    plain = {"output_dir": str(tmp_path), "use_cpu": True}
    assert Mine(**plain, beta=0.1).beta == 0.1
    assert MineToo(**plain, tools=(1,)).tools == (1,)
    for settings in (Mine, MineToo):
        with pytest.raises(TypeError, match="its name here is: clip_range"):
            settings(**plain, epsilon=0.2)
    with pytest.raises(TypeError, match="must be hfrlhf's PPOConfig, got nothing"):
        Trainer("m", reward, None, prompts(), tools=(1,))
    with pytest.raises(TypeError, match="Trainer has no 'rollout_func'"):
        Trainer("m", reward, None, prompts(), tools=(1,), rollout_func=print)


# ---- The command line -----------------------------------------------------------------------------------------------


def test_the_command_line_says_all_at_once_too(tmp_path, capsys):
    path = tmp_path / "run.yaml"
    path.write_text("beta: 0.1\nlearnin_rate: 1\n", encoding="utf-8")
    with pytest.raises(SystemExit):
        parse_command_line((PPOConfig,), ["--config", str(path), "--num_iterations", "2", "--beta=1"])
    said = capsys.readouterr().err
    assert said.count("there is no option") == 3
    for words in ("'beta'; its name here is: kl_coef", "'learnin_rate'; did you mean learning_rate?", "num_ppo_epochs"):
        assert words in said


def test_the_command_line_knows_whose_settings_it_parses(tmp_path, capsys):
    """`max_prompt_length` is a field of the one, and an old name of the other."""
    with pytest.raises(SystemExit):
        parse_command_line((RewardConfig,), ["--max_prompt_length", "8", "--output_dir", str(tmp_path)])
    assert "its name here is: max_length" in capsys.readouterr().err
