"""Tokenizer, embeddings and sampled ids: the policy is the distribution over the tokens that the tokenizer knows."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
)

from hfrlhf import (
    PolicyGradientConfig,
    PolicyGradientTrainer,
    PPOConfig,
    PPOTrainer,
    RewardConfig,
    RewardTrainer,
    TRPOConfig,
    TRPOTrainer,
)
from hfrlhf.core.logprobs import linear_logprobs
from hfrlhf.models.policy.actor_critic import ActorCritic
from hfrlhf.models.policy.reference import make_reference
from tests.conftest import word_tokenizer
from tests.models.policy.test_actor_critic import ragged_rollout

KNOWN, PADDED = 20, 60
OPTIONS: dict[str, Any] = {"report_to": [], "disable_tqdm": True, "use_cpu": True, "save_strategy": "no"}
PROMPTS = Dataset.from_dict({"prompt": ["the film", "a good story is"] * 4})
PAIRS = {"prompt": ["the film"] * 4, "chosen": ["is good"] * 4, "rejected": ["is very bad"] * 4}
SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def llama(vocabulary: int, kind: Any = LlamaForCausalLM, seed: int = 0, **more: Any) -> Any:
    torch.manual_seed(seed)
    return kind(LlamaConfig(vocab_size=vocabulary, **(SIZES | more)))


def capped(vocabulary: int) -> Any:
    """Its logits are changed behind the head, so that the head is called as a whole."""
    torch.manual_seed(0)
    more = {"head_dim": 8, "num_key_value_heads": 1, "final_logit_softcapping": 0.5}
    return Gemma2ForCausalLM(Gemma2Config(vocab_size=vocabulary, **(SIZES | more)))


def length(completions: list[str], **_: Any) -> list[float]:
    return [float(len(text)) for text in completions]


def ppo(policy: Any, folder: Path, reward: Any = length, **more: Any) -> PPOTrainer:
    settings = {"rollout_batch_size": 32, "max_completion_length": 12, "max_steps": 2, "learning_rate": 1e-3}
    names = ("temperature", "kl_coef", "logging_steps", "num_ppo_epochs")
    settings |= {name: more.pop(name) for name in names if name in more}
    args = PPOConfig(str(folder), **settings, **OPTIONS)
    arguments = {"train_dataset": PROMPTS, "processing_class": word_tokenizer()} | more
    return PPOTrainer(policy, reward, args, **arguments)


# ---- Log-probs of a part of the head --------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [False, True])
def test_log_probs_entropy_and_gradients_are_those_of_the_heads_first_rows(bias: bool) -> None:
    torch.manual_seed(0)
    hidden, weight, offset = (torch.randn(*shape, requires_grad=True) for shape in ((9, 4), (30, 4), (30,)))
    targets, b = torch.randint(20, (9,)), offset if bias else None
    logps, entropy = linear_logprobs(hidden, weight, targets, 0.7, b, chunk_size=2, vocabulary=20)
    logits = (hidden @ weight[:20].T + (offset[:20] if bias else 0)) / 0.7
    full = logits.log_softmax(-1)
    expected = full.gather(-1, targets[:, None]).squeeze(-1), -(full.exp() * full).sum(-1)
    torch.testing.assert_close(logps, expected[0])
    torch.testing.assert_close(entropy, expected[1])
    over = [hidden, weight, *([offset] if bias else [])]
    found = torch.autograd.grad((logps.sin() + entropy.cos()).sum(), over)
    wanted = torch.autograd.grad((expected[0].sin() + expected[1].cos()).sum(), over)
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert not found[1][20:].any()


@pytest.mark.parametrize("build", [llama, capped])
def test_policy_and_reference_are_distributions_over_the_known_tokens(build: Any) -> None:
    policy, rollout = build(PADDED).eval(), ragged_rollout()
    found = ActorCritic(policy, "Q", 0.7, KNOWN)(rollout, need_expected_values=True)
    reference = make_reference(policy, None, KNOWN).logprobs(rollout, 0.7)
    torch.testing.assert_close(found.logprobs, reference)
    row, n = 0, 9  # six tokens of prompt, nine of response, no padding
    full = (policy(rollout.input_ids[row : row + 1]).logits[0, 5:14, :KNOWN] / 0.7).log_softmax(-1)
    chosen = full.gather(-1, rollout.input_ids[row, 6:, None]).squeeze(-1)
    torch.testing.assert_close(found.logprobs[row, :n], chosen)
    torch.testing.assert_close(found.entropy[row, :n], -(full.exp() * full).sum(-1))


# ---- Runs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_ids_beyond_the_tokenizer_are_never_drawn_and_the_log_probs_are_the_samplers(
    temperature: float, tmp_path: Path
) -> None:
    trainer = ppo(llama(PADDED), tmp_path, temperature=temperature, logging_steps=1)
    rollout = trainer.generate(*trainer.training_prompts(0))
    assert rollout.completion_ids.max() < KNOWN  # 384 draws, of which two in three would lie beyond
    seen = trainer.maker.evaluate(rollout, torch.zeros(32), torch.zeros(32, 1))
    torch.testing.assert_close(seen.logprobs, rollout.sampler_logprobs, atol=1e-5, rtol=0)
    torch.testing.assert_close(seen.ref_logprobs, seen.logprobs)
    assert seen.entropy.max() <= torch.tensor(KNOWN).log() + 1e-5
    trainer.train()
    log = trainer.state.log_history[0]
    assert log["policy/sampler_mismatch"] < 1e-5 and log["objective/entropy"] < 3.0


def test_a_reward_model_with_fewer_embeddings_than_the_policy_reads_every_response(tmp_path: Path) -> None:
    classifier = {"num_labels": 1, "architectures": ["LlamaForSequenceClassification"]}
    reward = llama(KNOWN, LlamaForSequenceClassification, **classifier)
    trainer = ppo(llama(PADDED), tmp_path, reward)
    trainer.train()
    assert trainer.state.global_step == 2


@pytest.mark.parametrize("role", ["ref_model", "value_model"])
@pytest.mark.parametrize("size", [KNOWN, KNOWN + 4, 2 * PADDED])
def test_reference_and_critic_may_have_other_padding_behind_the_same_tokens(
    role: str, size: int, tmp_path: Path
) -> None:
    kind = LlamaForCausalLM if role == "ref_model" else LlamaForSequenceClassification
    other = llama(size, kind, seed=1, num_labels=1).eval()
    trainer = ppo(llama(PADDED), tmp_path, **{role: other})
    rollout = trainer.generate(*trainer.training_prompts(0))
    if role == "ref_model":
        found = trainer.reference.logprobs(rollout, 1.0)
        width = int(rollout.attention_mask[0].sum())
        real, n = rollout.input_ids[0][rollout.attention_mask[0]], int(rollout.completion_lengths[0])
        logp = other(real[None]).logits[0, width - n - 1 : -1, :KNOWN].log_softmax(-1)
        torch.testing.assert_close(found[0, :n], logp.gather(-1, real[width - n :, None]).squeeze(-1))
    trainer.train()


def test_a_model_that_lacks_tokens_in_use_or_was_saved_with_another_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the reference has a vocabulary of 19, the policy one of 60"):
        ppo(llama(PADDED), tmp_path, ref_model=llama(KNOWN - 1))
    words = word_tokenizer().get_vocab()
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    swapped = {token: {4: 5, 5: 4}.get(i, i) for token, i in words.items()}
    inner = Tokenizer(models.WordLevel(swapped, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>").save_pretrained(tmp_path / "other")
    llama(KNOWN + 4).save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="the reference has a vocabulary of 24, the policy one of 60"):
        ppo(llama(PADDED), tmp_path, ref_model=str(tmp_path / "other"))
    word_tokenizer().save_pretrained(tmp_path / "other")
    ppo(llama(PADDED), tmp_path, ref_model=str(tmp_path / "other"))


def test_trpo_takes_its_step_among_the_known_tokens(tmp_path: Path) -> None:
    """The step on padded embeddings is the step on embeddings that were never padded."""
    padded, exact = llama(PADDED), llama(KNOWN)
    exact.load_state_dict({name: w[:KNOWN] if len(w) == PADDED else w for name, w in padded.state_dict().items()})
    logs = []
    for name, policy in (("padded", padded), ("exact", exact)):
        args = TRPOConfig(
            str(tmp_path / name),
            rollout_batch_size=8,
            max_completion_length=6,
            max_steps=1,
            logging_steps=1,
            **OPTIONS,
        )
        trainer = TRPOTrainer(policy, length, args, PROMPTS, processing_class=word_tokenizer())
        trainer.train()
        logs.append(trainer.state.log_history[0])
    for metric in ("policy/kl", "policy/surrogate_gain", "policy/grad_norm", "objective/entropy"):
        assert logs[0][metric] == pytest.approx(logs[1][metric], rel=1e-3, abs=1e-7), metric


def test_a_q_head_expects_over_the_known_tokens(tmp_path: Path) -> None:
    args = PolicyGradientConfig(
        str(tmp_path),
        algorithm="expected_baseline_actor_critic",
        rollout_batch_size=8,
        max_completion_length=4,
        max_steps=1,
        **OPTIONS,
    )
    trainer = PolicyGradientTrainer(llama(PADDED), length, args, PROMPTS, processing_class=word_tokenizer())
    with torch.no_grad():
        trainer.model.value_head.bias[KNOWN:] = 1000.0
    trainer.train()
    rollout = trainer.generate(*trainer.training_prompts(0))
    assert trainer.unwrapped()(rollout, need_expected_values=True).best_values.max() < 100


# ---- A tokenizer with more than the embeddings ----------------------------------------------------------------------


def with_image_token(**special: str) -> Any:
    tokenizer = copy.deepcopy(word_tokenizer())
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    for name, token in special.items():
        setattr(tokenizer, name, token)
    return tokenizer


def test_a_token_that_no_data_uses_is_a_warning(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"'<image>' \(20\) lies beyond the policy's vocabulary, which ends at 19"):
        trainer = ppo(llama(KNOWN), tmp_path, processing_class=with_image_token())
    trainer.train()
    args = RewardConfig(str(tmp_path / "reward"), max_steps=1, **OPTIONS)
    with pytest.warns(UserWarning, match=r"'<image>' \(20\) lies beyond the reward model's"):
        reward = RewardTrainer(llama(KNOWN), args, Dataset.from_dict(PAIRS), processing_class=with_image_token())
    reward.train()


@pytest.mark.filterwarnings("ignore:the tokenizer's")
def test_data_that_use_it_are_refused_with_the_row(tmp_path: Path) -> None:
    said = r"row 2 of the {} holds the token '<image>' \(20\), but the {}'s vocabulary ends at 19; .*embeddings\(21\)"
    bad = Dataset.from_dict({"prompt": ["the film", "a story", "a <image> is", "good"]})
    with pytest.raises(ValueError, match=said.format("train dataset", "policy")):
        ppo(llama(KNOWN), tmp_path, train_dataset=bad, processing_class=with_image_token())
    with pytest.raises(ValueError, match=said.format("eval dataset", "policy")):
        ppo(llama(KNOWN), tmp_path, eval_dataset=bad, processing_class=with_image_token())
    trainer = ppo(llama(KNOWN), tmp_path, processing_class=with_image_token())
    with pytest.raises(ValueError, match=said.format("eval dataset", "policy")):
        trainer.evaluate(bad)
    pairs = Dataset.from_dict(PAIRS | {"rejected": ["bad", "dull", "<image>", "bad"]})
    args = RewardConfig(str(tmp_path / "reward"), max_steps=1, **OPTIONS)
    with pytest.raises(ValueError, match=said.format("train dataset", "reward model")):
        RewardTrainer(llama(KNOWN), args, pairs, processing_class=with_image_token())


@pytest.mark.parametrize("name", ["eos_token", "pad_token", "bos_token"])
def test_a_token_with_a_task_beyond_the_embeddings_is_refused(name: str, tmp_path: Path) -> None:
    tokenizer = with_image_token(**{name: "<image>"})
    with pytest.raises(ValueError, match=rf"ids up to 20 \({name} '<image>' among them\), the policy's .* at 19"):
        ppo(llama(KNOWN), tmp_path, processing_class=tokenizer)


def test_a_tokenizer_whose_ordinary_tokens_lie_beyond_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="ids up to 19, the policy's vocabulary ends at 9: they do not belong"):
        ppo(llama(10), tmp_path)
