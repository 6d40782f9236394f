"""The embedded demo with five algorithms of the family: curves of the reward model's score and of the KL, and a table.

    OMP_NUM_THREADS=1 python tests/benchmarks/demo_family.py [--runs FOLDER] [--help]

SFT model, pairs and reward model are the same each time (same seed); then each algorithm gets the same number of
episodes. A run that is in the folder already is used as it is.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
FIGURE = REPOSITORY / "model_cards/figures/demo_family.png"
ALGORITHMS = {
    "reinforce": "#718096",
    "rloo": "#2b6cb0",
    "vpg": "#b7791f",
    "ppo_clip": "#2f855a",
    "trpo": "#805ad5",
}
PROGRAM = "import sys; from hfrlhf.demo import run_demo; run_demo(sys.argv[1], algorithm=sys.argv[2])"


def metrics_of(algorithm: str, runs: Path) -> dict[str, Any]:
    """What the demo with this algorithm measured; it is run, in a process of its own, unless it was."""
    folder = runs / algorithm
    if not (folder / "metrics.json").exists():
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        subprocess.run([sys.executable, "-c", PROGRAM, str(folder), algorithm], env=environment, check=True)
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


def print_table(found: dict[str, dict[str, Any]]) -> None:
    """Markdown: what became of the letters of 256 held-out prompts."""
    columns = ("algorithm", "gold before → after", "win rate (95 %)", "score", "KL", "ended", "tokens", "distinct", "s")
    print(f"\n| {' | '.join(columns)} |\n{'| --- ' * len(columns)}|")
    for name, m in found.items():
        training = list(m["stage_seconds"].values())[3]
        cells = (
            f"`{name}`",
            f"{m['gold_before']:.2f} → {m['gold_after']:.2f}",
            f"{m['win_rate']:.1%} ({m['win_rate_low']:.1%}–{m['win_rate_high']:.1%})",
            f"{m['score_before']:.2f} → {m['score_after']:.2f}",
            f"{m['kl']:.1f}",
            f"{m['ended']:.1%}",
            f"{m['length_before']:.1f} → {m['length_after']:.1f}",
            f"{m['distinct']:.0%}",
            f"{training:.0f}",
        )
        print(f"| {' | '.join(cells)} |")


def plot(found: dict[str, dict[str, Any]], path: Path) -> None:
    """Score and KL against episodes, a line per algorithm, each a mean over 256 episodes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), constrained_layout=True)
    panels = [("objective/score", "reward model's score"), ("objective/kl", "KL to the SFT model, nats per response")]
    for axis, (column, title) in zip(axes, panels, strict=True):
        for name, m in found.items():
            episodes, values = smooth([row for row in m["ppo_log"] if column in row], column)
            axis.plot(episodes, values, color=ALGORITHMS[name], linewidth=1.8, label=name.replace("_", " "))
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("episodes", fontsize=9)
        axis.grid(alpha=0.25)
    axes[0].legend(fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def smooth(log: list[dict[str, float]], column: str) -> tuple[list[float], list[float]]:
    """Means of as many consecutive rollouts as make 256 episodes."""
    width = max(1, round(256 / log[0]["episode"]))
    parts = [log[i : i + width] for i in range(0, len(log), width)]
    return [part[-1]["episode"] for part in parts], [sum(row[column] for row in part) / len(part) for part in parts]


def main() -> None:
    """Run what is missing, print the table, draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=REPOSITORY / "runs/demo_family", help="a folder per algorithm")
    parser.add_argument("--figure", type=Path, default=FIGURE)
    options = parser.parse_args()
    found = {name: metrics_of(name, options.runs) for name in ALGORITHMS}
    print_table(found)
    plot(found, options.figure)


if __name__ == "__main__":
    main()
