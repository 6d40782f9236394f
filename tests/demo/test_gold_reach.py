"""The gold preference is never a reward: nothing that trains a model can reach it."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "hfrlhf"
GOLD = "hfrlhf.demo.gold"

# Letters labelled by hand, so that not even the labels of this run come from gold. The import of gold is made to fail.
TRAIN_WITHOUT_GOLD = """
import sys
from pathlib import Path

sys.modules["hfrlhf.demo.gold"] = None
import yaml
from datasets import Dataset
from hfrlhf.demo import stages

folder = Path(sys.argv[1])
settings = yaml.safe_load(Path(stages.__file__).with_name("demo.yaml").read_text())
settings["sft"] |= {"max_steps": 2, "warmup_steps": 0}
settings["reward"] |= {"max_steps": 2, "warmup_steps": 0}
settings["ppo"] |= {"max_steps": 8, "rollout_batch_size": 8}
prompt = "From Ada to Bruno, about the harbour in spring:"
pairs = Dataset.from_list([{"prompt": prompt, "chosen": " The boat rests.", "rejected": " The boat"}] * 4)
stages.train_language_model(folder / "sft", [prompt] * 4, settings)
stages.train_reward_model(folder / "reward_model", folder / "sft", pairs, pairs, settings)
log = stages.train_policy(folder / "policy", folder / "sft", folder / "reward_model", [prompt] * 8, settings)
assert "objective/score" in log[0] and (folder / "policy" / "model.safetensors").is_file()
reached = {name for name in sys.modules if name.startswith("hfrlhf.demo.")} - {"hfrlhf.demo.gold"}
print("reached", *sorted(reached))
"""


def imports_of(module: str) -> set[str]:
    """Modules of this package that a module imports at any depth of its code; a package, when it is itself imported."""
    path = PACKAGE.parent.joinpath(*module.split("."))
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    package = module if path.is_dir() else module.rpartition(".")[0]
    found = set()
    tree = ast.parse(source.read_text(encoding="utf-8"))
    # Importing a module runs the top of its package's __init__.py, and calls none of the functions there.
    for node in tree.body if path.is_dir() else ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            found |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return {name for name in found if is_module(name)}


def is_module(name: str) -> bool:
    path = PACKAGE.parent.joinpath(*name.split("."))
    return name.startswith("hfrlhf") and (path.with_suffix(".py").is_file() or (path / "__init__.py").is_file())


def all_modules() -> list[str]:
    names = [".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in PACKAGE.rglob("*.py")]
    return [name.removesuffix(".__init__") for name in names]


def reachable_from(module: str) -> set[str]:
    seen, ahead = set(), [module]
    while ahead:
        name = ahead.pop()
        if name not in seen:
            seen.add(name)
            ahead += imports_of(name)
    return seen


def test_only_the_labelling_and_the_report_import_gold() -> None:
    assert {name for name in all_modules() if GOLD in imports_of(name)} == {"hfrlhf.demo.pairs", "hfrlhf.demo.report"}


def test_the_training_stages_cannot_reach_gold() -> None:
    reached = reachable_from("hfrlhf.demo.stages")
    # the walk sees what it should see …
    assert {"hfrlhf.demo.world", "hfrlhf.trainers.policy_gradient", "hfrlhf.rewards.sources"} <= reached
    assert GOLD in reachable_from("hfrlhf.demo.run")
    # … and gold is not there
    assert not reached & {GOLD, "hfrlhf.demo.pairs", "hfrlhf.demo.report", "hfrlhf.demo.run"}


def test_all_stages_train_where_gold_cannot_be_imported(tmp_path: Path) -> None:
    command = [sys.executable, "-c", TRAIN_WITHOUT_GOLD, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=PACKAGE.parent, timeout=280, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    assert "reached hfrlhf.demo.stages hfrlhf.demo.world" in result.stdout
