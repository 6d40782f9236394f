"""What is assumed of the models is tried before the first rollout, and what sampling says of a token in every one."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, TrainerCallback

from hfrlhf.learning.start_checks import RoleIsWrong, check_roles, probe
from hfrlhf.learning.watch import SamplerGuard, SamplerMismatch
from hfrlhf.models.policy.reference import Reference
from hfrlhf.rollout.examination import DecodingIsWrong
from tests.rollout.test_examination import ignored, renamed
from tests.trainers.helpers import load, trainer, training_logs


@pytest.mark.parametrize("spoil", [renamed, ignored], ids=lambda f: f.__name__)
@pytest.mark.parametrize("adapter", [False, True], ids=["all weights", "adapter"])
def test_a_policy_that_loses_its_cache_is_refused_before_the_first_rollout(spoil, adapter, tiny_model_folder, tmp_path):
    model, tokenizer = load(tiny_model_folder)
    spoil(model.eval())
    with pytest.raises(DecodingIsWrong, match="LlamaForCausalLM cannot be sampled token by token"):
        trainer(model, tmp_path, tokenizer, peft_config=LoraConfig(r=2) if adapter else None)


def test_weights_that_are_no_numbers_are_called_so(tiny_model_folder, tmp_path):
    model, tokenizer = load(tiny_model_folder)
    sizes = {"num_labels": 1, "pad_token_id": tokenizer.pad_token_id}
    scorer: Any = AutoModelForSequenceClassification.from_pretrained(tiny_model_folder, **sizes)
    with torch.no_grad():
        scorer.score.weight.fill_(torch.nan)
    with pytest.raises(RoleIsWrong, match=r"score of the reward model .* is nan: weights of its model are NaN"):
        trainer(model, tmp_path, tokenizer, reward_funcs=scorer)
    with torch.no_grad():
        model.lm_head.weight[3] = torch.nan
    with pytest.raises(ValueError, match="LlamaForCausalLM gives logits that are NaN"):
        trainer(model, tmp_path, tokenizer)


def test_a_policy_spoilt_after_the_trainer_was_made_stops_in_the_first_rollout(tiny_model_folder, tmp_path):
    built = trainer(str(tiny_model_folder), tmp_path)
    ignored(built.model.policy)
    with pytest.raises(SamplerMismatch, match=r"first rollout .* nats per token off .* above the 0\.001"):
        built.train()
    assert built.state.global_step == 0


class SpoilAt(TrainerCallback):
    """A callback of the user's that breaks the policy's cache in the middle of a run, and may mend it again."""

    def __init__(self, policy: Any, first: int, last: int) -> None:
        self.policy, self.forward, self.first, self.last = policy, policy.forward, first, last

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.policy.forward = self.forward
        if self.first <= state.global_step <= self.last:
            ignored(self.policy)


def spoilt(folder: Any, path: Any, last: int, **settings: Any) -> Any:
    steps = {"num_ppo_epochs": 1, "num_mini_batches": 1, "max_steps": 7, "max_skipped_updates": 3}
    built = trainer(str(folder), path, **steps | settings)
    built.add_callback(SpoilAt(built.model.policy, 2, last))
    return built


def test_later_a_warning_is_given_once(tiny_model_folder, tmp_path):
    built = spoilt(tiny_model_folder, tmp_path, last=3)
    with pytest.warns(UserWarning, match=r"rollout 3 of this run .* The run goes on") as caught:
        built.train()
    assert len([w for w in caught if "The run goes on" in str(w.message)]) == 1
    wrong = [row["policy/sampler_mismatch"] > 1e-3 for row in training_logs(built)]
    assert wrong == [False, False, True, True, False, False, False]


def test_later_too_many_in_a_row_stop_the_run(tiny_model_folder, tmp_path):
    built = spoilt(tiny_model_folder, tmp_path, last=9)
    with pytest.warns(UserWarning), pytest.raises(SamplerMismatch, match=r"3 in a row, `max_skipped_updates=3`"):
        built.train()
    assert built.state.global_step == 4


def test_a_number_that_is_none_counts_as_wrong():
    with pytest.raises(SamplerMismatch):
        SamplerGuard(1e-3, 10).look(float("nan"), 0)


def mixes_rows(module: Any, _: Any, output: Any) -> Any:
    """What a batch norm, or a router with a capacity per batch, does."""
    hidden = output if isinstance(output, torch.Tensor) else output[0]
    return hidden + hidden.mean(0, keepdim=True)


def model_with_one_output(folder: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1)


def test_a_policy_that_mixes_rows_is_refused(tiny_model_folder, tmp_path):
    model, tokenizer = load(tiny_model_folder)
    for layer in model.model.layers:
        torch.nn.init.normal_(layer.mlp.down_proj.weight)  # nearly nothing comes through it as initialised
    trainer(model, tmp_path, tokenizer)  # as it is it will do
    model.model.layers[0].mlp.register_forward_hook(mixes_rows)
    with pytest.raises(ValueError, match=r"log-probs"):
        trainer(model, tmp_path, tokenizer)


@pytest.mark.parametrize(("role", "says"), [("value_model", "critic's value"), ("reward_funcs", "score of the reward")])
def test_a_critic_or_reward_model_that_mixes_rows_is_refused(role, says, tiny_model_folder, tmp_path):
    model = model_with_one_output(tiny_model_folder)
    trainer(str(tiny_model_folder), tmp_path, **{role: model})  # as it is it will do
    model = model_with_one_output(tiny_model_folder)
    model.model.layers[0].mlp.register_forward_hook(mixes_rows)
    with pytest.raises(RoleIsWrong, match=f"the {says}.* of a row depends on the rows beside it"):
        trainer(str(tiny_model_folder), tmp_path, **{role: model})


def test_a_reference_that_is_not_the_policy_is_refused(tiny_model_folder, tmp_path):
    built = trainer(str(tiny_model_folder), tmp_path)
    other = AutoModelForCausalLM.from_pretrained(tiny_model_folder).eval()
    torch.nn.init.normal_(other.lm_head.weight)
    look = partial(check_roles, prompts=built.prompts, half=False, autocast=nullcontext)
    look(built.unwrapped(), Reference(other, "another model", exact=False), [], None)
    with pytest.raises(RoleIsWrong, match=r"reference \(another model\) is .* nats per token from the policy"):
        look(built.unwrapped(), Reference(other, "another model"), [], None)


def test_the_rows_that_are_tried_differ_in_length(tiny_model_folder, tmp_path):
    rollout = probe(trainer(str(tiny_model_folder), tmp_path).prompts)
    assert rollout.completion_lengths.tolist() == [3, 1, 4]
    assert len(set((rollout.lengths - rollout.completion_lengths).tolist())) == 3


def test_one_prompt_is_enough(tiny_model_folder, tmp_path):
    built = trainer(str(tiny_model_folder), tmp_path)
    one = type(built.prompts)(built.prompts.ids[:1], built.prompts.texts[:1], built.prompts.rows.select([0]), False)
    assert len(probe(one)) == 3


def test_nothing_is_drawn_and_nothing_changes(tiny_model_folder, tmp_path):
    built = trainer(str(tiny_model_folder), tmp_path)
    built.model.train()
    torch.manual_seed(5)
    state, before = torch.get_rng_state(), {n: p.clone() for n, p in built.model.named_parameters()}
    built.roles_tried = False
    built.try_roles()
    assert torch.equal(torch.get_rng_state(), state)
    assert built.model.training
    assert all(torch.equal(before[n], p) for n, p in built.model.named_parameters())
