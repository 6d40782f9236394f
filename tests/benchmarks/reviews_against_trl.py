"""PPO on the reviews, ours and TRL 1.12's, side by side: CPU seconds and peak memory of the same number of rollouts.

TRL removed its PPO trainer, so it runs in an environment of its own (torch as here, then
`pip install trl==1.12.0 transformers==5.23.0 peft accelerate datasets`):

    python tests/benchmarks/reviews_against_trl.py --trl-python /path/to/trl/bin/python --reward runs/reward_reviews

Both train the same policy on the same prompts and reward model with the same settings: rollouts of 64, responses of at
most 32 tokens, 4 epochs of one step, β 0.05. TRL needs a critic of its own (made from the reward model); ours is
measured with its default, a head on the policy's trunk, and with the same separate critic. One thread, processes in
turn, the median of the pairs' ratios; peak memory is the process's resident maximum above what it held before training.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time

SHARED = {
    "learning_rate": 1e-4,
    "num_ppo_epochs": 4,
    "num_mini_batches": 1,
    "kl_coef": 0.05,
    "missing_eos_penalty": 1.0,
}
COMMON = {"temperature": 1.0, "save_strategy": "no", "report_to": "none", "use_cpu": True, "bf16": False, "seed": 1}
ROLLOUT, LENGTH = 64, 32


def ours(options: argparse.Namespace, folder: str):
    """Our trainer, ready to train."""
    from datasets import load_dataset

    from hfrlhf import PPOConfig, PPOTrainer

    args = PPOConfig(
        output_dir=folder,
        rollout_batch_size=ROLLOUT,
        max_completion_length=LENGTH,
        max_steps=4 * options.rollouts,
        max_tokens_per_micro_batch=1024,
        disable_tqdm=True,
        **SHARED,
        **COMMON,
    )
    critic = options.reward if options.child == "ours-critic" else None
    prompts = load_dataset("json", data_files=f"{options.prompts}/train.jsonl", split="train")
    return PPOTrainer(options.model, options.reward, args, prompts, value_model=critic)


def trl(options: argparse.Namespace, folder: str):
    """TRL 1.12's trainer, ready to train."""
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    tokenizer = AutoTokenizer.from_pretrained(options.model, padding_side="left")
    prompts = load_dataset("json", data_files=f"{options.prompts}/train.jsonl", split="train")
    prompts = prompts.map(lambda row: {"input_ids": tokenizer(row["prompt"]).input_ids}, remove_columns=["prompt"])
    args = PPOConfig(
        output_dir=folder,
        per_device_train_batch_size=ROLLOUT,
        gradient_accumulation_steps=1,
        local_rollout_forward_batch_size=ROLLOUT,
        response_length=LENGTH,
        total_episodes=ROLLOUT * options.rollouts,
        stop_token="eos",
        gradient_checkpointing=False,
        num_sample_generations=0,
        **SHARED,
        **COMMON,
    )
    policy, reference = (AutoModelForCausalLM.from_pretrained(options.model) for _ in range(2))
    reward, critic = (AutoModelForSequenceClassification.from_pretrained(options.reward) for _ in range(2))
    return PPOTrainer(
        args=args,
        processing_class=tokenizer,
        model=policy,
        ref_model=reference,
        reward_model=reward,
        value_model=critic,
        train_dataset=prompts,
        eval_dataset=prompts.select(range(64)),
    )


def child(options: argparse.Namespace) -> None:
    """Train in this process and print what it took."""
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        trainer = trl(options, folder) if options.child == "trl" else ours(options, folder)
        before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
        trainer.train()
        seconds = time.process_time() - start
        above = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(json.dumps({"seconds": seconds, "mib": above / 1024}))


def measure(python: str, kind: str, options: argparse.Namespace) -> dict[str, float]:
    """One process of one kind."""
    command = [python, __file__, "--child", kind, "--rollouts", str(options.rollouts)]
    command += ["--model", options.model, "--reward", options.reward, "--prompts", options.prompts]
    here = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
    environment |= {} if kind == "trl" else {"PYTHONPATH": here}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{kind} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Interleaved pairs, then a table of medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl-python")
    parser.add_argument("--model", default="../shared/models/reviews-sft")
    parser.add_argument("--prompts", default="../shared/data/reviews-prompts")
    parser.add_argument("--reward", default="runs/reward_reviews")
    parser.add_argument("--rollouts", type=int, default=4)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--child", choices=["ours", "ours-critic", "trl"])
    options = parser.parse_args()
    if options.child:
        return child(options)
    pythons = {"ours": sys.executable, "ours-critic": sys.executable, "trl": options.trl_python}
    runs: dict[str, list[dict[str, float]]] = {kind: [] for kind in pythons}
    for _ in range(options.pairs):
        for kind, python in pythons.items():
            runs[kind].append(measure(python, kind, options))
    for kind, results in runs.items():
        seconds = statistics.median(r["seconds"] / options.rollouts for r in results)
        ratios = [r["seconds"] / t["seconds"] for r, t in zip(results, runs["trl"], strict=True)]
        memory = statistics.median(r["mib"] for r in results)
        print(
            f"{kind:12} {seconds:6.2f} CPU s per rollout   {statistics.median(ratios):.2f} × TRL "
            f"({min(ratios):.2f}–{max(ratios):.2f})   {memory:6.0f} MiB above start"
        )


if __name__ == "__main__":
    main()
