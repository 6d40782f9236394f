"""`tools` and `chat_template_kwargs` reach the chat template row by row, without the nulls of their table."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
from datasets import Dataset

from hfrlhf.data.preferences import prepare_pairs
from hfrlhf.data.prompts import prepare_prompts
from hfrlhf.data.templates import template_options

TEMPLATE = (
    "{% if tools %}<{% for t in tools %}{{ t.function | tojson }}{% endfor %}>{% endif %}"
    "{% for m in messages %}{{ m.role }}={{ m.content }}{% if 'name' in m %}({{ m.name }}){% endif %};{% endfor %}"
    "{% if add_generation_prompt %}assistant={% if thinking is defined %}[{{ thinking }}]{% endif %}{% endif %}"
)
USER = [{"role": "user", "content": "hi"}]
CLOCK = {"type": "function", "function": {"name": "clock"}}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"city": "Oslo"}}}


@pytest.fixture
def tokenizer(make_tokenizer: Any) -> Any:
    made = make_tokenizer(bos=None)
    made.chat_template = TEMPLATE
    return made


def say(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def test_each_row_has_its_own_and_no_nulls(tokenizer: Any) -> None:
    """In the table the clock has `parameters`, which is null, and the last rows have all keys of the first."""
    rows = [
        {"prompt": USER, "tools": [CLOCK], "chat_template_kwargs": {"thinking": False}},
        {"prompt": USER, "tools": [WEATHER, CLOCK], "chat_template_kwargs": {}},
        {"prompt": [{"role": "user", "content": "hi", "name": "Ada"}], "tools": [], "chat_template_kwargs": None},
        {"prompt": USER, "tools": None, "chat_template_kwargs": {"thinking": True}},
    ]
    weather = '{"name": "weather", "parameters": {"city": "Oslo"}}'
    expected = [
        '<{"name": "clock"}>user=hi;assistant=[False]',
        f'<{weather}{{"name": "clock"}}>user=hi;assistant=',
        "user=hi(Ada);assistant=",
        "user=hi;assistant=[True]",
    ]
    prepared = prepare_prompts(Dataset.from_list(rows), tokenizer, None)
    assert prepared.texts == expected
    assert [tokenizer.decode(ids) for ids in prepared.ids] == expected


def test_both_sides_of_a_pair_get_them(tokenizer: Any) -> None:
    tokenizer.chat_template = TEMPLATE.replace("{% if add_generation_prompt %}assistant=", "").removesuffix(
        "{% endif %}"
    )
    rows = [
        {"prompt": USER, "chosen": say("yes"), "rejected": say("no"), "tools": [CLOCK]}
        | {"chat_template_kwargs": {"thinking": 1}},
        {"prompt": USER, "chosen": say("a"), "rejected": say("b"), "tools": None, "chat_template_kwargs": None},
    ]
    pairs = prepare_pairs(Dataset.from_list(rows), tokenizer, 1000).dataset
    texts = [[tokenizer.decode(row[side]) for side in ("chosen_ids", "rejected_ids")] for row in pairs]
    assert texts == [
        ['<{"name": "clock"}>user=hi;assistant=yes;[1]<eos>', '<{"name": "clock"}>user=hi;assistant=no;[1]<eos>'],
        ["user=hi;assistant=a;<eos>", "user=hi;assistant=b;<eos>"],
    ]


def test_a_string_holds_them_as_json(tokenizer: Any) -> None:
    columns = {"tools": [json.dumps([CLOCK])], "chat_template_kwargs": ['{"thinking": null, "depth": 2}']}
    assert template_options(columns, 1) == [{"tools": [CLOCK], "depth": 2}]


BAD = [
    ({"tools": ["clock"]}, ValueError, "column 'tools', row 0 holds a text that is no JSON"),
    ({"tools": [["clock"]]}, TypeError, r"a list of JSON schemas.*row 0 holds \"\['clock'\]\""),
    ({"tools": ['{"type": "function"}']}, TypeError, "a list of JSON schemas"),
    ({"tools": [3]}, TypeError, "row 0 holds '3'"),
    ({"chat_template_kwargs": [["thinking"]]}, TypeError, "holds a dict of what the chat template reads"),
    ({"chat_template_kwargs": [True]}, TypeError, "row 0 holds 'True'"),
    ({"chat_template_kwargs": [{"tokenize": True}]}, ValueError, "row 0: tokenize is not for a dataset to set"),
    ({"chat_template_kwargs": [{"add_generation_prompt": False}]}, ValueError, "add_generation_prompt is not for"),
]


@pytest.mark.parametrize(("columns", "error", "message"), BAD)
def test_what_no_template_could_take_is_refused_at_once(
    tokenizer: Any, columns: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"the eval dataset: .*{message}"):
        prepare_prompts(Dataset.from_dict({"prompt": [USER]} | columns), tokenizer, None, "eval")
    pairs = {"prompt": [USER], "chosen": [say("yes")], "rejected": [say("no")]}
    with pytest.raises(error, match=f"the train dataset: .*{message}"):
        prepare_pairs(Dataset.from_dict(pairs | columns), tokenizer, 1000)


def test_text_has_no_template_and_it_is_said(tokenizer: Any, caplog: pytest.LogCaptureFixture) -> None:
    data = Dataset.from_dict({"prompt": ["the film"], "tools": ["hammer"]})
    with caplog.at_level(logging.WARNING):
        prepared = prepare_prompts(data, tokenizer, None)
    assert prepared.texts == ["the film"] and prepared.rows["tools"][:] == ["hammer"]
    assert "train: tools is for chat templates, and this dataset is text: not read" in caplog.text


def test_an_earlier_turn_may_be_a_call_of_a_tool(tokenizer: Any) -> None:
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.tool_calls | tojson if m.tool_calls else m.content }};{% endfor %}"
    )
    call = {"role": "assistant", "content": None, "tool_calls": [CLOCK]}
    prompt = [*USER, call, {"role": "tool", "content": "noon"}]
    prepared = prepare_prompts(Dataset.from_list([{"prompt": prompt}]), tokenizer, None)
    assert prepared.texts == ['hi;[{"type": "function", "function": {"name": "clock"}}];noon;']
