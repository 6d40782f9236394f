"""One forward of policy and critic against a plain forward of the same model, row by row, without padding."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
)

from hfrlhf.experience import Rollout
from hfrlhf.models.policy.actor_critic import ActorCritic, computes_here


def ragged_rollout(vocabulary: int = 20) -> Rollout:
    """Prompts and responses of all lengths, an empty response and one of a single token among them."""
    generator = torch.Generator().manual_seed(0)
    lengths = [(6, 9), (2, 1), (3, 4), (5, 0), (1, 9)]
    width, actions = 6, 9
    ids = torch.randint(4, vocabulary, (len(lengths), width + actions), generator=generator)
    attention = torch.ones_like(ids, dtype=torch.bool)
    action = torch.ones(len(lengths), actions, dtype=torch.bool)
    for row, (prompt, response) in enumerate(lengths):
        attention[row, : width - prompt] = False
        attention[row, width + response :] = False
        action[row, response:] = False
    rows = torch.arange(len(lengths))
    return Rollout(ids * attention, attention, action, rows > 1, rows, rows, torch.zeros(action.shape))


def row_by_row(lm: torch.nn.Module, rollout: Rollout, temperature: float) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Log-probs and entropy of each response from the model's own logits, each row alone."""
    result = []
    for ids, mask, response in zip(rollout.input_ids, rollout.attention_mask, rollout.completion_lengths, strict=True):
        real = ids[mask]
        logp = (lm(real[None]).logits[0].float() / temperature).log_softmax(-1)
        states = logp[len(real) - response - 1 : len(real) - 1]
        chosen = states.gather(-1, real[len(real) - response :, None]).squeeze(-1)
        result.append((chosen, -(states.exp() * states).sum(-1)))
    return result


def gpt2() -> torch.nn.Module:
    return GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=16, n_layer=2, n_head=2, n_positions=64, bos_token_id=1))


def soft_capped() -> torch.nn.Module:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    heads = {"head_dim": 8, "num_key_value_heads": 1}
    config = Gemma2Config(vocab_size=20, final_logit_softcapping=0.5, sliding_window=4, **sizes, **heads)
    model = Gemma2ForCausalLM(config)
    model.get_output_embeddings().weight.data.normal_()
    return model


@pytest.fixture(params=["llama", "gpt2", "soft-capped"])
def language_model(request, tiny_model_folder):
    """A rotary, an absolute-position and a sliding-window model whose logits are capped."""
    torch.manual_seed(0)
    if request.param == "llama":
        return AutoModelForCausalLM.from_pretrained(tiny_model_folder).eval()
    return {"gpt2": gpt2, "soft-capped": soft_capped}[request.param]().eval()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_and_entropy_are_those_of_each_row_alone(language_model, temperature):
    rollout = ragged_rollout()
    seen = ActorCritic(language_model, "V", temperature)(rollout)
    for row, (logprobs, entropy) in enumerate(row_by_row(language_model, rollout, temperature)):
        n = len(logprobs)
        torch.testing.assert_close(seen.logprobs[row, :n], logprobs, atol=1e-5, rtol=0)
        torch.testing.assert_close(seen.entropy[row, :n], entropy, atol=5e-5, rtol=0)
        assert not seen.logprobs[row, n:].any() and not seen.entropy[row, n:].any()


def test_a_value_belongs_to_the_state_before_its_token(tiny_model_folder):
    """V_t is read at the token before a_t, and the bootstrap value at the last token of all."""
    lm = AutoModelForCausalLM.from_pretrained(tiny_model_folder).eval()
    actor_critic = ActorCritic(lm, "V")
    torch.nn.init.normal_(actor_critic.value_head.weight)
    rollout = ragged_rollout()
    seen = actor_critic(rollout)
    for row, (ids, mask) in enumerate(zip(rollout.input_ids, rollout.attention_mask, strict=True)):
        hidden = lm.model(ids[mask][None]).last_hidden_state[0]
        every = (hidden @ actor_critic.value_head.weight[0]) + actor_critic.value_head.bias
        n = int(rollout.completion_lengths[row])
        torch.testing.assert_close(seen.values[row, :n], every[len(every) - n - 1 : -1], atol=1e-5, rtol=0)
        torch.testing.assert_close(seen.bootstrap_values[row], every[-1], atol=1e-5, rtol=0)


def test_a_critic_of_its_own_subtracts_the_reward_shift(tiny_model_folder):
    """A critic begun from a reward model predicts normalised scores."""
    lm = AutoModelForCausalLM.from_pretrained(tiny_model_folder).eval()
    critic = AutoModelForSequenceClassification.from_pretrained(tiny_model_folder, num_labels=1).eval()
    rollout = ragged_rollout()
    before = ActorCritic(lm, critic)(rollout).values
    critic.config.reward_shift = 1.5
    after = ActorCritic(lm, critic)(rollout).values
    expected = torch.where(rollout.action_mask, before - 1.5, 0.0)
    torch.testing.assert_close(after, expected)


