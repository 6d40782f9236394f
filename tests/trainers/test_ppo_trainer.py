"""What PPOTrainer promises: the steps it takes, the numbers at the start, gradients that depend on nothing else."""

from __future__ import annotations

import copy
import dataclasses
import math

import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from hfrlhf.experience import Experience
from hfrlhf.learning.watch import SamplerMismatch, StartIsWrong
from hfrlhf.reporting.start_report import start_report
from tests.trainers.helpers import load, parameters, prompts, reward, trainer, training_logs


class Steps:
    """Counts what the optimiser really does."""

    def __init__(self, built):
        self.count = 0
        built.create_optimizer()
        step = built.optimizer.step

        def counted(*args, **kwargs):
            self.count += 1
            return step(*args, **kwargs)

        built.optimizer.step = counted


# ---- Steps ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("epochs", "mini_batches", "accumulation"), [(1, 1, 1), (2, 4, 1), (3, 2, 2), (1, 2, 4)])
def test_a_rollout_is_used_for_exactly_epochs_times_mini_batches_steps(
    tiny_model_folder, tmp_path, epochs, mini_batches, accumulation
):
    """E × M optimiser steps for every rollout, whatever the accumulation (12 prompts, 8 a rollout: two rollouts)."""
    rollouts = []
    built = trainer(
        str(tiny_model_folder),
        tmp_path,
        num_ppo_epochs=epochs,
        num_mini_batches=mini_batches,
        gradient_accumulation_steps=accumulation,
        max_steps=-1,
        num_train_epochs=1,
        reward_funcs=lambda completions: rollouts.append(len(completions)) or reward(completions),
    )
    steps = Steps(built)
    built.train()
    assert rollouts == [8, 8]
    assert steps.count == built.state.global_step == 2 * epochs * mini_batches


def test_each_epoch_shuffles_anew_and_uses_every_episode_once(tiny_model_folder, tmp_path):
    used = []
    built = trainer(str(tiny_model_folder), tmp_path)
    original = built.get_batch_samples

    def recorded(*args):
        batches, items = original(*args)
        used.append([int(e) for batch in batches for e in batch["episode"]])
        return batches, items

    built.get_batch_samples = recorded
    built.train()
    first, second = used[0] + used[1], used[2] + used[3]
    assert sorted(first) == sorted(second) == list(range(8))
    assert [sorted(used[0]), sorted(used[1])] != [sorted(used[2]), sorted(used[3])]


# ---- The numbers at the start ---------------------------------------------------------------------------------------


def test_the_first_ratio_is_one_and_the_first_kl_zero(tiny_model_folder, tmp_path, capsys):
    built = trainer(str(tiny_model_folder), tmp_path, num_ppo_epochs=1, num_mini_batches=1, max_steps=1)
    built.train()
    row = training_logs(built)[0]
    assert row["policy/ratio"] == pytest.approx(1.0, abs=1e-6)
    assert row["policy/clip_fraction"] == 0.0 and row["objective/kl"] == 0.0
    printed = capsys.readouterr().out
    assert "KL to the reference 0.000000" in printed and "ratio π_θ/π_old 1.000000" in printed


def test_the_start_report_says_what_will_happen(tiny_model_folder, tmp_path, capsys):
    trainer(str(tiny_model_folder), tmp_path, max_steps=6).train()
    printed = capsys.readouterr().out
    for fact in ("16 episodes = 2 rollouts × 8", "6 optimiser steps", "2 epochs × 2 mini-batches of 4", "12 prompts"):
        assert fact in printed
    once = trainer(str(tiny_model_folder), tmp_path, num_ppo_epochs=1, num_mini_batches=1, max_steps=1)
    plan = "8 episodes = 1 rollout × 8 (1 per prompt); 1 optimiser step = rollouts × 1 epoch × 1 mini-batch of 8"
    assert plan in start_report(once)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"max_steps": 2}, "max_steps=2 is 0.5 rollouts only: a rollout takes 4 optimiser steps = 2 epochs × 2 mini-"),
        ({"max_steps": 4}, "max_steps=4 is 1 rollout only"),
        ({"max_steps": -1, "num_train_epochs": 0.5}, "num_train_epochs=0.5 is 1 rollout only"),
        ({"max_steps": 12}, None),
        ({"max_steps": 3, "num_ppo_epochs": 1, "num_mini_batches": 1}, None),
    ],
)
def test_a_run_of_hardly_a_rollout_is_said_loudly(tiny_model_folder, tmp_path, changes, said):
    report = start_report(trainer(str(tiny_model_folder), tmp_path, **changes))
    attention = [line for line in report.splitlines() if "ATTENTION" in line]
    assert len(attention) == (said is not None) and (said or "") in report
    assert not attention or "100 rollouts are max_steps=400" in attention[0]


