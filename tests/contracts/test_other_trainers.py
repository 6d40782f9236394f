"""Names of other trainers against the installed ones: a field that a new release brings fails here first."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields

import pytest
import transformers
import trl

from hfrlhf import PPOConfig, PPOTrainer, RewardConfig, RewardTrainer
from hfrlhf.settings.old_names import POLICY_ARGUMENTS, POLICY_SETTINGS, REWARD_ARGUMENTS, REWARD_SETTINGS


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
