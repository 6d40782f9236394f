"""What each setting of PPO does, against numbers worked out here from the rollout itself.

`rows` are unpadded: the responses of a rollout are ragged, and lists of different lengths leave padding no place.
"""

from __future__ import annotations

import itertools
import math
import statistics

import pytest
import torch
from datasets import Dataset
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaConfig, LlamaForCausalLM

from tests.trainers.helpers import parameters, reward, trainer, training_logs

ONE_STEP = {"num_ppo_epochs": 1, "num_mini_batches": 1, "max_steps": 1}
PLAIN_SGD = {"optim": "sgd", "learning_rate": 0.1, "lr_scheduler_type": "constant", "max_grad_norm": 1e9}


def rows(experience, name: str) -> list[Tensor]:
    """A per-token field without its padding."""
    return [x[mask] for x, mask in zip(getattr(experience, name), experience.action_mask, strict=True)]


def sequences(experience) -> list[tuple[Tensor, int]]:
    """Each row's tokens without padding, and how many of them are the response's."""
    pairs = zip(experience.input_ids, experience.attention_mask, experience.completion_lengths.tolist(), strict=True)
    return [(ids[mask], n) for ids, mask, n in pairs]


def log_probs(lm, experience) -> list[Tensor]:
    """log π of each response's tokens: one row at a time, over the whole vocabulary, no padding anywhere."""
    found = []
    for ids, n in sequences(experience):
        logp = lm.eval()(ids[None]).logits[0].log_softmax(-1)
        found.append(torch.stack([logp[len(ids) - n + t - 1, ids[len(ids) - n + t]] for t in range(n)]))
    return found


def state_values(trunk, weight: Tensor, bias: Tensor | float, experience) -> list[Tensor]:
    """V(s_1) … V(s_n), V(s_{n+1}): the head on the token before each response token, and on the last one."""
    found = []
    for ids, n in sequences(experience):
        hidden = trunk(ids[None]).last_hidden_state[0, len(ids) - n - 1 :]
        found.append((hidden @ weight.T + bias).squeeze(-1))
    return found


def experiences(built) -> list:
    """Fills with the experience of every rollout while the trainer runs."""
    seen, original = [], built.after_rollout
    built.after_rollout = lambda experience: (seen.append(experience), original(experience))[1]
    return seen


def before_each_step(built) -> list[tuple[dict[str, Tensor], list[int]]]:
    """Fills with the parameters before every optimiser step, and the episodes the step uses."""
    seen, original = [], built.get_batch_samples

    def recorded(*args):
        batches, items = original(*args)
        seen.append((parameters(built), [int(e) for batch in batches for e in batch["episode"]]))
        return batches, items

    built.get_batch_samples = recorded
    return seen


def policy_at(folder, snapshot: dict[str, Tensor]):
    """A stock model with the weights that the policy had."""
    lm = AutoModelForCausalLM.from_pretrained(folder)
    lm.load_state_dict({n.removeprefix("policy."): p for n, p in snapshot.items() if n.startswith("policy.")})
    return lm


