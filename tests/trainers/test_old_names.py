"""Names of other trainers, and misspelt ones: all refused at once, each with its name here or why there is none."""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass, fields

import pytest
import transformers
import trl
import yaml

from hfrlhf import PolicyGradientConfig, PPOConfig, PPOTrainer, RewardConfig, RewardTrainer, TRPOConfig, TRPOTrainer
from hfrlhf.trainers.command_line import parse_command_line
from hfrlhf.trainers.old_names import POLICY_ARGUMENTS, POLICY_SETTINGS, REWARD_ARGUMENTS, REWARD_SETTINGS
from tests.trainers.helpers import prompts, reward


def names_in(text: str) -> set[str]:
    return set(text.split())


# What TRL's own PPO had in its last release with it, and the last one before it stood on transformers.Trainer.
PPO_1_12 = names_in("""
dataset_num_proc num_mini_batches total_episodes local_rollout_forward_batch_size num_sample_generations response_length
stop_token stop_token_id temperature missing_eos_penalty sft_model_path world_size num_total_batches micro_batch_size
local_batch_size batch_size local_mini_batch_size mini_batch_size push_to_hub reward_model_path model_adapter_name
ref_adapter_name num_ppo_epochs whiten_rewards kl_coef kl_estimator cliprange vf_coef cliprange_value gamma lam
ds3_gather_for_generation learning_rate
""")
PPO_0_11 = names_in("""
exp_name seed log_with task_name model_name query_dataset reward_model remove_unused_columns tracker_kwargs
accelerator_kwargs project_kwargs tracker_project_name push_to_hub_if_best_kwargs steps learning_rate adap_kl_ctrl
init_kl_coef kl_penalty target horizon gamma lam cliprange cliprange_value vf_coef batch_size forward_batch_size
mini_batch_size gradient_accumulation_steps world_size ppo_epochs max_grad_norm optimize_cuda_cache
optimize_device_cache early_stopping target_kl compare_steps ratio_threshold use_score_scaling use_score_norm score_clip
whiten_rewards gradient_checkpointing is_encoder_decoder is_peft_model backward_batch_size global_backward_batch_size
global_batch_size dataset_num_proc
""")
PPO_ARGUMENTS = names_in("""
args config processing_class tokenizer model policy ref_model ref_policy reward_model train_dataset dataset value_model
data_collator training_data_collator eval_dataset optimizer optimizers callbacks peft_config num_shared_layers
lr_scheduler
""")


def field_names(kind: type) -> set[str]:
    return {field.name for field in fields(kind)}


def argument_names(kind: type) -> set[str]:
    return set(inspect.signature(kind.__init__).parameters) - {"self"}


# ---- The tables against the installed libraries ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("theirs", "ours", "table"),
    [
        (field_names(trl.GRPOConfig), field_names(PPOConfig), POLICY_SETTINGS),
        (field_names(trl.RLOOConfig), field_names(PPOConfig), POLICY_SETTINGS),
        (PPO_1_12, field_names(PPOConfig), POLICY_SETTINGS),
        (PPO_0_11, field_names(PPOConfig), POLICY_SETTINGS),
        (field_names(trl.RewardConfig), field_names(RewardConfig), REWARD_SETTINGS),
        (argument_names(trl.GRPOTrainer), argument_names(PPOTrainer), POLICY_ARGUMENTS),
        (argument_names(trl.RLOOTrainer), argument_names(PPOTrainer), POLICY_ARGUMENTS),
        (argument_names(transformers.Trainer), argument_names(PPOTrainer), POLICY_ARGUMENTS),
        (PPO_ARGUMENTS, argument_names(PPOTrainer), POLICY_ARGUMENTS),
        (argument_names(trl.RewardTrainer), argument_names(RewardTrainer), REWARD_ARGUMENTS),
        (argument_names(transformers.Trainer), argument_names(RewardTrainer), REWARD_ARGUMENTS),
    ],
    ids=[
        *("GRPO", "RLOO", "PPO 1.12", "PPO 0.11", "reward", "GRPO trainer", "RLOO trainer", "stock trainer"),
        *("PPO trainer", "reward trainer", "stock trainer for rewards"),
    ],
)
def test_every_name_of_another_trainer_is_one_here_or_explained(theirs, ours, table):
    """A new field of a new release fails here, before a user meets it."""
    assert set(theirs) - ours - set(table) == set()


@pytest.mark.parametrize(
    ("table", "ours", "arguments"),
    [
        (POLICY_SETTINGS, field_names(PPOConfig), argument_names(PPOTrainer)),
        (REWARD_SETTINGS, field_names(RewardConfig), argument_names(RewardTrainer)),
        (POLICY_ARGUMENTS, argument_names(PPOTrainer), field_names(PPOConfig)),
        (REWARD_ARGUMENTS, argument_names(RewardTrainer), field_names(RewardConfig)),
    ],
)
def test_what_a_table_names_is_there_and_what_it_replaces_is_not(table, ours, arguments):
    assert not set(table) & ours
    for name, text in table.items():
        if not text.startswith("none: "):
            place, new = re.match(r"(args\.|the trainer's `)?(\w+)", text).groups()
            assert new in (arguments if place else ours), name
        assert text.removeprefix("none: ") and not text.endswith("."), name


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
        "  'use_vllm', 'vllm_mode'; there is none here: responses are sampled in the training process itself, by no "
        "engine beside it",
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
        parse_command_line((PPOConfig,), "", {}, ["--config", str(path), "--num_iterations", "2", "--beta=1"])
    said = capsys.readouterr().err
    assert said.count("there is no option") == 3
    for words in ("'beta'; its name here is: kl_coef", "'learnin_rate'; did you mean learning_rate?", "num_ppo_epochs"):
        assert words in said


def test_the_command_line_knows_whose_settings_it_parses(tmp_path, capsys):
    """`max_prompt_length` is a field of the one, and an old name of the other."""
    with pytest.raises(SystemExit):
        parse_command_line((RewardConfig,), "", {}, ["--max_prompt_length", "8", "--output_dir", str(tmp_path)])
    assert "its name here is: max_length" in capsys.readouterr().err
