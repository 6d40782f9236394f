"""Which numbers of a run a person follows, and what they are called where there is little room."""

from __future__ import annotations

# Metric, short name, and what it is measured in; the most telling ones first.
WATCHED = {
    "objective/score": ("score", "mean score of a response"),
    "objective/kl": ("KL", "nats per response"),
    "objective/ended": ("ended", "share of responses with a stop token"),
    "objective/entropy": ("entropy", "nats per token"),
    "objective/response_length": ("length", "tokens"),
    "value/explained_variance": ("critic", "explained share of the returns' variance"),
}
# The same for trainers whose numbers are losses.
OF_PAIRS = {"loss": "loss", "accuracy": "accuracy", "margin": "margin", "eval_accuracy": "held-out accuracy"}


def short_names() -> dict[str, str]:
    """Metric -> its name on a line or a bar."""
    return {name: short for name, (short, _) in WATCHED.items()}
