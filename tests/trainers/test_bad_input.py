"""Input that cannot work is refused at construction, with what was passed and what to do."""

from __future__ import annotations

import pytest
from datasets import Dataset
from transformers import AutoConfig, AutoModelForCausalLM, T5Config, T5ForConditionalGeneration, Trainer

from hfrlhf import PolicyGradientTrainer, PPOTrainer, TRPOTrainer
from hfrlhf.settings.policy_gradient import PolicyGradientConfig, PPOConfig, TRPOConfig
from tests.trainers.helpers import config, load, parameters, prompts, reward, trainer


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_mini_batches": 3}, "use 2 or 4"),
        ({"rollout_batch_size": 12, "gradient_accumulation_steps": 4}, "multiple of 8"),
        ({"rollout_batch_size": 8, "per_device_train_batch_size": 16}, "disagree"),
        ({"num_generations": 3}, "num_generations=3"),
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": -1.0}, "temperature"),
        ({"gamma": 1.1}, "gamma"),
        ({"gae_lambda": -0.1}, "gae_lambda"),
        ({"clip_range": 0.0}, "clip_range"),
        ({"clip_range_value": -0.2}, "clip_range_value"),
        ({"dual_clip": 0.5}, "dual_clip"),
        ({"kl_coef": -0.05}, "kl_coef"),
        ({"kl_target": 0.0}, "kl_target"),
        ({"kl_target": 6.0, "kl_horizon": 1.0}, "kl_horizon"),
        ({"learning_rate": -1e-5}, "learning_rate"),
        ({"value_learning_rate": -1e-5}, "value_learning_rate"),
        ({"num_ppo_epochs": 0}, "num_ppo_epochs"),
        ({"num_ppo_epochs": 1.5}, "whole number"),
        ({"max_completion_length": 0}, "max_completion_length"),
        ({"missing_eos_penalty": -1.0}, "missing_eos_penalty"),
        ({"vf_coef": -0.1}, "vf_coef"),
        ({"ent_coef": float("nan")}, "ent_coef"),
        ({"target_kl": 0.0}, "target_kl"),
        ({"kl_estimator": "k4"}, "kl_estimator"),
        ({"kl_in": "nowhere"}, "kl_in"),
        ({"kl_in": "loss", "kl_estimator": "k1"}, "gradient of the KL"),
        ({"loss_normalization": "batch"}, "loss_normalization"),
        ({"old_logprobs": "guess"}, "old_logprobs"),
        ({"algorithm": "ppo"}, "ppo_clip"),
        ({"algorithm": "vpg"}, "is not PPO; use PolicyGradientConfig"),
        ({"gamma": "0.9"}, "`gamma` must be a finite number, got '0.9'"),
        ({"num_mini_batches": True}, "`num_mini_batches` must be a finite number, got True"),
        ({"remove_unused_columns": True}, "remove_unused_columns"),
        ({"reward_clip": 0.0}, "reward_clip"),
        ({"reward_weights": "2"}, "`reward_weights` must be finite numbers, one per reward, got '2'"),
        ({"reward_weights": [1.0, None]}, "`reward_weights` must be finite numbers"),
    ],
)
def test_settings(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        config(tmp_path, **changes)


@pytest.mark.parametrize(
    ("algorithm", "changes", "message"),
    [
        ("ppo_clipp", {}, "did you mean 'ppo_clip'.* reinforce, "),
        ("rloo", {"num_generations": 1}, "num_generations=1.*at least 2"),
        ("grpo", {}, "num_generations=1.*at least 2"),
        ("reinforce", {"num_ppo_epochs": 2}, "2 × 1; set both to 1"),
        ("vpg", {"num_mini_batches": 2}, "1 × 2; set both to 1"),
        ("reinforce", {"vf_coef": 0.1}, "has no critic, so `vf_coef=0.1`"),
        ("rloo", {"num_generations": 2, "vf_coef": 0.0}, "has no critic, so `vf_coef=0.0`"),
        ("reinforce", {"value_learning_rate": 1e-4}, "has no critic"),
        ("reinforce", {"critic_warmup_rollouts": 1}, "has no critic"),
        ("reinforce", {"value_epochs": 2}, "has no critic"),
        ("q_actor_critic", {"bootstrap_truncated": True}, "bootstrap_truncated"),
        ("trpo", {}, "TRPOTrainer with a TRPOConfig"),
        ("natural_policy_gradient", {}, "TRPOTrainer with a TRPOConfig"),
        ("a2c", {"n_step": 0}, "n_step"),
        ("ppo_penalty", {"penalty_target": 0.0}, "penalty_target"),
        ("gae_actor_critic", {"gamma": 1.5}, "gamma"),
        ("gae_actor_critic", {"gae_lambda": 1.5}, "gae_lambda"),
        ("vpg", {"value_epochs": -1}, "value_epochs"),
        ("vpg", {"bootstrap_truncated": True}, "would do nothing in `algorithm='vpg'`.*td_actor_critic, a2c"),
        ("vpg", {"gae_lambda": 0.9}, "`gae_lambda=0.9` would do nothing"),
        ("vpg", {"dual_clip": 3.0}, "one of grpo, ppo_clip"),
        ("vpg", {"clip_range_high": 0.3}, "would do nothing"),
        ("vpg", {"target_kl": 0.1}, "takes only one here"),
        ("ppo_clip", {"target_kl": 0.1, "num_ppo_epochs": 1}, "takes only one here"),
        ("reinforce", {"exclude_self": True}, "one of reinforce_constant, "),
        ("reinforce", {"clip_range_value": 0.1}, "has no critic"),
        ("gae_actor_critic", {"n_step": 3}, "one of a2c"),
        ("ppo_clip", {"penalty_target": 0.1}, "one of ppo_penalty"),
        ("reinforce_constant", {"rollout_batch_size": 1}, "at least 2, typically 32"),
    ],
)
def test_settings_that_do_not_go_with_the_algorithm(tmp_path, algorithm, changes, message):
    with pytest.raises(ValueError, match=message):
        PolicyGradientConfig(
            **{"output_dir": str(tmp_path), "algorithm": algorithm, "use_cpu": True, "rollout_batch_size": 8} | changes
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_mini_batches": 2}, "1 × 2; set both to 1"),
        ({"num_ppo_epochs": 4}, "4 × 1; set both to 1"),
        ({"algorithm": "ppo_clip"}, "PolicyGradientTrainer with a PolicyGradientConfig"),
        ({"max_kl": 0.0}, "max_kl"),
        ({"cg_iterations": 0}, "cg_iterations"),
        ({"cg_iterations": 2.5}, "whole number"),
        ({"cg_damping": -0.1}, "cg_damping"),
        ({"max_backtracks": 0}, "max_backtracks"),
        ({"max_backtracks": 5, "algorithm": "natural_policy_gradient"}, "no line search"),
        ({"ent_coef": 0.01}, "ent_coef"),
        ({"target_kl": 0.01}, "`max_kl` bounds it"),
        ({"kl_in": "loss"}, "kl_in"),
        ({"gae_lambda": 2.0}, "gae_lambda"),
    ],
)
def test_settings_of_trpo(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        TRPOConfig(output_dir=str(tmp_path), use_cpu=True, rollout_batch_size=8, **changes)


@pytest.mark.parametrize("algorithm", ["reinforce", "q_actor_critic"])
def test_a_value_model_without_use(tiny_model_folder, tmp_path, algorithm):
    args = PolicyGradientConfig(output_dir=str(tmp_path), algorithm=algorithm, use_cpu=True, report_to="none")
    with pytest.raises(ValueError, match="leave `value_model` out"):
        PolicyGradientTrainer(str(tiny_model_folder), reward, args, prompts(), value_model=str(tiny_model_folder))


def test_a_warm_up_as_long_as_the_run(tiny_model_folder, tmp_path):
    built = trainer(str(tiny_model_folder), tmp_path, critic_warmup_rollouts=1, max_steps=4)
    with pytest.warns(UserWarning, match="takes all 1 rollouts of the run, so the policy never trains"):
        built.train()


def test_the_settings_of_another_trainer(tiny_model_folder, tmp_path):
    args = PolicyGradientConfig(output_dir=str(tmp_path), use_cpu=True, report_to="none")
    with pytest.raises(TypeError, match="TRPOConfig"):
        TRPOTrainer(str(tiny_model_folder), reward, args, prompts())
    with pytest.raises(TypeError, match="TRPOTrainer"):
        PolicyGradientTrainer(
            str(tiny_model_folder), reward, TRPOConfig(output_dir=str(tmp_path), use_cpu=True), prompts()
        )


@pytest.mark.parametrize(
    ("name", "new"),
    [
        ("cliprange", "clip_range"),
        ("lam", "gae_lambda"),
        ("response_length", "max_completion_length"),
        ("total_episodes", "max_steps"),
        ("top_p", "truncated sampling"),
        ("top_k", "truncated sampling"),
    ],
)
def test_old_names_give_the_new_one(tmp_path, name, new):
    with pytest.raises(TypeError, match=new):
        PPOConfig(output_dir=str(tmp_path), **{name: 1})


def test_one_weight_for_one_reward_needs_no_list(tiny_model_folder, tmp_path):
    built = trainer(str(tiny_model_folder), tmp_path, reward_weights=2.0)
    assert built.reward.weights == [2.0]


def test_a_folder_that_is_not_there_is_called_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"there is no folder 'my-sft-model' \(looked from .*spelt right"):
        trainer("my-sft-model", tmp_path)


