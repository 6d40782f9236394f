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
from pathlib import Path

from hfrlhf.cli.data_arguments import POLICY_NEEDS, POLICY_PAGE, POLICY_PLACES, PolicyArguments
from hfrlhf.cli.first_look import first_look
from hfrlhf.cli.mistakes import told_in_a_line

if __name__ == "__main__" and sys.argv[1:]:  # help and slips are answered before the imports below take their seconds
    first_look(__doc__, POLICY_PAGE, [*POLICY_PLACES, "hfrlhf.settings.policy_gradient:PPOConfig"], POLICY_NEEDS)

from hfrlhf import PolicyGradientConfig, PPOConfig, PPOTrainer, merge
from hfrlhf.cli.command_line import parse_command_line
from hfrlhf.data.loading import load_splits, split_of
from hfrlhf.models.anatomy.names import as_name, is_adapter
from hfrlhf.models.merging import check_merge_target
from hfrlhf.models.policy.loading import load_policy, load_tokenizer
from hfrlhf.reporting.run_files import say_where_the_model_is
from hfrlhf.reporting.screen import say
from hfrlhf.rewards.sources import reward_from_name
from hfrlhf.runs.checkpoints import check_output_dir
from trl import ModelConfig, get_peft_config, get_quantization_config

from accelerate import PartialState


def run(script: PolicyArguments, args: PolicyGradientConfig, model: ModelConfig, trainer_class: type) -> None:
    """Check what can be checked before anything is loaded, train, and merge where that is asked for."""
    if script.merge and not model.use_peft and not is_adapter(as_name(model.model_name_or_path), {}):
        raise ValueError("--merge merges an adapter into its base, but without --use_peft there is none")
    if script.merge:
        check_merge_target(Path(args.output_dir, "merged"))
    if not args.resume_from_checkpoint:
        check_output_dir(args.output_dir)
    train(script, args, model, trainer_class)
    if script.merge:
        write_merged(args.output_dir)


def train(script: PolicyArguments, args: PolicyGradientConfig, model: ModelConfig, trainer_class: type) -> None:
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
    say_where_the_model_is(trainer)
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


def main() -> None:
    """The demo, or what the command line says."""
    if sys.argv[1:]:
        return run(*parse_command_line((PolicyArguments, PPOConfig, ModelConfig)), PPOTrainer)
    from hfrlhf.demo import run_demo

    run_demo()
    return None


if __name__ == "__main__":
    with told_in_a_line():
        main()
