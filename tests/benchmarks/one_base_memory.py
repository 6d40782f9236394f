"""What one base with four roles saves: parameter bytes, and peak memory beside separate models and TRL 1.12's PPO.

TRL runs in an environment of its own (torch as here, then `pip install trl==1.12.0 transformers==5.23.0 peft accelerate
datasets`):

    python tests/benchmarks/one_base_memory.py --trl-python /path/to/trl/bin/python

A random Llama of 85 M parameters with a vocabulary of 32,000, built here. The same work for each: two rollouts of 16
responses of 64 tokens to prompts of 32, one epoch each, LoRA of rank 8 on every linear layer. `one base` is 4-bit, with
policy, critic and reward as adapters; `separate` is this package with four models in float32 (policy with LoRA,
reference, critic and reward model); `trl` has policy with LoRA (its reference: the adapter off), critic and reward
model, in float32. One process each, in turn; peak is the resident maximum above what the process held when the
libraries were imported and no model was loaded.
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
from importlib import import_module
from pathlib import Path
from typing import Any

VOCABULARY, PROMPT, LENGTH, ROLLOUT, ROLLOUTS = 32_000, 32, 64, 16, 2
LORA = {"r": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
COMMON = {"learning_rate": 1e-5, "save_strategy": "no", "report_to": "none", "use_cpu": True, "bf16": False, "seed": 1}


def build(folder: Path) -> None:
    """Base, reward model, reward adapter on the 4-bit base, tokenizer and prompts."""
    import torch
    from peft import LoraConfig, get_peft_model
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

    from hfrlhf.models.quantization import prepare_quantized
    from hfrlhf.models.reward.scoring import load_reward_model, save_adapter_settings

    words = {"<pad>": 0, "<bos>": 1, "<eos>": 2} | {f"w{i}": i for i in range(3, VOCABULARY)}
    inner = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, **special)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=12,
        num_attention_heads=9,
        max_position_embeddings=256,
        pad_token_id=0,
        num_labels=1,
    )
    torch.manual_seed(0)
    for name, kind in (("base", LlamaForCausalLM), ("reward", LlamaForSequenceClassification)):
        kind(config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    quantised = prepare_quantized(load_reward_model(str(folder / "base"), quantization_config=four_bits()), False)
    adapter = get_peft_model(quantised, LoraConfig(**LORA | {"task_type": "SEQ_CLS"}))
    adapter.save_pretrained(folder / "reward-adapter")
    save_adapter_settings(adapter, folder / "reward-adapter")
    rows = [" ".join(f"w{3 + (i * PROMPT + j) % 30_000}" for j in range(PROMPT)) for i in range(ROLLOUT * ROLLOUTS)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": row}) + "\n" for row in rows))


def four_bits() -> Any:
    """The quantisation of the base."""
    import torch
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)


def ours(kind: str, folder: Path) -> Any:
    """Our trainer, ready to train."""
    from datasets import load_dataset
    from peft import LoraConfig

    from hfrlhf import PPOConfig, PPOTrainer

    args = PPOConfig(
        output_dir=str(folder / "out"),
        rollout_batch_size=ROLLOUT,
        num_ppo_epochs=1,
        max_completion_length=LENGTH,
        max_steps=ROLLOUTS,
        max_tokens_per_micro_batch=512,
        disable_tqdm=True,
        **COMMON,
    )
    roles: dict[str, dict[str, Any]] = {
        "one-base": {
            "reward_funcs": str(folder / "reward-adapter"),
            "value_model": "adapter",
            "quantization_config": four_bits(),
        },
        "separate": {
            "reward_funcs": str(folder / "reward"),
            "value_model": str(folder / "reward"),
            "ref_model": str(folder / "base"),
        },
    }
    prompts = load_dataset("json", data_files=str(folder / "prompts.jsonl"), split="train")
    return PPOTrainer(
        str(folder / "base"), args=args, train_dataset=prompts, peft_config=LoraConfig(**LORA), **roles[kind]
    )


def trl(folder: Path) -> Any:
    """TRL 1.12's trainer, ready to train."""
    from datasets import load_dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    tokenizer = AutoTokenizer.from_pretrained(folder / "base", padding_side="left")
    prompts = load_dataset("json", data_files=str(folder / "prompts.jsonl"), split="train")
    prompts = prompts.map(lambda row: {"input_ids": tokenizer(row["prompt"]).input_ids}, remove_columns=["prompt"])
    args = PPOConfig(
        output_dir=str(folder / "out-trl"),
        per_device_train_batch_size=ROLLOUT,
        gradient_accumulation_steps=1,
        local_rollout_forward_batch_size=ROLLOUT,
        response_length=LENGTH,
        total_episodes=ROLLOUT * ROLLOUTS,
        num_ppo_epochs=1,
        num_mini_batches=1,
        gradient_checkpointing=False,
        num_sample_generations=0,
        **COMMON,
    )
    policy = AutoModelForCausalLM.from_pretrained(folder / "base")
    reward, critic = (AutoModelForSequenceClassification.from_pretrained(folder / "reward") for _ in range(2))
    return PPOTrainer(
        args=args,
        processing_class=tokenizer,
        model=policy,
        ref_model=None,
        reward_model=reward,
        value_model=critic,
        train_dataset=prompts,
        eval_dataset=prompts.select(range(ROLLOUT)),
        peft_config=LoraConfig(**LORA),
    )


