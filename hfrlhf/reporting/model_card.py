"""Facts about a training run in, the README.md of its model out.

The card opens with YAML metadata that the Hub accepts and tells a reader what the model is, how to use it, what it says
before and after, how good it is, and how to make it again. All text that comes from outside (names, samples, values,
remarks) is escaped, so that a sampled `|` or `<script>` stays a sample.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..models.libraries import HFValidationError, validate_repo_id
from .plain_text import printable

TEMPLATE = Path(__file__).with_suffix(".md")
MAX_CELL = 500  # characters of a table cell; a longer sample is cut and ends in an ellipsis


def library_versions() -> dict[str, str]:
    """The versions of the libraries that decide a run's result, as installed here; missing ones are left out."""
    found = {}
    for name in ("hfrlhf", "transformers", "trl", "peft", "accelerate", "datasets", "bitsandbytes", "torch"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@dataclass(frozen=True)
class CardFacts:
    """What a model card says; only `model_name` and `task` are needed.

    `model_name` is the Hub name or folder to load from, `task` the Hub's pipeline tag ("text-generation",
    "text-classification"), `library` "transformers" or "peft". `samples` are rows of one table, keys as headings.
    `figures` are pictures that lie beside the card, `example` is a prompt to try (text, or chat messages),
    `quantization` what an adapter's base is loaded with (arguments of `BitsAndBytesConfig`). A base model or dataset
    given as a local path is named in the text by its last part only and left out of the metadata, which holds Hub names
    alone.
    """

    model_name: str
    task: str
    method: str = "PPO"
    library: str = "transformers"
    base_model: str | None = None
    datasets: Sequence[str] = ()
    license: str | None = None
    tags: Sequence[str] = ()
    remarks: str = ""
    samples: Sequence[Mapping[str, object]] = ()
    metrics: Mapping[str, float] = field(default_factory=dict)
    figures: Sequence[str] = ()
    hyperparameters: Mapping[str, object] = field(default_factory=dict)
    command: str | None = None
    example: str | Sequence[Mapping[str, object]] = "Once upon a time"
    quantization: Mapping[str, object] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=library_versions)


def write_model_card(folder: str | Path, facts: CardFacts) -> Path:
    """Write the card as `folder/README.md` (made where missing, replaced where present) and return its path."""
    path = Path(folder) / "README.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(model_card(facts), encoding="utf-8", newline="\n")
    return path


def model_card(facts: CardFacts) -> str:
    """The text of the card: YAML front matter, then Markdown, as the template beside this file has it."""
    headings = list(dict.fromkeys(key for row in facts.samples for key in row))
    card = ModelCard.from_template(
        _metadata(facts),
        template_path=str(TEMPLATE),
        facts=facts,
        name=_last_part(facts.model_name),
        summary=_summary(facts),
        remarks=[part for part in re.split(r"\n\s*\n", facts.remarks.strip()) if part],
        usage=_usage(facts),
        headings=headings,
        samples=[[row.get(key, "") for key in headings] for row in facts.samples],
        # What the template writes goes through one of these.
        escape=escape,
        cell=table_cell,
        code=_code,
        link=_link,
        stem=lambda name: Path(name).stem,
    )
    return f"{card}\n"


