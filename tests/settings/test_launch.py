"""Launches that would go wrong in silence stop at the start, on every process: real launchers, real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hfrlhf.settings.launch import check_data_parallel
from tests.launching import OWN, ROOT, free_port

LAUNCHED = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "OMPI_COMM_WORLD_SIZE")

# Each process writes down what each attempt raised.
SCRIPT = """
import json, os, sys
from pathlib import Path
from datasets import Dataset
from hfrlhf import PPOTrainer, RewardConfig, RewardTrainer
from hfrlhf.settings.policy_gradient import PPOConfig

folder, model, use_cpu, what = Path(sys.argv[1]), sys.argv[2], sys.argv[3] == "cpu", sys.argv[4]
rank = int(os.environ.get("RANK", 0))
common = {"output_dir": str(folder / "run"), "report_to": "none", "disable_tqdm": True, "use_cpu": use_cpu}
pairs = [{"chosen": "the film is good", "rejected": "a bad story"}, {"chosen": "good", "rejected": "bad"}] * 4

def ppo(rows=4, **changes):
    data = Dataset.from_dict({"prompt": ["the film", "a story", "good", "bad"][:rows]})
    return PPOTrainer(model, lambda completions: [0.0] * len(completions),
                      PPOConfig(**common | {"rollout_batch_size": 4, "max_completion_length": 3} | changes), data)

def reward(rows=8, **changes):
    return RewardTrainer(model, RewardConfig(**common | changes), Dataset.from_list(pairs[:rows]))

ATTEMPTS = {
    "start": {"ppo": ppo, "reward": reward},
    "ranks": {
        "ppo settings": lambda: ppo(kl_coef=0.05 + rank, num_ppo_epochs=1 + rank),
        "ppo data": lambda: ppo(rows=4 - rank),
        "reward settings": lambda: reward(seed=rank),
        "reward data": lambda: reward(rows=8 - rank),
        "the same, elsewhere": lambda: (ppo(output_dir=str(folder / f"run-{rank}")), reward()),
    },
}
said = {}
for name, attempt in ATTEMPTS[what].items():
    try:
        attempt()
        said[name] = ""
    except ValueError as error:
        said[name] = str(error)
Path(folder, f"said-{os.getpid()}.json").write_text(json.dumps({"rank": rank} | said))
"""


def launch(folder: Path, launcher: list[str], model: Path, *words: str, **variables: str) -> list[dict[str, str]]:
    """What each process said, in the order of ranks."""
    (folder / "script.py").write_text(SCRIPT)
    environment = {k: v for k, v in os.environ.items() if k not in LAUNCHED and not k.startswith("ACCELERATE_")}
    done = subprocess.run(
        [sys.executable, "-m", *launcher, str(folder / "script.py"), str(folder), str(model), *words],
        env=environment | OWN | variables,
        capture_output=True,
        text=True,
        timeout=120,
    )
    said = [json.loads(file.read_text()) for file in folder.glob("said-*.json")]
    assert said, done.stderr[-3000:]
    return sorted(said, key=lambda one: one["rank"])


def config_file(folder: Path, **settings: object) -> list[str]:
    """A configuration of accelerate for two processes on the CPU, as the launcher's arguments."""
    base = {"compute_environment": "LOCAL_MACHINE", "mixed_precision": "no", "num_machines": 1, "num_processes": 2}
    (folder / "accelerate.json").write_text(json.dumps(base | {"use_cpu": True} | settings))
    return ["accelerate.commands.launch", "--config_file", str(folder / "accelerate.json"), *meet()]


def meet() -> list[str]:
    return ["--main_process_port", free_port()]


def accelerate_cpu(folder: Path) -> list[str]:
    return ["accelerate.commands.launch", "--cpu", "--num_processes", "2", *meet()]


def accelerate_multi_cpu(folder: Path) -> list[str]:
    return config_file(folder, distributed_type="MULTI_CPU")


def torchrun(folder: Path) -> list[str]:
    return ["torch.distributed.run", "--nproc_per_node", "2", "--standalone"]


def accelerate_fsdp(folder: Path) -> list[str]:
    return config_file(folder, distributed_type="FSDP", fsdp_config={"fsdp_version": 2})


def accelerate_zero(folder: Path) -> list[str]:
    return config_file(folder, distributed_type="DEEPSPEED", deepspeed_config={"zero_stage": 2})


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("launcher", "device", "variables", "processes", "message"),
    [
        (accelerate_cpu, "auto", {}, 1, "asked for several processes and started one"),
        (accelerate_multi_cpu, "cpu", {}, 1, "asked for several processes and started one"),
        (torchrun, "auto", {"CUDA_VISIBLE_DEVICES": ""}, 2, "2 processes were started, but each thinks it is alone"),
        (accelerate_fsdp, "cpu", {}, 2, "FSDP was asked for, but DDP on CPUs would run"),
        (accelerate_zero, "cpu", {"ACCELERATE_USE_CPU": "true"}, 2, "DEEPSPEED was asked for, but DDP on CPUs would"),
    ],
)
def test_a_launch_that_is_not_what_was_asked_for(
    tiny_model_folder, tmp_path, launcher, device, variables, processes, message
):
    if launcher is accelerate_zero:
        pytest.importorskip("deepspeed")
    said = launch(tmp_path, launcher(tmp_path), tiny_model_folder, device, "start", **variables)
    assert len(said) == processes
    for one in said:
        assert message in one["ppo"] and message in one["reward"]


@pytest.mark.distributed
def test_processes_with_different_settings_or_data(tiny_model_folder, tmp_path):
    said = launch(tmp_path, torchrun(tmp_path), tiny_model_folder, "cpu", "ranks")
    assert len(said) == 2
    for one in said:
        different = "the processes have different settings: "
        assert one["ppo settings"].startswith(
            f"{different}kl_coef: 0.05 on process 0, 1.05 on process 1; logging_steps: 1 on process 0, 2 on process 1; "
            "num_ppo_epochs: 1 on process 0, 2 on process 1."
        )
        assert one["reward settings"].startswith(f"{different}seed: 0 on process 0, 1 on process 1.")
        for trainer in ("ppo", "reward"):
            assert "the processes have different data" in one[f"{trainer} data"]
            assert "train dataset: " in one[f"{trainer} data"]
        assert "4 rows with sha256" in one["ppo data"] and "3 rows with sha256" in one["ppo data"]
        assert one["the same, elsewhere"] == ""


def child(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A single process in an environment as a launcher left it."""
    environment = {k: v for k, v in os.environ.items() if k not in LAUNCHED and not k.startswith("ACCELERATE_")}
    return subprocess.run(
        [sys.executable, "-c", code],
        env=environment | {"PYTHONPATH": str(ROOT)} | variables,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.distributed
def test_an_address_that_was_there_before_the_launcher_says_nothing():
    """Clusters set MASTER_ADDR for every process: only one that the launcher has added tells of several."""
    code = """
import subprocess, sys
inner = "from hfrlhf.settings.launch import _launcher_wanted_several as w; print(w())"
print(subprocess.run([sys.executable, "-c", inner], capture_output=True, text=True).stdout.strip())
"""
    already = child(code, MASTER_ADDR="10.0.0.1", ACCELERATE_MIXED_PRECISION="no")
    assert already.stdout.strip() == "False", already.stderr[-2000:]


def test_several_gpus_in_one_process_are_refused():
    check_data_parallel(0)
    check_data_parallel(1)
    with pytest.raises(ValueError, match=r"one process sees 4 GPUs.*`torchrun --nproc_per_node 4 SCRIPT`"):
        check_data_parallel(4)
