"""The README's script runs as it stands, with a reader's own model, reward model and prompts put in."""

from __future__ import annotations

import pydoc
import re
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from hfrlhf import PolicyGradientTrainer, PPOTrainer
from hfrlhf.algorithms import ALGORITHMS, algorithm_table

README = Path(__file__).resolve().parents[1] / "README.md"


def script() -> str:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.S)
    return next(block for block in blocks if "PPOTrainer(" in block)


def test_the_script_is_about_ten_lines():
    assert len([line for line in script().splitlines() if line.strip()]) <= 14


def test_the_script_trains_and_saves(tiny_model_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_folder)
    reward_model = AutoModelForSequenceClassification.from_pretrained(tiny_model_folder, num_labels=1)
    reward_model.save_pretrained(tmp_path / "my-reward-model")
    tokenizer.save_pretrained(tmp_path / "my-reward-model")
    AutoModelForCausalLM.from_pretrained(tiny_model_folder).save_pretrained(tmp_path / "my-sft-model")
    tokenizer.save_pretrained(tmp_path / "my-sft-model")
    (tmp_path / "my-prompts").mkdir()
    Dataset.from_dict({"prompt": ["the film", "a story"] * 8}).to_json(tmp_path / "my-prompts" / "train.jsonl")
    code = script()
    assert "rollout_batch_size=64" in code and "max_completion_length=128" in code
    small = code.replace("rollout_batch_size=64", "rollout_batch_size=8, max_steps=4, use_cpu=True, save_strategy='no'")
    exec(compile(small.replace("max_completion_length=128", "max_completion_length=4"), "README.md", "exec"), {})
    AutoModelForCausalLM.from_pretrained(tmp_path / "runs" / "mine")


def test_the_scripts_reward_reads_texts_and_messages():
    names: dict = {}
    exec(script().split("trainer =")[0].split("from hfrlhf")[1].split("\n", 1)[1], names)
    texts = ["please sit", "please, please!", ""]
    expected = [1 - 0.1, 2 - 0.15, 0.0]
    messages = [[{"role": "assistant", "content": text}] for text in texts]
    for completions in (texts, messages):
        found = names["polite_and_short"](completions=completions, prompts=texts, completion_ids=[[]] * 3)
        assert found == pytest.approx(expected)


def test_help_tells_what_a_reward_function_is_given():
    for trainer in (PPOTrainer, PolicyGradientTrainer):
        told = " ".join(pydoc.render_doc(trainer, renderer=pydoc.plaintext).split())
        parts = ("keywords", "completion_ids", "reward_weights", "lists of one message", "chat_template_kwargs")
        assert [part for part in parts if part not in told] == []


@pytest.mark.parametrize("heading", ["Run it", "Test it"])
def test_each_command_block_starts_from_a_clone(heading):
    """A block installs what it needs in an environment of its own, torch first."""
    text = README.read_text(encoding="utf-8")
    block = re.search(rf"## {heading}\n.*?```bash\n(.*?)```", text, re.S).group(1).splitlines()
    assert "venv" in block[0] and block[1].startswith("pip install torch")


TABLE = re.compile(r"(?<=-->\n)\| algorithm .*?(?=\n<!-- end of algorithms)", re.S)


def table_of_algorithms() -> str:
    rows = [[cell.replace("|", "\\|") for cell in row] for row in algorithm_table()]
    lines = [rows[0], ["---"] * len(rows[0]), *([f"`{name}`", *cells] for name, *cells in rows[1:])]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def test_the_table_of_algorithms_is_the_one_in_the_code():
    """`python tests/test_readme.py` writes it."""
    (shown,) = TABLE.findall(README.read_text(encoding="utf-8"))
    assert shown == table_of_algorithms()
    assert len(shown.splitlines()) == 2 + len(ALGORITHMS) >= 23


def test_the_recipe_prints_the_same_table():
    """Every name, Ψ, loss and source, in the order of the code."""
    command = [sys.executable, str(README.parent / "recipes" / "policy_gradient.py"), "--algorithm", "help"]
    printed = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    cells = [re.split(r"\s{2,}", line.strip()) for line in printed.splitlines() if re.match(r"\s+[a-z]", line)]
    assert [tuple(row) for row in cells] == algorithm_table()


if __name__ == "__main__":
    README.write_text(TABLE.sub(lambda _: table_of_algorithms(), README.read_text(encoding="utf-8")), encoding="utf-8")