def test_a_reference_that_is_not_the_start_stops_the_run(tiny_model_folder, tmp_path):
    """The policy was moved after its reference was made: training must refuse, not go on with a wrong KL."""
    built = trainer(str(tiny_model_folder), tmp_path)
    with torch.no_grad():
        built.model.policy.lm_head.weight.add_(torch.randn_like(built.model.policy.lm_head.weight))
    with pytest.raises(StartIsWrong, match="frozen copy"):
        built.train()


def test_log_probs_of_another_temperature_stop_the_run(tiny_model_folder, tmp_path):
    """A rollout scored at a temperature that is not the trainer's is not the policy's."""
    built = trainer(str(tiny_model_folder), tmp_path, old_logprobs="sampler")
    sampler = built.generator

    class Hotter:
        def generate(self, model, given, address):
            rollout = sampler.generate(model, given, address)
            return type(rollout)(**(rollout.tensors() | {"sampler_logprobs": rollout.sampler_logprobs * 0.9}))

    built.generator = Hotter()
    built.reference = type(built.reference)(built.reference.model, "test", exact=False)
    with pytest.raises(SamplerMismatch, match=r"first rollout.* 0\.3 nats per token"):
        built.train()
    assert built.state.global_step == 0


@pytest.mark.parametrize("temperature", [0.7, 1.3])
def test_the_temperature_is_in_every_log_prob_and_in_the_entropy(tiny_model_folder, tmp_path, temperature):
    """Old, new, reference and entropy all divide the logits: KL 0, ratio 1, the entropy of the sampler."""
    built = trainer(
        str(tiny_model_folder), tmp_path, temperature=temperature, num_ppo_epochs=1, num_mini_batches=1, max_steps=1
    )
    lm, _ = load(tiny_model_folder)
    built.train()
    row, experience = training_logs(built)[0], built.cycle.experience
    assert row["objective/kl"] == 0.0 and row["policy/ratio"] == pytest.approx(1.0, abs=1e-6)
    entropies = []
    for ids, mask, n in zip(
        experience.input_ids, experience.attention_mask, experience.completion_lengths.tolist(), strict=True
    ):
        logp = (lm.eval()(ids[mask][None]).logits[0] / temperature).log_softmax(-1)[-n - 1 : -1]
        entropies += (-(logp.exp() * logp).sum(-1)).tolist()
    assert row["objective/entropy"] == pytest.approx(sum(entropies) / len(entropies), rel=1e-4)


def test_dropout_is_off_everywhere(tiny_model_folder, tmp_path):
    """Also the attention dropout that Llama keeps as a number: with any of it the first KL would not be 0."""
    lm = AutoModelForCausalLM.from_pretrained(tiny_model_folder, attention_dropout=0.5)
    assert lm.model.layers[0].self_attn.attention_dropout == 0.5
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_folder)
    built = trainer(lm, tmp_path, tokenizer, num_ppo_epochs=1, num_mini_batches=1, max_steps=1)
    built.train()
    row = training_logs(built)[0]
    assert row["objective/kl"] == 0.0 and row["policy/ratio"] == pytest.approx(1.0, abs=1e-6)


# ---- The gradient depends on nothing but the mini-batch -------------------------------------------------------------


