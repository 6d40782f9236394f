"""What a reward source is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..data.prompts import PromptSet
from ..data.templates import blank_before_answers, template_options
from ..data.written import texts_of
from ..experience import Rollout

# What every sample that is shown or kept says of itself.
SAMPLE_FIELDS = ("step", "prompt", "completion", "score")


@dataclass(frozen=True)
class Completions:
    """What a reward source may look at.

    prompts and completions are texts, or lists of chat messages where the prompts are chats; completion_ids are the
    sampled tokens, stop token included, without padding; columns are the dataset's other columns, row by row.
    """

    rollout: Rollout
    prompts: list[Any]
    completions: list[Any]
    completion_ids: list[list[int]]
    columns: dict[str, list[Any]] = field(default_factory=dict)

    def examples(
        self, scores: Tensor, n: int, noted: Mapping[str, Sequence[Any]] | None = None
    ) -> list[dict[str, Any]]:
        """The first n as rows to show or to keep, with what reward functions noted of each: column -> values."""
        rows = zip(self.prompts[:n], self.completions, scores.tolist(), strict=False)
        return [
            {"prompt": prompt, "completion": completion, "score": score}
            | {column: values[i] for column, values in (noted or {}).items()}
            for i, (prompt, completion, score) in enumerate(rows)
        ]


def completions_of(tokenizer: PreTrainedTokenizerBase, rollout: Rollout, prompts: PromptSet) -> Completions:
    """A rollout of some prompts as reward sources see it."""
    numbers = rollout.row.tolist()
    rows = prompts.rows.select(numbers)
    chats, columns = rows["prompt"][:], {name: rows[name][:] for name in rows.column_names if name != "prompt"}
    rendered = [prompts.texts[row] for row in numbers] if prompts.is_chat else None
    completions: list[Any] = texts_of(tokenizer, rollout, rendered)
    if rendered is not None:
        options = template_options(columns, len(numbers))
        given = zip(completions, chats, options, rendered, strict=True)
        completions = [_message(tokenizer, *row) for row in given]
    return Completions(rollout, chats, completions, rollout.completion_lists(), columns)


def _message(
    tokenizer: PreTrainedTokenizerBase, text: str, prompt: list[Any], options: dict[str, Any], rendered: str
) -> list[Any]:
    """What was written as the assistant's message, without blanks that belong to the template."""
    blank = blank_before_answers(tokenizer, prompt, options, rendered) if text[:1].isspace() else ""
    return [{"role": "assistant", "content": text.removeprefix(blank)}]
