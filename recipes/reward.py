"""Train a reward model on pairs of a chosen and a rejected response: the reward that PPO maximises.

The data has the columns `chosen` and `rejected`, optionally `prompt` and `margin`, as text or as chat messages: a name
on the Hub, a folder with train.jsonl and test.jsonl, or one file. The model is a language model, which gets a new head,
or a reward model to go on with. Examples:

    python recipes/reward.py --model_name_or_path MODEL --dataset_name PAIRS --output_dir runs/reward
    python recipes/reward.py --config recipes/configs/reward_reviews.yaml --learning_rate 2e-4
    accelerate launch recipes/reward.py --config recipes/configs/reward_hh.yaml --use_peft --push_to_hub
"""

from hfrlhf.cli.data_arguments import DataArguments
from hfrlhf.cli.first_look import first_look
from hfrlhf.cli.mistakes import told_in_a_line

PAGE = {
    "data and model": "dataset_name dataset_train_split dataset_test_split model_name_or_path dtype output_dir",
    "training": "learning_rate num_train_epochs max_steps per_device_train_batch_size gradient_accumulation_steps "
    "max_length eval_strategy bf16 activation_checkpointing|gradient_checkpointing use_cpu seed",
    "the reward": "center_rewards_coefficient label_smoothing normalize_scores",
    "adapters": "use_peft lora_r load_in_4bit",
    "logs, checkpoints, Hub": "logging_steps report_to save_strategy resume_from_checkpoint push_to_hub hub_model_id",
}
PLACES = ("hfrlhf.cli.data_arguments:DataArguments", "hfrlhf.settings.reward:RewardConfig", "trl:ModelConfig")

if __name__ == "__main__":  # help and slips are answered before the imports below take their seconds
    first_look(__doc__, PAGE, PLACES, ("model_name_or_path", "dataset_name"))

from hfrlhf import RewardConfig, RewardTrainer, load_reward_model
from hfrlhf.cli.command_line import parse_command_line
from hfrlhf.data.loading import load_splits, split_of
from hfrlhf.models.policy.loading import load_tokenizer
from hfrlhf.reporting.run_files import say_where_the_model_is
from hfrlhf.runs.checkpoints import check_output_dir
from trl import ModelConfig, get_peft_config, get_quantization_config


def main() -> None:
    """Parse, load, train, evaluate, save, push."""
    script, args, model = parse_command_line((DataArguments, RewardConfig, ModelConfig))
    if not args.resume_from_checkpoint:
        check_output_dir(args.output_dir)
    data = load_splits(script.dataset_name, script.dataset_config)
    tokenizer = load_tokenizer(None, model.model_name_or_path)
    loading = {"revision": model.model_revision, "attn_implementation": model.attn_implementation, "dtype": model.dtype}
    loading["quantization_config"] = get_quantization_config(model)
    given = {name: value for name, value in loading.items() if value is not None}
    trainer = RewardTrainer(
        model=load_reward_model(model.model_name_or_path, tokenizer, args.seed, **given),
        args=args,
        train_dataset=split_of(data, script.dataset_train_split, script.dataset_name),
        eval_dataset=data.get(script.dataset_test_split),
        processing_class=tokenizer,
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


if __name__ == "__main__":
    with told_in_a_line():
        main()