def one_step(folder, tmp_path, **changes):
    """Parameters after one rollout with plain gradient descent, so that they show the gradient itself."""
    settings = {"num_ppo_epochs": 1, "num_mini_batches": 1, "max_steps": 1, "ent_coef": 0.1, "vf_coef": 0.5}
    settings |= {"lr_scheduler_type": "constant", "max_grad_norm": 1e9, "learning_rate": 0.1, "optim": "sgd"}
    built = trainer(str(folder), tmp_path, **(settings | changes))
    before = parameters(built)
    built.train()
    return {name: p - before[name] for name, p in parameters(built).items()}


@pytest.mark.parametrize(
    "changes",
    [
        {"gradient_accumulation_steps": 2},
        {"gradient_accumulation_steps": 8},
        {"max_tokens_per_micro_batch": 1},
        {"max_tokens_per_micro_batch": 20},
        {"max_tokens_per_micro_batch": 20, "gradient_accumulation_steps": 4},
        {"gradient_checkpointing": True},
    ],
)
def test_the_gradient_is_the_same_however_the_batch_is_cut(tiny_model_folder, tmp_path, changes):
    """Policy, value and entropy terms alike: each is divided by the tokens of the whole step."""
    whole = one_step(tiny_model_folder, tmp_path / "whole")
    cut = one_step(tiny_model_folder, tmp_path / "cut", **changes)
    assert max(float(d.abs().max()) for d in whole.values()) > 1e-3
    for name, step in whole.items():
        torch.testing.assert_close(cut[name], step, atol=1e-6, rtol=1e-4, msg=name)