def stored_bytes(tensors: Any) -> int:
    """Bytes of tensors, each memory counted once, with what a 4-bit weight needs to be read."""
    import torch

    found: dict[int, int] = {}
    for tensor in tensors:
        state = getattr(tensor, "quant_state", None)
        parts = [tensor, *(x for x in vars(state).values() if isinstance(x, torch.Tensor))] if state else [tensor]
        found |= {part.data_ptr(): part.numel() * part.element_size() for part in parts}
    return sum(found.values())


def parameter_bytes(trainer: Any) -> dict[str, int]:
    """Of all four roles, and of the base alone."""
    from hfrlhf.models.adapters import roles_of

    policy, heads = trainer.unwrapped().policy, [source.head for source in trainer.reward.sources]
    roles = roles_of(policy)
    base = [p for name, p in policy.named_parameters() if name not in roles]
    everything = [*trainer.unwrapped().parameters(), *(p for head in heads for p in head.parameters())]
    return {"roles": stored_bytes(everything), "base": stored_bytes(base)}


def peak() -> int:
    """KiB this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def child(options: argparse.Namespace) -> None:
    """Train in this process and print what it took."""
    import torch

    torch.set_num_threads(1)
    libraries = ["trl.experimental.ppo"] if options.child == "trl" else ["bitsandbytes", "hfrlhf.trainers.ppo"]
    for library in libraries:
        import_module(library)
    start = peak()
    trainer = trl(options.folder) if options.child == "trl" else ours(options.child, options.folder)
    sizes = parameter_bytes(trainer) if options.child == "one-base" else {}
    trainer.train()
    print(json.dumps({"mib": (peak() - start) / 1024, **sizes}))


def measure(kind: str, options: argparse.Namespace) -> dict[str, float]:
    """One process of one kind."""
    python = options.trl_python if kind == "trl" else sys.executable
    here = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
    environment |= {} if kind == "trl" else {"PYTHONPATH": here}
    command = [python, __file__, "--child", kind, "--folder", str(options.folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{kind} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Interleaved runs, then medians and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trl-python")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--child", choices=["one-base", "separate", "trl"])
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    if options.child:
        return child(options)
    with tempfile.TemporaryDirectory() as folder:
        options.folder = Path(folder)
        build(options.folder)
        kinds = ["one-base", "separate", *(["trl"] if options.trl_python else [])]
        runs: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
        for _ in range(options.runs):
            for kind in kinds:
                runs[kind].append(measure(kind, options))
    sizes = runs["one-base"][0]
    print(
        f"parameters of all four roles {sizes['roles'] / 2**20:.1f} MiB = {sizes['roles'] / sizes['base']:.3f} × the "
        f"4-bit base with its unquantised parts, {sizes['base'] / 2**20:.1f} MiB"
    )
    for kind in kinds:
        ratios = {
            o: statistics.median(a["mib"] / b["mib"] for a, b in zip(runs[kind], runs[o], strict=True)) for o in kinds
        }
        told = ", ".join(f"{ratio:.2f} × {other}" for other, ratio in ratios.items() if other != kind)
        print(f"{kind:9} {statistics.median(run['mib'] for run in runs[kind]):7.0f} MiB above start: {told}")


if __name__ == "__main__":
    main()
