"""Runs that can be interrupted and compared; as a script, one that goes on by itself from where it was killed:

python tests/faults/runs.py KIND MODEL FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from hfrlhf import RewardConfig, RewardTrainer
from tests.trainers.helpers import trainer, whole_log

STEPS = 36


def policy(model: str, folder: Path, **changes: Any) -> Any:
    """PPO with everything that has a state: adaptive KL, running moments, a decaying rate, Adam, weight decay."""
    settings = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 3, "max_steps": STEPS}
    settings |= {"kl_target": 0.5, "kl_horizon": 80, "normalize_scores": True, "logging_steps": 3}
    settings |= {"weight_decay": 0.1, "learning_rate": 3e-3, "lr_scheduler_type": "cosine"}
    return trainer(model, folder, **(settings | changes))


def reward(model: str, folder: Path, **changes: Any) -> Any:
    """A reward model with shuffling, accumulation, logs over several steps, several epochs of a number that is odd."""
    pairs = [{"chosen": "the " * (i % 5) + "film is good", "rejected": "a " * (i % 3) + "bad story"} for i in range(19)]
    own = {
        name: changes.pop(name) for name in ("peft_config", "quantization_config", "eval_dataset") if name in changes
    }
    settings = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": STEPS}
    settings |= {"learning_rate": 1e-2, "logging_steps": 3, "save_strategy": "steps", "save_steps": 1}
    settings |= {"save_total_limit": 3, "report_to": "none", "disable_tqdm": True, "use_cpu": True, "seed": 3}
    config = RewardConfig(**({"output_dir": str(folder / "run")} | settings | changes))
    return RewardTrainer(model, config, Dataset.from_list(pairs), **own)


KINDS = {"policy": policy, "reward": reward}


def start_or_go_on(kind: str, model: str, folder: Path, **changes: Any) -> Any:
    """What a job script does: resume where there is something to resume from."""
    built = KINDS[kind](model, folder, **changes)
    built.train(resume_from_checkpoint=any((folder / "run").glob("checkpoint-*")) or None)
    return built


def state_of(built: Any) -> dict[str, Any]:
    """Copies of all a run has to carry over: parameters, optimiser, rates, log (without the clock's part)."""
    state = {
        f"parameter {n}": p.detach().clone() for n, p in built.accelerator.unwrap_model(built.model).named_parameters()
    }
    for index, moments in built.optimizer.state_dict()["state"].items():
        state |= {f"optimiser {index} {name}": torch.as_tensor(value).clone() for name, value in moments.items()}
    state["rates"] = [group["lr"] for group in built.optimizer.param_groups]
    state["logs"] = whole_log(built)
    return state


def assert_same(one: dict[str, Any], two: dict[str, Any]) -> None:
    """To the bit."""
    assert one.keys() == two.keys()
    for name, value in one.items():
        same = torch.equal(value, two[name]) if isinstance(value, torch.Tensor) else value == two[name]
        assert same, name


if __name__ == "__main__":
    finished = start_or_go_on(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
    torch.save(state_of(finished), Path(sys.argv[3], "state.pt"))
