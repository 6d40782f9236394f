"""The whole demo: letters → SFT model → pairs → reward model → PPO → report, in one folder."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from accelerate import PartialState
from datasets import Dataset
from transformers import AutoTokenizer

from ..data.written import texts_of
from ..models.libraries import broadcast_object_list
from ..reporting.screen import say
from ..runs.interruption import Interrupted, say_at_the_end
from . import report, stages, world
from .algorithms import settings_for
from .console import one_thread, quiet
from .expectations import EXPECTED, DemoFailed, Expectation, shortfalls
from .memory import peak_memory_gb
from .pairs import label_pairs

_FIRST, _SECOND = 4, 5  # the second word of an address: which answer of a pair is drawn
_SPLITS = ("sft", "pairs", "ppo", "test")
MODELS = {"SFT": "sft", "reward model": "reward_model", "PPO": "policy"}  # stage -> the folder of its model


def run_demo(
    output_dir: str | Path | None = None, seed: int | None = None, settings: Any = None, algorithm: str = "ppo_clip"
) -> Path:
    """Run every stage and the report; returns the folder of the run.

    Args:
        output_dir: a new or empty folder; by default `runs/demo-<date>-<time>`.
        seed: of everything random; by default the one of the settings.
        settings: sections of `demo.yaml`, by default those.
        algorithm: of the family, in the place of PPO; it gets as many episodes.

    Raises:
        ValueError: an unknown algorithm.
        FileExistsError: the folder holds something already; nothing is ever overwritten.
        DemoFailed: with the demo's own settings, a stage is not what it should be; everything is written before.
        Interrupted: Ctrl-C.
    """
    expected = EXPECTED if settings is None else ()  # of settings of one's own nobody knows what they come to
    settings = dict(settings or load_settings())
    settings["seed"] = settings["seed"] if seed is None else seed
    if algorithm != "ppo_clip":
        settings["ppo"] = settings_for(algorithm, settings["ppo"])
    folder, clock = new_folder(output_dir), Clock()
    with quiet(), one_thread(), told_what_is_kept(folder, clock):
        metrics, samples, log = _run_stages(folder, settings, clock, expected)
        if clock.speaks:
            told = metrics | clock.facts() | {"command": " ".join(["python", *sys.argv])}
            report.write_report(folder, told, samples, log)
            report.print_report(folder, told, samples)
            refuse_shortfalls(folder, told, expected)
    return folder


def _run_stages(
    folder: Path, settings: dict[str, Any], clock: Clock, expected: Sequence[Expectation]
) -> tuple[dict[str, Any], list[dict], list[dict]]:
    """Train each model; the metrics and samples of the first process, and the log of the policy's training."""
    method, metrics, samples = stages.method(settings), dict[str, Any](), list[dict]()
    prompts = world.make_splits(settings["seed"], **{name: settings["world"][name] for name in _SPLITS})
    sft, reward_model, policy = (folder / name for name in MODELS.values())
    with clock.stage("SFT", "a tiny model learns to write letters"):
        stages.train_language_model(sft, prompts.sft, settings)
    with clock.stage("pairs", "it answers each prompt twice, and raters choose"):
        noise = settings["world"]["label_temperature"]
        pairs, test_pairs = (make_pairs(folder, part, noise, settings) for part in (prompts.pairs, prompts.test))
    with clock.stage("reward model", "learns from the choices"):
        accuracy = stages.train_reward_model(reward_model, sft, pairs, test_pairs, settings)
        clock.tell(shortfalls({"reward_accuracy": accuracy}, expected=expected))
    with clock.stage(method, "the model learns from the reward model"):
        log = stages.train_policy(policy, sft, reward_model, prompts.ppo, settings)
    with clock.stage("report", "on prompts that no stage has seen"):
        if clock.speaks:
            metrics, samples = report.compare(folder, prompts.test, settings)
    return metrics | {"method": method, "reward_accuracy": accuracy, "seed": settings["seed"]}, samples, log


def refuse_shortfalls(folder: Path, metrics: dict[str, Any], expected: Sequence[Expectation]) -> None:
    """End with an error where a stage is not what it should be.

    Raises:
        DemoFailed: the message has a line for each.
    """
    lines = shortfalls(metrics, metrics["method"], expected=expected)
    if lines:
        found = "\n".join(f"  {line}" for line in lines)
        raise DemoFailed(f"the demo is not what it should be; its files are in {folder}:\n{found}")


@contextmanager
def told_what_is_kept(folder: Path, clock: Clock) -> Iterator[None]:
    """Within the block, Ctrl-C ends the demo and says what is there: it has no checkpoints to go on from.

    Raises:
        Interrupted: with the exit code of a run that may be started again.
    """
    try:
        yield
    except (KeyboardInterrupt, Interrupted):
        whole = [str(folder / name) for stage, name in MODELS.items() if stage in clock.seconds]
        kept = f"the models of the stages that were over are kept ({', '.join(whole)})" if whole else "nothing is kept"
        message = (
            f"the demo was stopped: {kept}, what the stage in progress had learnt is lost. It starts anew each time"
        )
        if clock.speaks:
            say_at_the_end(message)
        raise Interrupted(message) from None


def load_settings() -> dict[str, Any]:
    """What `demo.yaml` says."""
    return yaml.safe_load((files(__package__) / "demo.yaml").read_text(encoding="utf-8"))


def new_folder(output_dir: str | Path | None) -> Path:
    """The folder of a new run, the same on every process.

    Raises:
        FileExistsError: it holds something already.
    """
    name = [str(output_dir or f"runs/demo-{time.strftime('%Y%m%d-%H%M%S')}")]
    folder = Path(broadcast_object_list(name)[0])
    if PartialState().is_main_process:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise FileExistsError(f"{folder} holds something already; choose another `output_dir`")
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def make_pairs(folder: Path, prompts: tuple[str, ...], noise: float, settings: dict[str, Any]) -> Dataset:
    """Two answers of the SFT model to each prompt, labelled by the raters."""
    tokenizer, length = AutoTokenizer.from_pretrained(folder / "sft"), settings["ppo"]["max_completion_length"]
    rollouts = [
        stages.respond(folder / "sft", prompts, (settings["seed"], which, len(prompts)), length)
        for which in (_FIRST, _SECOND)
    ]
    first, second = (texts_of(tokenizer, rollout) for rollout in rollouts)
    return label_pairs(prompts, first, second, noise, settings["seed"])


class Clock:
    """Says which stage begins, and remembers how long each one took."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.seconds: dict[str, float] = {}
        self.speaks = PartialState().is_main_process

    @contextmanager
    def stage(self, name: str, what: str) -> Iterator[None]:
        """Announce a stage and time it; no process goes on before all are done with it."""
        start = time.perf_counter()
        if self.speaks:
            say(f"\n[{len(self.seconds) + 1}/5] {name}: {what}")
        yield
        PartialState().wait_for_everyone()
        self.seconds[name] = time.perf_counter() - start
        if self.speaks:
            say(f"      {self.seconds[name]:.1f} s")

    def tell(self, lines: Sequence[str]) -> None:
        """Say what is not as it should be, once for all processes."""
        for line in lines if self.speaks else ():
            say(f"      ! {line}")

    def facts(self) -> dict[str, Any]:
        """Seconds in all and per stage, and the most memory this process has held."""
        return {
            "seconds": time.perf_counter() - self.started,
            "stage_seconds": dict(self.seconds),
            "peak_memory_gb": peak_memory_gb(),
        }
