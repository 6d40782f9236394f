"""What a policy wrote, as text.

A completion decoded by itself is not what stands after its prompt: a tokenizer whose words carry their space drops it
at the beginning of a text, and a character may be half prompt, half completion. So

    written(prompt, completion) = decode(prompt + completion) − decode(prompt)
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import Any

from transformers import PreTrainedTokenizerBase

from ..experience import Rollout

_BROKEN = "\ufffd"  # how bytes that are no whole character are decoded


def written(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[list[int]],
    completions: Sequence[list[int]],
    rendered: Sequence[str] | None = None,
) -> list[str]:
    """The text of each completion, special tokens left out.

    Args:
        prompts, completions: token ids without padding; the completions without a stop token (`content`).
        rendered: where the prompts are chats, their texts. A space that the tokenizer itself puts before a text at that
            place is its own then, and no part of the message.
    """
    if not prompts:  # for no rows older releases of transformers decode one
        return []
    heads = _decoded_once(tokenizer, prompts)
    joined = [[*prompt, *completion] for prompt, completion in zip(prompts, completions, strict=True)]
    wholes = tokenizer.batch_decode(joined, skip_special_tokens=True)
    texts = [_rest(head, whole) for head, whole in zip(heads, wholes, strict=True)]
    if rendered is None or not any(text.startswith(" ") for text in texts):
        return texts
    places = dict(zip(rendered, prompts, strict=True))
    spaced = {text: _adds_space(tokenizer, text, ids) for text, ids in places.items()}
    return [text.removeprefix(" ") if spaced[place] else text for place, text in zip(rendered, texts, strict=True)]


def texts_of(tokenizer: PreTrainedTokenizerBase, rollout: Rollout, rendered: Sequence[str] | None = None) -> list[str]:
    """The text of each response of a rollout; `rendered` as in `written`."""
    completions = content(tokenizer, rollout.completion_lists(), rollout.terminated.tolist())
    return written(tokenizer, rollout.prompt_lists(), completions, rendered)


def content(
    tokenizer: PreTrainedTokenizerBase, completions: Sequence[list[int]], terminated: Sequence[bool]
) -> list[list[int]]:
    """The completions without the stop token of those that ended.

    A stop token that is ordinary text (a full stop, say) was written like any other and stays; one that is a special or
    added token, or blank, only says that the response is over.
    """
    marks = {ids[-1]: False for ids, ended in zip(completions, terminated, strict=True) if ended and ids}
    marks = {token: _is_mark(tokenizer, token) for token in marks}
    pairs = zip(completions, terminated, strict=True)
    return [ids[:-1] if ended and ids and marks[ids[-1]] else ids for ids, ended in pairs]


def _is_mark(tokenizer: Any, token: int) -> bool:
    special = {*tokenizer.all_special_ids, *getattr(tokenizer, "added_tokens_decoder", {})}
    return token in special or not tokenizer.decode([token]).strip()


def _decoded_once(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[list[int]]) -> list[str]:
    """Each prompt's text; equal ones, of which several responses are sampled, are decoded once."""
    distinct = list(dict.fromkeys(map(tuple, prompts)))
    decoded = tokenizer.batch_decode(list(map(list, distinct)), skip_special_tokens=True)
    texts = dict(zip(distinct, decoded, strict=True))
    return [texts[tuple(prompt)] for prompt in prompts]


def _rest(head: str, whole: str) -> str:
    """What stands after the head; a character that the completion makes whole is the completion's."""
    if whole.startswith(head):
        return whole[len(head) :]
    # A decoder that tidies up (spaces before a full stop) may take back the prompt's last blank.
    pairs = zip(head.rstrip(_BROKEN), whole, strict=False)
    return whole[sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs)) :]


def _adds_space(tokenizer: PreTrainedTokenizerBase, text: str, prompt: list[int]) -> bool:
    """Whether a word after this prompt decodes with a space before it that nobody wrote."""
    ids = tokenizer(text + "a", add_special_tokens=False, verbose=False).input_ids
    if ids[: len(prompt)] != prompt:
        return False
    head, whole = tokenizer.batch_decode([prompt, ids], skip_special_tokens=True)
    return _rest(head, whole) == " a"
