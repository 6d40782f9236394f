"""Reward sources: models read the policy's tokens, functions get keywords, sums leave out silent sources."""

from __future__ import annotations

import ast
import asyncio
import dataclasses
import math
from pathlib import Path

import numpy
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

import hfrlhf
from hfrlhf.experience import Rollout, chunks_by_length, left_aligned
from hfrlhf.models.anatomy.sizes import device_of
from hfrlhf.rewards.sources import KINDS, Completions, RewardSource, reward_from_name, reward_source
from tests.trainers.helpers import reward, trainer, training_logs


def completions_of(tokenizer, prompts: list[str], answers: list[str]) -> Completions:
    """A rollout of the given texts, left-padded prompts and right-padded answers with a stop token."""
    p = [tokenizer(text).input_ids for text in prompts]
    a = [[*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id] for text in answers]
    width, length = max(map(len, p)), max(map(len, a))
    ids = [[0] * (width - len(x)) + x + y + [0] * (length - len(y)) for x, y in zip(p, a, strict=True)]
    mask = [[0] * (width - len(x)) + [1] * len(x + y) + [0] * (length - len(y)) for x, y in zip(p, a, strict=True)]
    attention = torch.tensor(mask).bool()
    rows = torch.arange(len(ids))
    action = attention[:, width:]
    rollout = Rollout(torch.tensor(ids), attention, action, rows >= 0, rows, rows, torch.zeros(action.shape))
    return Completions(rollout, prompts, answers, a, {"weight": [1.0, 2.0]})


@pytest.fixture
def tokenizer(tiny_model_folder):
    return AutoTokenizer.from_pretrained(tiny_model_folder)


@pytest.fixture
def completions(tokenizer):
    return completions_of(tokenizer, ["the film", "a very dull story and"], ["is good .", "fine !"])


@pytest.fixture
def reward_folder(tiny_model_folder, tokenizer, tmp_path):
    model = AutoModelForSequenceClassification.from_pretrained(tiny_model_folder, num_labels=1)
    model.config.reward_shift = 0.75
    model.save_pretrained(tmp_path / "rm")
    tokenizer.save_pretrained(tmp_path / "rm")
    return str(tmp_path / "rm")


def stock_scores(folder: str, rows: list[list[int]]) -> list[float]:
    """What stock transformers says of each row alone."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        return [float(model(torch.tensor([row])).logits) for row in rows]


def test_a_model_scores_the_policys_own_tokens(completions, tokenizer, reward_folder):
    scores = reward_source(reward_folder, tokenizer)(completions)
    rows = [p + c for p, c in zip(completions.rollout.prompt_lists(), completions.completion_ids, strict=True)]
    expected = torch.tensor(stock_scores(reward_folder, rows)) - 0.75
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=0)


def test_a_model_with_another_vocabulary_reads_the_text(completions, tokenizer, reward_folder, tiny_model_folder):
    """Its own tokenizer encodes prompt and completion anew; the policy's ids would mean other words to it."""
    other = AutoTokenizer.from_pretrained(tiny_model_folder)
    vocabulary = dict(sorted(other.get_vocab().items(), key=lambda item: -item[1]))
    from tests.conftest import word_tokenizer

    other = word_tokenizer()
    from tokenizers import models

    shuffled = {word: i for i, word in enumerate(["<pad>", "<bos>", "<eos>", "<unk>"])}
    shuffled |= {word: i + 4 for i, word in enumerate(w for w in vocabulary if w not in shuffled)}
    other.backend_tokenizer.model = models.WordLevel(shuffled, unk_token="<unk>")
    scores = reward_source(reward_folder, tokenizer, other)(completions)
    texts = ["the film is good .", "a very dull story and fine !"]
    rows = [[1, *(shuffled[word] for word in text.split()), 2] for text in texts]
    completions_texts = [f" {c}" for c in completions.completions]
    assert completions_texts == [" is good .", " fine !"]
    expected = torch.tensor(stock_scores(reward_folder, rows)) - 0.75
    joined = Completions(completions.rollout, completions.prompts, completions_texts, completions.completion_ids)
    torch.testing.assert_close(reward_source(reward_folder, tokenizer, other)(joined), expected, atol=1e-5, rtol=0)
    assert scores.shape == (2,)


def test_a_function_gets_texts_ids_and_columns_by_name(completions, tokenizer):
    seen = {}

    def reward(prompts, completions, completion_ids, weight):
        seen.update(prompts=prompts, completions=completions, ids=completion_ids)
        return [w * len(ids) for w, ids in zip(weight, completion_ids, strict=True)]

    scores = reward_source(reward, tokenizer)(completions)
    assert scores.tolist() == [1.0 * 4, 2.0 * 3]  # three words and a full stop's <eos>; two and <eos>
    assert seen["prompts"][0] == "the film" and seen["completions"] == ["is good .", "fine !"]


def test_a_function_with_kwargs_gets_everything(completions, tokenizer):
    def reward(completions, **columns):
        assert set(columns) == {"prompts", "completion_ids", "weight"}
        return [1, 0]

    assert reward_source(reward, tokenizer)(completions).tolist() == [1.0, 0.0]


