"""Learning curves of every algorithm on a small world: held-out reward against episodes, three seeds each.

    OMP_NUM_THREADS=1 python tests/benchmarks/family_curves.py [--rows NAME …] [--workers 2] [--help]

A shop: a prompt says who asks, for what kind of thing, and when ("ada asks fruit morning :"). Each kind has four
things. The right answer names the four of that kind, each once, in the order of their list in the morning and backwards
in the evening, and ends. The reward is a known function of the answer (`reward_of`), 1 at most. The policy is a Llama
of two layers and hidden size 64 with random weights; nothing has been trained before, and no reward model is involved.
A quarter of the prompts is held out: of each kind and time, two of the eight askers never ask in training.

Every run adds to a JSON beside this script, from which the figure and the table are made (`--plot-only`).
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import redirect_stdout
from itertools import chain, product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from hfrlhf.algorithms import ALGORITHMS, Algorithm

REPOSITORY = Path(__file__).resolve().parents[2]
CURVES = Path(__file__).with_suffix(".json")
FIGURE = REPOSITORY / "model_cards/figures/family_curves.png"

ASKERS = ("ada", "bruno", "clara", "dario", "edith", "felix", "greta", "hugo")
THINGS = {
    "fruit": ("apple", "cherry", "lemon", "plum"),
    "tool": ("axe", "drill", "hammer", "saw"),
    "animal": ("cat", "goat", "horse", "robin"),
}
TIMES = {"morning": 1, "evening": -1}  # the direction in which the list is read
SPECIAL = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
WORDS = (*SPECIAL.values(), "asks", ":", *ASKERS, *THINGS, *TIMES, *chain(*THINGS.values()))
EOS = WORDS.index("<eos>")
LENGTH = 10  # tokens of a response, at most

EPISODES, EVALUATE_EVERY, HELD_OUT_COPIES = 6144, 512, 16
COMMON = {
    "max_completion_length": LENGTH,
    "kl_coef": 0.02,
    "lr_scheduler_type": "constant",
    "max_grad_norm": 1.0,
    "eval_strategy": "steps",
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "use_cpu": True,
    "bf16": False,
}
# One setting for each way of using a rollout, none for a single algorithm.
ONE_STEP = {"rollout_batch_size": 64, "learning_rate": 3e-3}
SEVERAL_STEPS = {"rollout_batch_size": 128, "num_mini_batches": 2, "learning_rate": 1e-3}
SHORT_SEARCH = {"cg_iterations": 3, "cg_damping": 0.03}
NATURAL = {"rollout_batch_size": 128, "value_epochs": 4, "learning_rate": 3e-3, "max_kl": 0.2, **SHORT_SEARCH}
# What only some algorithms read.
NEEDS: dict[str, dict[str, Any]] = {"groups": {"num_generations": 4}, "penalty": {"penalty_target": 0.05}}
CRITIC: dict[str, Any] = {"clip_range_value": None}


def settings_of(row: Algorithm) -> dict[str, Any]:
    """The settings of an algorithm's kind, and of what it needs."""
    kind = NATURAL if row.update != "gradient" else ONE_STEP if row.epochs == 1 else SEVERAL_STEPS
    settings: dict[str, Any] = {**COMMON, **kind, **(CRITIC if row.critic else {})}
    for need in row.needs:
        settings |= NEEDS.get(need, {})
    return settings


# ---- The world ------------------------------------------------------------------------------------------------------


def reward_of(answer: list[int], wanted: list[int]) -> float:
    """What an answer is worth: 1 for the wanted words in their order and an end, about −0.2 for random words.

        0.4·(share of the wanted words named) + 0.4·(longest common subsequence / 4) + 0.2·[ended, and named one]
        − 0.05·(words that repeat one or are not wanted)

    Args:
        answer: token ids, `<eos>` last if it ended. wanted: token ids in the wanted order.
    """
    ended, words = answer[-1] == EOS, [token for token in answer if token != EOS]
    named = len(set(words) & set(wanted))
    wasted = len(words) - named
    in_order = common_subsequence(words, wanted)
    return (0.4 * named + 0.4 * in_order) / len(wanted) + 0.2 * (ended and named > 0) - 0.05 * wasted


def common_subsequence(first: list[int], second: list[int]) -> int:
    """Length of the longest sequence that both contain, with gaps."""
    best = [0] * (len(second) + 1)
    for a in first:
        diagonal = 0
        for j, b in enumerate(second, 1):
            diagonal, best[j] = best[j], diagonal + 1 if a == b else max(best[j], best[j - 1])
    return best[-1]