def test_padding_does_not_change_the_gradient(tiny_model_folder, tmp_path):
    """The same episodes with more padding on both sides give the same loss, to the last digits."""
    built = trainer(str(tiny_model_folder), tmp_path, num_ppo_epochs=1, num_mini_batches=1, max_steps=1)
    built.train()
    batch = built.cycle.experience
    wide = widened(batch)
    items = int(batch.action_mask.sum())
    built.cycle = dataclasses.replace(built.cycle, stopped=False)
    losses = [
        float(built.compute_loss(built.model, b.tensors(), num_items_in_batch=items).detach()) for b in (batch, wide)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def widened(batch):
    """Three columns of rubbish on each side, masked."""
    pad = torch.nn.functional.pad
    fields = {}
    for name, tensor in batch.tensors().items():
        if name in ("input_ids", "attention_mask"):
            fields[name] = pad(tensor, (3, 3), value=7 if name == "input_ids" else 0)
        elif tensor.ndim == 2:
            fields[name] = pad(tensor, (0, 3), value=False if tensor.dtype == torch.bool else math.nan)
        else:
            fields[name] = tensor
    return Experience(**fields)


def test_the_loss_is_divided_by_tokens_or_by_episodes(tiny_model_folder, tmp_path):
    tokens = one_step(tiny_model_folder, tmp_path / "t")
    episodes = one_step(tiny_model_folder, tmp_path / "e", loss_normalization="episodes")
    ratios = [float(episodes[n].norm() / tokens[n].norm()) for n in tokens if float(tokens[n].norm()) > 1e-4]
    assert ratios and max(ratios) - min(ratios) < 1e-3
    assert ratios[0] > 1.5  # responses have several tokens, so there are fewer episodes to divide by


def test_gradients_are_clipped_and_the_norm_before_is_logged(tiny_model_folder, tmp_path):
    small = one_step(tiny_model_folder, tmp_path / "small", max_grad_norm=1e-3)
    norm = math.sqrt(sum(float(d.square().sum()) for d in small.values()))
    assert norm == pytest.approx(0.1 * 1e-3, rel=1e-2)  # learning rate × max_grad_norm
    built = trainer(str(tiny_model_folder), tmp_path / "log", max_grad_norm=1e-3, max_steps=1)
    built.args.logging_steps = 1
    built.train()
    assert built.state.log_history[0]["grad_norm"] > 1e-2


# ---- What a metric counts -------------------------------------------------------------------------------------------


def test_metrics_are_means_over_real_tokens_and_episodes(tiny_model_folder, tmp_path):
    built = trainer(str(tiny_model_folder), tmp_path, num_ppo_epochs=1, num_mini_batches=1, max_steps=1)
    built.train()
    row, seen = training_logs(built)[0], built.cycle.experience
    lengths = [len(ids) for ids in seen.completion_lists()]
    assert len(set(lengths)) > 1, "the responses must be ragged for this test to mean anything"
    assert row["objective/response_length"] == pytest.approx(sum(lengths) / 8)
    assert row["objective/ended"] == sum(ids[-1] == 2 for ids in seen.completion_lists()) / 8
    assert row["objective/score"] == pytest.approx(float(seen.scores.mean()), rel=1e-6)
    assert row["episode"] == 8


def test_the_score_stands_on_the_last_response_token(tiny_model_folder, tmp_path):
    """With β = 0, γ = λ = 1 and a zero critic, every raw advantage is the score of its response."""
    built = trainer(str(tiny_model_folder), tmp_path, kl_coef=0.0, gae_lambda=1.0, whiten_advantages=False, max_steps=1)
    built.train()
    seen = built.cycle.experience
    for row in range(8):
        n = int(seen.completion_lengths[row])
        assert seen.rewards[row].nonzero().flatten().tolist() in ([n - 1], [])
        torch.testing.assert_close(seen.advantages[row, :n], seen.scores[row].expand(n))


def test_a_missing_stop_token_costs_and_it_is_the_configured_one(tiny_model_folder, tmp_path):
    """With another stop token than EOS, a response that ended by it is not punished, one with EOS alone is."""
    stop = 5  # an ordinary word
    built = trainer(
        str(tiny_model_folder), tmp_path, stop_token_id=stop, missing_eos_penalty=10.0, kl_coef=0.0, max_steps=1
    )
    built.train()
    seen = built.cycle.experience
    ended = [ids[-1] == stop for ids in seen.completion_lists()]
    assert any(ended) and not all(ended)
    total = seen.rewards.sum(-1)
    expected = seen.scores - torch.tensor([0.0 if e else 10.0 for e in ended])
    torch.testing.assert_close(total, expected)


def test_the_kl_coefficient_adapts_once_per_rollout_to_nats_per_response(tiny_model_folder, tmp_path):
    """β ← β·(1 + clip(KL/target − 1, ±0.2)·episodes/horizon), the KL being the sum over a response's tokens."""
    built = trainer(
        str(tiny_model_folder), tmp_path, kl_target=0.5, kl_horizon=80, kl_coef=0.1, max_steps=8, num_ppo_epochs=1
    )
    built.train()
    rows = training_logs(built)
    assert len(rows) == 4
    expected = 0.1
    for row in rows:
        assert row["kl_coef"] == pytest.approx(expected, rel=1e-6)
        expected *= 1 + max(-0.2, min(0.2, row["objective/kl"] / 0.5 - 1)) * 8 / 80
    assert rows[-1]["kl_coef"] != 0.1


# ---- Odd shapes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"rollout_batch_size": 1, "num_mini_batches": 1},
        {"max_completion_length": 1},
        {"rollout_batch_size": 2, "num_mini_batches": 2, "whiten_rewards": True},
        {"num_generations": 4},
        {"train_dataset": prompts(3), "rollout_batch_size": 8},
        {"bootstrap_truncated": True, "normalize_scores": True, "reward_clip": 0.2, "dual_clip": 3.0},
        {"kl_in": "loss", "ent_coef": 0.01, "clip_range_value": None},
        {"value_learning_rate": 1e-3, "critic_warmup_rollouts": 1},
        {"bf16": True},
    ],
)
def test_unusual_settings_train(tiny_model_folder, tmp_path, changes):
    built = trainer(str(tiny_model_folder), tmp_path, **changes)
    before = parameters(built)
    built.train()
    after = parameters(built)
    assert all(torch.isfinite(p).all() for p in after.values())
    assert any(not torch.equal(after[name], before[name]) for name in after)
    assert all(math.isfinite(v) for row in training_logs(built) for v in row.values())