def test_old_arguments_give_the_new_one():
    with pytest.raises(TypeError, match="reward_funcs"):
        PPOTrainer(model="m", reward_model="r", args=None, train_dataset=None)


def test_batches_are_defined_by_their_product(tmp_path):
    built = PPOConfig(
        output_dir=str(tmp_path), per_device_train_batch_size=4, gradient_accumulation_steps=2, num_mini_batches=3
    )
    assert (built.rollout_batch_size, built.mini_batch_size, built.steps_per_rollout) == (24, 8, 12)
    derived = PPOConfig(output_dir=str(tmp_path), rollout_batch_size=64, num_mini_batches=4)
    assert (derived.per_device_train_batch_size, derived.mini_batch_size) == (16, 16)


def test_the_defaults_are_the_documented_ones(tmp_path):
    built = PPOConfig(output_dir=str(tmp_path))
    assert (built.learning_rate, built.num_ppo_epochs, built.num_mini_batches) == (3e-6, 4, 1)
    assert (built.gamma, built.gae_lambda, built.clip_range, built.clip_range_value) == (1.0, 0.95, 0.2, 0.2)
    assert (built.vf_coef, built.kl_coef, built.temperature, built.max_grad_norm) == (0.1, 0.05, 1.0, 1.0)
    assert (built.adam_epsilon, str(built.lr_scheduler_type.value)) == (1e-5, "linear")
    assert PolicyGradientConfig(output_dir=str(tmp_path)).steps_per_rollout == 1


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"text": ["the film"]}, "prompt"),
        ({"prompt": []}, "empty"),
        ({"prompt": ["the film", None]}, "null|None"),
        ({"prompt": ["the film", ""]}, "empty"),
        ({"prompt": ["the film is very good and very bad"] * 3}, "max_prompt_length|long"),
        ({"prompt": [[{"role": "user", "content": "the film"}]]}, "template"),
    ],
)
def test_prompts(tiny_model_folder, tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        trainer(str(tiny_model_folder), tmp_path, train_dataset=Dataset.from_dict(rows), max_prompt_length=4)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"text": ["the film"]}, "eval dataset has no column 'prompt'"),
        ({"prompt": []}, "eval dataset is empty"),
        ({"prompt": ["the film", None]}, "eval dataset has a null in column 'prompt', row 1"),
        ({"prompt": ["the film", ""]}, "eval dataset has an empty prompt in row 1"),
    ],
)
def test_evaluation_prompts(tiny_model_folder, tmp_path, rows, message):
    """Refused when the trainer is made, not at the first evaluation hours later."""
    with pytest.raises(ValueError, match=message):
        trainer(str(tiny_model_folder), tmp_path, eval_dataset=Dataset.from_dict(rows))


