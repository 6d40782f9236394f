"""FILE.py:FUNCTION on a command line: imported as a module, never run as a script; mistakes name file and line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from transformers import Trainer

from hfrlhf.rewards.sources import reward_from_name

ROOT = Path(__file__).resolve().parents[2]


def write(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


def test_a_function_comes_with_what_lies_beside_it(tmp_path):
    write(tmp_path, "words_of_praise.py", "GOOD = ('good', 'fine')\n")
    text = (
        "from __future__ import annotations\nfrom dataclasses import dataclass\nfrom words_of_praise import GOOD\n\n"
        "@dataclass\nclass Scale:\n    by: float = 2.0\n\n"
        "def praise(completions, **_):\n    import words_of_praise\n"
        "    return [Scale().by * sum(c.count(w) for w in words_of_praise.GOOD) for c in completions]\n"
        "def other(completions, **_):\n    return [0.0] * len(completions)\n"
        "if __name__ == '__main__':\n    raise RuntimeError('the script ran')\n"
    )
    place = write(tmp_path, "mine.py", text)
    before = list(sys.path)
    praise = reward_from_name(f"{place}:praise")
    assert praise(["good and fine", "bad"]) == [4.0, 0.0]
    assert sys.path[: len(before)] == before  # nothing of the folder stands before the libraries
    assert reward_from_name(f"{place}:other").__module__ == praise.__module__


SCRIPTS = {
    "at once": "trainer = PPOTrainer('model', f, None, None)\n",
    "in a function": "def main():\n    return PPOTrainer('model', f, None, None)\nmain()\n",
    "and hides it": "try:\n    PPOTrainer('model', f, None, None)\nexcept Exception:\n    pass\n",
    "of transformers": "from transformers import Trainer\nTrainer(model=None)\n",
    "of TRL": "from trl import SFTTrainer\nSFTTrainer(model='model')\n",
    "of rewards": "from hfrlhf import RewardTrainer\nRewardTrainer('model', None, None)\n",
    "of its own": "class Mine(PPOTrainer):\n    pass\nMine('model', f, None, None)\n",
}


@pytest.mark.parametrize("kind", SCRIPTS)
def test_a_training_script_is_not_run(kind, tmp_path):
    text = (
        "from hfrlhf import PPOTrainer\ndef f(completions, **_):\n    return [1.0] * len(completions)\n" + SCRIPTS[kind]
    )
    place = write(tmp_path, "train.py", text + "open('ran', 'w')\n")
    init = Trainer.__init__
    with pytest.raises(ValueError, match=r"train\.py makes a trainer while it is imported \(line \d+\)"):
        reward_from_name(f"{place}:f")
    assert Trainer.__init__ is init and not Path("ran").exists()
    guarded = "".join(f"    {line}\n" for line in SCRIPTS[kind].splitlines())
    place = write(tmp_path, "guarded.py", text.replace(SCRIPTS[kind], f"if __name__ == '__main__':\n{guarded}"))
    assert reward_from_name(f"{place}:f")(["a"]) == [1.0]


@pytest.mark.parametrize(
    ("text", "function", "said"),
    [
        ("def good(completions): ...\n", "nofunc", "there is no reward function 'nofunc' in .*; it has 'good'"),
        ("def good(completions): ...\n", "goood", "did you mean 'good'?"),
        ("good = 3\n", "good", "'good' in .* is no function, but a int"),
        ("x = 1\nimport no_such_package_anywhere\n", "f", r"cannot be imported \(line 2\): ModuleNotFoundError"),
        ("def f(:\n", "f", "cannot be imported.*SyntaxError"),
        ("x = 1\n\nraise SystemExit(3)\n", "f", r"cannot be imported \(line 3\): SystemExit: 3"),
    ],
)
def test_mistakes_name_the_file_and_the_line(text, function, said, tmp_path):
    place = write(tmp_path, "mine.py", text)
    with pytest.raises(ValueError, match=said.replace("?", r"\?")):
        reward_from_name(f"{place}:{function}")


def test_what_is_no_file_and_no_module():
    with pytest.raises(ValueError, match=r"no reward functions can be read from 'gone\.py'"):
        reward_from_name("gone.py:f")
    with pytest.raises(ValueError, match="cannot be imported: ModuleNotFoundError"):
        reward_from_name("no_such_package.rewards:f")
    assert reward_from_name("math:exp")(0) == 1.0
    assert reward_from_name("owner/model") == "owner/model" and reward_from_name("own:a/b") == "own:a/b"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--reward_funcs", "mine.py:nofunc"], "there is no reward function 'nofunc' in mine.py"),
        (["--dataset_name", "noprompt.jsonl"], "prompt"),
        (["--dataset_train_split", "dev"], "has no split 'dev'"),
    ],
)
def test_mistakes_in_a_recipe_end_in_a_line(words, said, tmp_path, tiny_model_folder):
    write(tmp_path, "mine.py", "def good(completions, **_):\n    return [1.0] * len(completions)\n")
    write(tmp_path, "train.jsonl", '{"prompt": "the film"}\n' * 8)
    write(tmp_path, "noprompt.jsonl", '{"text": "the film"}\n' * 8)
    given = ["--model_name_or_path", str(tiny_model_folder), "--dataset_name", "train.jsonl"]
    given += ["--reward_funcs", "mine.py:good", "--output_dir", "out", "--use_cpu", "--bf16", "false"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "recipes/ppo.py"), *given, *words], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2, done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert said in line