def reward(prompts: list[str], completions: list[str], completion_ids: list[list[int]], **columns: Any) -> list[float]:
    """The reward function as the trainer calls it; the dataset's column `wanted` holds what the prompt asks for."""
    return [reward_of(answer, wanted) for answer, wanted in zip(completion_ids, columns["wanted"], strict=True)]


def requests(held_out: bool) -> list[dict[str, Any]]:
    """Prompts and what they ask for: those of training, or the others (every asker, kind and time is in both)."""
    rows = []
    for (a, asker), (k, kind), (t, time_of_day) in product(*map(enumerate, (ASKERS, THINGS, TIMES))):
        if ((a + k + t) % 4 == 0) == held_out:
            wanted = [WORDS.index(thing) for thing in THINGS[kind][:: TIMES[time_of_day]]]
            rows.append({"prompt": f"{asker} asks {kind} {time_of_day} :", "wanted": wanted})
    return rows


def make_tokenizer() -> Any:
    """One token per word."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL, padding_side="left")


def make_policy(seed: int) -> Any:
    """Two layers with random weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=32,
        initializer_range=0.1,  # a model this small learns late with the usual 0.02
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=EOS,
    )
    return LlamaForCausalLM(config)


# ---- One run --------------------------------------------------------------------------------------------------------


def run(algorithm: str, seed: int, episodes: int, changes: dict[str, Any]) -> dict[str, Any]:
    """Train once; the held-out reward at 0, 512, 1024 … episodes, and CPU seconds with the evaluations."""
    import torch
    from datasets import Dataset
    from transformers import PrinterCallback
    from transformers.utils import logging

    from hfrlhf.trainers.family import family_of

    torch.set_num_threads(1)
    logging.set_verbosity_error()
    config, trainer_class = family_of(algorithm)
    with tempfile.TemporaryDirectory() as folder:
        settings = settings_of(ALGORITHMS[algorithm]) | changes
        args = config(output_dir=folder, algorithm=algorithm, seed=seed, max_steps=1, eval_steps=1, **settings)
        per_episode = args.steps_per_rollout / args.episodes_per_rollout
        args.max_steps, args.eval_steps = round(episodes * per_episode), round(EVALUATE_EVERY * per_episode)
        trainer = trainer_class(
            model=make_policy(seed),
            reward_funcs=reward,
            args=args,
            train_dataset=Dataset.from_list(requests(held_out=False)),
            eval_dataset=Dataset.from_list(requests(held_out=True) * HELD_OUT_COPIES),
            processing_class=make_tokenizer(),
        )
        trainer.remove_callback(PrinterCallback)
        start = time.process_time()
        with redirect_stdout(io.StringIO()):
            at_start = trainer.evaluate() | {"step": 0}
            trainer.train()
        seconds = time.process_time() - start
    seen = [at_start, *(row for row in trainer.state.log_history if "eval_objective/score" in row)]
    return {
        "algorithm": algorithm,
        "seed": seed,
        "episodes": [round(row["step"] / per_episode) for row in seen],
        "reward": [round(row["eval_objective/score"], 4) for row in seen],
        "kl": round(seen[-1]["eval_objective/kl"], 2),
        "cpu_seconds": round(seconds, 1),
    }


# ---- All runs -------------------------------------------------------------------------------------------------------


