"""Align a language model with PPO: prompts and a reward in, a better model out.

Without arguments, the embedded demo: a small world of its own, nothing to download, a few minutes on two CPU cores:

    accelerate launch recipes/ppo.py

With your own model, prompts (column `prompt`, text or chat messages; a Hub name, a folder or a file) and rewards
(trained by recipes/reward.py, or a Python function as `my_rewards.py:polite`):

    accelerate launch recipes/ppo.py --model_name_or_path my-sft-model --dataset_name my-prompts \
        --reward_funcs my-reward-model --output_dir runs/my-ppo

or everything in a file, and single values on top of it:

    accelerate launch recipes/ppo.py --config recipes/configs/ppo_reviews.yaml --learning_rate 5e-5
"""

import sys
from dataclasses import dataclass, field

from hfrlhf import PPOConfig, PPOTrainer
from hfrlhf.data.loading import load_splits
from hfrlhf.models.loading import load_policy, load_tokenizer
from hfrlhf.rewards.sources import reward_from_name
from hfrlhf.trainers.callbacks import CompletionsCallback, CurvesCallback
from hfrlhf.trainers.command_line import parse_command_line
from trl import ModelConfig, ScriptArguments, get_peft_config, get_quantization_config

SHOWN = {
    "data, models, rewards": "dataset_name model_name_or_path reward_funcs value_model dtype use_peft load_in_4bit "
    "output_dir",
    "rollouts": "rollout_batch_size max_completion_length temperature missing_eos_penalty kl_coef kl_target gamma "
    "gae_lambda",
    "updates": "learning_rate num_train_epochs max_steps num_ppo_epochs num_mini_batches clip_range vf_coef ent_coef "
    "target_kl max_tokens_per_micro_batch bf16 gradient_checkpointing seed",
    "logs, checkpoints, Hub": "save_steps eval_steps resume_from_checkpoint push_to_hub",
}


@dataclass
class PPOArguments(ScriptArguments):
    """Where prompts, rewards and critic come from."""

    reward_funcs: list[str] = field(
        default_factory=list,
        metadata={"help": "Reward models (Hub names or folders) and functions (file.py:function), summed."},
    )
    value_model: str | None = field(
        default=None,
        metadata={
            "help": "Critic of its own: a reward model or language model. Default: a head on the policy's trunk."
        },
    )


def main() -> None:
    """Parse, build, train, save."""
    script, args, model_args = parse_command_line((PPOArguments, PPOConfig, ModelConfig), __doc__, SHOWN)
    quantization = get_quantization_config(model_args)
    policy = load_policy(
        model_args.model_name_or_path,
        quantization,
        dtype=model_args.dtype,
        revision=model_args.model_revision,
        attn_implementation=model_args.attn_implementation,
        trust_remote_code=model_args.trust_remote_code,
    )
    data = load_splits(script.dataset_name, script.dataset_config)
    trainer = PPOTrainer(
        model=policy,
        reward_funcs=[reward_from_name(name) for name in script.reward_funcs],
        args=args,
        train_dataset=data[script.dataset_train_split],
        eval_dataset=data.get(script.dataset_test_split) if args.eval_strategy != "no" else None,
        processing_class=load_tokenizer(None, model_args.model_name_or_path),
        value_model=script.value_model,
        callbacks=[CurvesCallback()],
        peft_config=get_peft_config(model_args),
    )
    trainer.add_callback(CompletionsCallback(trainer))
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    trainer.save_model()
    if args.push_to_hub:
        trainer.push_to_hub(dataset_name=script.dataset_name)


if __name__ == "__main__":
    if len(sys.argv) == 1:
        from hfrlhf.demo import run_demo

        run_demo()
    else:
        main()