def is_hub_name(name: str) -> bool:
    """Whether `name` can be a model or dataset on the Hub: `name` or `owner/name`, and no such path exists here."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return not Path(name).exists()


def escape(text: object) -> str:
    """The text on one line, with nothing in it that Markdown, HTML or a table would read as markup."""
    return re.sub(r"^([-+=]|\d+(?=[.)]))", _first_character, _inline(text))


def _inline(text: object) -> str:
    """The same where the text does not begin a line (a table cell): there no list can begin with "0." or "-"."""
    line = html.escape(_one_line(str(text)), quote=False)
    # An underscore inside a word is plain text already, and `learning_rate` should stay readable in the source.
    return re.sub(r"[\\`*\[\]|~$#]|(?<!\w)_|_(?!\w)", r"\\\g<0>", line)


def _one_line(text: str) -> str:
    """The text with every break (also Unicode's) as a space and every control character made visible."""
    return printable(" ".join(text.split()))


def _first_character(match: re.Match[str]) -> str:
    """At the start of a paragraph `-`, `+`, `=` and `1.` would begin a list or a heading."""
    return f"&#{ord(match[0][0])};{match[0][1:]}"


def _metadata(facts: CardFacts) -> ModelCardData:
    """The card's YAML; what is unknown, local or not finite is left out, for the Hub refuses it."""
    datasets = [name for name in facts.datasets if is_hub_name(name)]
    finite = {_one_line(str(name)): float(value) for name, value in facts.metrics.items() if math.isfinite(value)}
    results = [
        EvalResult(facts.task, dataset, dataset, metric_type=name, metric_value=value)
        for dataset in datasets[:1]
        for name, value in finite.items()
    ]
    return ModelCardData(
        base_model=facts.base_model if facts.base_model and is_hub_name(facts.base_model) else None,
        datasets=datasets or None,
        eval_results=results or None,
        library_name=facts.library,
        license=_one_line(facts.license) if facts.license else None,
        model_name=_one_line(_last_part(facts.model_name)) if results else None,
        pipeline_tag=facts.task,
        tags=sorted({"hfrlhf", *(_one_line(tag) for tag in (facts.method.lower(), *facts.tags))}),
    )


def _summary(facts: CardFacts) -> str:
    origin = f", starting from {_reference(facts.base_model, '')}" if facts.base_model else ""
    data = f", on {', '.join(_reference(name, 'datasets/') for name in facts.datasets)}" if facts.datasets else ""
    return f"Trained with {escape(facts.method)}{origin}{data}, using hfrlhf on the transformers `Trainer`."


def _reference(name: str, prefix: str) -> str:
    if is_hub_name(name):
        return f"[{escape(name)}](https://huggingface.co/{prefix}{name})"
    return f"{escape(_last_part(name))} (local)"


# How a model of each kind is loaded: three lines that work with the stock libraries.
_USAGE = {
    ("text-generation", "transformers"): """\
from transformers import pipeline
generate = pipeline("text-generation", model={name})
print(generate({example}, max_new_tokens=64)[0]["generated_text"]{said})""",
    ("text-generation", "peft"): """\
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer
model, tokenizer = AutoPeftModelForCausalLM.from_pretrained({name}), AutoTokenizer.from_pretrained({name})
output = model.generate(**{inputs}, max_new_tokens=64)
print(tokenizer.decode(output[0], skip_special_tokens=True))""",
    ("text-generation", "peft, quantised"): """\
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer, BitsAndBytesConfig
base = BitsAndBytesConfig({quantization})  # the adapter was trained on its base in this form
model = AutoPeftModelForCausalLM.from_pretrained({name}, quantization_config=base)
tokenizer = AutoTokenizer.from_pretrained({name})
output = model.generate(**{inputs}, max_new_tokens=64)
print(tokenizer.decode(output[0], skip_special_tokens=True))""",
    ("text-classification", "peft"): """\
from hfrlhf import load_reward_model
from transformers import AutoTokenizer
model, tokenizer = load_reward_model({name}).eval(), AutoTokenizer.from_pretrained({name})  # with head and shift
logits = model(**tokenizer("A prompt and its response" + tokenizer.eos_token, return_tensors="pt")).logits
print(logits.item() - model.config.reward_shift)  # the score; 0 is that of a reference response""",
    ("text-classification", "transformers"): """\
from transformers import AutoModelForSequenceClassification, AutoTokenizer
model, tokenizer = AutoModelForSequenceClassification.from_pretrained({name}), AutoTokenizer.from_pretrained({name})
logits = model(**tokenizer("A prompt and its response" + tokenizer.eos_token, return_tensors="pt")).logits
print(logits.item() - getattr(model.config, "reward_shift", 0.0))  # the score; 0 is that of a reference response""",
}


def _usage(facts: CardFacts) -> str:
    kind = facts.library
    if facts.quantization and facts.task == "text-generation":
        kind = f"{kind}, quantised"
    options = ", ".join(f"{name}={value!r}" for name, value in facts.quantization.items())
    words = {"name": repr(facts.model_name), "example": repr(facts.example), "quantization": options}
    words |= _of_chat(words["example"]) if not isinstance(facts.example, str) else _of_text(words["example"])
    return _USAGE.get((facts.task, kind), "").format(**words)


def _of_text(example: str) -> dict[str, str]:
    return {"said": "", "inputs": f'tokenizer({example}, return_tensors="pt")'}


def _of_chat(example: str) -> dict[str, str]:
    """A chat goes through the tokenizer's template, and a pipeline gives it back with one turn more."""
    options = 'add_generation_prompt=True, return_tensors="pt", return_dict=True'
    return {"said": '[-1]["content"]', "inputs": f"tokenizer.apply_chat_template({example}, {options})"}


def table_cell(value: object) -> str:
    """A value as the text of a table's cell: four digits, line breaks as `<br>`, nothing that would be markup."""
    text = f"{value:.4g}" if isinstance(value, float) else str(value).strip()
    text = text if len(text) <= MAX_CELL else text[: MAX_CELL - 1] + "…"
    return "<br>".join(_inline(line) for line in text.splitlines())


def _code(language: str, text: str) -> str:
    """A fenced block whose fence is longer than any run of backticks inside."""
    text = printable(text)
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text}\n{fence}"


def _last_part(name: str) -> str:
    return re.split(r"[\\/]", name.rstrip("\\/"))[-1]


def _link(name: str) -> str:
    """A file name as a link target: percent-encoded, so that it cannot end the link."""
    return "".join(
        c if c.isalnum() or c in "-._/" else "".join(f"%{b:02X}" for b in c.encode(errors="replace")) for c in name
    )