def test_responses_that_stop_at_once_are_trained_on(tiny_model_folder, tmp_path):
    """A policy that says <eos> first: one token per response, nothing divides by zero."""
    lm, tokenizer = load(tiny_model_folder)
    with torch.no_grad():
        lm.lm_head.weight[2] = 0
        lm.lm_head.weight[2] += 50 * lm.model.norm.weight.new_ones(16)
    built = trainer(lm, tmp_path, tokenizer, temperature=1.0)
    built.train()
    assert min(map(len, built.cycle.experience.completion_lists())) == 1
    assert all(math.isfinite(v) for row in training_logs(built) for v in row.values())


@pytest.mark.parametrize("padding", ["none", "eos"])
def test_no_pad_token_and_pad_equal_eos_train_exactly_alike(tiny_model_folder, tmp_path, padding):
    """Masks come from lengths, so a pad token is never needed and may be EOS."""
    ordinary = trainer(*load(tiny_model_folder)[:1], tmp_path / "a", AutoTokenizer.from_pretrained(tiny_model_folder))
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_folder)
    tokenizer.pad_token = None if padding == "none" else tokenizer.eos_token
    other = trainer(load(tiny_model_folder)[0], tmp_path / "b", tokenizer)
    ordinary.train()
    other.train()
    assert training_logs(ordinary) == training_logs(other)


# ---- Critic, early stop, warm-up ------------------------------------------------------------------------------------


def value_model(folder):
    return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1)


@pytest.mark.parametrize("apart", [False, True])
def test_target_kl_leaves_the_policy_to_the_byte(tiny_model_folder, tmp_path, apart):
    """Once the KL passes 1.5 × target the policy rests until the next rollout; a critic apart goes on learning."""
    built = trainer(
        str(tiny_model_folder),
        tmp_path,
        target_kl=1e-9,
        value_model=value_model(tiny_model_folder) if apart else None,
        max_steps=4,
        num_mini_batches=1,
        num_ppo_epochs=4,
    )
    snapshots = []
    original = built.get_batch_samples
    built.get_batch_samples = lambda *a: (snapshots.append(parameters(built)), original(*a))[1]
    built.train()
    snapshots.append(parameters(built))
    policy = [{n: p for n, p in s.items() if n.startswith("policy.")} for s in snapshots]
    critic = [{n: p for n, p in s.items() if not n.startswith("policy.")} for s in snapshots]
    assert not same(policy[0], policy[1])  # the first step has a ratio of 1 and a KL of 0
    assert same(policy[1], policy[2]) and same(policy[2], policy[3]) and same(policy[3], policy[4])
    assert same(critic[2], critic[3]) is not apart


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("apart", [False, True])
def test_in_the_warm_up_only_the_critic_moves(tiny_model_folder, tmp_path, apart):
    built = trainer(
        str(tiny_model_folder),
        tmp_path,
        critic_warmup_rollouts=1,
        value_model=value_model(tiny_model_folder) if apart else None,
        max_steps=4,
    )
    before = parameters(built)
    built.train()
    after = parameters(built)
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert moved and all(name.startswith(("value_head.", "value_model.")) for name in moved)


def test_policy_and_critic_have_their_own_learning_rates(tiny_model_folder, tmp_path):
    built = trainer(str(tiny_model_folder), tmp_path, learning_rate=0.0, value_learning_rate=1e-2, weight_decay=0.1)
    before = parameters(built)
    built.train()
    after = parameters(built)
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert moved == {"value_head.weight", "value_head.bias"}
    assert {"learning_rate", "value_learning_rate"} <= built.state.log_history[0].keys()


def test_a_critic_of_another_width_works_and_of_a_smaller_vocabulary_is_refused(tiny_model_folder, tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    trainer(str(tiny_model_folder), tmp_path, value_model=LlamaForCausalLM(LlamaConfig(vocab_size=20, **sizes))).train()
    with pytest.raises(ValueError, match="vocabulary"):
        other = LlamaForCausalLM(LlamaConfig(vocab_size=19, **sizes))
        trainer(str(tiny_model_folder), tmp_path / "b", value_model=other)


# ---- Adapters, references, rewards ----------------------------------------------------------------------------------


def test_a_lora_policy_learns_and_its_base_stays(tiny_model_folder, tmp_path):
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.2, task_type="CAUSAL_LM")
    built = trainer(str(tiny_model_folder), tmp_path, peft_config=lora)
    before = parameters(built)
    built.train()
    moved = {name for name, p in parameters(built).items() if not torch.equal(p, before[name])}
    assert any("lora_" in name for name in moved)
    assert all("lora_" in name or name.startswith("value_head") for name in moved)
    assert training_logs(built)[0]["objective/kl"] == 0.0


