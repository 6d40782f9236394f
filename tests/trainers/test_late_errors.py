"""What would come late, or in another library's words, comes when the trainer is made, in ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, DatasetDict
from transformers import EarlyStoppingCallback, LlamaForSequenceClassification, TrainerCallback

from hfrlhf import PPOTrainer, RewardTrainer
from hfrlhf.reporting.metrics import evaluation_metric_names
from tests.trainers import helpers, test_reward_trainer
from tests.trainers.helpers import parameters, prompts, trainer


def reward_trainer(model: Any, folder: Path, **changes: Any) -> RewardTrainer:
    own = {"train_dataset", "eval_dataset", "callbacks", "peft_config", "processing_class"}
    given = {name: changes.pop(name) for name in list(changes) if name in own}
    args = test_reward_trainer.config(folder, **{"max_steps": 2} | changes)
    return RewardTrainer(model, args, **{"train_dataset": test_reward_trainer.pairs()} | given)


BUILD = pytest.mark.parametrize("build", [trainer, reward_trainer])
BEST = {
    "eval_strategy": "steps",
    "eval_steps": 1,
    "save_strategy": "steps",
    "save_steps": 1,
    "load_best_model_at_end": True,
}


class Silent(TrainerCallback):
    """Does nothing."""


# ---- Callbacks, evaluations, metrics ------------------------------------------------------------------------------


@BUILD
def test_callbacks_come_in_a_list_as_objects_or_classes(tiny_model_folder, tmp_path, build):
    model = str(tiny_model_folder)
    build(model, tmp_path, callbacks=[Silent, Silent()])
    build(model, tmp_path, callbacks=(Silent(),))
    with pytest.raises(TypeError, match=r"`callbacks` is a list of callbacks, got .*Silent.*pass \[callback\]"):
        build(model, tmp_path, callbacks=Silent())
    for wrong in (3, int, print):
        with pytest.raises(TypeError, match=r"which is no transformers\.TrainerCallback"):
            build(model, tmp_path, callbacks=[Silent(), wrong])


@BUILD
@pytest.mark.parametrize("asked", [{"eval_strategy": "steps"}, {"eval_strategy": "epoch"}, {"eval_on_start": True}])
def test_an_evaluation_needs_something_to_evaluate_on(tiny_model_folder, tmp_path, build, asked):
    with pytest.raises(ValueError, match=f"`{next(iter(asked))}=.*there is no `eval_dataset`"):
        build(str(tiny_model_folder), tmp_path, **asked)


EVALUATED = {trainer: prompts(4), reward_trainer: test_reward_trainer.pairs(4)}


@BUILD
@pytest.mark.parametrize("asked", [BEST, {**BEST, "save_strategy": "best"}, {"eval_strategy": "steps"}])
def test_a_best_metric_that_no_evaluation_gives_is_refused(tiny_model_folder, tmp_path, build, asked):
    settings = {**asked, "metric_for_best_model": "acuracy" if build is reward_trainer else "score"}
    meant = "accuracy" if build is reward_trainer else "objective/score"
    with pytest.raises(ValueError, match=f"is none of what an evaluation.*did you mean '{meant}'.*There are: "):
        build(str(tiny_model_folder), tmp_path, eval_dataset=EVALUATED[build], **settings)


@BUILD
def test_a_callback_that_stops_by_a_metric_needs_one_and_evaluations(tiny_model_folder, tmp_path, build):
    model, evaluated = str(tiny_model_folder), {"callbacks": [EarlyStoppingCallback(2)]}
    metric = "accuracy" if build is reward_trainer else "objective/score"
    with pytest.raises(ValueError, match=f"stops by `metric_for_best_model`, which is not set; .*{metric}"):
        build(model, tmp_path, eval_dataset=EVALUATED[build], eval_strategy="steps", **evaluated)
    with pytest.raises(ValueError, match="needs evaluations to stop by: set `eval_strategy"):
        build(model, tmp_path, metric_for_best_model=metric, **evaluated)
    build(model, tmp_path, eval_dataset=EVALUATED[build], **BEST, **evaluated)


@BUILD
def test_with_several_evaluation_sets_the_best_metric_names_its_set(tiny_model_folder, tmp_path, build):
    sets = {"first": EVALUATED[build], "second": EVALUATED[build]}
    with pytest.raises(ValueError, match="There are: first_"):
        build(str(tiny_model_folder), tmp_path, eval_dataset=sets, **BEST)
    metric = "first_accuracy" if build is reward_trainer else "eval_first_objective/score"
    built = build(str(tiny_model_folder), tmp_path, eval_dataset=sets, **BEST, metric_for_best_model=metric)
    built.train()
    assert built.state.best_global_step >= 1
    keys = {key for row in built.state.log_history for key in row}
    assert {f"eval_first_{name}" for name in built.evaluation_metric_names()} <= keys
    assert {f"eval_second_{name}" for name in built.evaluation_metric_names()} <= keys


def test_the_best_policy_is_loaded_at_the_end(tiny_model_folder, tmp_path):
    built = trainer(str(tiny_model_folder), tmp_path, eval_dataset=prompts(6), **BEST, max_steps=4)
    built.train()
    scores = {
        row["step"]: row["eval_objective/score"] for row in built.state.log_history if "eval_objective/score" in row
    }
    assert set(scores) == {1, 2, 3, 4} and built.state.best_metric == max(scores.values())
    ended = parameters(built)
    built.unwrapped().load_saved(built.state.best_model_checkpoint)
    assert all(torch.equal(p, ended[name]) for name, p in parameters(built).items())


class More(PPOTrainer):
    """Adds a metric of its own to an evaluation."""

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        return super().evaluate(*args, **kwargs) | {"eval_mine": 1.0}


class Adds(TrainerCallback):
    """Adds a metric of its own to an evaluation."""

    def on_evaluate(self, *_: Any, metrics: dict[str, float], **__: Any) -> None:
        metrics["eval_mine"] = 1.0


def test_metrics_of_a_users_own_are_not_refused(tiny_model_folder, tmp_path):
    settings = {**BEST, "metric_for_best_model": "mine", "max_steps": 1}
    args = helpers.config(tmp_path, **settings)
    built = More(str(tiny_model_folder), helpers.reward, args, prompts(), prompts(4))
    built.train()
    assert built.state.best_metric == 1.0
    built = trainer(str(tiny_model_folder), tmp_path / "2", eval_dataset=prompts(4), callbacks=[Adds()], **settings)
    built.train()
    assert built.state.best_metric == 1.0
    stock = [EarlyStoppingCallback(2)]
    with pytest.raises(ValueError, match="='mine'` is none"):
        trainer(str(tiny_model_folder), tmp_path / "3", eval_dataset=prompts(4), callbacks=stock, **settings)


def test_the_names_of_an_evaluations_metrics_are_those_it_gives(tiny_model_folder, tmp_path):
    built = trainer(str(tiny_model_folder), tmp_path, eval_dataset={"a": prompts(4), "b": prompts(2)})
    found = built.evaluate()
    assert set(found) == {f"eval_{name}_{metric}" for name in "ab" for metric in evaluation_metric_names()}
    assert built.evaluate("b") == {key.replace("eval_b_", "eval_"): x for key, x in found.items() if "eval_b_" in key}
    named = {key.replace("_a_", "_c_"): value for key, value in found.items() if "_a_" in key}
    assert built.evaluate({"c": prompts(4)}) == named
    with pytest.raises(ValueError, match=r"evaluate\('c'\).*\['a', 'b'\]"):
        built.evaluate("c")
    pairs = reward_trainer(str(tiny_model_folder), tmp_path, eval_dataset=test_reward_trainer.pairs(4))
    assert {f"eval_{name}" for name in pairs.evaluation_metric_names()} <= set(pairs.evaluate())
    with pytest.raises(ValueError, match="there is no evaluation dataset 'x'"):
        pairs.evaluate("x")


# ---- Data ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["numpy", "torch", "pandas", "arrow"])
def test_a_format_changes_nothing_of_what_is_read(tiny_model_folder, tmp_path, kind):
    seen: list[Any] = []

    def reads(completions: list[str], number: Any, **_: Any) -> list[float]:
        seen.append(number)
        return [0.0] * len(completions)

    built = trainer(
        *(str(tiny_model_folder), tmp_path),
        train_dataset=prompts().with_format(kind),
        eval_dataset=prompts(4).with_format(kind),
        reward_funcs=reads,
        max_steps=1,
    )
    built.train()
    built.evaluate()
    plain = trainer(str(tiny_model_folder), tmp_path / "plain")
    assert (built.prompts.ids, built.prompts.texts) == (plain.prompts.ids, plain.prompts.texts)
    assert seen and {type(n) for numbers in seen for n in numbers} == {int}
    pairs = test_reward_trainer.pairs(margin=[0.5] * 10)
    formatted = reward_trainer(str(tiny_model_folder), tmp_path, train_dataset=pairs.with_format(kind))
    stock = reward_trainer(str(tiny_model_folder), tmp_path, train_dataset=pairs)
    assert formatted.train_dataset["chosen_ids"][:] == stock.train_dataset["chosen_ids"][:]


def test_a_transform_is_part_of_the_data(tiny_model_folder, tmp_path):
    shouted = prompts().with_transform(lambda rows: rows | {"prompt": [text + " !" for text in rows["prompt"]]})
    built = trainer(str(tiny_model_folder), tmp_path, train_dataset=shouted)
    assert built.prompts.texts == [text + " !" for text in prompts()["prompt"]]


@BUILD
@pytest.mark.parametrize("wrong", [None, "data", [{"prompt": "a", "chosen": "b", "rejected": "c"}], "splits", "stream"])
def test_what_is_no_dataset_is_refused_with_how_to_make_one(tiny_model_folder, tmp_path, build, wrong):
    data = test_reward_trainer.pairs(4)
    made = {"splits": DatasetDict(train=data), "stream": data.to_iterable_dataset()}
    with pytest.raises((TypeError, ValueError), match=r"train.dataset"):
        build(str(tiny_model_folder), tmp_path, train_dataset=made[wrong] if wrong in ("splits", "stream") else wrong)


# ---- Models and functions -----------------------------------------------------------------------------------------


@BUILD
def test_no_model_and_no_adapter_are_told_in_our_words(tiny_model_folder, tmp_path, build):
    for wrong in (None, 3, LlamaForSequenceClassification):
        with pytest.raises((TypeError, ValueError), match=r"`model` must be|as `processing_class`"):
            build(wrong, tmp_path)
    for wrong in ("lora", {"r": 4}):
        with pytest.raises(TypeError, match=r"`peft_config` must be .*peft\.LoraConfig\(r=16\), got"):
            build(str(tiny_model_folder), tmp_path, peft_config=wrong)


@pytest.mark.parametrize("argument", ["value_model", "ref_model"])
def test_other_models_are_told_by_their_argument(tiny_model_folder, tmp_path, argument):
    with pytest.raises(TypeError, match=f"`{argument}` must be a name, a path or a model, got 3"):
        trainer(str(tiny_model_folder), tmp_path, **{argument: 3})
    with pytest.raises(OSError, match=f"`{argument}='no/such'` could not be loaded; is its name or path right"):
        trainer(str(tiny_model_folder), tmp_path, **{argument: "no/such"})


def test_a_reward_function_is_asked_whether_it_can_be_called(tiny_model_folder, tmp_path):
    def needs(completions: list[str], answer: list[str]) -> list[float]:
        return [0.0] * len(completions)

    def by_place(completions: list[str], /) -> list[float]:
        return [0.0] * len(completions)

    model = str(tiny_model_folder)
    for function, word in ((needs, "answer"), (by_place, "completions"), (lambda texts: [0.0], "texts")):
        with pytest.raises(ValueError, match=rf"asks for '{word}', which it cannot be given.*\['number'\]"):
            trainer(model, tmp_path, reward_funcs=function)
    answered = Dataset.from_dict({"prompt": ["the film"] * 4, "answer": ["a"] * 4})
    trainer(model, tmp_path, reward_funcs=needs, train_dataset=answered)
    with pytest.raises(ValueError, match=r"'answer', .*columns of the eval dataset"):
        trainer(model, tmp_path, reward_funcs=needs, train_dataset=answered, eval_dataset=prompts(4))
    with pytest.raises(TypeError, match="got the class LlamaForSequenceClassification itself"):
        trainer(model, tmp_path, reward_funcs=LlamaForSequenceClassification)
