"""The model card: valid metadata, text that stays text, snippets that run. Markdown is read back by a real parser."""

from __future__ import annotations

import ast
import dataclasses
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from hfrlhf.reporting.model_card import (
    CardFacts,
    escape,
    is_hub_name,
    library_versions,
    model_card,
    write_model_card,
)

FACTS = CardFacts(
    model_name="someone/happy-reviews",
    task="text-generation",
    base_model="someone/reviews-sft",
    datasets=("someone/reviews",),
    license="apache-2.0",
    tags=("demo",),
    remarks="Short reviews.\n\nThey are *always* happy.",
    samples=({"prompt": "the film", "before": "is dull", "after": "is good", "score": 1.23456},),
    metrics={"objective/kl": 3.25, "win_rate": 0.9},
    figures=("curves.png",),
    hyperparameters={"learning_rate": 3e-6, "num_ppo_epochs": 4},
    command="accelerate launch recipes/ppo.py --seed 1",
    versions={"torch": "2.13.0"},
)

HOSTILE = [
    "a | b || c",
    "<script>alert(1)</script> <img src=x onerror=y> &amp; &lt;",
    "**bold** _thin_ `code` ```fence``` ~~gone~~ $x^2$",
    "[link](http://example.org) ![image](x.png)",
    "\\| back\\slash \\",
    "---",
    "# heading",
    "- item",
    "+ item",
    "1. item",
    "===",
    "> quote",
    "key: value # comment",
    "{{ 7 * 7 }} {% for x in y %} {# z #} {% raw %}",  # the template's own signs
    "'\"{}[]%@&*!|>",
    "naïve 漢字 🙂 ρ_t",
]
# What a YAML or Markdown reader could take for the end of a value.
BREAKS = ["one\ntwo", "one\r\ntwo", "one\u2028two", "one\x85two", "one\n---\nlicense: mit", "one\n\n# two"]


def body_of(text: str) -> str:
    return text.split("\n---\n", 1)[1]


def metadata_of(text: str) -> dict:
    opening, front, _ = text.split("---\n", 2)
    assert opening == ""
    return yaml.safe_load(front)


