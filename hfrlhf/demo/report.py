"""What the demo shows in the end: the policy beside the SFT model on held-out prompts, judged by gold."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from rich.markup import escape as plain
from rich.table import Table

from ..core.kl import kl_penalty
from ..core.masking import masked_sum
from ..data.written import texts_of
from ..evaluation.win_rate import WinRate
from ..experience import Rollout
from ..models.policy.loading import load_policy, load_tokenizer
from ..models.policy.reference import Reference, frozen
from ..reporting.model_card import CardFacts, table_cell, write_model_card
from ..reporting.plain_text import printable
from ..reporting.screen import console, say
from ..rewards.sources import Completions, reward_source
from .gold import gold_score
from .stages import respond

_BEFORE, _AFTER = 6, 7  # the second word of an address: whose responses are drawn
SHOWN = 6  # samples on the screen and on the card

REMARKS = """\
A tiny model of a made-up village, which learned to write the letters its people like. It was first trained on letters
of all kinds (SFT), then by {method} on the scores of a reward model, which had seen nothing but pairs of letters and
which of the two was preferred. It knows some 200 words and nothing else: its use is to show that the machinery works.

The village's real preference, "gold", judges the result on {prompts} prompts that no stage was trained on, one letter
of each model per prompt; it was never a reward. A win is a letter that gold likes better than the SFT model's, a tie ½.
"""


def compare(folder: Path, prompts: Sequence[str], settings: Mapping[str, Any]) -> tuple[dict[str, float], list[dict]]:
    """One response of each model to each held-out prompt: the metrics of the run, and every sample with its scores.

    Args:
        folder: of the run, with `sft`, `reward_model` and `policy`. settings: all of demo.yaml.
    """
    length, seed = settings["ppo"]["max_completion_length"], settings["seed"]
    before = respond(folder / "sft", prompts, (seed, _BEFORE), length)
    after = respond(folder / "policy", prompts, (seed, _AFTER), length)
    seen = {"before": judge(folder, prompts, before), "after": judge(folder, prompts, after)}
    samples = [
        {"prompt": prompt} | {f"{what}_{when}": seen[when][what][i] for when in seen for what in seen[when]}
        for i, prompt in enumerate(prompts)
    ]
    wins = WinRate(keep_in_memory=True).compute(predictions=seen["after"]["gold"], references=seen["before"]["gold"])
    distinct = {when: len(set(columns["letter"])) / len(prompts) for when, columns in seen.items()}
    means = {f"{what}_{when}": fmean(seen[when][what]) for what in ("gold", "score") for when in seen}
    metrics = {**wins, "kl": fmean(kl_to_sft(folder, after)), "ended": float(after.terminated.float().mean())}
    metrics |= {"ended_sft": float(before.terminated.float().mean()), "distinct": distinct["after"]}
    metrics |= {"distinct_sft": distinct["before"], "distinct_of_sft": distinct["after"] / distinct["before"]}
    lengths = {
        f"length_{k}": float(r.completion_lengths.float().mean()) for k, r in (("before", before), ("after", after))
    }
    return {**metrics, **means, **lengths, "test_prompts": len(prompts)}, samples


def judge(folder: Path, prompts: Sequence[str], rollout: Rollout) -> dict[str, list[Any]]:
    """Each response's text, its gold score, and the reward model's score."""
    tokenizer = load_tokenizer(None, str(folder / "sft"))
    letters = texts_of(tokenizer, rollout)
    rater = reward_source(str(folder / "reward_model"), tokenizer)
    scores = rater(Completions(rollout, list(prompts), letters, rollout.completion_lists()))
    gold = [gold_score(prompt, letter) for prompt, letter in zip(prompts, letters, strict=True)]
    return {"letter": letters, "gold": gold, "score": scores.tolist()}


def kl_to_sft(folder: Path, rollout: Rollout) -> list[float]:
    """Σ_t log π(a_t) − log π_sft(a_t) of each of the policy's responses, in nats (SPEC §2.4)."""
    sft = Reference(frozen(load_policy(str(folder / "sft"))), "the SFT model")
    kl = kl_penalty(rollout.sampler_logprobs, sft.logprobs(rollout, temperature=1.0), "k1")
    return masked_sum(torch.where(rollout.action_mask, kl, 0.0), rollout.action_mask, -1).tolist()