def test_a_tokenizer_of_another_vocabulary(tiny_model_folder, tmp_path):
    small = AutoConfig.from_pretrained(tiny_model_folder)
    small.vocab_size = 10
    with pytest.raises(ValueError, match="vocabulary ends at 9"):
        trainer(AutoModelForCausalLM.from_config(small), tmp_path, load(tiny_model_folder)[1])


def test_encoder_decoder_models(tiny_model_folder, tmp_path):
    t5 = T5ForConditionalGeneration(T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2))
    with pytest.raises(ValueError, match="encoder–decoder"):
        trainer(t5, tmp_path, load(tiny_model_folder)[1])
    t5.save_pretrained(tmp_path / "t5")
    with pytest.raises(ValueError, match="encoder–decoder"):
        trainer(str(tmp_path / "t5"), tmp_path, load(tiny_model_folder)[1])


def test_more_tokens_than_the_model_has_positions_for(tiny_model_folder, tmp_path):
    with pytest.raises(ValueError, match="positions for 128"):
        trainer(str(tiny_model_folder), tmp_path, max_completion_length=128)


def test_k3_in_the_reward_warns(tmp_path):
    with pytest.warns(UserWarning, match="a few per cent"):
        config(tmp_path, kl_estimator="k3")


def test_a_model_that_is_none(tiny_model_folder, tmp_path):
    with pytest.raises(TypeError, match="int"):
        trainer(3, tmp_path, load(tiny_model_folder)[1])