def test_left_padding_and_a_wider_batch_change_nothing(tiny_model_folder):
    lm = AutoModelForCausalLM.from_pretrained(tiny_model_folder).eval()
    actor_critic, rollout = ActorCritic(lm, "V"), ragged_rollout()
    alone = actor_critic(rollout.select(torch.tensor([2])))
    together = actor_critic(rollout)
    torch.testing.assert_close(alone.logprobs[0], together.logprobs[2], atol=1e-5, rtol=0)


def test_a_q_head_values_the_taken_action_the_best_and_the_average(language_model):
    """Against every output of the head on the stock model's hidden states and logits, row by row."""
    actor_critic = ActorCritic(language_model, "Q", temperature=0.7)
    torch.nn.init.normal_(actor_critic.value_head.weight)
    torch.nn.init.normal_(actor_critic.value_head.bias)
    rollout = ragged_rollout()
    seen = actor_critic(rollout, need_expected_values=True)
    assert seen.bootstrap_values is None
    backbone = language_model.base_model
    for row, (ids, mask) in enumerate(zip(rollout.input_ids, rollout.attention_mask, strict=True)):
        n = int(rollout.completion_lengths[row])
        ids = ids[mask][None]
        hidden = backbone(ids).last_hidden_state[0]
        states = slice(ids.shape[1] - n - 1, ids.shape[1] - 1)
        q = (hidden @ actor_critic.value_head.weight.T + actor_critic.value_head.bias)[states]
        policy = (language_model(ids).logits[0, states] / 0.7).softmax(-1)
        taken = q.gather(-1, ids[0, ids.shape[1] - n :, None]).squeeze(-1)
        torch.testing.assert_close(seen.values[row, :n], taken, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(seen.best_values[row, :n], q.amax(-1), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(seen.expected_values[row, :n], (policy * q).sum(-1), atol=1e-4, rtol=1e-4)
        assert not seen.values[row, n:].any() and not seen.best_values[row, n:].any()


@pytest.mark.parametrize("critic", ["head", "Q head", "model"])
def test_policy_and_critic_survive_saving_to_the_bit(tiny_model_folder, tmp_path, critic):
    lm = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
    value = "Q" if critic == "Q head" else "V"
    if critic == "model":
        value = AutoModelForSequenceClassification.from_pretrained(tiny_model_folder, num_labels=1)
    saved = ActorCritic(lm, value)
    for parameter in saved.parameters():
        torch.nn.init.normal_(parameter)
    saved.save_pretrained(tmp_path)
    fresh = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
    other = AutoModelForSequenceClassification.from_pretrained(tiny_model_folder, num_labels=1)
    loaded = ActorCritic(fresh, other if critic == "model" else value)
    loaded.load_saved(tmp_path)
    for (name, ours), theirs in zip(saved.named_parameters(), loaded.parameters(), strict=True):
        assert torch.equal(ours, theirs), name
    stock = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = torch.tensor([[1, 5, 6]])
    assert torch.equal(stock.eval()(ids).logits, lm.eval()(ids).logits)


def test_loading_from_a_folder_without_the_value_head_says_so(tiny_model_folder):
    actor_critic = ActorCritic(AutoModelForCausalLM.from_pretrained(tiny_model_folder), "V")
    with pytest.raises(FileNotFoundError, match="value_head"):
        actor_critic.load_saved(tiny_model_folder)


def test_an_unknown_change_of_the_logits_is_refused(tiny_model_folder):
    """A model whose forward does something to its logits that the head alone does not."""
    lm = AutoModelForCausalLM.from_pretrained(tiny_model_folder).eval()
    plain = lm.forward

    def scaled(*args, **kwargs):
        output = plain(*args, **kwargs)
        output.logits = output.logits * 3
        return output

    lm.forward = scaled
    with pytest.raises(ValueError, match="LOGIT_TRANSFORMS"):
        ActorCritic(lm)


def test_no_tensor_of_the_size_of_all_logits_is_made(tiny_model_folder):
    """Forward and backward of a batch never hold [B,T,V], not even [B,A,V]."""
    from torch.utils._python_dispatch import TorchDispatchMode
    from transformers import LlamaConfig, LlamaForCausalLM

    vocabulary = 50_000
    lm = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=1,
            tie_word_embeddings=True,
        )
    )
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.shape != lm.get_output_embeddings().weight.shape:
                largest = max(largest, out.numel())
            return out

    rows = torch.arange(16)
    mask = torch.ones(16, 64, dtype=torch.bool)
    ids = torch.randint(0, vocabulary, (16, 68))
    rollout = Rollout(ids, torch.ones_like(ids, dtype=torch.bool), mask, rows > 0, rows, rows, torch.zeros(16, 64))
    actor_critic = ActorCritic(lm, "V")
    with Watch():
        seen = actor_critic(rollout)
        (seen.logprobs.sum() + seen.entropy.sum() + seen.values.sum()).backward()
    assert largest < mask.sum() * vocabulary / 4


def test_a_policy_that_computes_on_a_gpu_alone_is_not_tried_before_it_is_there(tiny_model_folder):
    """Flash attention has no kernel for CPUs, where models are loaded; the trainer tries it on the GPU."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
    assert computes_here(model)
    model.config._attn_implementation = "flash_attention_2"
    assert not computes_here(model)
    ActorCritic(model)  # would run it