def write_report(folder: Path, metrics: dict[str, Any], samples: list[dict], log: list[dict]) -> None:
    """`metrics.json`, `samples.jsonl`, `samples.md`, and the model card as `README.md`.

    Args:
        folder: of the run. metrics: of `compare`, what else is worth keeping, and the `command` that made the run.
        log: PPO's, a row per rollout.
    """
    text = json.dumps({**metrics, "ppo_log": log}, indent=1)
    (folder / "metrics.json").write_text(text + "\n", encoding="utf-8")
    lines = [json.dumps(sample) + "\n" for sample in samples]
    (folder / "samples.jsonl").write_text("".join(lines), encoding="utf-8")
    (folder / "samples.md").write_text(_markdown(samples, metrics["method"]), encoding="utf-8")
    numbers = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
    facts = CardFacts(
        model_name=str(folder / "policy"),
        task="text-generation",
        base_model=str(folder / "sft"),
        method=metrics["method"],
        remarks=REMARKS.format(prompts=len(samples), method=metrics["method"]),
        samples=[_shown(sample, metrics["method"]) for sample in samples[:SHOWN]],
        metrics=numbers,
        figures=["curves.png"],
        command=metrics["command"],
        example=samples[0]["prompt"],
    )
    write_model_card(folder, facts)


def print_report(folder: Path, metrics: dict[str, Any], samples: list[dict]) -> None:
    """The table of samples, what the run came to, and how to use its model."""
    screen = console()
    method = metrics["method"]
    table = Table(*_shown(samples[0], method), title=f"Letters before and after {method}", show_lines=True)
    for sample in samples[:SHOWN]:
        table.add_row(*(plain(printable(cell)) for cell in _shown(sample, method).values()))
    screen.print(table)
    m = metrics
    screen.print(
        f"gold preference  {m['gold_before']:.2f} → {m['gold_after']:.2f}, the policy wins {m['win_rate']:.1%} "
        f"({m['win_rate_low']:.1%} to {m['win_rate_high']:.1%}) of {m['test_prompts']} held-out prompts\n"
        f"reward model     {m['score_before']:.2f} → {m['score_after']:.2f}, right about "
        f"{m['reward_accuracy']:.1%} of held-out pairs\n"
        f"KL to SFT        {m['kl']:.1f} nats per response\n"
        f"ended            {m['ended']:.1%} of responses\n"
        f"distinct         {m['distinct']:.1%} of responses, {m['distinct_sft']:.1%} before\n"
        f"time             {m['seconds']:.0f} s: "
        + ", ".join(f"{stage} {seconds:.0f}" for stage, seconds in m["stage_seconds"].items())
        + f"; at most {m['peak_memory_gb']:.2f} GB of memory",
        highlight=False,
    )
    screen.print(f"\nEverything is in {folder}. To load and use the model:\n", highlight=False)
    say(
        "from transformers import pipeline\n"
        f'write = pipeline("text-generation", model={str(folder / "policy")!r})\n'
        f"print(write({samples[0]['prompt']!r})[0]['generated_text'])"
    )


def _shown(sample: Mapping[str, Any], method: str) -> dict[str, str]:
    """The columns that a person reads."""
    numbers = {when: f"{sample[f'gold_{when}']:.2f} / {sample[f'score_{when}']:.2f}" for when in ("before", "after")}
    return {
        "prompt": sample["prompt"],
        "SFT model": sample["letter_before"].strip(),
        "gold / reward": numbers["before"],
        f"after {method}": sample["letter_after"].strip(),
        "gold / reward ": numbers["after"],
    }


def _markdown(samples: list[dict], method: str) -> str:
    shown = [_shown(sample, method) for sample in samples]
    rows = [list(shown[0]), ["---"] * 5, *(sample.values() for sample in shown)]
    return "".join(f"| {' | '.join(cell if cell == '---' else table_cell(cell) for cell in row)} |\n" for row in rows)
