"""The recipes, started as the headers of recipes/accelerate say: with their YAML files, on one node and on two."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from tests.distributed.launching import launch
from tests.launching import ROOT, free_port
from tests.trainers.helpers import PROMPTS

pytestmark = pytest.mark.distributed

FILES = ROOT / "recipes" / "accelerate"
LAUNCH = ["-m", "accelerate.commands.accelerate_cli", "launch"]


def on_cpu(name: str, folder: Path) -> str:
    """A copy of a YAML file as its header says for a CPU."""
    text = (FILES / f"{name}.yaml").read_text()
    assert "use_cpu: false" in text
    file = folder / f"{name}.yaml"
    file.write_text(text.replace("use_cpu: false", "use_cpu: true"))
    return str(file)


def settings(folder: Path, name: str, **values: Any) -> str:
    """A recipe's configuration file, with its data beside it."""
    rows = {
        "pairs": [{"chosen": f"the film is {w}", "rejected": f"a {w} bad story"} for w in ("good", "fine") * 8],
        "prompts": [{"prompt": prompt} for prompt in PROMPTS],
    }[values["dataset_name"]]
    data = folder / values["dataset_name"]
    data.mkdir()
    for split in ("train", "test"):
        (data / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = {"use_cpu": True, "report_to": "none", "save_strategy": "no", "disable_tqdm": True}
    file = folder / f"{name}-settings.yaml"
    file.write_text(yaml.safe_dump(common | values | {"dataset_name": str(data)}))
    return str(file)


def test_reward_on_zero2_then_ppo_on_zero3_on_two_nodes(base: Path, tmp_path: Path) -> None:
    pytest.importorskip("deepspeed", reason="deepspeed is not installed: pip install -e '.[test]'")
    reward, policy = tmp_path / "reward", tmp_path / "policy"
    pairs = settings(
        *(tmp_path, "reward"),
        model_name_or_path=str(base),
        output_dir=str(reward),
        dataset_name="pairs",
        max_steps=2,
        optim="sgd",
        learning_rate=0.1,
    )
    recipe = [str(ROOT / "recipes" / "reward.py"), "--config", pairs]
    command = [*LAUNCH, "--config_file", on_cpu("zero2", tmp_path), "--main_process_port", free_port(), *recipe]
    (said,) = launch(command)
    assert "ZeRO" in said  # DeepSpeed's own warning of an optimiser that it has not tested: it is at work
    scorer: Any = AutoModelForSequenceClassification.from_pretrained(reward, num_labels=1)
    assert scorer.score.weight.abs().sum() > 0

    prompts = settings(
        *(tmp_path, "policy"),
        model_name_or_path=str(base),
        output_dir=str(policy),
        dataset_name="prompts",
        reward_funcs=[str(reward)],
        rollout_batch_size=8,
        max_completion_length=6,
        max_steps=4,
        num_ppo_epochs=2,
        num_mini_batches=2,
        learning_rate=1e-2,
        eval_strategy="steps",
        eval_steps=4,
    )
    nodes = ["--num_machines", "2", "--num_processes", "2", "--main_process_ip", "127.0.0.1"]
    command = [*LAUNCH, "--config_file", on_cpu("zero3", tmp_path), *nodes, "--main_process_port", free_port()]
    recipe = [str(ROOT / "recipes" / "ppo.py"), "--config", prompts]
    outputs = launch(*([*command, "--machine_rank", str(rank), *recipe] for rank in range(2)))
    assert "2 processes" in outputs[0] and "2 processes" not in outputs[1]  # one report, by the first process
    assert not any("_tensor` is deprecated" in output for output in outputs)  # torch's words to DeepSpeed
    file = load_file(policy / "model.safetensors")
    loaded = AutoModelForCausalLM.from_pretrained(policy).state_dict()
    assert loaded.keys() == file.keys() and all(loaded[name].equal(tensor) for name, tensor in file.items())
    assert not loaded["lm_head.weight"].equal(load_file(base / "model.safetensors")["lm_head.weight"])


def test_ddp_runs_from_its_file_also_on_cpus(base: Path, tmp_path: Path) -> None:
    """With `use_cpu` among the recipe's settings its two processes meet over gloo."""
    (tmp_path / "praise.py").write_text(
        "def good(completions, **_):\n    return [t.count('good') for t in completions]\n"
    )
    prompts = settings(
        *(tmp_path, "policy"),
        model_name_or_path=str(base),
        output_dir=str(tmp_path / "policy"),
        dataset_name="prompts",
        reward_funcs=[f"{tmp_path / 'praise.py'}:good"],
        rollout_batch_size=8,
        max_completion_length=6,
        max_steps=2,
        num_ppo_epochs=2,
    )
    file = ["--config_file", str(FILES / "ddp.yaml"), "--main_process_port", free_port()]
    (said,) = launch([*LAUNCH, *file, str(ROOT / "recipes" / "ppo.py"), "--config", prompts])
    assert said.count("2 processes on cpu") == 1
    AutoModelForCausalLM.from_pretrained(tmp_path / "policy")


@pytest.mark.parametrize("name", ["ddp", "fsdp2", "zero2", "zero3"])
def test_accelerate_reads_each_file_and_its_header_says_how_to_use_it(name: str) -> None:
    read = load_config_from_file(str(FILES / f"{name}.yaml"))  # it refuses a key that it does not know
    kind = {"ddp": "MULTI_GPU", "fsdp2": "FSDP"}.get(name, "DEEPSPEED")
    assert read.distributed_type == kind and read.num_processes == 2 and not read.use_cpu
    header = (FILES / f"{name}.yaml").read_text()
    said = ["Hardware", "--main_process_ip", "--main_process_port", "--machine_rank", "--num_machines", "On CPU"]
    assert all(word in header for word in [*said, f"--config_file recipes/accelerate/{name}.yaml recipes/ppo.py"])


def test_the_launcher_of_one_process_has_nothing_to_say(tmp_path: Path) -> None:
    """As the README starts the demo: no list of values that were not passed, whatever this machine has."""
    read = load_config_from_file(str(FILES / "single.yaml"))
    assert read.distributed_type == "NO" and read.num_processes == 1 and not read.use_cpu
    named = "--config_file recipes/accelerate/single.yaml recipes/ppo.py"
    assert named in (FILES / "single.yaml").read_text() and named in (ROOT / "README.md").read_text(encoding="utf-8")
    script = tmp_path / "script.py"
    script.write_text("import os\nprint(os.environ['ACCELERATE_MIXED_PRECISION'], 'MASTER_ADDR' in os.environ)\n")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE_", "MASTER_"))}
    command = [sys.executable, *LAUNCH, "--config_file", str(FILES / "single.yaml"), str(script)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120, env=environment)
    assert (done.stdout.strip(), done.stderr) == ("no False", "")


def test_fsdp_takes_the_blocks_that_a_policy_names(base: Path) -> None:
    """What TRANSFORMER_BASED_WRAP asks of a model; in a process of its own, since accelerate keeps a state."""
    script = (
        "import sys; from hfrlhf.models.policy.actor_critic import ActorCritic;"
        "from hfrlhf.models.policy.loading import load_policy;"
        "from accelerate.utils import FullyShardedDataParallelPlugin as P;"
        "from accelerate.utils.fsdp_utils import fsdp2_prepare_auto_wrap_policy as wraps;"
        "model = ActorCritic(load_policy(sys.argv[1]));"
        "plugin = P(fsdp_version=2, auto_wrap_policy='transformer_based_wrap', state_dict_type='FULL_STATE_DICT');"
        "plugin.set_auto_wrap_policy(model);"
        "print([n for n, m in model.named_modules() if wraps(plugin, model)(m)])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(base)], capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    assert done.stdout.strip().endswith("['policy.model.layers.0', 'policy.model.layers.1']"), done.stderr[-2000:]