def test_an_async_function_is_awaited(completions, tokenizer):
    async def reward(completions, **_):
        await asyncio.sleep(0)
        return [float(len(text)) for text in completions]

    assert reward_source(reward, tokenizer)(completions).tolist() == [9.0, 6.0]


def test_a_weighted_sum_leaves_out_who_has_no_opinion(completions, tokenizer):
    def first(completions, **_):
        return [2.0, None]

    def second(completions, **_):
        return [10.0, float("nan")]

    def third(completions, **_):
        return [None, 7.0]

    source = reward_source([first, second, third], tokenizer, weights=[1.0, 0.5, 2.0])
    assert source(completions).tolist() == [2.0 + 5.0, 14.0]


def test_a_row_nobody_judges_is_an_error(completions, tokenizer):
    with pytest.raises(ValueError, match="completion 1"):
        reward_source(lambda completions: [1.0, None], tokenizer)(completions)


@pytest.mark.parametrize(
    ("result", "error", "message"),
    [
        ([1.0], ValueError, "1 scores for 2 completions"),
        ([1.0, "2"], TypeError, "'2'"),
        (3.0, TypeError, "must return a list"),
        ("ab", TypeError, "must return a list"),
        (None, TypeError, "must return a list"),
        ([1.0, [2.0]], TypeError, "completion 1"),
    ],
)
def test_a_wrong_result_is_named(completions, tokenizer, result, error, message):
    def reward(completions):
        return result

    with pytest.raises(error, match=message):
        reward_source(reward, tokenizer)(completions)


def test_numbers_of_numpy_and_torch_count(completions, tokenizer):
    numbers = [numpy.array([1.5, 2.0]), list(numpy.array([1.5, 2.0])), torch.tensor([1.5, 2.0])]
    for given in numbers:
        assert reward_source(lambda completions, given=given: given, tokenizer)(completions).tolist() == [1.5, 2.0]


@pytest.mark.parametrize(
    ("functions", "keywords", "error", "message"),
    [
        ([], {}, ValueError, "empty"),
        (None, {}, ValueError, "empty"),
        ([3.0], {}, TypeError, "float"),
        ([len], {"weights": [1.0, 2.0]}, ValueError, "reward_weights"),
        ([len], {"processing_classes": [None, None]}, ValueError, "reward_processing_classes"),
    ],
)
def test_bad_sources_are_refused_at_once(tokenizer, functions, keywords, error, message):
    with pytest.raises(error, match=message):
        reward_source(functions, tokenizer, **keywords)


def test_sources_of_one_name_are_told_apart(completions, tokenizer):
    def reward(completions):
        return [1.0, 2.0]

    parts = reward_source([reward, reward], tokenizer).parts(completions)
    assert len(parts) == 2 and not any(math.isnan(float(v.sum())) for v in parts.values())


def test_functions_by_name(tmp_path):
    (tmp_path / "mine.py").write_text("def polite(completions):\n    return [42.0 for _ in completions]\n")
    assert reward_from_name(f"{tmp_path / 'mine.py'}:polite")([None]) == [42.0]
    assert reward_from_name("math:sqrt")(4.0) == 2.0
    assert reward_from_name("my-org/my-model") == "my-org/my-model"
    with pytest.raises(ValueError, match="rude"):
        reward_from_name(f"{tmp_path / 'mine.py'}:rude")


# ---- Cut off, empty, infinite, without a head -----------------------------------------------------------------------


def foreign_tokenizer():
    """The same words under other ids."""
    from tokenizers import models

    from tests.conftest import WORDS, word_tokenizer

    other = word_tokenizer()
    ids = {word: i for i, word in enumerate(["<pad>", "<bos>", "<eos>", "<unk>", *reversed(WORDS)])}
    other.backend_tokenizer.model = models.WordLevel(ids, unk_token="<unk>")
    return other, ids


