"""What is looked at in a run's rewards before and in its first rollout: that they can be read, and that they speak."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.utils import logging

from ..reporting.plain_text import printable
from ..rewards.completions import Completions
from ..rewards.reading import Reader

logger = logging.get_logger(__name__)

PROMPTS_TRIED = 32
RESPONSES_TRIED = 64  # per process: a mean that is off by a point shows in as many


def check_reading(sources: Sequence[Any], prompts: Mapping[str, Any], completion: int) -> None:
    """Let every reward model read some of the prompts, before anything is trained.

    Args:
        prompts: the prompt sets, by the name of their dataset. completion: tokens a response may have.

    Raises:
        ValueError: chats, and a reward model whose tokenizer has no chat template; a template that cannot render them;
            or more tokens than a reward model has positions for.
    """
    for name, of_dataset in prompts.items():
        for source in filter(_is_model, sources):
            longest = sorted(range(len(of_dataset.ids)), key=lambda row: -len(of_dataset.ids[row]))[:PROMPTS_TRIED]
            spread = torch.linspace(0, len(of_dataset.ids) - 1, PROMPTS_TRIED).long().tolist()
            beside = _try_reading(source, of_dataset, name, sorted({*longest, *spread}))
            _check_length(source, beside, completion, name)


def _check_length(source: Any, beside: int, completion: int, name: str) -> None:
    """Refuse what cannot be read; warn of what may not be, since another tokenizer makes other tokens of a response.

    Args:
        beside: tokens of the longest prompt and of a response's ending.
    """
    most = source.reader.positions
    if most is None or beside + completion <= most:
        return
    said = (
        f"the longest prompt of the {name} and the ending of a response are {beside} tokens for the reward model "
        f"{source.name!r}, which has positions for {most}, and max_completion_length={completion}"
    )
    if source.reader.shares_ids or beside >= most:
        raise ValueError(f"{said}; set a lower `max_prompt_length` or `max_completion_length`")
    logger.warning(f"{said}: of responses that are too long in its tokens, the prompt's beginning will not be read")


def _try_reading(source: Any, prompts: Any, name: str, rows: list[int]) -> int:
    """How many tokens the longest of some rows has beside its response: prompt and ending."""
    some = prompts.rows.select(rows)
    answer: Any = [{"role": "assistant", "content": "a"}] if prompts.is_chat else " a"
    columns = {column: some[column][:] for column in some.column_names if column != "prompt"}
    reader: Reader = source.reader
    if prompts.is_chat and not reader.tokenizer.chat_template:
        raise ValueError(
            f"the {name} holds chat messages, but the tokenizer of the reward model {source.name!r} has no "
            "chat template, so that nobody can say how it was trained to read a chat: set `chat_template` of its "
            "tokenizer, and pass that as `reward_processing_classes`"
        )
    try:
        encoded = reader.in_training(some["prompt"][:], [answer] * len(rows), columns)
        return max(len(row.head) + len(row.tail[1:] if row.ending is None else row.ending) for row in encoded)
    except Exception as error:  # a template is a program, and may raise what it likes
        raise ValueError(
            f"the chat template of the reward model {source.name!r} cannot render the {name}: "
            f"{type(error).__name__}: {error}"
        ) from error


def ending_note(trainer: Any, completions: Completions, parts: Tensor) -> str:
    """What each reward model says of responses that were cut off: with the ending, without it, beside those that ended.

    It has seen no response without the ending: where the two numbers are far apart, what it would say of one is chance.
    Where it likes those that were cut off no less than the others, nothing in it asks the policy to end. All processes
    take part; nothing is said where no response was cut off, nor of later rollouts.

    Args:
        parts: [B,S] the scores of the S rewards.
    """
    if trainer.state.global_step > 0:
        return ""
    ended = completions.rollout.terminated
    tried = ended.logical_not().nonzero().flatten()[:RESPONSES_TRIED]
    lines = []
    for source, scores in zip(trainer.reward.sources, parts.T.double(), strict=True):
        if _is_model(source):
            seen = [scores[tried].sum(), _sum_without_ending(source, completions, tried), scores[ended].sum()]
            sums = _over_processes(trainer, [*map(float, seen), len(tried), int(ended.sum()), int((~ended).sum())])
            lines += _told(source.name, sums, trainer.args.missing_eos_penalty)
    return "\n".join(lines)


def _sum_without_ending(source: Any, completions: Completions, rows: Tensor) -> float:
    if not len(rows):
        return 0.0
    readings = source.reader.read(completions)
    bare = [[*readings[row].prompt, *readings[row].content] or readings[row].ids for row in rows.tolist()]
    return float(source.scores(bare).double().sum())


def _told(name: str, sums: list[float], penalty: float | None) -> list[str]:
    """The line of one reward model.

    Args:
        sums: of the scores of responses that were cut off, as they are read and without the ending, and of those that
            ended; then how many of either were summed, and how many were cut off.
    """
    cut, bare, whole, tried, ended, number = sums
    if not tried:
        return []
    line = (
        f"first rollout: {number:.0f} of {number + ended:.0f} responses were cut off at the length limit; {name} reads "
        f"them with the ending it was trained with, and scores them {cut / tried:.2f} on average "
        f"({bare / tried:.2f} without it)"
    )
    if not ended:
        return [line]
    asks = "; nothing in that asks the policy to end: `missing_eos_penalty` does" if not penalty else ""
    return [f"{line}, those that ended {whole / ended:.2f}{asks if cut / tried >= whole / ended else ''}"]


def _over_processes(trainer: Any, numbers: Sequence[float]) -> list[float]:
    # Not float64, which some devices lack.
    here = torch.tensor(numbers, dtype=torch.float32, device=trainer.args.device)
    total: list[float] = trainer.accelerator.reduce(here, "sum").tolist()
    return total


def _is_model(source: Any) -> bool:
    return hasattr(source, "reader")


class EqualScores:
    """Says once of each reward that it gave every response of a rollout the same score: from it nothing is learnt.

    Such a reward may be right (a riddle that nobody solved yet), or look for something that is never there.
    """

    def __init__(self) -> None:
        self.told: set[str] = set()

    def look(self, trainer: Any, parts: Tensor) -> None:
        """Look at a trainer's new rollout.

        Args:
            parts: [B,S] scores of its S rewards, over all processes.
        """
        for source, scores in zip(trainer.reward.sources, parts.T, strict=True):
            given = scores[~scores.isnan()]
            if len(given) > 1 and bool((given == given[0]).all()) and source.name not in self.told:
                self.told.add(source.name)
                if trainer.is_world_process_zero():
                    self._tell(source.name, given, trainer.samples)

    def _tell(self, name: str, scores: Tensor, samples: Sequence[dict[str, Any]]) -> None:
        example = printable(repr(samples[0]["completion"])[:200]) if samples else "none"
        logger.warning(
            f"the reward {name} gives all {len(scores)} responses of a rollout the same score, {float(scores[0]):g}: "
            "there is nothing to learn from it (said once). Is it looking for something that is not there? One of the "
            f"completions it got: {example}"
        )
