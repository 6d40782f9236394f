"""The records that flow between the stages: selecting, splitting, joining."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from hfrlhf.experience import (
    EvaluatedRollout,
    Experience,
    Prompts,
    Rollout,
    chunks_by_length,
    concatenate,
    left_aligned,
)


def prompts_of(*rows: list[int]) -> Prompts:
    """Left-padded prompts; episode and row number count from 10 and 20."""
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[False] * (width - len(row)) + [True] * len(row) for row in rows])
    numbers = torch.arange(len(rows))
    return Prompts(ids, mask, numbers + 10, numbers + 20)


def rollout_of(*rows: tuple[list[int], list[int]]) -> Rollout:
    """Prompts and responses; the log-prob of a response token is minus its id."""
    prompts = prompts_of(*(prompt for prompt, _ in rows))
    width = max(len(response) for _, response in rows)
    response = torch.tensor([tokens + [0] * (width - len(tokens)) for _, tokens in rows])
    mask = torch.tensor([[True] * len(tokens) + [False] * (width - len(tokens)) for _, tokens in rows])
    return Rollout(
        input_ids=torch.cat([prompts.input_ids, response], 1),
        attention_mask=torch.cat([prompts.attention_mask, mask], 1),
        action_mask=mask,
        terminated=torch.tensor([tokens[-1] == 2 for _, tokens in rows]),
        episode=prompts.episode,
        row=prompts.row,
        sampler_logprobs=-response.float(),
    )


ROLLOUT = rollout_of(([5], [6, 7, 2]), ([8, 9, 10], [2]), ([11, 12], [13, 14]))


def test_lengths_and_lists_leave_the_padding_out() -> None:
    assert ROLLOUT.lengths.tolist() == [4, 4, 4]
    assert ROLLOUT.completion_lengths.tolist() == [3, 1, 2]
    assert ROLLOUT.completion_ids.tolist() == [[6, 7, 2], [2, 0, 0], [13, 14, 0]]
    assert ROLLOUT.completion_lists() == [[6, 7, 2], [2], [13, 14]]
    assert ROLLOUT.prompt_lists() == [[5], [8, 9, 10], [11, 12]]


def test_a_token_with_id_0_is_no_padding() -> None:
    rollout = rollout_of(([0, 4], [0, 2]), ([3], [5, 0, 0]))
    assert rollout.completion_lists() == [[0, 2], [5, 0, 0]]
    assert rollout.prompt_lists() == [[0, 4], [3]]


def test_select_takes_rows_of_every_field_in_the_order_given() -> None:
    by_index = ROLLOUT.select(torch.tensor([2, 0, 2]))
    assert by_index.completion_lists() == [[13, 14], [6, 7, 2], [13, 14]]
    assert by_index.episode.tolist() == [12, 10, 12]
    assert by_index.terminated.tolist() == [False, True, False]
    by_mask = ROLLOUT.select(torch.tensor([False, True, True]))
    assert by_mask.row.tolist() == [21, 22]


def test_split_gives_consecutive_parts() -> None:
    parts = ROLLOUT.split(2)
    assert [len(part) for part in parts] == [2, 1]
    assert [part.episode.tolist() for part in parts] == [[10, 11], [12]]


def test_a_field_that_is_none_stays_none() -> None:
    without = dataclasses.replace(ROLLOUT, sampler_logprobs=None)  # type: ignore[arg-type]
    assert "sampler_logprobs" not in without.tensors()
    assert without.select(torch.tensor([1])).sampler_logprobs is None
    assert concatenate([without, without]).sampler_logprobs is None
    with pytest.raises(ValueError, match="None where another has a tensor"):
        concatenate([ROLLOUT, without])


def test_records_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        ROLLOUT.episode = torch.zeros(3)  # type: ignore[misc]


def test_to_keeps_dtypes() -> None:
    moved = ROLLOUT.to("meta")
    assert {name: t.dtype for name, t in moved.tensors().items()} == {n: t.dtype for n, t in ROLLOUT.tensors().items()}
    assert moved.input_ids.is_meta


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_concatenate_widens_prompts_to_the_left_and_responses_to_the_right(order: tuple[int, ...]) -> None:
    # Widths (P, A): (3, 3), (1, 4), (5, 1). The whole widths 6, 5, 6 say nothing about the common one, 5 + 4.
    records = [
        ROLLOUT,
        rollout_of(([3], [4, 5, 6, 2])),
        rollout_of(([1, 3, 5, 7, 9], [2]), ([1], [8])),
    ]
    records = [records[i] for i in order]
    joined = concatenate(records)
    assert type(joined) is Rollout
    assert joined.input_ids.shape == (6, 9)
    assert joined.attention_mask.shape == (6, 9)
    assert joined.action_mask.shape == joined.sampler_logprobs.shape == (6, 4)
    assert joined.prompt_lists() == [ids for record in records for ids in record.prompt_lists()]
    assert joined.completion_lists() == [ids for record in records for ids in record.completion_lists()]
    assert joined.episode.tolist() == [i for record in records for i in record.episode.tolist()]
    assert torch.equal(joined.attention_mask[:, 5:], joined.action_mask)
    assert torch.equal(joined.sampler_logprobs, -joined.completion_ids.float())
    assert joined.action_mask.dtype == joined.attention_mask.dtype == torch.bool


def test_concatenate_joins_prompts() -> None:
    joined = concatenate([prompts_of([1, 2, 3]), prompts_of([4])])
    assert joined.input_ids.tolist() == [[1, 2, 3], [0, 0, 4]]
    assert joined.attention_mask.tolist() == [[True, True, True], [False, False, True]]


def test_concatenate_of_one_is_the_same_and_of_none_is_refused() -> None:
    one = concatenate([ROLLOUT])
    assert all(torch.equal(one.tensors()[name], tensor) for name, tensor in ROLLOUT.tensors().items())
    with pytest.raises(ValueError, match="at least one record"):
        concatenate([])


def test_concatenate_keeps_subclasses_and_their_per_token_fields() -> None:
    zeros = torch.zeros_like(ROLLOUT.sampler_logprobs)
    extra = dict.fromkeys(["old_logprobs", "ref_logprobs", "values", "rewards", "advantages", "returns"], zeros + 1)
    experience = Experience(**ROLLOUT.tensors(), scores=torch.tensor([1.0, 2.0, 3.0]), **extra)
    joined = concatenate([experience.select(torch.tensor([0])), Experience(**experience.tensors())])
    assert type(joined) is Experience
    assert joined.scores.tolist() == [1.0, 1.0, 2.0, 3.0]
    assert joined.returns.shape == (4, 3)


def test_concatenate_leaves_what_is_no_row_of_tokens_as_wide_as_it_is() -> None:
    """Opinions [B,S] of the reward sources, from processes whose responses are of different lengths."""

    def evaluated(rollout: Rollout) -> EvaluatedRollout:
        per_token = dict.fromkeys(["logprobs", "ref_logprobs", "entropy", "values"], rollout.sampler_logprobs)
        per_row = dict.fromkeys(["scores", "bootstrap_values", "grad_sq_norms"], torch.arange(len(rollout)).float())
        parts = torch.tensor([[1.0, 2.0]]).repeat(len(rollout), 1)
        return EvaluatedRollout(**rollout.tensors(), **per_token, **per_row, parts=parts)

    joined = concatenate([evaluated(ROLLOUT), evaluated(rollout_of(([3], [4, 5, 6, 2])))])
    assert joined.parts.tolist() == [[1.0, 2.0]] * 4
    assert joined.grad_sq_norms.tolist() == [0.0, 1.0, 2.0, 0.0]
    assert joined.logprobs.shape == (4, 4) and joined.best_values is None


def test_left_aligned_moves_real_tokens_to_the_left_wherever_they_stood() -> None:
    ids = torch.tensor([[9, 5, 6, 9, 7], [1, 2, 9, 9, 9], [9, 9, 9, 9, 0]])
    mask = torch.tensor([[0, 1, 1, 0, 1], [1, 1, 0, 0, 0], [0, 0, 0, 0, 1]]).bool()
    aligned, lengths = left_aligned(ids, mask)
    assert aligned.tolist() == [[5, 6, 7], [1, 2, 0], [0, 0, 0]]
    assert lengths.tolist() == [3, 2, 1]


def test_chunks_keep_to_the_budget_and_hold_every_row_once() -> None:
    lengths = torch.tensor([3, 10, 1, 7, 7, 2, 30])
    chunks = chunks_by_length(lengths, 20)
    assert sorted(torch.cat(chunks).tolist()) == list(range(7))
    sizes = [(len(chunk), int(lengths[chunk].max())) for chunk in chunks]
    assert sizes[0] == (1, 30)  # longer than the budget: a chunk of its own
    assert all(rows * longest <= 20 for rows, longest in sizes[1:])
    assert len(chunks) == 4  # [30], [10, 7], [7, 3], [2, 1]: by hand
    assert chunks_by_length(torch.zeros(0, dtype=torch.long), 20) == []
