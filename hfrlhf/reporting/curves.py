"""The curves of a run as one picture."""

from __future__ import annotations

import itertools
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .metrics import WATCHED
from .plain_text import printable

if TYPE_CHECKING:  # matplotlib takes a second to import, and a process that draws nothing does without
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CURVES = "curves.png"
REWARD, EVALUATED = "reward/", "eval_"
# Where on the horizontal axis, and where on the vertical; None leaves a gap.
Points = Sequence[tuple[float, float | None]]
COLOURS = ("#2b6cb0", "#c05621", "#2f855a", "#805ad5", "#b83280", "#718096")


def plot_curves(history: Sequence[Mapping[str, float]], path: Path, title: str = "") -> None:
    """One panel per watched metric against the episodes seen: training as a line, evaluations as points.

    The panel of the score has a line for each reward as well, where there are several. Nothing logged, no file.

    Args:
        history: the Trainer's `state.log_history`. path: PNG to write. title: above the panels.
    """
    rows = [row for row in history if "objective/score" in row]
    if not rows:
        return
    watched = {name: words for name, words in WATCHED.items() if any(name in row for row in rows)}
    figure, axes = _panels(2, 3, (11, 5.5), title)
    for axis in axes[len(watched) :]:
        axis.set_axis_off()  # no critic, nothing to show of it
    for axis, (name, (short, unit)) in zip(axes, watched.items(), strict=False):
        _draw_metric(axis, name, rows, _evaluations(history))
        _label(axis, short, unit, "episodes")
    _save(figure, path)


def plot_losses(history: Sequence[Mapping[str, float]], path: Path, title: str = "") -> None:
    """Loss, accuracy and margin of a reward model against optimiser steps, evaluations as points; nothing, no file.

    Args:
        history: the Trainer's `state.log_history`. path: PNG to write. title: above the panels.
    """
    names = {"loss": "nats per pair", "accuracy": "share of pairs in the right order", "margin": "chosen − rejected"}
    if not any(name in row or EVALUATED + name in row for row in history for name in names):
        return
    figure, axes = _panels(1, 3, (11, 3.2), title)
    for axis, (name, unit) in zip(axes, names.items(), strict=True):
        training = [(row["step"], row[name]) for row in history if name in row]
        _draw(axis, training, "training")
        _draw_points(axis, [(row["step"], row[EVALUATED + name]) for row in history if EVALUATED + name in row])
        _label(axis, name, unit, "optimiser steps")
    _save(figure, path)


def _panels(rows: int, columns: int, size: tuple[float, float], title: str) -> tuple[Figure, list[Axes]]:
    """A figure of its own, not pyplot's: a notebook's pictures stay as they are."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(rows, columns)
    figure.suptitle("\n".join(textwrap.wrap(plain_title(title), 110)[:2]), fontsize=11)
    return figure, list(axes.flat)


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)  # a title in a script the font lacks
        figure.savefig(path, dpi=120)


def plain_title(text: str) -> str:
    """A title without the signs that matplotlib would read as mathematics."""
    return printable(" ".join(text.split())).replace("$", r"\$")


def _label(axis: Axes, title: str, unit: str, along: str) -> None:
    axis.set_title(title, fontsize=10)
    axis.set_ylabel(unit, fontsize=8)
    axis.set_xlabel(along, fontsize=8)
    axis.grid(alpha=0.25)
    if len(axis.lines) > 1:
        axis.legend(fontsize=7, framealpha=0.6)
    if title == WATCHED["objective/ended"][0]:
        axis.set_ylim(0, 1.03)  # a share: zoomed in, one response in a hundred would look like a crash


def _draw(axis: Axes, points: Points, label: str, colour: str = COLOURS[0], **style: Any) -> None:
    if points:
        marker = "o" if len(points) < 3 else None  # a line of one point would not be seen
        axis.plot(*zip(*points, strict=True), color=colour, label=label, marker=marker, markersize=3, **style)


def _draw_points(axis: Axes, points: Points) -> None:
    if points:
        axis.plot(*zip(*points, strict=True), "D", color="black", markersize=4, label="evaluation")


def _draw_metric(
    axis: Axes, name: str, rows: Sequence[Mapping[str, float]], evaluated: Sequence[Mapping[str, float]]
) -> None:
    rewards = sorted({key for row in rows for key in row if key.startswith(REWARD)})
    parted = name == "objective/score" and len(rewards) > 1
    whole = [(row["episode"], row.get(name)) for row in rows]
    _draw(axis, whole, "weighted sum" if parted else "training", linewidth=1.5)
    for reward, colour in zip(rewards if parted else [], itertools.cycle(COLOURS[1:])):
        points = [(row["episode"], row.get(reward)) for row in rows]
        _draw(axis, points, plain_title(reward.removeprefix(REWARD)), colour, linewidth=1)
    _draw_points(axis, [(row["episode"], row[EVALUATED + name]) for row in evaluated if EVALUATED + name in row])


def _evaluations(history: Sequence[Mapping[str, float]]) -> list[Mapping[str, float]]:
    """The logs of evaluations, each with the episodes that training had seen by then."""
    found: list[Mapping[str, float]] = []
    episode = 0.0  # an evaluation's log does not say: the training's log before it does
    for row in history:
        episode = row.get("episode", episode)
        if any(name.startswith(EVALUATED) for name in row):
            found.append({"episode": episode, **row})
    return found
