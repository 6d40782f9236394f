"""A warm process that forks savers and kills them at random moments of a save:

python tests/faults/savers.py KIND MODEL FOLDER KILLS

Each trial t saves a state that is t's own in every part (weights, optimiser, generators, rollout, pending log); two
trials share a step, so that the second save replaces a checkpoint where the first came to its end. After each kill the
newest whole checkpoint must be found, must load, and must be one trial's to the bit: that of the killed saver, or of
the one before.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerState

from hfrlhf.runs.checkpoints import checkpoints_in
from hfrlhf.runs.folder import damage
from tests.faults.runs import KINDS


def tensors(built: Any) -> dict[str, torch.Tensor]:
    """What a trial marks: parameters and moments."""
    model = built.accelerator.unwrap_model(built.model)
    found = {name: p.data for name, p in model.named_parameters()}
    for index, state in built.optimizer.state_dict()["state"].items():
        found |= {f"{index}/{name}": value for name, value in state.items() if value.dim()}
    return found


class Trials:
    """States that can be told apart."""

    def __init__(self, built: Any) -> None:
        self.built = built
        self.first_step = built.state.global_step
        self.cycle = getattr(built, "cycle", None)  # loading at the end of one forgets it
        self.start = {name: tensor.clone() for name, tensor in tensors(built).items()}

    def expected(self, trial: int) -> dict[str, torch.Tensor]:
        """What trial t holds."""
        return {name: tensor + trial / 64 for name, tensor in self.start.items()}

    def put(self, trial: int) -> None:
        """Make the trainer's state that of trial t."""
        built, values = self.built, self.expected(trial)
        for name, tensor in tensors(built).items():
            tensor.copy_(values[name])
        built.state.global_step = self.first_step + trial // 2
        built.state.log_history = [{"trial": trial}]
        torch.manual_seed(trial)
        if self.cycle is not None:
            built.samples = [{"trial": trial}]
            scores = torch.full_like(self.cycle.experience.scores, trial)
            marked = dataclasses.replace(self.cycle.experience, scores=scores)
            built.cycle = dataclasses.replace(self.cycle, experience=marked)
        else:
            built.tally.seen = [torch.tensor([trial, 0.0, 0.0], dtype=torch.float64)]

    def load(self, checkpoint: str) -> int:
        """Load a checkpoint as a resume does; the one trial that all of it belongs to."""
        built = self.built
        built.state = TrainerState.load_from_json(f"{checkpoint}/trainer_state.json")
        built._load_from_checkpoint(checkpoint)
        built._load_optimizer_and_scheduler(checkpoint)
        built._load_rng_state(checkpoint)
        trial = built.state.log_history[0]["trial"]
        for name, value in self.expected(trial).items():
            assert torch.equal(tensors(built)[name], value), (trial, name)
        generator = torch.get_rng_state()
        torch.manual_seed(trial)
        assert torch.equal(torch.get_rng_state(), generator), trial
        if self.cycle is None:
            assert built.tally.seen[0][0] == trial
        else:
            assert built.samples == [{"trial": trial}]
            assert built.cycle is None or (built.cycle.experience.scores == trial).all()
        assert built.state.global_step == self.first_step + trial // 2
        return trial


def save_in_child(trials: Trials, trial: int, wait: float | None) -> tuple[bool, float]:
    """Fork a saver; kill it after `wait` seconds of its save.

    Returns:
        whether the save came to its end before, and the seconds it took.
    """
    readable, writable = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            trials.put(trial)
            os.write(writable, b"s")
            trials.built._save_checkpoint(trials.built.model, None)
            os.write(writable, b"d")
        finally:
            os._exit(0)
    os.close(writable)
    assert os.read(readable, 1) == b"s"
    began = time.perf_counter()
    if wait is not None:
        time.sleep(wait)
        os.kill(pid, signal.SIGKILL)
    done = os.read(readable, 1) == b"d"
    seconds = time.perf_counter() - began
    os.waitpid(pid, 0)
    os.close(readable)
    return done, seconds


def main(kind: str, model: str, folder: str, kills: int) -> dict[str, Any]:
    """Kill until enough savers died inside a save."""
    built = KINDS[kind](model, Path(folder), max_steps=3, save_total_limit=2, save_strategy="no")
    built.train()
    trials = Trials(built)
    run, draw = Path(folder, "run"), random.Random(0)
    usual = sorted(save_in_child(trials, trial, None)[1] for trial in range(4))[1]
    last, trial, inside, replaced, moved = 3, 4, 0, 0, 0
    while inside < kills and trial < 8 * kills:
        # Every third kill aims at the end of a save: manifest, renames, deletions.
        wait = usual * (draw.uniform(0.0, 1.1) if inside % 3 else draw.uniform(0.7, 1.1))
        # Of every second pair the first save is let come to its end, so that the kill falls into a replacement.
        spared = trial % 4 == 0
        there_before = (run / f"checkpoint-{trials.first_step + trial // 2}").is_dir()
        done, seconds = save_in_child(trials, trial, None if spared else wait)
        usual = seconds if spared else usual  # as it is now: a machine gets busy, and idle again
        inside += not done
        for checkpoint in checkpoints_in(run):
            assert damage(checkpoint) is None, (checkpoint, damage(checkpoint))
        found = trials.load(built.checkpoint_to_resume(True))
        assert found in ({trial} if done else {trial, last}), (found, trial, last, done)
        replaced += not done and there_before
        moved += not done and found == trial
        last, trial = found, trial + 1
    return {
        "trials": trial - 4,
        "kills inside a save": inside,
        "of those while replacing a checkpoint of the same step": replaced,
        "of those after the new one was in place": moved,
        "seconds of a save": round(usual, 3),
    }


if __name__ == "__main__":
    print("RESULT " + json.dumps(main(*sys.argv[1:4], int(sys.argv[4]))))
