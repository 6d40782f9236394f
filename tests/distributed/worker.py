"""What every process of a launch runs: one training after another, each described by a JSON object.

    python -m torch.distributed.run --nproc_per_node 2 tests/distributed/worker.py CASES.json FOLDER

A case has a `name`, a `model`, a ZeRO `stage` (0 for DDP, or for one process), and whatever settings it changes. Many
cases share one launch, since starting python with these libraries takes longer than to train them.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import LoraConfig
from transformers import BitsAndBytesConfig

from hfrlhf import RewardConfig, RewardTrainer
from tests.trainers.helpers import prompts, trainer, training_logs

LORA = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
ACCELERATE = {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO3_INIT": "false"}  # as its launcher sets


def use_deepspeed(stage: int, folder: Path, changes: dict[str, Any]) -> None:
    """Tell accelerate which strategy the next trainer is to have, as `accelerate launch --config_file` does."""
    for name in (*ACCELERATE, "ACCELERATE_DEEPSPEED_CONFIG_FILE"):
        os.environ.pop(name, None)
    if not stage:
        return
    # Not even the smallest parameter stays whole.
    zero = {"stage": stage, "stage3_param_persistence_threshold": 0, "stage3_gather_16bit_weights_on_model_save": True}
    filled = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
    file = folder / "deepspeed.json"
    file.write_text(json.dumps({"zero_optimization": zero} | dict.fromkeys(filled, "auto") | changes))
    os.environ.update(ACCELERATE, ACCELERATE_DEEPSPEED_CONFIG_FILE=str(file))


def build_policy(model: str, folder: Path, changes: dict[str, Any]) -> Any:
    """A PPO trainer; `adapter` puts policy and critic on one base, `bits` quantises it."""
    given = {"logging_steps": 1, "eval_dataset": prompts(3), "max_steps": 8} | changes
    if given.pop("adapter", False):
        given |= {"peft_config": LORA, "value_model": "adapter"}
    if given.pop("bits", None):
        given["quantization_config"] = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    return trainer(model, folder, **given)


def build_reward(model: str, folder: Path, changes: dict[str, Any]) -> Any:
    """A reward trainer, on all weights or an adapter, of pairs that do not divide by the batch."""
    rows = [{"chosen": "the " * (i % 5) + "film is good", "rejected": "a " * (i % 3) + "bad story"} for i in range(11)]
    own = {"peft_config": LoraConfig(r=4, target_modules=["q_proj"])} if changes.pop("adapter", False) else {}
    settings = {"output_dir": str(folder / "run"), "learning_rate": 0.1, "optim": "sgd", "logging_steps": 1}
    settings |= {"normalize_scores": "mean_std", "report_to": "none", "disable_tqdm": True, "use_cpu": True}
    settings |= {"train_sampling_strategy": "sequential", "save_strategy": "no"}
    args = RewardConfig(**(settings | changes))
    return RewardTrainer(model, args, Dataset.from_list(rows), eval_dataset=Dataset.from_list(rows), **own)


def watch(built: Any) -> dict[str, list[Any]]:
    """What was sampled in each rollout, and how many chunks each micro-batch of this process had."""
    seen: dict[str, list[Any]] = {"rollouts": [], "chunks": []}
    after, passes = built.after_rollout, built.strategy.passes
    built.after_rollout = lambda e: (seen["rollouts"].append(e.completion_lists()), after(e))[1]
    built.strategy.passes = lambda own: (seen["chunks"].append(own), passes(own))[1]
    return seen


def break_loss(built: Any, step: int) -> None:
    """One process has a loss that is not a number, in one step."""
    original = built.compute_loss

    def broken(*args: Any, **kwargs: Any) -> Any:
        loss, sums = original(*args, **kwargs)
        return loss * (float("nan") if built.state.global_step == step and built.args.process_index == 0 else 1), sums

    built.compute_loss = broken


def run(case: dict[str, Any], folder: Path) -> dict[str, Any]:
    """One training, evaluated and saved; what this process saw."""
    folder.mkdir(parents=True, exist_ok=True)
    use_deepspeed(case.pop("stage", 0), folder, case.pop("deepspeed", {}))
    resume, broken, kind = case.pop("resume", None), case.pop("broken_step", None), case.pop("kind", "policy")
    try:
        built = {"policy": build_policy, "reward": build_reward}[kind](case.pop("model"), folder, case)
    except ValueError as error:
        return {"error": str(error)}
    seen = watch(built) if kind == "policy" else {}
    if broken is not None:
        break_loss(built, broken)
    built.train(resume_from_checkpoint=resume)
    evaluated = built.evaluate()
    built.save_model()
    logs = training_logs(built) if kind == "policy" else [row for row in built.state.log_history if "loss" in row]
    return seen | {"logs": logs, "evaluated": evaluated, "strategy": built.accelerator.distributed_type.value}


if __name__ == "__main__":
    place = Path(sys.argv[2])
    for number, described in enumerate(json.loads(Path(sys.argv[1]).read_text())):
        name = described.pop("name")
        print(f"case {number}: {name}", flush=True)
        result = run(described, place / name)
        (place / name / f"result-{os.environ.get('RANK', '0')}.json").write_text(json.dumps(result))
