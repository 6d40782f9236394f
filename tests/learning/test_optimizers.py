"""What an optimiser from outside must hold, and which of its two sets of weights is used for what."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch.optim.lr_scheduler import LambdaLR
from transformers import AutoModelForCausalLM

from hfrlhf import PolicyGradientConfig, PolicyGradientTrainer, PPOTrainer, RewardTrainer, TRPOTrainer
from hfrlhf.learning.optimizer import check_own_rates_unset
from hfrlhf.models.reward.scoring import load_reward_model
from tests.trainers import helpers, test_reward_trainer, test_trpo_trainer
from tests.trainers.helpers import load, prompts, reward

LORA = LoraConfig(r=2, target_modules=["q_proj"])


def ppo(model: Any, tokenizer: Any, folder: Path, cls: type = PPOTrainer, **changes: Any) -> Any:
    own = {name: changes.pop(name) for name in list(changes) if name.startswith("optimizer") or name == "peft_config"}
    settings = {"max_steps": 2} | changes
    return cls(model, reward, helpers.config(folder, **settings), prompts(), prompts(4), tokenizer, **own)


def trpo(model: Any, tokenizer: Any, folder: Path, **own: Any) -> TRPOTrainer:
    args = test_trpo_trainer.TRPOConfig(str(folder / "run"), **test_trpo_trainer.SETTINGS, rollout_batch_size=4)
    return TRPOTrainer(model, reward, args, prompts(), processing_class=tokenizer, **own)


def pairs_trainer(model: Any, tokenizer: Any, folder: Path, cls: type = RewardTrainer, **changes: Any) -> Any:
    own = {name: changes.pop(name) for name in list(changes) if name.startswith("optimizer")}
    args = test_reward_trainer.config(folder, **{"max_steps": 2} | changes)
    return cls(model, args, test_reward_trainer.pairs(), test_reward_trainer.pairs(4), tokenizer, **own)


def adamw(model: Any) -> tuple[torch.optim.Optimizer, None]:
    return torch.optim.AdamW(model.parameters(), lr=1e-2), None


def moved(built: Any) -> set[str]:
    """What trains and is not where it was."""
    before = {name: p.detach().clone() for name, p in built.model.named_parameters() if p.requires_grad}
    built.train()
    return {name for name, p in built.model.named_parameters() if p.requires_grad and not torch.equal(p, before[name])}


def trained(built: Any) -> set[str]:
    return {name for name, p in built.model.named_parameters() if p.requires_grad}


# ---- What it holds ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "settings", "missing"),
    [
        (ppo, {}, r"2 of the 23 .*value_head\.weight, value_head\.bias\)"),
        (ppo, {"peft_config": LORA}, r"6 of the 6 .*lora_A.*, …\)"),
        (trpo, {}, r"2 of the 2 .*value_head\.weight, value_head\.bias\)"),
        (pairs_trainer, {}, r"21 of the 21 .*model\.embed_tokens\.weight"),
    ],
)
def test_an_optimiser_that_lacks_what_trains_is_refused_by_name(tiny_model_folder, tmp_path, build, settings, missing):
    model, tokenizer = load(tiny_model_folder)
    with pytest.raises(ValueError, match=missing) as refused:
        build(model, tokenizer, tmp_path, optimizers=adamw(model), **settings)
    assert "optimizer_cls_and_kwargs=(torch.optim.AdamW" in str(refused.value)


def test_an_optimiser_that_holds_all_is_used(tiny_model_folder, tmp_path):
    model, tokenizer = load(tiny_model_folder)
    settings = {"algorithm": "rloo", "num_generations": 2, "rollout_batch_size": 8, "max_steps": 1}
    args = PolicyGradientConfig(str(tmp_path), **test_trpo_trainer.SETTINGS, **settings)
    built = PolicyGradientTrainer(model, reward, args, prompts(), None, tokenizer, optimizers=adamw(model))
    assert moved(built) == trained(built) and built.optimizer.param_groups[0]["lr"] == 0  # linear decay, over
    scorer = load_reward_model(AutoModelForCausalLM.from_pretrained(tiny_model_folder), tokenizer, 0)
    built = pairs_trainer(scorer, tokenizer, tmp_path / "reward", optimizers=adamw(scorer))
    assert moved(built) == trained(built)


@pytest.mark.parametrize("build", [ppo, pairs_trainer])
@pytest.mark.parametrize("how", ["optimizer_cls_and_kwargs", "optimizers"])
def test_a_class_with_its_settings_is_given_what_trains(tiny_model_folder, tmp_path, build, how):
    model, tokenizer = load(tiny_model_folder)
    given = (torch.optim.AdamW, {"lr": 0.02, "betas": (0.5, 0.6), "weight_decay": 0.3})
    built = build(model, tokenizer, tmp_path, lr_scheduler_type="constant", **{how: given})
    assert moved(built) == trained(built)
    groups = built.optimizer.param_groups
    assert isinstance(built.optimizer.optimizer, torch.optim.AdamW)
    assert {(g["lr"], g["betas"]) for g in groups} == {(0.02, (0.5, 0.6))}
    assert {g["weight_decay"] for g in groups} == {0.3, 0.0}


def test_a_class_keeps_the_critics_own_rate_and_takes_the_learning_rate_where_it_has_none(tiny_model_folder, tmp_path):
    model, tokenizer = load(tiny_model_folder)
    settings = {"learning_rate": 0.03, "value_learning_rate": 0.5, "lr_scheduler_type": "constant"}
    built = ppo(model, tokenizer, tmp_path, optimizer_cls_and_kwargs=(torch.optim.SGD, {}), **settings)
    built.train()
    rates = {group["name"].split("/")[0]: group["lr"] for group in built.optimizer.param_groups}
    assert rates == {"policy": 0.03, "value": 0.5}


class Alone(torch.optim.lr_scheduler.LambdaLR):
    """A schedule of an optimiser of its own."""

    def __init__(self) -> None:
        super().__init__(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0), lambda step: 1.0)


@pytest.mark.parametrize(
    ("own", "error", "words"),
    [
        ({"optimizers": (None, Alone())}, ValueError, "made for another optimiser"),
        ({"optimizers": (torch.optim.SGD([torch.zeros(1)], lr=1.0), Alone())}, ValueError, "made for another"),
        ({"optimizers": (torch.optim.SGD([torch.zeros(1)], lr=1.0), 3)}, TypeError, "no learning-rate schedule"),
        ({"optimizers": torch.optim.SGD([torch.zeros(1)], lr=1.0)}, TypeError, "is a pair"),
        ({"optimizers": ("adamw", None)}, TypeError, "no optimiser"),
        ({"optimizers": (torch.optim.SGD, 0.1)}, TypeError, "must be a dict"),
        ({"optimizer_cls_and_kwargs": torch.optim.SGD}, TypeError, "a pair"),
        ({"optimizer_cls_and_kwargs": (torch.optim.SGD, {"params": []})}, ValueError, "'params'"),
        ({"optimizer_cls_and_kwargs": (torch.optim.SGD, {"betas": (0, 0)})}, TypeError, "SGD does not.*'betas'"),
        (
            {"optimizer_cls_and_kwargs": (torch.optim.SGD, {}), "optimizers": (torch.optim.SGD([torch.ones(1)]), None)},
            ValueError,
            "both passed",
        ),
    ],
)
@pytest.mark.parametrize("build", [ppo, pairs_trainer])
def test_what_cannot_be_an_optimiser_is_refused(tiny_model_folder, tmp_path, build, own, error, words):
    model, tokenizer = load(tiny_model_folder)
    with pytest.raises(error, match=words):
        build(model, tokenizer, tmp_path, **own)


def test_a_critics_rate_beside_an_optimiser_is_refused(tmp_path):
    args = helpers.config(tmp_path, value_learning_rate=0.5)
    with pytest.raises(ValueError, match=r"`value_learning_rate=0\.5` would do nothing"):
        check_own_rates_unset(args)
    check_own_rates_unset(helpers.config(tmp_path))


def test_tensors_of_another_model_are_named(tiny_model_folder, tmp_path):
    scorer = load_reward_model(AutoModelForCausalLM.from_pretrained(tiny_model_folder), load(tiny_model_folder)[1], 0)
    other = torch.nn.Linear(2, 2)
    both = torch.optim.SGD([*scorer.parameters(), *other.parameters()], lr=0.1)
    with pytest.warns(UserWarning, match="holds 2 tensors that are not the model's"):
        pairs_trainer(scorer, load(tiny_model_folder)[1], tmp_path, optimizers=(both, None))


class Forgetful(PPOTrainer):
    """A subclass that makes its optimiser as one does for a plain model."""

    def create_optimizer(self, model: Any = None) -> Any:
        self.optimizer = self.optimizer or torch.optim.SGD(self.model.policy.parameters(), lr=0.1)
        return super().create_optimizer(model)


class OnItsOwn(PPOTrainer):
    """A subclass that asks nobody."""

    def create_optimizer(self, model: Any = None) -> Any:
        self.optimizer = torch.optim.SGD(self.model.policy.parameters(), lr=0.1)
        return self.optimizer


@pytest.mark.parametrize("cls", [Forgetful, OnItsOwn])
def test_an_optimiser_that_a_subclass_makes_is_looked_at_before_the_first_rollout(tiny_model_folder, tmp_path, cls):
    built = ppo(*load(tiny_model_folder), tmp_path, cls=cls)
    with pytest.raises(ValueError, match=r"2 of the 23 .*value_head\.weight"):
        built.train()
    assert built.cycle is None


@pytest.mark.parametrize("build", [ppo, pairs_trainer])
def test_an_optimiser_that_is_not_installed_is_heard_of_when_the_trainer_is_made(tiny_model_folder, tmp_path, build):
    assert importlib.util.find_spec("lomo_optim") is None
    with pytest.raises(ImportError, match="lomo_optim"):
        build(*load(tiny_model_folder), tmp_path, optim="lomo")


def test_a_schedule_of_ones_own_is_followed(tiny_model_folder, tmp_path):
    scorer = load_reward_model(AutoModelForCausalLM.from_pretrained(tiny_model_folder), load(tiny_model_folder)[1], 0)
    optimizer = torch.optim.SGD(scorer.parameters(), lr=0.8)
    halves = LambdaLR(optimizer, lambda step: 0.5**step)
    built = pairs_trainer(scorer, load(tiny_model_folder)[1], tmp_path, optimizers=(optimizer, halves))
    built.train()
    assert optimizer.param_groups[0]["lr"] == 0.2  # two steps


# ---- Modes --------------------------------------------------------------------------------------------------------


class TwoWeights(torch.optim.SGD):
    """What matters of schedule-free optimisers: a step needs one set of weights, every other use the other.

    In "train" the weights stand half a unit above where they are to be used.
    """

    shift, mode = 0.5, "eval"

    def _turn(self, mode: str) -> None:
        sign = {("eval", "train"): 1.0, ("train", "eval"): -1.0}.get((self.mode, mode), 0.0)
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data.add_(sign * self.shift)
        self.mode = mode

    def train(self) -> None:
        self._turn("train")

    def eval(self) -> None:
        self._turn("eval")

    def step(self, closure: Any = None) -> Any:
        assert self.mode == "train", "a step from the weights that are to be used"
        return super().step(closure)


def mode_of(built: Any) -> str:
    return "eval" if built.optimizer is None else getattr(built.optimizer, "optimizer", built.optimizer).mode


def watched(cls: type, names: tuple[str, ...], seen: list[tuple[str, str]]) -> type:
    """The trainer, which notes in which mode its methods begin."""

    def noting(name: str) -> Any:
        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            seen.append((name, mode_of(self)))
            return getattr(super(Watched, self), name)(*args, **kwargs)

        return method

    Watched = type("Watched", (cls,), {name: noting(name) for name in names})
    return Watched


@pytest.mark.parametrize("cls", [PPOTrainer, TRPOTrainer])
def test_a_policy_steps_with_one_set_of_weights_and_is_used_with_the_other(tiny_model_folder, tmp_path, cls):
    seen: list[tuple[str, str]] = []
    names = ("generate", "score", "_save", "compute_loss")

    class Watching:  # samples as the trainer's own generator does, and notes which weights are due
        def __init__(self, inner):
            self.inner = inner

        def generate(self, *given):
            seen.append(("generate", mode_of(built)))
            return self.inner.generate(*given)

    def scoring(completions):
        seen.append(("score", mode_of(built)))
        return reward(completions)

    args = helpers.config(
        *(tmp_path,),
        max_steps=4,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
    )
    if cls is TRPOTrainer:
        settings = test_trpo_trainer.SETTINGS | {"save_strategy": "steps", "save_steps": 2, "rollout_batch_size": 8}
        steps = {"eval_strategy": "steps", "eval_steps": 2, "value_epochs": 1, "max_steps": 4, "disable_tqdm": True}
        args = test_trpo_trainer.TRPOConfig(str(tmp_path / "run"), **settings | steps)
    model, tokenizer = load(tiny_model_folder)
    one_set = (TwoWeights, {"lr": 1e-3})
    built = watched(cls, names[2:], seen)(
        *(model, scoring, args, prompts(), prompts(4), tokenizer), optimizer_cls_and_kwargs=one_set
    )
    built.generator = Watching(built.generator)
    built.train()
    assert {name for name, _ in seen} == set(names)
    assert {(name, mode) for name, mode in seen if name != "compute_loss"} == {(n, "eval") for n in names[:-1]}
    assert {mode for name, mode in seen if name == "compute_loss"} == {"train"}
    assert mode_of(built) == "eval"  # what is left


def test_a_reward_model_is_scored_and_saved_with_the_weights_to_use(tiny_model_folder, tmp_path):
    seen: list[tuple[str, str]] = []
    names = ("reference_scores", "prediction_step", "_save", "compute_loss", "normalize")
    cls = watched(RewardTrainer, names, seen)
    steps = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    model, tokenizer = load(tiny_model_folder)
    one_set = (TwoWeights, {"lr": 1e-3})
    built = pairs_trainer(model, tokenizer, tmp_path, cls=cls, optimizer_cls_and_kwargs=one_set, **steps)
    score, modes = built.scores, set()

    def scores(*args: Any, **kwargs: Any) -> torch.Tensor:
        modes.update([] if torch.is_grad_enabled() else [mode_of(built)])
        return score(*args, **kwargs)

    built.scores = scores
    built.train()
    assert modes == {"eval"}  # whenever nothing is learned
    assert {mode for name, mode in seen if name == "compute_loss"} == {"train"}
    assert {mode for name, mode in seen if name in ("_save", "normalize", "prediction_step")} == {"eval"}


def test_a_run_with_modes_resumes_exactly(tiny_model_folder, tmp_path):
    """The checkpoint holds the weights to use, and the step after it starts from the others."""
    ends = []
    for stop in (None, 2):
        folder = tmp_path / str(stop)
        settings = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, "lr_scheduler_type": "constant"}
        given = {"optimizer_cls_and_kwargs": (TwoWeights, {"lr": 1e-3})}
        built = ppo(*load(tiny_model_folder), folder, **settings | ({"max_steps": stop} if stop else {}), **given)
        built.train()
        if stop:
            built = ppo(*load(tiny_model_folder), folder, **settings, **given)
            built.train(resume_from_checkpoint=True)
        ends.append(helpers.parameters(built))
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_a_ratio_other_than_one_is_no_fault_of_an_optimiser_with_modes(tiny_model_folder, tmp_path, recwarn):
    ppo(*load(tiny_model_folder), tmp_path, optimizer_cls_and_kwargs=(TwoWeights, {"lr": 1e-3})).train()
    assert not [w for w in recwarn if "ratios" in str(w.message)]


@pytest.mark.parametrize("build", [ppo, pairs_trainer])
def test_the_cache_is_emptied_in_the_steps_that_are_named(tiny_model_folder, tmp_path, build, monkeypatch):
    from hfrlhf.trainers import policy_gradient

    built = build(*load(tiny_model_folder), tmp_path, max_steps=5, torch_empty_cache_steps=2)
    steps: list[int] = []
    for module in (policy_gradient, __import__("transformers").trainer):
        monkeypatch.setattr(module, "clear_device_cache", lambda: steps.append(built.state.global_step))
    built.train()
    assert steps == [0, 2, 4]
