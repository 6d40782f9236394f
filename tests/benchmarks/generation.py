"""CPU seconds of the decode loop against `generate()` of transformers, and what each of its ideas is worth.

    OMP_NUM_THREADS=1 python tests/benchmarks/generation.py [--help]

Every round runs every variant once, so that a change of the machine's load meets them all; medians are compared.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from hfrlhf.data.prompts import prepare_prompts, prompt_batch
from hfrlhf.experience import Prompts
from hfrlhf.rollout import decoding, generation
from hfrlhf.rollout.generation import TransformersGenerator

SHARED = Path(__file__).resolve().parents[3] / "shared"


def theirs(model: Any, prompts: Prompts, length: int, stop: int, logprobs: bool) -> None:
    """`generate()`, sampling from the whole distribution; with the log-probs of its tokens if asked for."""
    with torch.no_grad():
        output = model.generate(
            input_ids=prompts.input_ids,
            attention_mask=prompts.attention_mask,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=length,
            eos_token_id=stop,
            pad_token_id=0,
            output_logits=logprobs,
            return_dict_in_generate=True,
        )
        if logprobs:
            tokens = output.sequences[:, prompts.input_ids.shape[1] :]
            for step, logits in enumerate(output.logits):
                torch.log_softmax(logits.float(), -1).gather(1, tokens[:, step, None])


@contextmanager
def constants(**values: float) -> Iterator[None]:
    """Other constants in the decode loop for a while."""
    homes = {name: generation if hasattr(generation, name) else decoding for name in values}
    before = {name: getattr(home, name) for name, home in homes.items()}
    for name, home in homes.items():
        setattr(home, name, values[name])
    yield
    for name, home in homes.items():
        setattr(home, name, before[name])


def variants(model: Any, prompts: Prompts, length: int, stop: int) -> dict[str, Callable[[], Any]]:
    """What is compared, by name."""

    def ours(max_rows: int | None = None, **values: float) -> Callable[[], Any]:
        def run() -> None:
            with constants(**values):
                TransformersGenerator(length, 1.0, stop, max_rows).generate(model, prompts, (0,))

        return run

    return {
        "generate()": lambda: theirs(model, prompts, length, stop, logprobs=False),
        "generate() and log-probs": lambda: theirs(model, prompts, length, stop, logprobs=True),
        "decode loop": ours(),
        "  finished rows stay": ours(LEAVING_SHARE=2.0),
        "  they leave at 1/4": ours(LEAVING_SHARE=1 / 4),
        "  they leave at once": ours(LEAVING_SHARE=1e-9),
        "  all prompts in one prefill": ours(SIMILAR_LENGTH=0.0),
        "  only equal lengths together": ours(SIMILAR_LENGTH=1.0, SMALL_GROUP=0),
        "  at most 32 rows": ours(max_rows=32),
    }


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=SHARED / "models/reviews-sft", help="folder or Hub name")
    parser.add_argument("--prompts", default=SHARED / "data/reviews-prompts/train.jsonl", help="a column `prompt`")
    parser.add_argument("--rows", type=int, nargs="+", default=[64, 256], help="prompts per rollout")
    parser.add_argument("--length", type=int, default=32, help="tokens per response, at most")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each variant")
    args = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(args.model).eval()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    prompts = prepare_prompts(Dataset.from_json(str(args.prompts)), tokenizer, 512)
    for rows in args.rows:
        batch = prompt_batch(prompts, torch.arange(rows), torch.arange(rows))
        print_table(rows, variants(model, batch, args.length, tokenizer.eos_token_id), args.rounds)


def print_table(rows: int, compared: dict[str, Callable[[], Any]], rounds: int) -> None:
    """Medians of the CPU seconds, and how many times faster than `generate()` that is."""
    seconds: dict[str, list[float]] = {name: [] for name in compared}
    for _ in range(rounds):
        for name, run in compared.items():
            start = time.process_time()
            run()
            seconds[name].append(time.process_time() - start)
    reference = median(seconds["generate()"])
    print(f"\n{rows} prompts{'':22}CPU s   × generate()")
    for name, values in seconds.items():
        print(f"{name:32}{median(values):6.3f}   {reference / median(values):.2f}")


if __name__ == "__main__":
    main()
