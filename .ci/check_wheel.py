"""The installed wheel, away from the clone: its own files, every public name, the demo's stages made tiny."""

import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import yaml
from datasets import Dataset

import hfrlhf
from hfrlhf.demo import stages, world

home = Path(hfrlhf.__file__).parent
assert Path(sys.prefix) in home.parents, f"{home} is not the wheel's"
assert version("hfrlhf") == hfrlhf.__version__
print(f"hfrlhf {hfrlhf.__version__}:", ", ".join(name for name in hfrlhf.__all__ if getattr(hfrlhf, name)))

settings = yaml.safe_load((home / "demo" / "demo.yaml").read_text(encoding="utf-8"))
settings["sft"] |= {"max_steps": 2}
settings["reward"] |= {"max_steps": 2}
settings["ppo"] |= {"max_steps": 2, "rollout_batch_size": 8, "num_ppo_epochs": 1, "num_mini_batches": 2}
prompts = world.all_prompts()[:16]
good, bad = world.write_letters(prompts, seed=1), world.write_letters(prompts, seed=2)
pairs = Dataset.from_dict({"prompt": prompts, "chosen": good, "rejected": bad})
with tempfile.TemporaryDirectory() as folder:
    sft, reward, policy = (Path(folder, name) for name in ("sft", "reward", "policy"))
    stages.train_language_model(sft, prompts, settings)
    stages.train_reward_model(reward, sft, pairs, pairs, settings)
    stages.train_policy(policy, sft, reward, prompts, settings)
    responses = stages.respond(policy, prompts[:4], (0,), 8)
assert responses.completion_ids.shape == (4, 8)
print("the demo's stages ran")