@pytest.mark.parametrize("terminated", [(True, True), (True, False), (False, False)])
def test_a_foreign_model_reads_every_response_with_the_ending_of_its_training(
    completions, tokenizer, reward_folder, terminated
):
    """EOS closes a response that was cut off, too: the model has seen none without it."""
    other, ids = foreign_tokenizer()
    rollout = dataclasses.replace(completions.rollout, terminated=torch.tensor(terminated))
    seen = Completions(rollout, completions.prompts, [" is good .", " fine !"], completions.completion_ids)
    texts = ["the film is good .", "a very dull story and fine !"]
    rows = [[1, *(ids[word] for word in text.split()), 2] for text in texts]
    expected = torch.tensor(stock_scores(reward_folder, rows)) - 0.75
    torch.testing.assert_close(reward_source(reward_folder, tokenizer, other)(seen), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("foreign", [False, True])
def test_an_empty_share_has_no_scores(completions, tokenizer, reward_folder, foreign):
    """A process may be left without any completion; a user's function is not asked about none."""
    nothing = Completions(completions.rollout.select(torch.arange(0)), [], [], [], {"weight": []})
    other = foreign_tokenizer()[0] if foreign else None
    source = reward_source([reward_folder, lambda completions: [max(map(len, completions))]], tokenizer, [other, None])
    assert source(nothing).shape == (0,)


def test_no_rows_at_the_left_end():
    ids, lengths = left_aligned(torch.zeros(0, 5, dtype=torch.long), torch.zeros(0, 5, dtype=torch.bool))
    assert ids.shape == (0, 0) and lengths.shape == (0,)
    assert chunks_by_length(lengths, 8) == []


@pytest.mark.parametrize("infinite", [math.inf, -math.inf])
def test_an_infinite_reward_names_its_source_and_completion(completions, tokenizer, infinite):
    def calm(completions):
        return [1.0, 2.0]

    def wild(completions):
        return [0.0, infinite]

    with pytest.raises(ValueError, match=rf"completion 1 is .*'calm' gave 2.0, 'wild' gave {infinite}"):
        reward_source([calm, wild], tokenizer)(completions)


def test_an_infinite_score_of_a_model_is_refused(completions, tokenizer, reward_folder):
    model = AutoModelForSequenceClassification.from_pretrained(reward_folder)
    torch.nn.init.constant_(model.score.weight, math.inf)
    with pytest.raises(ValueError, match="completion 0"):
        reward_source(model, tokenizer)(completions)


@pytest.mark.parametrize("by_name", [True, False])
def test_a_language_model_is_no_reward_model(tiny_model_folder, tokenizer, by_name):
    given = str(tiny_model_folder) if by_name else AutoModelForCausalLM.from_pretrained(tiny_model_folder)
    with pytest.raises(ValueError, match=r"no trained score head.*RewardTrainer"):
        reward_source(given, tokenizer)


def test_where_a_tokenizer_is_passed_the_saved_one_is_not_read(completions, tokenizer, reward_folder):
    (Path(reward_folder) / "tokenizer.json").write_text("{not json")
    source = reward_source(reward_folder, tokenizer, tokenizer)
    assert source(completions).isfinite().all()


def test_a_reward_model_moves_by_its_own_way(tokenizer, reward_folder):
    """accelerate sets one on a model whose parts are spread over devices, and refuses there."""
    model = AutoModelForSequenceClassification.from_pretrained(reward_folder, num_labels=1)
    asked = []
    model.to = asked.append
    reward_source(model, tokenizer).to(torch.device("meta"))
    assert asked == [torch.device("meta")] and device_of(model).type == "cpu"


def test_a_path_is_a_name(completions, tokenizer, reward_folder):
    source = reward_source(Path(reward_folder), tokenizer)
    assert source.sources[0].name == "rm"
    assert torch.equal(source(completions), reward_source(reward_folder, tokenizer)(completions))


@dataclasses.dataclass
class Wordy(RewardSource):
    """A kind of source of somebody else's: so many points a word."""

    points: float
    name: str = "wordy"
    joined: tuple[str, ...] = ()
    answers_again = True

    @classmethod
    def takes(cls, given, offer):
        return isinstance(given, float)

    @classmethod
    def of(cls, given, offer):
        return cls(given)

    def __call__(self, completions):
        return torch.tensor([self.points * len(text.split()) for text in completions.completions])

    def join(self, run):
        self.joined = tuple(run.datasets)


def test_a_new_kind_is_a_class_and_a_row(tiny_model_folder, tmp_path, monkeypatch):
    """It is made, told of the run, tried, shown, weighed, and scores the samples compared at the end."""
    monkeypatch.setitem(KINDS, "points a word", Wordy)
    short = {"num_ppo_epochs": 1, "num_mini_batches": 1, "max_steps": 1}
    both = {"reward_funcs": [0.5, reward], "reward_weights": [2.0, 0.0]}
    built = trainer(str(tiny_model_folder), tmp_path, **both, **short)
    assert built.reward.sources[0] == Wordy(0.5, joined=("train dataset",))
    alone = trainer(str(tiny_model_folder), tmp_path / "alone", reward_funcs=0.5, **short)
    for one in (built, alone):
        one.train()
    log = training_logs(built)[0]
    assert log["objective/score"] == pytest.approx(2 * log["reward/wordy"]) and log["reward/wordy"] > 0
    assert [row["score after"] for row in built.comparison.rows] == [None] * 4, "a function among them is not asked"
    for row in alone.comparison.rows:
        assert row["score after"] == 0.5 * len(row["after"].split())


@pytest.mark.parametrize("room", ["trainers", "learning", "reporting"])
def test_no_room_above_asks_which_kind_a_source_is(room):
    for file in Path(hfrlhf.__file__).with_name(room).glob("*.py"):
        named = {node.id for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Name)}
        assert not named & {kind.__name__ for kind in KINDS.values()}, file


def test_an_async_function_where_a_loop_already_runs(completions, tokenizer):
    """As in a notebook, whose cells run inside an event loop."""

    async def reward(completions, **_):
        await asyncio.sleep(0)
        return [float(len(text)) for text in completions]

    async def cell():
        return reward_source(reward, tokenizer)(completions)

    assert asyncio.run(cell()).tolist() == [9.0, 6.0]
