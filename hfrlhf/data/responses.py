"""A prompt and its response as a reward model reads them: in its training, and wherever it scores afterwards.

    prompt · content · ending

The prompt's own tokens come first, as a policy meets them when it writes; then what the response says; then what ends
it: whatever the chat template writes behind a message, and exactly one EOS. A response that a policy could not finish
is read with that ending too: of one without it a reward model has seen none, and what it says of it is chance.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from .encoding import encode
from .templates import render

Options = Sequence[Mapping[str, Any]] | None


@dataclass(frozen=True)
class Encoded:
    """Token ids of a prompt (`head`), of what follows it (`tail`, the ending included), and the ending by itself: None
    where the template does not write the response as it is, so that nobody can say where the ending begins."""

    head: list[int]
    tail: list[int]
    ending: list[int] | None


def encode_responses(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Any],
    completions: Sequence[Any],
    kind: str,
    options: Options = None,
) -> list[list[int]]:
    """Token ids of prompts and their completions, ending with exactly one EOS.

    Args:
        prompts, completions: texts (kind "text"; an empty prompt where the completion holds everything) or lists of
            chat messages (kind "chat"). options: for chats what each row's template is given (`template_options`).
    """
    return [[*row.head, *row.tail] for row in encode_parts(tokenizer, prompts, completions, kind, options)]


def encode_parts(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Any],
    completions: Sequence[Any],
    kind: str,
    options: Options = None,
    eos: bool = True,
) -> list[Encoded]:
    """The same in parts; with `eos=False` what the template writes, and no EOS beside it."""
    rows = zip(prompts, completions, options or [{}] * len(prompts), strict=True)
    parts = [RENDERERS[kind](tokenizer, *row) for row in rows]
    special = kind == "text"  # a chat template writes its special tokens itself
    heads = encode(tokenizer, [part.head for part in parts], special)
    wholes = encode(tokenizer, [part.head + part.tail for part in parts], special)
    endings = encode(tokenizer, [part.ending or "" for part in parts], False)
    encoded = []
    for part, head, whole, ending in zip(parts, heads, wholes, endings, strict=True):
        # Where the prompt's tokens open the whole text, the rest is what a policy would write. Where a word grew over
        # the boundary it is not, and the completion is tokenised by itself. (Doing that always would give a
        # tokenizer that starts every text with a space one that nobody wrote.)
        is_prefix = whole[: len(head)] == head
        tail = whole[len(head) :] if is_prefix else encode(tokenizer, [part.tail], False)[0]
        tail, ending = (closed(tokenizer, ids) if eos else ids for ids in (tail, ending))
        encoded.append(Encoded(head, tail, None if part.ending is None else ending))
    return encoded


def closed(tokenizer: Any, ids: list[int]) -> list[int]:
    """The ids of a response up to one EOS: appended if absent, cut after it where only blanks or another EOS follow.

    Chat templates write a newline after the end-of-turn token; a policy stops at the token itself.
    """
    eos = tokenizer.eos_token_id
    if eos is None:  # a scorer from elsewhere; our own data is refused without one
        return ids
    end = len(ids)
    while end and (ids[end - 1] == eos or not tokenizer.decode(ids[end - 1 : end]).strip()):
        end -= 1
    return [*ids[: ids.index(eos, end)], eos] if eos in ids[end:] else [*ids, eos]


# ---- Texts --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rendered:
    """The text of a prompt and of what follows it, and of that what the template writes behind the response."""

    head: str
    tail: str
    ending: str | None


def _render_text(
    tokenizer: PreTrainedTokenizerBase, prompt: str, completion: str, options: Mapping[str, Any]
) -> Rendered:
    return Rendered(prompt, completion, "")


def _render_chat(
    tokenizer: PreTrainedTokenizerBase, prompt: list[Any], completion: list[Any], options: Mapping[str, Any]
) -> Rendered:
    whole = render(tokenizer, [*prompt, *completion], options)
    head = render(tokenizer, prompt, options, prompt=True) if prompt else ""
    if not whole.startswith(head):
        # Some templates write a finished conversation otherwise than its beginning: there is no boundary to keep.
        return Rendered("", whole, None)
    tail, says = whole[len(head) :], completion[-1].get("content") if len(completion) == 1 else None
    begins = tail.find(says) if isinstance(says, str) else -1
    known = begins >= 0 and not tail[:begins].strip()  # a template may write blanks before a message
    return Rendered(head, tail, tail[begins + len(str(says)) :] if known else None)


RENDERERS: dict[str, Callable[[Any, Any, Any, Mapping[str, Any]], Rendered]] = {
    "text": _render_text,
    "chat": _render_chat,
}
