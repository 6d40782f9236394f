"""Of two processes one speaks and writes: one report, one bar, one table, one card, each warning once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import launching
from tests.launching import torchrun

pytestmark = pytest.mark.distributed

SCRIPT = """
import json, os, sys
from pathlib import Path
folder, written = Path(sys.argv[2]), []

def watch(event, arguments):  # what this process opens for writing, makes or renames in the output folder
    if event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
        path, mode = os.fsdecode(arguments[0]), arguments[1] or ""
        if folder.name in path and set(mode) & set("wax+"):
            written.append(path)
    elif event in ("os.mkdir", "os.rename", "os.remove") and folder.name in os.fsdecode(arguments[0]):
        written.append(event + " " + os.fsdecode(arguments[0]))

from datasets import Dataset
from hfrlhf import RewardConfig, RewardTrainer
from hfrlhf.trainers.callbacks import CompletionsCallback, CurvesCallback
from tests.trainers.helpers import PROMPTS, trainer

sys.addaudithook(watch)
model = sys.argv[1]
data, few = (Dataset.from_dict({"prompt": rows}) for rows in ([*PROMPTS, "the " * 30], PROMPTS[:4]))
built = trainer(model, folder, train_dataset=data, eval_dataset=few, max_prompt_length=20, disable_tqdm=False,
                save_strategy="steps", save_steps=4, max_steps=8, logging_steps=1, critic_warmup_rollouts=2,
                kl_estimator="k3", callbacks=[CurvesCallback()])
built.add_callback(CompletionsCallback(built))
built.train()
built.evaluate()
built.save_state()
built.save_model()
rows = [{"chosen": "the film is good", "rejected": "bad"}] * 8
pairs = Dataset.from_list([*rows, {"chosen": "the " * 40, "rejected": ""}])
config = RewardConfig(str(folder / "reward"), per_device_train_batch_size=2, max_steps=4, max_length=20, save_steps=2,
                      report_to="none", use_cpu=True, logging_steps=1)
scorer = RewardTrainer(model, config, pairs, eval_dataset=pairs)
scorer.train()
scorer.evaluate()
scorer.save_model()
rank = os.environ["RANK"]
with open(sys.argv[3] + rank, "w") as file:
    json.dump(written, file)
"""


def test_one_process_speaks_and_writes(tiny_model_folder, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    folder = tmp_path / "outputs"
    given = [str(tiny_model_folder), str(folder), str(tmp_path / "written-")]
    # How often a bar is drawn is a matter of time, unless no time is enough: then at its beginning and at its end.
    done = launching.run(*torchrun(2), str(tmp_path / "script.py"), *given, TQDM_MININTERVAL="3600")
    once = ["reward model on 8 pairs (1 longer than 20 tokens left out)", "ppo_clip on 12 prompts"]
    once += [
        "first rollout: KL",
        "before, as in the first rollout │ the film",
        "after the last rollout          │ the film",
    ]
    assert {words: done.stdout.count(words) for words in once} == dict.fromkeys(once, 1)
    assert "train_runtime" not in done.stdout  # no dictionary of numbers: they are on the bar
    once = ["train: left out 1 of 13 prompts", "train: left out 1 of 9 pairs", "eval: left out 1 of 9 pairs"]
    once += ["takes all 2 rollouts of the run", "as a detached reward it has", "Tokenizing train pairs: 100%"]
    once += ["8/8 [", "4/4 ["]
    shown = {words: done.stderr.replace("\r", "\n").count(words) for words in once}
    # Drawn at the last step, with its numbers, and again as it closes.
    assert shown.pop("8/8 [") <= 3 and shown.pop("4/4 [") <= 3
    assert "Loading weights" not in done.stderr
    assert shown == dict.fromkeys(shown, 1)

    first, second = (json.loads((tmp_path / f"written-{rank}").read_text()) for rank in (0, 1))
    assert any("README.md" in path for path in first) and any("completions.jsonl" in path for path in first)
    assert {Path(path).name for path in second if not path.startswith("os.mkdir")} <= {"rng_state_1.pth"}
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    assert sorted(name for name in names if name.endswith("README.md") and "checkpoint" not in name) == [
        "reward/README.md",
        "run/README.md",
    ]
    assert sorted(name for name in names if "rng_state" in name) == sorted(
        f"{run}/checkpoint-{step}/rng_state_{rank}.pth"
        for run, steps in (("run", (4, 8)), ("reward", (2, 4)))
        for step in steps
        for rank in (0, 1)
    )
    rows = (folder / "run" / "completions.jsonl").read_text().splitlines()
    assert len(rows) == 2 * 4  # the first four completions of both rollouts