class Cells(HTMLParser):
    """The text of each table cell, and every tag of the page."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.cells: list[str] = []
        self.tags: list[str] = []
        self.inside = False

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append(tag)
        if tag in {"td", "th"}:
            self.cells.append("")
            self.inside = True
        elif tag == "br" and self.inside:
            self.cells[-1] += "\n"

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside and tag not in {"td", "th"}

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.cells[-1] += data


def markdown() -> MarkdownIt:
    return MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])


def rendered(text: str) -> Cells:
    page = Cells()
    page.feed(markdown().render(body_of(text)))
    return page


def python_block(text: str) -> str:
    return next(token.content for token in markdown().parse(body_of(text)) if token.info == "python")


# What a terminal obeys, or a file cannot hold.
CONTROLS = [
    "\x1b[31mred\x1b[0m",
    "a\x00b\x07c\x08d",
    "\x1b]0;title\x07",
    "left\u202eright",
    "half \ud800",
    "\ufeff\u200b",
]


@pytest.mark.parametrize("text", HOSTILE + BREAKS + CONTROLS)
def test_every_fact_may_be_hostile(text: str, tmp_path: Path) -> None:
    """All of them at once: the YAML reads back with the same keys, the page has the same headings and no new tag."""
    names = ("model_name", "method", "base_model", "license", "remarks", "command", "example")
    words: dict[str, Any] = dict.fromkeys(names, text)
    maps = {name: {text: text} for name in ("hyperparameters", "versions")}
    lists: dict[str, Any] = dict.fromkeys(("tags", "figures"), (text,))
    lists["datasets"] = ("someone/reviews", text)
    rows: dict[str, Any] = {"samples": ({text: text, "score": 1.0},), "metrics": {text: 1.0}}
    path = write_model_card(tmp_path, dataclasses.replace(FACTS, **words, **maps, **lists, **rows))
    written, harmless = path.read_text(encoding="utf-8"), model_card(dataclasses.replace(FACTS, method="a"))
    assert set(metadata_of(written)) == set(metadata_of(harmless)) - {"base_model"}
    (result,) = metadata_of(written)["model-index"][0]["results"]
    assert [metric["value"] for metric in result["metrics"]] == [1.0]
    assert set(rendered(written).tags) <= {*rendered(harmless).tags, "br"}
    pages = [markdown().render(body_of(page)) for page in (written, harmless)]
    headings = [re.findall("<h2>(.*?)</h2>", page) for page in pages]
    assert headings[0] == headings[1] and pages[0].count("<h1>") == 1
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", written)
    ModelCard(written)


def test_metadata_is_what_the_hub_expects() -> None:
    text = model_card(FACTS)
    expected = {
        "base_model": "someone/reviews-sft",
        "datasets": ["someone/reviews"],
        "library_name": "transformers",
        "license": "apache-2.0",
        "pipeline_tag": "text-generation",
        "tags": ["demo", "hfrlhf", "ppo"],
    }
    index = [
        {
            "name": "happy-reviews",
            "results": [
                {
                    "task": {"type": "text-generation"},
                    "dataset": {"name": "someone/reviews", "type": "someone/reviews"},
                    "metrics": [
                        {"type": "objective/kl", "value": 3.25},
                        {"type": "win_rate", "value": 0.9},
                    ],
                }
            ],
        }
    ]
    assert metadata_of(text) == {**expected, "model-index": index}
    card = ModelCard(text)
    assert card.data.model_name == "happy-reviews"
    assert {(r.metric_type, r.metric_value) for r in card.data.eval_results} == {
        ("objective/kl", 3.25),
        ("win_rate", 0.9),
    }


def test_the_page_shows_the_facts() -> None:
    page = rendered(model_card(FACTS))
    assert page.cells[:8] == ["prompt", "before", "after", "score", "the film", "is dull", "is good", "1.235"]
    for row in (["objective/kl", "3.25"], ["learning_rate", "3e-06"], ["num_ppo_epochs", "4"], ["torch", "2.13.0"]):
        at = page.cells.index(row[0])
        assert page.cells[at : at + 2] == row
    html = markdown().render(body_of(model_card(FACTS)))
    assert "<h1>happy-reviews</h1>" in html
    assert '<img src="curves.png" alt="curves" />' in html
    assert "accelerate launch recipes/ppo.py --seed 1\n</code>" in html
    assert "<p>They are *always* happy.</p>" in html


def test_only_what_is_known_is_shown() -> None:
    text = model_card(CardFacts("policy", "text-generation", versions={}))
    assert set(metadata_of(text)) == {"library_name", "pipeline_tag", "tags"}
    assert [line for line in body_of(text).splitlines() if line.startswith("#")] == ["# policy", "## Use"]


@pytest.mark.parametrize("text", HOSTILE)
def test_text_stays_text(text: str) -> None:
    facts = dataclasses.replace(
        FACTS, model_name="m", remarks=text, samples=({text: text},), metrics={text: 1.0}, hyperparameters={text: text}
    )
    page, plain = rendered(model_card(facts)), rendered(model_card(FACTS))
    assert page.cells[:6] == [text, text, "metric", "value", text, "1"]
    assert set(page.tags) == set(plain.tags)
    paragraphs = [t.children for t in markdown().parse(escape(text)) if t.type == "inline"]
    assert len(paragraphs) == 1
    assert "".join(child.content for child in paragraphs[0]) == text


@pytest.mark.parametrize("text", HOSTILE + BREAKS)
def test_metadata_cannot_be_injected(text: str) -> None:
    facts = dataclasses.replace(
        FACTS, model_name=text, license=text, tags=(text,), base_model=text, datasets=("someone/reviews", text)
    )
    data = metadata_of(model_card(facts))
    line = re.sub(r"[\n\r\u2028\x85]+", " ", text)
    assert data["license"] == line
    assert line in data["tags"]
    assert "base_model" not in data
    assert data["datasets"] == ["someone/reviews"]
    ModelCard(model_card(facts))


@pytest.mark.parametrize("text", BREAKS)
def test_line_breaks_stay_in_their_cell(text: str) -> None:
    page = rendered(model_card(dataclasses.replace(FACTS, samples=({"prompt": text, "response": "x"},))))
    assert page.cells[:4] == [
        "prompt",
        "response",
        text.replace("\r\n", "\n").replace("\u2028", "\n").replace("\x85", "\n"),
        "x",
    ]


def test_ragged_rows_share_one_table_and_long_cells_are_cut() -> None:
    page = rendered(model_card(dataclasses.replace(FACTS, samples=({"a": "1"}, {"b": "2" * 600, "a": "3"}))))
    assert page.cells[:6] == ["a", "b", "1", "", "3", "2" * 499 + "…"]


def test_a_command_cannot_leave_its_block() -> None:
    command = "echo '```'\n````\n# not a heading"
    tokens = markdown().parse(body_of(model_card(dataclasses.replace(FACTS, command=command))))
    assert [token.content for token in tokens if token.info == "bash"] == [command + "\n"]


def test_a_figure_cannot_leave_its_link() -> None:
    html = markdown().render(body_of(model_card(dataclasses.replace(FACTS, figures=("a b)(c.png",)))))
    assert '<img src="a%20b%29%28c.png" alt="a b)(c" />' in html


def test_local_paths_are_named_but_not_in_the_metadata(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models" / "sft").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    local = ["models/sft", str(tmp_path / "models" / "sft"), "./models/sft", "../data/reviews/", "C:\\data\\reviews"]
    assert [is_hub_name(name) for name in local] == [False] * 5
    assert is_hub_name("someone/sft") and is_hub_name("gpt2")
    text = model_card(
        dataclasses.replace(FACTS, base_model=str(tmp_path / "models" / "sft"), datasets=tuple(local[3:]))
    )
    assert not {"base_model", "datasets", "model-index"} & set(metadata_of(text))
    assert str(tmp_path) not in text
    assert "starting from sft (local), on reviews (local), reviews (local)" in text


def test_values_that_are_not_finite_are_shown_but_not_in_the_metadata() -> None:
    text = model_card(dataclasses.replace(FACTS, metrics={"kl": math.nan, "score": math.inf, "win_rate": 0.5}))
    (result,) = metadata_of(text)["model-index"][0]["results"]
    assert result["metrics"] == [{"type": "win_rate", "value": 0.5}]
    assert "| kl | nan |" in text and "| score | inf |" in text


def test_the_card_is_written_and_replaced(tmp_path: Path) -> None:
    first = write_model_card(tmp_path / "new" / "folder", FACTS)
    assert first == tmp_path / "new" / "folder" / "README.md"
    second = write_model_card(first.parent, dataclasses.replace(FACTS, model_name="other"))
    assert ModelCard.load(second).content == model_card(dataclasses.replace(FACTS, model_name="other"))


def test_versions_are_those_installed() -> None:
    import torch
    import transformers

    found = library_versions()
    assert found["transformers"] == transformers.__version__
    # The installed distribution need not name its build ("+cu130"), the module does.
    assert found["torch"].partition("+")[0] == torch.__version__.partition("+")[0]


def test_hostile_names_do_not_break_the_snippet() -> None:
    block = python_block(model_card(dataclasses.replace(FACTS, model_name="a'); import os; ('\\\"")))
    names = {node.names[0].name for node in ast.walk(ast.parse(block)) if isinstance(node, ast.Import | ast.ImportFrom)}
    assert names == {"pipeline"}


@pytest.mark.parametrize(("task", "library"), [("text-generation", "transformers"), ("text-generation", "peft")])
def test_the_generation_snippet_runs(
    task: str, library: str, tiny_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tiny_model_folder
    if library == "peft":
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM, AutoTokenizer

        folder = tmp_path
        base = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
        get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"])).save_pretrained(folder)
        AutoTokenizer.from_pretrained(tiny_model_folder).save_pretrained(folder)
    exec(python_block(model_card(CardFacts(str(folder), task, library=library))), {})
    assert capsys.readouterr().out.strip()


def test_the_reward_snippet_applies_the_shift(
    tiny_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(tiny_model_folder, num_labels=1)
    torch.nn.init.zeros_(model.score.weight)  # every logit is 0, so that the score is minus the shift
    model.config.reward_shift = 1.5
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_model_folder).save_pretrained(tmp_path)
    exec(python_block(model_card(CardFacts(str(tmp_path), "text-classification", method="reward modelling"))), {})
    assert float(capsys.readouterr().out) == -1.5
