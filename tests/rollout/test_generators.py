"""A generator of somebody's own: it trains as ours does, is refused where it cannot, and what it gives is looked at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hfrlhf import PPOTrainer
from hfrlhf.experience import Prompts, Rollout
from hfrlhf.learning.watch import SamplerMismatch
from hfrlhf.rollout.contract import RolloutIsWrong, Sampling, check_rollout
from hfrlhf.trainers.trpo import TRPOTrainer
from tests.trainers.helpers import config, parameters, prompts, reward, trainer, training_logs

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "GENERATORS.md"


def of_the_guide() -> Any:
    """The class that the guide shows."""
    names: dict[str, Any] = {}
    exec(GUIDE.read_text(encoding="utf-8").split("```python\n")[1].split("```")[0], names)
    return names["WithGenerate"]


class WithGenerate(of_the_guide()):  # type: ignore[misc]
    """What somebody writes in a script, and what it is told."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def set_sampling(self, sampling: Sampling) -> None:
        super().set_sampling(sampling)
        self.heard.append("sampling")

    def sync_weights(self, model: Any) -> None:
        self.heard.append(f"weights of {type(model).__name__}")


def test_a_generator_of_ones_own_trains_what_the_built_in_one_trains(tiny_model_folder: Path, tmp_path: Path) -> None:
    own = WithGenerate()
    ours = trainer(str(tiny_model_folder), tmp_path / "ours", eval_dataset=prompts(4))
    theirs = trainer(str(tiny_model_folder), tmp_path / "theirs", eval_dataset=prompts(4), generator=own)
    for built in (ours, theirs):
        built.train()
    assert theirs.evaluate().keys() == ours.evaluate().keys()
    for before, after in zip(training_logs(ours), training_logs(theirs), strict=True):
        assert after == pytest.approx(before, rel=1e-4, abs=1e-5)
    for name, weight in parameters(ours).items():
        torch.testing.assert_close(parameters(theirs)[name], weight, atol=1e-5, rtol=1e-4)
    assert own.heard[0] == "sampling" and set(own.heard[1:]) == {"weights of LlamaForCausalLM"}
    assert len(own.heard) > 3


def test_log_probs_that_are_not_those_of_the_draws_stop_the_run(tiny_model_folder: Path, tmp_path: Path) -> None:
    class Hotter(WithGenerate):
        """It samples at another temperature than the run's, as an engine with a setting of its own would."""

        def set_sampling(self, sampling: Sampling) -> None:
            self.sampling = Sampling(sampling.max_completion_length, 0.5, sampling.stop_token_id)

    with pytest.raises(SamplerMismatch, match="first rollout"):
        trainer(str(tiny_model_folder), tmp_path, generator=Hotter()).train()


def test_the_setting_names_a_row_of_the_table(tiny_model_folder: Path, tmp_path: Path) -> None:
    ours = PPOTrainer(str(tiny_model_folder), reward, config(tmp_path, generator="transformers"), prompts())
    named = trainer(str(tiny_model_folder), tmp_path, generator="transformers")
    assert type(ours.generator) is type(named.generator) and ours.generator == named.generator
    with pytest.raises(ValueError, match=r"no generator 'transformer': choose one of 'transformers'.*did you mean"):
        PPOTrainer(str(tiny_model_folder), reward, config(tmp_path, generator="transformer"), prompts())


class Nothing:
    """It samples nothing."""


class OfPromptsAlone(Nothing):
    def generate(self, prompts: Prompts) -> Rollout:
        raise AssertionError


