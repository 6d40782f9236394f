"""Fine-tune a language model on texts, prompts with completions, or chats: the model that PPO starts from.

The data is a name on the Hub, a folder with train.jsonl and test.jsonl, or one file. Examples:

    python recipes/sft.py --model_name_or_path MODEL --dataset_name DATA --output_dir runs/sft
    python recipes/sft.py --config recipes/configs/sft_reviews.yaml --learning_rate 1e-5
    accelerate launch recipes/sft.py --config recipes/configs/sft_reviews.yaml --use_peft --push_to_hub
"""

from hfrlhf.cli.data_arguments import DataArguments
from hfrlhf.cli.first_look import first_look
from hfrlhf.cli.mistakes import told_in_a_line

PAGE = {
    "data and model": "dataset_name dataset_train_split dataset_test_split model_name_or_path dtype output_dir",
    "training": "learning_rate num_train_epochs max_steps per_device_train_batch_size gradient_accumulation_steps "
    "max_length packing assistant_only_loss eval_strategy bf16 use_cpu seed",
    "adapters": "use_peft lora_r load_in_4bit",
    "logs, checkpoints, Hub": "logging_steps report_to save_strategy resume_from_checkpoint push_to_hub hub_model_id",
}
PLACES = ("hfrlhf.cli.data_arguments:DataArguments", "trl:SFTConfig", "trl:ModelConfig")

if __name__ == "__main__":  # help and slips are answered before the imports below take their seconds
    first_look(__doc__, PAGE, PLACES, ("model_name_or_path", "dataset_name"))

from hfrlhf.cli.command_line import parse_command_line
from hfrlhf.data.loading import load_splits, split_of
from hfrlhf.models.quantization import save_quantization
from hfrlhf.models.quiet import quietly
from hfrlhf.reporting.model_card import is_hub_name
from hfrlhf.reporting.progress import show_on_bar
from hfrlhf.reporting.run_files import say_where_the_model_is
from hfrlhf.runs.checkpoints import check_output_dir
from trl import ModelConfig, SFTConfig, SFTTrainer, get_peft_config, get_quantization_config


@quietly()
def main() -> None:
    """Parse, load, train, evaluate, save, push."""
    script, args, model = parse_command_line((DataArguments, SFTConfig, ModelConfig))
    if not args.resume_from_checkpoint:
        check_output_dir(args.output_dir)
    data = load_splits(script.dataset_name, script.dataset_config)
    held_out = split_of(data, script.dataset_test_split, script.dataset_name) if args.eval_strategy != "no" else None
    loading = {"revision": model.model_revision, "attn_implementation": model.attn_implementation, "dtype": model.dtype}
    loading |= {"trust_remote_code": False, "use_safetensors": True}
    args.model_init_kwargs = {**loading, **(args.model_init_kwargs or {})}
    trainer = SFTTrainer(
        model=model.model_name_or_path,
        args=args,
        train_dataset=split_of(data, script.dataset_train_split, script.dataset_name),
        eval_dataset=held_out,
        peft_config=get_peft_config(model),
        quantization_config=get_quantization_config(model),
    )
    show_on_bar(trainer, {"loss": "loss", "mean_token_accuracy": "accuracy"})
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    if trainer.eval_dataset is not None:
        trainer.save_metrics("eval", trainer.evaluate())
    trainer.save_state()
    trainer.save_model()
    # A local path would make the card's metadata invalid.
    dataset = script.dataset_name if is_hub_name(script.dataset_name) else None
    if trainer.is_world_process_zero():
        save_quantization(trainer.accelerator.unwrap_model(trainer.model), args.output_dir)
        trainer.create_model_card(dataset_name=dataset)
    say_where_the_model_is(trainer)
    if args.push_to_hub:
        trainer.push_to_hub(dataset_name=dataset)


if __name__ == "__main__":
    with told_in_a_line():
        main()
