"""Where a recipe's data come from."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class DataArguments:
    """The options of every recipe that say which rows it reads."""

    dataset_name: str | None = field(
        default=None,
        metadata={"help": "A name on the Hub, a folder with train.jsonl and test.jsonl (csv, parquet), or one file."},
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Which configuration of a dataset on the Hub."})
    dataset_train_split: str = field(default="train", metadata={"help": "The split to train on."})
    dataset_test_split: str = field(
        default="test", metadata={"help": "The split to evaluate on; where there is none, nothing is evaluated."}
    )


@dataclass
class PolicyArguments(DataArguments):
    """The same, with the rewards and the critic of recipes/ppo.py and recipes/policy_gradient.py."""

    reward_funcs: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Reward models (Hub names or folders) and Python functions (FILE.py:FUNCTION), summed. A reward "
            "adapter shares the policy's base; own:FOLDER gives it one of its own."
        },
    )
    value_model: str | None = field(
        default=None,
        metadata={
            "help": "`adapter` for a LoRA critic on the policy's base, or a reward or language model for a critic of "
            "its own. Default: a head on the policy's trunk."
        },
    )
    merge: bool = field(
        default=False, metadata={"help": "Also write the policy merged into its base, to `merged` in output_dir."}
    )


# What `--help` of the policy's recipes lists: a title, and options under it.
POLICY_PAGE = {
    "data and models": "dataset_name dataset_train_split dataset_test_split model_name_or_path dtype reward_funcs "
    "value_model output_dir",
    "rollouts": "num_train_epochs max_steps rollout_batch_size num_generations max_prompt_length max_completion_length "
    "temperature stop_token_id",
    "the reward": "missing_eos_penalty reward_clip reward_weights kl_coef kl_target whiten_rewards gamma gae_lambda",
    "the update": "learning_rate value_learning_rate num_ppo_epochs num_mini_batches clip_range vf_coef ent_coef "
    "target_kl max_tokens_per_micro_batch gradient_accumulation_steps bf16 "
    "activation_checkpointing|gradient_checkpointing use_cpu seed",
    "adapters": "use_peft lora_r load_in_4bit merge",
    "logs, checkpoints, Hub": "logging_steps log_completions save_curves eval_strategy eval_steps report_to "
    "save_strategy save_steps resume_from_checkpoint push_to_hub hub_model_id",
}
# Where the options are, for `first_look`; the settings of the trainer come between the two.
POLICY_PLACES = ("hfrlhf.cli.data_arguments:PolicyArguments", "trl:ModelConfig")
POLICY_NEEDS = ("model_name_or_path", "dataset_name", "reward_funcs")