@pytest.mark.parametrize(
    "given, error, said",
    [
        ("vllm", ValueError, r"no generator 'vllm': choose one of 'transformers', or pass an object"),
        (WithGenerate, TypeError, r"the class WithGenerate itself; pass one that is made: WithGenerate\(…\)"),
        (Nothing(), TypeError, r"Nothing object.* \(Nothing\), which has no generate\(model, prompts, address\)"),
        (OfPromptsAlone(), TypeError, r"OfPromptsAlone\), whose generate\(prompts: .* cannot be called"),
        (print, TypeError, r"built-in function print.*, which has no generate"),
    ],
)
@pytest.mark.parametrize("kind", [PPOTrainer, TRPOTrainer])
def test_what_cannot_sample_is_refused_when_the_trainer_is_made(
    tmp_path: Path, kind: Any, given: Any, error: type[Exception], said: str
) -> None:
    args = kind.CONFIG(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    with pytest.raises(error, match=said):
        kind("nowhere/no-model", reward, args, prompts(), generator=given)


# Two prompts of two columns, responses of at most three tokens; 9 ends one.
ASKED = Sampling(3, stop_token_id=9, vocabulary=10)
GIVEN = Prompts(
    torch.tensor([[0, 5], [6, 7]]),
    torch.tensor([[False, True], [True, True]]),
    torch.tensor([4, 5]),
    torch.tensor([1, 0]),
)
GOOD: dict[str, Any] = {
    "input_ids": torch.tensor([[0, 5, 1, 9], [6, 7, 2, 3]]),
    "attention_mask": torch.tensor([[False, True, True, True], [True, True, True, True]]),
    "action_mask": torch.tensor([[True, True], [True, True]]),
    "terminated": torch.tensor([True, False]),
    "episode": torch.tensor([4, 5]),
    "row": torch.tensor([1, 0]),
    "sampler_logprobs": torch.tensor([[-0.5, -1.0], [0.0, -2.0]]),
}
SHORT = {
    "input_ids": torch.tensor([[0, 5, 1, 9], [6, 7, 9, 0]]),
    "attention_mask": torch.tensor([[False, True, True, True], [True, True, True, False]]),
    "action_mask": torch.tensor([[True, True], [True, False]]),
    "terminated": torch.tensor([True, True]),
}


def changed(name: str, row: int, column: int, value: Any) -> dict[str, Tensor]:
    tensor = GOOD[name].clone()
    tensor[row, column] = value
    return {name: tensor}


def test_a_rollout_of_the_prompts_passes() -> None:
    check_rollout(Rollout(**GOOD), GIVEN, ASKED, "Mine")
    check_rollout(Rollout(**GOOD | SHORT | changed("sampler_logprobs", 1, 1, 0.0)), GIVEN, ASKED, "Mine")
    unended = GOOD | {"terminated": torch.tensor([False, False])}
    check_rollout(Rollout(**unended), GIVEN, Sampling(2, stop_token_id=None), "Mine")
    none = torch.zeros(0, dtype=torch.long)
    check_rollout(Rollout(**{name: t[none] for name, t in GOOD.items()}), GIVEN.select(none), ASKED, "Mine")


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"action_mask": torch.ones(2, 4, dtype=torch.bool)}, "responses of 4 tokens with max_completion_length=3"),
        ({"input_ids": GOOD["input_ids"][:, 1:]}, r"`input_ids` has the shape \[2, 3\], .* make \[2, 4\]"),
        ({"terminated": torch.tensor([True])}, r"`terminated` has the shape \[1\], and 2 prompts"),
        ({"sampler_logprobs": torch.zeros(2, 3)}, r"`sampler_logprobs` has the shape \[2, 3\]"),
        ({"action_mask": torch.ones(2, 2)}, "`action_mask` is torch.float32, and has to be torch.bool"),
        ({"sampler_logprobs": torch.zeros(2, 2).half()}, "`sampler_logprobs` is torch.float16, and has to"),
        ({"input_ids": GOOD["input_ids"].int()}, "`input_ids` is torch.int32, and has to be torch.int64"),
        (changed("input_ids", 1, 0, 5), "row 1 does not begin with its prompt"),
        (changed("attention_mask", 0, 0, True), "row 0 does not begin with its prompt"),
        ({"episode": torch.tensor([5, 4])}, "`episode` of row 0 is 5 and not 4"),
        ({"row": torch.tensor([1, 1])}, "`row` of row 1 is 1 and not 0"),
        (changed("attention_mask", 1, 3, False), "the response's part of `attention_mask` differ in row 1"),
        (changed("action_mask", 1, 0, False) | changed("attention_mask", 1, 2, False), "row 1 is empty or has holes"),
        (changed("input_ids", 1, 2, 10), "row 1 has a token id outside the 10"),
        (changed("input_ids", 0, 2, 9), "row 0 goes on behind the stop token 9"),
        ({"terminated": torch.tensor([False, False])}, "`terminated` of row 0 is False, and its response does end"),
        ({"terminated": torch.tensor([True, True])}, "`terminated` of row 1 is True, and its response does not end"),
        (changed("sampler_logprobs", 0, 1, 0.5), "`sampler_logprobs` of row 0 has 0.5, which is no log-prob"),
        (changed("sampler_logprobs", 1, 0, float("nan")), "of row 1 has nan, which is no log-prob"),
        (changed("sampler_logprobs", 1, 0, float("-inf")), "of row 1 has -inf, which is no log-prob"),
        (SHORT, "`sampler_logprobs` of row 1 is not 0 where the response is padded"),
    ],
)
def test_what_is_no_rollout_of_the_prompts_is_refused(wrong: dict[str, Tensor], said: str) -> None:
    with pytest.raises(RolloutIsWrong, match=f"^Mine.generate gave back .*{said}"):
        check_rollout(Rollout(**GOOD | wrong), GIVEN, ASKED, "Mine")


def test_something_else_than_a_rollout_stops_the_run(tiny_model_folder: Path, tmp_path: Path) -> None:
    class Texts(WithGenerate):
        def generate(self, model: Any, prompts: Prompts, address: tuple[int, ...]) -> Any:
            return ["good"] * len(prompts)

    with pytest.raises(TypeError, match=r"Texts.generate must return a hfrlhf.experience.Rollout, got list"):
        trainer(str(tiny_model_folder), tmp_path, generator=Texts()).train()
