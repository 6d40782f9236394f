"""Align a language model with PPO: prompts and a reward in, a better model out.

Without arguments, the embedded demo: a small world of its own, nothing to download, a few minutes on two CPU cores.
Else a model, prompts (column `prompt`, text or chat messages; a name on the Hub, a folder with train.jsonl and
test.jsonl, or one file) and rewards: models that recipes/reward.py trained, Python functions as FILE.py:FUNCTION, or
several of them, which are summed. Examples:

    accelerate launch recipes/ppo.py
    python recipes/ppo.py --model_name_or_path MODEL --dataset_name PROMPTS --reward_funcs runs/reward \\
        --output_dir runs/ppo
    python recipes/ppo.py --config recipes/configs/ppo_reviews.yaml --learning_rate 5e-5
    accelerate launch recipes/ppo.py --config recipes/configs/ppo_reviews.yaml --use_peft --push_to_hub
"""

import gc
import sys
from dataclasses import dataclass, field
from pathlib import Path

from hfrlhf import PolicyGradientConfig, PPOConfig, PPOTrainer, merge
from hfrlhf.data.loading import load_splits, split_of
from hfrlhf.models.loading import load_policy, load_tokenizer
from hfrlhf.models.merging import check_merge_target
from hfrlhf.models.names import as_name, is_adapter
from hfrlhf.reporting.screen import say
from hfrlhf.rewards.sources import reward_from_name
from hfrlhf.trainers.checkpoints import check_output_dir
from hfrlhf.trainers.command_line import parse_command_line
from trl import ModelConfig, ScriptArguments, get_peft_config, get_quantization_config

from accelerate import PartialState

SHOWN = {
    "data and models": "dataset_name dataset_train_split dataset_test_split model_name_or_path dtype reward_funcs "
    "value_model output_dir",
    "rollouts": "num_train_epochs max_steps rollout_batch_size num_generations max_prompt_length max_completion_length "
    "temperature stop_token_id",
    "the reward": "missing_eos_penalty reward_clip reward_weights kl_coef kl_target whiten_rewards gamma gae_lambda",
    "the update": "learning_rate value_learning_rate num_ppo_epochs num_mini_batches clip_range vf_coef ent_coef "
    "target_kl max_tokens_per_micro_batch gradient_accumulation_steps bf16 gradient_checkpointing use_cpu seed",
    "adapters": "use_peft lora_r load_in_4bit merge",
    "logs, checkpoints, Hub": "logging_steps eval_strategy eval_steps report_to save_strategy save_steps "
    "resume_from_checkpoint push_to_hub hub_model_id",
}


@dataclass
class PPOArguments(ScriptArguments):
    """Where prompts, rewards and critic come from."""

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


def run(script: PPOArguments, args: PolicyGradientConfig, model: ModelConfig, trainer_class: type) -> None:
    """Check what can be checked before anything is loaded, train, and merge where that is asked for."""
    needed = {"model_name_or_path": model.model_name_or_path, "dataset_name": script.dataset_name}
    for name, value in (needed | {"reward_funcs": script.reward_funcs}).items():
        if not value:
            raise SystemExit(
                f"--{name} is missing: give a name on the Hub or a local path, or a --config that has it (the embedded "
                "demo takes no settings)"
            )
    if script.merge and not model.use_peft and not is_adapter(as_name(model.model_name_or_path), {}):
        raise SystemExit("--merge merges an adapter into its base, but without --use_peft there is none")
    if script.merge:
        check_merge_target(Path(args.output_dir, "merged"))
    if not args.resume_from_checkpoint:
        check_output_dir(args.output_dir)
    train(script, args, model, trainer_class)
    if script.merge:
        write_merged(args.output_dir)


def train(script: PPOArguments, args: PolicyGradientConfig, model: ModelConfig, trainer_class: type) -> None:
    """Load, train, evaluate, save, push."""
    data = load_splits(script.dataset_name, script.dataset_config)
    loading = {"revision": model.model_revision, "attn_implementation": model.attn_implementation, "dtype": model.dtype}
    given = {name: value for name, value in loading.items() if value is not None}
    trainer = trainer_class(
        model=load_policy(model.model_name_or_path, get_quantization_config(model), **given),
        reward_funcs=[reward_from_name(name) for name in script.reward_funcs],
        args=args,
        train_dataset=split_of(data, script.dataset_train_split, script.dataset_name),
        eval_dataset=data.get(script.dataset_test_split),
        processing_class=load_tokenizer(None, model.model_name_or_path),
        value_model=script.value_model,
        peft_config=get_peft_config(model),
    )
    trainer.card["datasets"] = [script.dataset_name]
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    if trainer.eval_dataset is not None:
        trainer.evaluate()
    trainer.save_model()
    if args.push_to_hub:
        trainer.push_to_hub()


def write_merged(output_dir: str) -> None:
    """The saved adapter merged into its base, by the main process; the others wait for it."""
    gc.collect()  # the trainer and its models are gone now, and the base is loaded anew
    processes = PartialState()
    if processes.is_main_process:
        difference = merge(output_dir, f"{output_dir}/merged")
        say(f"merged model in {output_dir}/merged: its logits differ by at most {difference:.2g}")
    processes.wait_for_everyone()


if __name__ == "__main__":
    if len(sys.argv) > 1:
        run(*parse_command_line((PPOArguments, PPOConfig, ModelConfig), __doc__, SHOWN), PPOTrainer)
    else:
        from hfrlhf.demo import run_demo

        run_demo()