def test_a_tokenizer_without_end(tiny_model_folder, tmp_path):
    lm, tokenizer = load(tiny_model_folder)
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="stop_token_id"):
        trainer(lm, tmp_path, tokenizer)


@pytest.mark.parametrize(
    ("returned", "error", "message"),
    [
        ([1.0], ValueError, "1 scores for 8 completions"),
        (1.0, TypeError, "must return a list of numbers, got float"),
        (None, TypeError, "must return a list of numbers, got NoneType"),
        ("12345678", TypeError, "must return a list of numbers, got str"),
        ([1.0] * 7 + ["good"], TypeError, r"returned 'good' \(str\) for completion 7"),
        ([[1.0]] * 8, TypeError, r"returned \[1.0\] \(list\) for completion 0"),
        ([None] * 8, ValueError, "no reward function has an opinion on completion 0"),
        ([float("nan")] * 8, ValueError, "no reward function has an opinion on completion 0"),
    ],
)
def test_a_wrong_reward_function_stops_before_any_update(tiny_model_folder, tmp_path, returned, error, message):
    built = trainer(str(tiny_model_folder), tmp_path, reward_funcs=lambda completions: returned)
    before = parameters(built)
    with pytest.raises(error, match=message):
        built.train()
    after = parameters(built)
    assert all(before[name].equal(after[name]) for name in before) and built.state.global_step == 0


class BringsItsOwnGroups(Trainer):
    """A Trainer whose optimisers come as those of GaLore, APOLLO and LOMO do, which are packages of their own."""

    brings = ()

    def get_optimizer_cls_and_kwargs(self, args, model=None):
        cls, kwargs = super().get_optimizer_cls_and_kwargs(args, model)
        return cls, kwargs | dict(self.brings)


class PPOWithItsOwnGroups(PPOTrainer, BringsItsOwnGroups):
    """PPOTrainer on such a Trainer: what it calls as its base is the class above."""


@pytest.mark.parametrize("argument", ["params", "model", "optimizer_dict"])
def test_an_optimiser_that_brings_its_own_parameter_groups(tiny_model_folder, tmp_path, argument):
    built = PPOWithItsOwnGroups(str(tiny_model_folder), reward, config(tmp_path, optim="sgd"), prompts())
    built.brings = [(argument, list(built.model.parameters()))]
    with pytest.raises(ValueError, match=r"makes its own parameter groups.*use 'adamw_torch'"):
        built.train()
    assert built.state.global_step == 0
    built.brings = ()
    built.create_optimizer()  # the same without them works


def test_a_plain_optimiser_gets_our_four_parameter_groups(tiny_model_folder, tmp_path):
    built = trainer(str(tiny_model_folder), tmp_path, optim="adamw_torch", value_learning_rate=3e-2, weight_decay=0.1)
    built.create_optimizer()
    groups = {group["name"]: (group["lr"], group["weight_decay"]) for group in built.optimizer.param_groups}
    assert groups == {
        "policy/decay": (1e-2, 0.1),
        "policy/no_decay": (1e-2, 0.0),
        "value/decay": (3e-2, 0.1),
        "value/no_decay": (3e-2, 0.0),
    }
    held = [id(p) for group in built.optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in built.model.parameters())


def test_an_output_path_that_is_a_file(tiny_model_folder, tmp_path):
    (tmp_path / "run").write_text("mine")
    with pytest.raises((NotADirectoryError, FileExistsError)):
        trainer(str(tiny_model_folder), tmp_path).train()
    assert (tmp_path / "run").read_text() == "mine"


def test_reward_functions_see_texts_ids_and_the_datasets_columns(tiny_model_folder, tmp_path):
    seen = {}

    def watching(prompts, completions, completion_ids, number):
        seen.update(prompts=prompts, number=number, ids=completion_ids)
        return reward(completions)

    trainer(str(tiny_model_folder), tmp_path, reward_funcs=watching, train_dataset=prompts(), max_steps=1).train()
    assert all(prompts()[n]["prompt"] == p for n, p in zip(seen["number"], seen["prompts"], strict=True))
    assert all(len(ids) >= 1 for ids in seen["ids"])


def test_a_model_that_stops_at_several_tokens_warns(tiny_model_folder, tmp_path):
    lm, tokenizer = load(tiny_model_folder)
    lm.generation_config.eos_token_id = [2, 5]
    with pytest.warns(UserWarning, match=r"also stops at .* \(5\)"):
        trainer(lm, tmp_path, tokenizer)