def another_model(folder) -> LlamaForCausalLM:
    """The tiny model with noise on its head: a reference from which the policy differs at once."""
    lm = AutoModelForCausalLM.from_pretrained(folder)
    noise = torch.randn(lm.lm_head.weight.shape, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        lm.lm_head.weight.add_(0.5 * noise)
    return lm


def critic(folder):
    """A critic apart whose values are far from 0."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1)
    with torch.no_grad():
        model.score.weight.copy_(torch.linspace(-1, 1, 16)[None])
    return model


def unmoved(a: dict[str, Tensor], b: dict[str, Tensor], prefix: str = "") -> bool:
    return all(torch.equal(a[name], b[name]) for name in a if name.startswith(prefix))


# ---- Rewards --------------------------------------------------------------------------------------------------------


def test_kl_in_the_loss_pulls_by_beta_times_the_log_ratio(tiny_model_folder, tmp_path):
    """Nothing but the KL is left to learn from: the gradient is Σ β·d·∇log π / N, d = log π − log π_ref."""
    built = trainer(
        str(tiny_model_folder),
        tmp_path,
        kl_in="loss",
        kl_coef=0.7,
        vf_coef=0.0,
        ref_model=another_model(tiny_model_folder),
        reward_funcs=lambda completions: [0.0] * len(completions),
        **ONE_STEP,
        **PLAIN_SGD,
    )
    start = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
    built.train()
    experience = built.cycle.experience
    assert not experience.rewards.any() and not experience.advantages.any()
    with torch.no_grad():
        reference = torch.cat(log_probs(another_model(tiny_model_folder), experience))
    ours = torch.cat(log_probs(start, experience))
    (0.7 * (ours.detach() - reference) * ours / len(ours)).sum().backward()
    after = parameters(built)
    largest = 0.0
    for name, p in start.named_parameters():
        step = -0.1 * p.grad
        torch.testing.assert_close(after[f"policy.{name}"] - p.detach(), step, atol=1e-6, rtol=1e-3, msg=name)
        largest = max(largest, float(step.abs().max()))
    assert largest > 1e-3


def test_the_kl_in_the_reward_is_beta_times_the_log_ratio_at_every_token(tiny_model_folder, tmp_path):
    built = trainer(
        str(tiny_model_folder), tmp_path, kl_coef=0.7, ref_model=another_model(tiny_model_folder), **ONE_STEP
    )
    built.train()
    for reward_row, expected in zip(
        rows(built.cycle.experience, "rewards"), raw_rewards(tiny_model_folder, built, 0.7), strict=True
    ):
        torch.testing.assert_close(reward_row, expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def raw_rewards(folder, built, beta: float) -> list[Tensor]:
    """−β·d at every token, and the score at the last, from the models as they were."""
    experience = built.cycle.experience
    ours = log_probs(AutoModelForCausalLM.from_pretrained(folder), experience)
    reference = log_probs(another_model(folder), experience)
    texts = built.processing_class.batch_decode(experience.completion_lists(), skip_special_tokens=True)
    expected = [-beta * (a - b) for a, b in zip(ours, reference, strict=True)]
    for row, score in zip(expected, reward(texts), strict=True):
        row[-1] += score
    return expected


def test_whitened_rewards_have_variance_one_and_the_mean_they_had(tiny_model_folder, tmp_path):
    """(r − m) / √(v + 1e-8) + m, with m and the population variance v over the real tokens of the rollout."""
    built = trainer(
        str(tiny_model_folder),
        tmp_path,
        whiten_rewards=True,
        kl_coef=0.7,
        ref_model=another_model(tiny_model_folder),
        **ONE_STEP,
    )
    built.train()
    raw = [row.tolist() for row in raw_rewards(tiny_model_folder, built, 0.7)]
    assert len(set(map(len, raw))) > 1
    every = [r for row in raw for r in row]
    mean, spread = statistics.fmean(every), math.sqrt(statistics.pvariance(every) + 1e-8)
    for ours, row in zip(rows(built.cycle.experience, "rewards"), raw, strict=True):
        assert ours.tolist() == pytest.approx([(r - mean) / spread + mean for r in row], abs=1e-4)
    assert abs(mean) > 1e-2 and abs(spread - 1) > 1e-2  # otherwise whitening would change nothing
    assert not built.cycle.experience.rewards[~built.cycle.experience.action_mask].any()


def test_scores_are_clipped_after_the_penalty_for_a_missing_end(tiny_model_folder, tmp_path):
    built = trainer(
        str(tiny_model_folder),
        tmp_path,
        reward_clip=0.25,
        missing_eos_penalty=0.3,
        kl_coef=0.0,
        rollout_batch_size=32,
        **ONE_STEP,
    )
    built.train()
    experience = built.cycle.experience
    texts = built.processing_class.batch_decode(experience.completion_lists(), skip_special_tokens=True)
    scores = [s - 0.3 * (ids[-1] != 2) for s, ids in zip(reward(texts), experience.completion_lists(), strict=True)]
    assert min(scores) < -0.25 and max(scores) > 0.25 and any(abs(s) < 0.25 for s in scores)
    assert experience.rewards.sum(-1).tolist() == pytest.approx([max(-0.25, min(0.25, s)) for s in scores], abs=1e-6)
    assert experience.scores.tolist() == pytest.approx(reward(texts), abs=1e-6)  # the score itself stays as it was


def test_scores_are_normalised_by_all_scores_so_far(tiny_model_folder, tmp_path):
    """(s − m) / √(v + 1e-8), m and v over the rollout's own scores and those of the rollouts before."""
    built = trainer(str(tiny_model_folder), tmp_path, normalize_scores=True, kl_coef=0.0, **ONE_STEP | {"max_steps": 2})
    seen = experiences(built)
    built.train()
    so_far: list[float] = []
    for experience in seen:
        texts = built.processing_class.batch_decode(experience.completion_lists(), skip_special_tokens=True)
        so_far += reward(texts)
        mean, spread = statistics.fmean(so_far), math.sqrt(statistics.pvariance(so_far) + 1e-8)
        expected = [(s - mean) / spread for s in reward(texts)]
        assert experience.rewards.sum(-1).tolist() == pytest.approx(expected, abs=1e-4)
    assert len(so_far) == 16 and len(set(so_far)) > 2


# ---- Prompts and advantages -----------------------------------------------------------------------------------------


def test_each_prompt_has_its_responses_in_a_row(tiny_model_folder, tmp_path):
    """Four responses to each of two prompts a rollout; over six rollouts every prompt comes once."""
    built = trainer(str(tiny_model_folder), tmp_path, num_generations=4, **ONE_STEP | {"max_steps": 6})
    seen = experiences(built)
    built.train()
    drawn = []
    for experience in seen:
        assert experience.episode.tolist() == list(range(8))
        for group in (range(4), range(4, 8)):
            numbers = {int(experience.row[i]) for i in group}
            assert len(numbers) == 1 and len({tuple(experience.prompt_lists()[i]) for i in group}) == 1
            assert experience.prompt_lists()[group[0]] == built.prompts.ids[min(numbers)]
            assert len({tuple(experience.completion_lists()[i]) for i in group}) > 1
            drawn += numbers
    assert sorted(drawn) == list(range(12))


@pytest.mark.parametrize("bootstrap", [False, True])
@pytest.mark.parametrize("apart", [False, True])
def test_a_truncated_response_ends_in_the_value_of_its_last_state(tiny_model_folder, tmp_path, bootstrap, apart):
    """A_n = score + γ·V(s_{n+1}) − V(s_n), the middle term only where the response was cut off and it was asked for."""
    built = trainer(
        str(tiny_model_folder),
        tmp_path,
        bootstrap_truncated=bootstrap,
        value_model=critic(tiny_model_folder) if apart else None,
        kl_coef=0.0,
        gamma=0.9,
        gae_lambda=0.5,
        whiten_advantages=False,
        rollout_batch_size=16,
        **ONE_STEP,
    )
    weight, bias = torch.linspace(-1, 1, 16)[None], 0.0
    if not apart:
        bias = 0.3
        with torch.no_grad():
            built.model.value_head.weight.copy_(weight)
            built.model.value_head.bias.fill_(bias)
    built.train()
    experience = built.cycle.experience
    ended = [ids[-1] == 2 for ids in experience.completion_lists()]
    assert any(ended) and not all(ended)
    with torch.no_grad():
        trunk = AutoModelForCausalLM.from_pretrained(tiny_model_folder).model
        values = [v.tolist() for v in state_values(trunk, weight, bias, experience)]
    for i, v in enumerate(values):
        n = len(v) - 1
        after = [*v[1:n], v[n] if bootstrap and not ended[i] else 0.0]
        assert abs(v[n]) > 1e-3
        expected, advantage = [0.0] * n, 0.0
        for t in reversed(range(n)):
            score = float(experience.scores[i]) if t == n - 1 else 0.0
            advantage = score + 0.9 * after[t] - v[t] + 0.9 * 0.5 * advantage
            expected[t] = advantage
        assert rows(experience, "advantages")[i].tolist() == pytest.approx(expected, abs=1e-4)
        returns = [a + b for a, b in zip(expected, v, strict=False)]
        assert rows(experience, "returns")[i].tolist() == pytest.approx(returns, abs=1e-4)


# ---- The objective --------------------------------------------------------------------------------------------------

# Ratio, advantage, loss without and with a dual clip of 1.5 (clip range 0.2).
CLIPPED = [
    (3.0, -1.0, 3.0, 1.5),  # the only one that the dual clip bounds
    (3.0, 1.0, -1.2, -1.2),
    (1.4, -1.0, 1.4, 1.4),
    (0.5, -1.0, 0.8, 0.8),
    (0.5, 2.0, -1.0, -1.0),
]


@pytest.mark.parametrize("dual_clip", [None, 1.5])
def test_the_dual_clip_bounds_the_loss_of_a_bad_token_grown_likely(tiny_model_folder, tmp_path, dual_clip):
    built = trainer(str(tiny_model_folder), tmp_path, dual_clip=dual_clip, vf_coef=0.0, **ONE_STEP)
    built.train()
    for rho, advantage, plain, dual in CLIPPED:
        loss, gradient = loss_at(built, tiny_model_folder, rho, advantage)
        assert loss == pytest.approx(plain if dual_clip is None else dual, rel=1e-4)
        # A loss that is a bound has no gradient: where the ratio is clipped, or the dual clip holds.
        held = (rho, advantage) in ((3.0, 1.0), (0.5, -1.0)) or (dual_clip is not None and dual != plain)
        assert (gradient == 0.0) is held


def loss_at(built, folder, rho: float, advantage: float) -> tuple[float, float]:
    """The objective where every token has this ratio and advantage, and the norm of its gradient."""
    fields = built.cycle.experience.tensors()
    now = log_probs(policy_at(folder, parameters(built)), built.cycle.experience)
    for row, logp in enumerate(now):
        fields["old_logprobs"][row, : len(logp)] = logp.detach() - math.log(rho)
    fields["advantages"] = torch.full_like(fields["advantages"], advantage)
    built.model.zero_grad()
    loss = built.compute_loss(built.model, fields, num_items_in_batch=sum(map(len, now)))
    loss.backward()
    return float(loss.detach()), float(built.model.policy.lm_head.weight.grad.norm())


@pytest.mark.parametrize("epochs", [1, 2])
def test_the_warm_up_is_counted_in_rollouts_of_one_mini_batch_too(tiny_model_folder, tmp_path, epochs):
    """Two rollouts for the critic alone, whatever steps they have; then the policy moves, to the step."""
    built = trainer(
        str(tiny_model_folder),
        tmp_path,
        critic_warmup_rollouts=2,
        num_mini_batches=1,
        num_ppo_epochs=epochs,
        max_steps=3 * epochs,
    )
    seen = before_each_step(built)
    built.train()
    states = [state for state, _ in seen] + [parameters(built)]
    for step, (before, after) in enumerate(itertools.pairwise(states)):
        assert unmoved(before, after, "policy.") is (step < 2 * epochs), step
        assert not unmoved(before, after, "value_head."), step


# ---- What a step logs, and when it stops ----------------------------------------------------------------------------


@torch.no_grad()
def by_hand(folder, experience, snapshot: dict[str, Tensor], episodes: list[int]) -> list[dict[str, float]]:
    """What the metrics of a step are means of, for each token of its episodes, under the parameters before it."""
    chosen = experience.select(torch.tensor(episodes))
    lm = policy_at(folder, snapshot)
    new = log_probs(lm, chosen)
    values = state_values(lm.model, snapshot["value_head.weight"], snapshot["value_head.bias"], chosen)
    tokens = []
    for i in range(len(episodes)):
        fields = [rows(chosen, name)[i].tolist() for name in ("old_logprobs", "advantages", "values", "returns")]
        now = [new[i].tolist(), values[i][:-1].tolist()]
        for logp, v, old, advantage, v_old, target in zip(*now, *fields, strict=True):
            rho, held = math.exp(logp - old), max(v_old - 0.01, min(v_old + 0.01, v))
            tokens.append(
                {
                    "policy/ratio": rho,
                    "policy/approx_kl": rho - 1 - (logp - old),
                    "policy/clip_fraction": (advantage > 0 and rho > 1.1) or (advantage < 0 and rho < 0.9),
                    "value/loss": max((v - target) ** 2, (held - target) ** 2) / 2,
                    "value/clip_fraction": (held - target) ** 2 > (v - target) ** 2,
                    "policy/loss": max(-rho * advantage, -max(0.9, min(1.1, rho)) * advantage),
                }
            )
    return tokens


def mean(tokens: list[dict[str, float]], name: str) -> float:
    return statistics.fmean(token[name] for token in tokens)


STEADY = {"logging_steps": 1, "clip_range": 0.1, "clip_range_value": 0.01, "lr_scheduler_type": "constant"}


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_metrics_of_a_step_are_means_over_its_real_tokens(tiny_model_folder, tmp_path, accumulation):
    """Every step of a cycle, recomputed from the parameters before it, one unpadded response at a time."""
    built = trainer(str(tiny_model_folder), tmp_path, gradient_accumulation_steps=accumulation, **STEADY)
    seen = before_each_step(built)
    built.train()
    experience, logs = built.cycle.experience, training_logs(built)
    for lists in (experience.prompt_lists(), experience.completion_lists()):
        assert len(set(map(len, lists))) > 1, "without padding on both sides this test would prove less"
    for (snapshot, episodes), row in zip(seen, logs, strict=True):
        tokens = by_hand(tiny_model_folder, experience, snapshot, episodes)
        for name in tokens[0]:
            assert row[name] == pytest.approx(mean(tokens, name), abs=1e-4), name
    assert 0 < logs[-1]["policy/clip_fraction"] < 1 and 0 < logs[-1]["value/clip_fraction"] < 1
    assert logs[-1]["policy/approx_kl"] > 1e-3


def test_the_old_numbers_stay_the_same_over_the_epochs(tiny_model_folder, tmp_path):
    """Log-probs, values, advantages and returns are those of the sampling policy in every step of the cycle."""
    built = trainer(str(tiny_model_folder), tmp_path, num_ppo_epochs=3, max_steps=6)
    used, original = [], built.get_batch_samples
    names = ("old_logprobs", "ref_logprobs", "values", "advantages", "returns", "rewards")

    def recorded(*args):
        batches, items = original(*args)
        for batch in batches:
            for i, episode in enumerate(batch["episode"].tolist()):
                used.append((episode, {name: batch[name][i].clone() for name in names}))
        return batches, items

    built.get_batch_samples = recorded
    before = parameters(built)
    built.train()
    assert not unmoved(before, parameters(built)) and len(used) == 3 * 8
    first = dict(used[:8])
    assert sorted(first) == list(range(8))
    for episode, fields in used:
        for name in names:
            assert torch.equal(fields[name], first[episode][name]), name
    start = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
    with torch.no_grad():
        for old, logp in zip(
            rows(built.cycle.experience, "old_logprobs"), log_probs(start, built.cycle.experience), strict=True
        ):
            torch.testing.assert_close(old, logp, atol=1e-5, rtol=1e-5)


def test_target_kl_looks_at_the_whole_step_and_not_at_a_part_of_it(tiny_model_folder, tmp_path):
    """Two micro-batches, one above the limit and one below: their common mean decides, on either side of it."""

    def run(name: str, target: float | None):
        built = trainer(
            str(tiny_model_folder),
            tmp_path / name,
            target_kl=target,
            gradient_accumulation_steps=2,
            num_mini_batches=1,
            num_ppo_epochs=3,
            max_steps=4,
            **STEADY,
        )
        seen = before_each_step(built)
        first = experiences(built)
        built.train()
        return built, [state for state, _ in seen] + [parameters(built)], first[0], seen[1]

    _, free, experience, (snapshot, episodes) = run("free", None)
    halves = [by_hand(tiny_model_folder, experience, snapshot, part) for part in (episodes[:4], episodes[4:])]
    kl = mean(halves[0] + halves[1], "policy/approx_kl")
    parts = sorted(mean(half, "policy/approx_kl") for half in halves)
    below, above = 0.98 * kl / 1.5, 1.02 * kl / 1.5
    assert parts[0] < 1.5 * below and 1.5 * above < parts[1]

    stopped, states, _, _ = run("stopped", below)
    assert unmoved(states[1], states[3], "policy.") and not unmoved(states[0], states[1], "policy.")
    assert not unmoved(states[3], states[4], "policy.")  # the next rollout
    assert training_logs(stopped)[1]["policy/stopped_at"] == 1
    going, states, _, _ = run("going", above)
    assert unmoved(states[2], free[2]) and not unmoved(states[1], states[2], "policy.")
    assert "policy/stopped_at" not in training_logs(going)[1]


# ---- Chat -----------------------------------------------------------------------------------------------------------


def test_chat_prompts_are_rendered_by_the_template_and_scored_as_messages(make_tokenizer, tmp_path):
    tokenizer = make_tokenizer(eos="<|im_end|>", chat=True)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    with torch.random.fork_rng():
        torch.manual_seed(1)
        lm = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes))
    chats = [
        [{"role": "user", "content": "the film"}],
        [{"role": "system", "content": "be dull"}, {"role": "user", "content": "a story"}],
        [*({"role": r, "content": c} for r, c in (("user", "good"), ("assistant", "bad"), ("user", "the actor was")))],
        [{"role": "user", "content": "is the actor bad"}],
    ]
    seen = []

    def watching(prompts, completions, completion_ids):
        seen.append((prompts, completions, completion_ids))
        return [len(turn[0]["content"]) / 10 for turn in completions]

    built = trainer(
        lm,
        tmp_path,
        tokenizer,
        train_dataset=Dataset.from_dict({"prompt": chats}),
        eval_dataset=Dataset.from_dict({"prompt": chats[:1]}),
        reward_funcs=watching,
    )
    before = parameters(built)
    built.train()
    assert not unmoved(before, parameters(built), "policy.")
    experience = built.cycle.experience
    for row, ids in zip(experience.row.tolist(), experience.prompt_lists(), strict=True):
        rendered = tokenizer.apply_chat_template(chats[row], add_generation_prompt=True, return_dict=False)
        assert ids == rendered and tokenizer.decode(ids).endswith("<|im_start|>assistant\n")
    prompts, completions, ids = seen[0]
    assert prompts == [chats[row] for row in experience.row.tolist()]
    assert ids == experience.completion_lists()
    texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
    assert completions == [[{"role": "assistant", "content": text}] for text in texts]
    assert experience.scores.tolist() == pytest.approx([len(text) / 10 for text in texts])
    built.evaluate()
    assert seen[-1][0] == chats[:1] and seen[-1][1][0][0]["role"] == "assistant"