def read_runs(path: Path) -> list[dict[str, Any]]:
    """What earlier calls have measured."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []


def add_run(path: Path, new: dict[str, Any]) -> None:
    """Keep a run, in the place of an earlier one of the same algorithm and seed; in the order of the table."""
    runs = {(r["algorithm"], r["seed"]): r for r in [*read_runs(path), new]}
    order = list(ALGORITHMS)
    lines = [json.dumps(runs[key]) for key in sorted(runs, key=lambda key: (order.index(key[0]), key[1]))]
    path.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")


def measure(options: argparse.Namespace) -> None:
    """Run what is asked for, in one or more processes, and keep each result as it comes."""
    jobs = list(product(options.rows, options.seeds))
    with ProcessPoolExecutor(options.workers, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(run, name, seed, options.episodes, json.loads(options.set)) for name, seed in jobs]
        for future in as_completed(futures):
            done = future.result()
            add_run(options.output, done)
            shown = " ".join(f"{x:5.2f}" for x in done["reward"])
            print(f"{done['algorithm']:34}{done['seed']}  {shown}  {done['cpu_seconds']:.0f} s", flush=True)


def print_table(runs: list[dict[str, Any]]) -> None:
    """Markdown: final held-out reward and CPU seconds of each algorithm, over its seeds."""
    columns = ("algorithm", "held-out reward", "episodes to 0.5", "KL to the start", "CPU seconds")
    print(f"\n| {' | '.join(columns)} |\n{'| --- ' * len(columns)}|")
    for name in ALGORITHMS:
        mine = [r for r in runs if r["algorithm"] == name]
        if not mine:
            continue
        final = [r["reward"][-1] for r in mine]
        spread = statistics.stdev(final) if len(final) > 1 else 0.0
        means = [statistics.fmean(at) for at in zip(*(r["reward"] for r in mine), strict=True)]
        half = next((str(e) for e, m in zip(mine[0]["episodes"], means, strict=True) if m >= 0.5), "not reached")
        kl, seconds = (statistics.fmean(r[field] for r in mine) for field in ("kl", "cpu_seconds"))
        print(f"| `{name}` | {statistics.fmean(final):.2f} ± {spread:.2f} | {half} | {kl:.1f} | {seconds:.0f} |")


# ---- The figure -----------------------------------------------------------------------------------------------------

GROUPS = {
    "REINFORCE and its baselines": (lambda row: not row.critic and row.epochs == 1, "#2b6cb0"),
    "Actor-critics": (lambda row: row.critic and row.epochs == 1 and row.update == "gradient", "#b7791f"),
    "Importance ratios and trust regions": (lambda row: row.epochs > 1 or row.update != "gradient", "#2f855a"),
}
COLUMNS = 4


def plot(runs: list[dict[str, Any]], path: Path) -> None:
    """A panel per algorithm: its mean and the range of its seeds over the means of all the others in grey."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    groups = [([n for n, row in ALGORITHMS.items() if belongs(row)], g) for g, (belongs, _) in GROUPS.items()]
    heights = [-(-len(names) // COLUMNS) for names, _ in groups]
    figure = plt.figure(figsize=(10, 2.05 * sum(heights)), constrained_layout=True)
    parts: Any = figure.subfigures(len(groups), 1, height_ratios=heights)
    for part, (names, group), height in zip(parts, groups, heights, strict=True):
        part.suptitle(group, fontsize=12, fontweight="bold", x=0.01, ha="left")
        axes = list(part.subplots(height, COLUMNS, sharex=True, sharey=True).flat)
        for axis, name in zip(axes, names, strict=False):
            panel(axis, name, runs, GROUPS[group][1])
        for axis in axes[len(names) :]:
            axis.set_axis_off()
        part.supylabel("held-out reward", fontsize=8)
    parts[-1].supxlabel("episodes", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def panel(axis: Any, name: str, runs: list[dict[str, Any]], colour: str) -> None:
    """One algorithm's curve."""
    for other in ALGORITHMS:
        curves = [r["reward"] for r in runs if r["algorithm"] == other]
        if not curves:
            continue
        episodes = next(r["episodes"] for r in runs if r["algorithm"] == other)
        mean = [statistics.fmean(at) for at in zip(*curves, strict=True)]
        axis.plot(episodes, mean, color="0.85", linewidth=0.7, zorder=1)
        if other == name:
            low, high = ([f(at) for at in zip(*curves, strict=True)] for f in (min, max))
            axis.fill_between(episodes, low, high, color=colour, alpha=0.25, linewidth=0, zorder=2)
            axis.plot(episodes, mean, color=colour, linewidth=1.8, zorder=3)
    axis.set_title(name.replace("importance_weighted", "imp. weighted").replace("_", " "), fontsize=9)
    axis.set_ylim(-0.45, 1.05)
    axis.set_xticks([0, 2000, 4000, 6000], ["0", "2k", "4k", "6k"])
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.25)


def main() -> None:
    """Measure, print the table, draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", default=list(ALGORITHMS), choices=list(ALGORITHMS), metavar="NAME")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--episodes", type=int, default=EPISODES, help="of each run")
    parser.add_argument("--workers", type=int, default=1, help="runs at the same time")
    parser.add_argument("--set", default="{}", help="other settings for these runs, as a JSON object")
    parser.add_argument("--output", type=Path, default=CURVES, help="JSON that the runs are kept in")
    parser.add_argument("--figure", type=Path, default=FIGURE)
    parser.add_argument("--plot-only", action="store_true", help="table and figure of the runs there are")
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if not options.plot_only:
        measure(options)
    print_table(read_runs(options.output))
    plot(read_runs(options.output), options.figure)


if __name__ == "__main__":
    main()
