"""Chats to text by the tokenizer's template, with what TRL's standard columns give it for a row.

`tools` (JSON schemas of functions) and `chat_template_kwargs` (what else a template reads, such as `enable_thinking`)
reach the template wherever a row's chat is rendered: prompts, preference pairs, and what a reward model reads.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

TOOLS, KEYWORDS = "tools", "chat_template_kwargs"
TEMPLATE_COLUMNS = (TOOLS, KEYWORDS)
# What every rendering decides for itself: whether it is a prompt, and that text comes out.
RESERVED = {
    "conversation",
    "tools",
    "add_generation_prompt",
    "continue_final_message",
    "tokenize",
    "padding",
    "truncation",
    "max_length",
    "return_tensors",
    "return_dict",
    "return_assistant_tokens_mask",
    "tokenizer_kwargs",
}


def render(
    tokenizer: Any, messages: Sequence[Any], options: Mapping[str, Any] | None = None, prompt: bool = False
) -> str:
    """A chat as text.

    Args:
        options: of the row, from `template_options`. prompt: whether the assistant is about to speak.
    """
    text: str = tokenizer.apply_chat_template(
        without_nulls(messages), tokenize=False, add_generation_prompt=prompt, **(options or {})
    )
    return text


def blank_before_answers(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Any], options: Mapping[str, Any], prompt: str
) -> str:
    """The blanks that a template writes between a prompt, as it is rendered, and the assistant's message.

    The policy writes them as its first token, but they are no part of the message: `[/INST] Yes` answers `Yes`.
    """
    try:
        whole = render(tokenizer, [*messages, {"role": "assistant", "content": "a"}], options)
    except Exception:  # a template is a program: one that renders prompts may still refuse finished chats
        return ""
    tail = whole[len(prompt) :] if whole.startswith(prompt) else ""
    blank = tail[: len(tail) - len(tail.lstrip())]
    return blank if tail.startswith(f"{blank}a") else ""


def template_options(columns: Mapping[str, Sequence[Any]], rows: int) -> list[dict[str, Any]]:
    """For each row what its chat template is given beside the messages.

    Args:
        columns: of the dataset, by name; those of `TEMPLATE_COLUMNS` are read, where there are any.

    Raises:
        TypeError, ValueError: an entry that no template could take.
    """
    nothing: Sequence[Any] = [None] * rows
    tools, keywords = (columns.get(name) or nothing for name in TEMPLATE_COLUMNS)
    return [_options(row, *given) for row, given in enumerate(zip(tools, keywords, strict=True))]


def check_template_columns(dataset: Any, kind: str, name: str) -> list[str]:
    """The template's columns that a dataset has and that are read: those of a chat dataset, each entry looked at.

    Raises:
        TypeError, ValueError: an entry that no template could take.
    """
    found = [column for column in TEMPLATE_COLUMNS if column in dataset.column_names]
    if found and kind == "text":
        logger.warning("%s: %s is for chat templates, and this dataset is text: not read", name, " and ".join(found))
        return []
    try:
        template_options({column: dataset[column][:] for column in found}, len(dataset))
    except (TypeError, ValueError) as error:
        raise type(error)(f"the {name} dataset: {error}") from None
    return found


def check_chat_template(tokenizer: PreTrainedTokenizerBase, kind: str, name: str) -> None:
    """Refuse chat data where the tokenizer cannot render it.

    Raises:
        ValueError: chat data and no chat template.
    """
    if kind == "chat" and not tokenizer.chat_template:
        raise ValueError(
            f"the {name} dataset holds chat messages, but the tokenizer has no chat template; set "
            "`tokenizer.chat_template`, or give the data as text"
        )


def without_nulls(value: object) -> Any:
    """The same without keys that hold null, at any depth.

    In a table every row of a nested column has every key of all rows; those that a row did not write hold null there.
    """
    if isinstance(value, Mapping):
        return {key: without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [without_nulls(inner) for inner in value] if isinstance(value, list | tuple) else value


def _options(row: int, tools: Any, keywords: Any) -> dict[str, Any]:
    tools, keywords = _read(tools, TOOLS, row), _read(keywords, KEYWORDS, row)
    if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, Mapping) for tool in tools)):
        raise TypeError(
            f"column {TOOLS!r} holds a list of JSON schemas, [{{'type': 'function', 'function': …}}, …]; row {row} "
            f"holds {str(tools)[:80]!r}"
        )
    if keywords is not None and not isinstance(keywords, Mapping):
        raise TypeError(
            f"column {KEYWORDS!r} holds a dict of what the chat template reads, such as {{'enable_thinking': False}}; "
            f"row {row} holds {str(keywords)[:80]!r}"
        )
    taken = sorted(RESERVED & (keywords or {}).keys())
    if taken:
        raise ValueError(f"column {KEYWORDS!r}, row {row}: {', '.join(taken)} is not for a dataset to set")
    # No tools is None: some templates write about tools for an empty list too.
    return {"tools": tools or None, **(keywords or {})}


def _read(entry: Any, column: str, row: int) -> Any:
    """An entry without the nulls of its table; a string holds it as JSON."""
    if isinstance(entry, str):
        try:
            entry = json.loads(entry)
        except json.JSONDecodeError as error:
            raise ValueError(f"column {column!r}, row {row} holds a text that is no JSON: {error}") from error
    return without_nulls(entry)