def test_the_same_model_as_policy_and_reference_is_copied(tiny_model_folder, tmp_path):
    lm, tokenizer = load(tiny_model_folder)
    built = trainer(lm, tmp_path, tokenizer, ref_model=lm)
    built.train()
    assert built.reference.model is not lm
    assert all(p.requires_grad for p in lm.parameters())


def test_the_reward_shift_counts_in_training_and_in_evaluation(tiny_model_folder, tmp_path):
    """A reward model's normalisation is applied by whoever reads it (DETAILS 42)."""
    reward_model = value_model(tiny_model_folder)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_folder)
    scores = []
    for shift in (0.0, 2.0):
        reward_model.config.reward_shift = shift
        built = trainer(
            load(tiny_model_folder)[0],
            tmp_path / str(shift),
            tokenizer,
            reward_funcs=copy.deepcopy(reward_model),
            eval_dataset=prompts(4),
            max_steps=1,
        )
        evaluated = built.evaluate()["eval_objective/score"]
        built.train()
        scores.append((float(built.cycle.experience.scores.mean()), evaluated))
    assert scores[0][0] - scores[1][0] == pytest.approx(2.0, abs=1e-4)
    assert scores[0][1] - scores[1][1] == pytest.approx(2.0, abs=1e-4)


def test_evaluation_draws_the_same_each_time(tiny_model_folder, tmp_path):
    built = trainer(str(tiny_model_folder), tmp_path, eval_dataset=prompts(5))
    assert built.evaluate() == built.evaluate()
    with pytest.raises(ValueError, match="eval_dataset"):
        trainer(str(tiny_model_folder), tmp_path).evaluate()
    with pytest.raises(TypeError, match="evaluate"):
        built.predict(None)


def test_a_trained_policy_loads_with_stock_transformers(tiny_model_folder, tmp_path):
    built = trainer(str(tiny_model_folder), tmp_path)
    built.train()
    built.save_model()
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "run")
    assert AutoTokenizer.from_pretrained(tmp_path / "run").eos_token_id == 2
    for name, p in stock.named_parameters():
        assert torch.equal(p, dict(built.model.policy.named_parameters())[name]), name
    assert not list((tmp_path / "run").rglob("*.bin"))


def test_the_entropy_bonus_raises_the_entropy(tiny_model_folder, tmp_path):
    """Nothing else to learn (a constant score, no critic loss): the distribution gets flatter, not sharper."""
    lm, tokenizer = load(tiny_model_folder)
    with torch.no_grad():
        lm.lm_head.weight.mul_(20)  # begin far from uniform
    quiet = {"kl_coef": 0.0, "vf_coef": 0.0, "max_grad_norm": 1e9, "reward_funcs": lambda completions: [0.0] * 8}
    built = trainer(lm, tmp_path, tokenizer, ent_coef=1.0, max_steps=24, **quiet)
    built.train()
    entropies = [row["objective/entropy"] for row in training_logs(built)]
    assert entropies[-1] > entropies[0] + 0.2


def test_the_reward_rises_on_a_task_that_can_be_learnt(tiny_model_folder, tmp_path):
    """Say `good`: within forty small rollouts the score more than doubles."""
    built = trainer(
        str(tiny_model_folder),
        tmp_path,
        reward_funcs=lambda completions: [float(text.split().count("good")) for text in completions],
        rollout_batch_size=32,
        learning_rate=5e-3,
        max_steps=160,
        kl_coef=0.0,
    )
    built.train()
    scores = [row["objective/score"] for row in training_logs(built)]
    assert sum(scores[-5:]) > 2 * sum(scores[:5])
