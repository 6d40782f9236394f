"""What a model remembers, and under which name, is found out by running it; what does not add up is refused."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import transformers as tf
from transformers.utils import ModelOutput

from hfrlhf.rollout.decoding import Decoding
from hfrlhf.rollout.examination import DecodingIsWrong, examined
from hfrlhf.rollout.generation import TransformersGenerator
from tests.rollout.test_generation import (
    NO_IDS,
    ROPE,
    ROWS,
    V,
    common_token,
    prompts_of,
    sampler_logprobs,
    teacher_forced,
)

SMALL: dict[str, Any] = {"vocab_size": V, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
GPT: dict[str, Any] = {"vocab_size": V, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
SCAN: dict[str, Any] = {"mamba_d_state": 4, "mamba_n_groups": 1, "mamba_chunk_size": 8}
NO_STOPS: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": None, "eos_token_id": None}

# One of every kind of state. Windows are shorter than prompt and response together, so that they matter.
KINDS: dict[str, Callable[[], Any]] = {
    "full attention": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**ROPE, **NO_IDS)),
    "learned positions": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**GPT, **NO_IDS)),
    "ALiBi": lambda: tf.BloomForCausalLM(
        tf.BloomConfig(vocab_size=V, hidden_size=32, n_layer=2, n_head=4, **NO_IDS)
    ),
    "ALiBi, use_cache off": lambda: tf.MptForCausalLM(
        tf.MptConfig(vocab_size=V, d_model=32, n_layers=2, n_heads=4, max_seq_len=64, **NO_IDS)
    ),
    "sliding window": lambda: tf.MistralForCausalLM(tf.MistralConfig(**ROPE, sliding_window=6, **NO_IDS)),
    "sliding and full": lambda: tf.Gemma3ForCausalLM(
        tf.Gemma3TextConfig(
            **ROPE, sliding_window=6, layer_types=["sliding_attention", "full_attention"], query_pre_attn_scalar=8,
            **NO_IDS,
        )
    ),
    "chunked": lambda: tf.Llama4ForCausalLM(
        tf.Llama4TextConfig(
            **ROPE, intermediate_size_mlp=48, num_local_experts=2, attention_chunk_size=6, moe_layers=[1], **NO_IDS
        )
    ),
    "mixture of experts": lambda: tf.MixtralForCausalLM(tf.MixtralConfig(**ROPE, num_local_experts=4, **NO_IDS)),
    "layers that read another's": lambda: tf.Gemma3nForCausalLM(
        tf.Gemma3nTextConfig(
            vocab_size=V, vocab_size_per_layer_input=V, hidden_size=32, hidden_size_per_layer_input=4, laurel_rank=4,
            intermediate_size=[48] * 4, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
            num_kv_shared_layers=2, layer_types=["sliding_attention", "full_attention"] * 2, sliding_window=6,
            altup_num_inputs=2, activation_sparsity_pattern=[0.0] * 4,
        )
    ),
    "convolution and attention": lambda: tf.Lfm2ForCausalLM(
        tf.Lfm2Config(**ROPE, layer_types=["conv", "full_attention"], conv_L_cache=3, **NO_IDS)
    ),
    "state space": lambda: tf.MambaForCausalLM(
        tf.MambaConfig(vocab_size=V, hidden_size=32, state_size=4, num_hidden_layers=2, time_step_rank=4, **NO_IDS)
    ),
    "state space, in blocks": lambda: tf.Mamba2ForCausalLM(
        tf.Mamba2Config(
            vocab_size=V, hidden_size=32, state_size=4, num_hidden_layers=2, num_heads=8, head_dim=8, n_groups=1,
            expand=2, chunk_size=8, **NO_IDS,
        )
    ),
    "hybrid": lambda: tf.BambaForCausalLM(
        tf.BambaConfig(
            **SMALL, **SCAN, intermediate_size=48, num_key_value_heads=2, attn_layer_indices=[1], mamba_n_heads=8,
            mamba_d_head=8, max_position_embeddings=64, **NO_STOPS,
        )
    ),
    "hybrid, both in a layer": lambda: tf.FalconH1ForCausalLM(
        tf.FalconH1Config(
            **SMALL, **SCAN, intermediate_size=48, num_key_value_heads=2, mamba_d_ssm=32, mamba_n_heads=4,
            mamba_d_head=8, max_position_embeddings=64, **NO_STOPS,
        )
    ),
    "linear attention": lambda: tf.Qwen3NextForCausalLM(
        tf.Qwen3NextConfig(
            **ROPE, layer_types=["linear_attention", "full_attention"], linear_key_head_dim=8, linear_value_head_dim=8,
            linear_num_key_heads=2, linear_num_value_heads=4, num_experts=2, num_experts_per_tok=1,
            moe_intermediate_size=16, shared_expert_intermediate_size=16, **NO_IDS,
        )
    ),
    "a state that rows spoil for each other": lambda: tf.RwkvForCausalLM(
        tf.RwkvConfig(vocab_size=V, hidden_size=32, attention_hidden_size=32, num_hidden_layers=2, context_length=64)
    ),
    "a state inside the model": lambda: tf.RecurrentGemmaForCausalLM(
        tf.RecurrentGemmaConfig(
            **SMALL | {"num_hidden_layers": 3}, intermediate_size=48, num_key_value_heads=1, head_dim=8, lru_width=32,
            attention_window_size=6, **NO_STOPS,
        )
    ),
    "a state that it cannot begin with": lambda: tf.xLSTMForCausalLM(
        tf.xLSTMConfig(
            vocab_size=V, hidden_size=32, num_heads=2, num_hidden_layers=2, chunk_size=8,
            chunkwise_kernel="chunkwise--native_autograd", sequence_kernel="native_sequence__native",
            step_kernel="native",
        )
    ),
    "no state at all": lambda: tf.OpenAIGPTLMHeadModel(tf.OpenAIGPTConfig(**GPT)),
}  # fmt: skip
WITHOUT_STATE = {
    "a state that it cannot begin with",
    "a state that rows spoil for each other",
    "a state inside the model",
    "no state at all",
}


def built(kind: str) -> Any:
    """A random model whose next-token distributions are neither flat nor certain."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = KINDS[kind]()
        for parameter in model.parameters():
            if parameter.ndim == 2:
                torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:.*is sampled without a state")
def test_every_kind_of_state_is_sampled_with_its_context(kind: str) -> None:
    """Ragged prompts, rows that end at different times: each token's log-prob is that of a forward of the row alone."""
    model = built(kind)
    assert (examined(model).state is None) == (kind in WITHOUT_STATE)
    stop = common_token(model, {}, (1, 2))
    rollout = TransformersGenerator(12, stop_token_id=stop).generate(model, prompts_of(ROWS * 2), (1, 2))
    assert rollout.completion_lengths.unique().numel() > 1
    for ours, theirs in zip(sampler_logprobs(rollout), teacher_forced(model, rollout), strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0)


@pytest.mark.parametrize("kind", sorted(WITHOUT_STATE))
def test_sampling_without_a_state_is_said_once(kind: str) -> None:
    model, prompts = built(kind), prompts_of(ROWS)
    with pytest.warns(UserWarning, match=rf"{type(model).__name__} is sampled without a state.*slow") as caught:
        for rollout in range(3):
            TransformersGenerator(2).generate(model, prompts, (rollout,))
    assert len([w for w in caught if "without a state" in str(w.message)]) == 1


def test_ordinary_models_are_sampled_as_fast_as_they_can_be() -> None:
    """Prefilled in groups, with rows that leave; and nothing is said."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for kind in ("full attention", "sliding and full", "ALiBi"):
            found = examined(built(kind))
            assert found.leaves and found.pads and "logits_to_keep" in found.options


# ---- Models that lose their state ---------------------------------------------------------------------------------


def cache_argument(model: Any) -> str:
    """What this release of transformers calls the argument: the name under which the cache comes back."""
    outputs = model(input_ids=torch.tensor([[3, 9]]), use_cache=True)
    return next(name for name, value in outputs.items() if isinstance(value, tf.Cache))


def renamed(model: Any) -> None:
    """As transformers 5.24 did with `past_key_values`: the old name is still accepted, and does nothing."""
    forward, name = model.forward, cache_argument(model)

    def with_another_name(*args: Any, memory: Any = None, **options: Any) -> Any:
        options.pop(name, None)
        return forward(*args, **options, **{name: memory})

    model.forward = with_another_name


def ignored(model: Any) -> None:
    """The cache is given back, and its contents are not used."""
    forward, name = model.forward, cache_argument(model)
    model.forward = lambda *args, **options: forward(*args, **{k: v for k, v in options.items() if k != name})


def emptied(model: Any) -> None:
    """No cache comes back."""
    forward = model.forward
    model.forward = lambda *args, **options: forward(*args, **options | {"use_cache": False})


@pytest.mark.parametrize("spoil", [renamed, ignored, emptied], ids=lambda f: f.__name__)
@pytest.mark.parametrize("sharp", [False, True], ids=["as initialised", "as sharp as trained"])
def test_a_model_that_loses_its_state_is_refused(spoil: Callable[[Any], None], sharp: bool) -> None:
    """Also one whose distributions are nearly flat, in which little depends on the context."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = KINDS["full attention"]().eval()
    if sharp:
        model = built("full attention")
    spoil(model)
    with pytest.raises(DecodingIsWrong, match=r"LlamaForCausalLM.*constraints\.txt.*use_cache = False"):
        TransformersGenerator(4).generate(model, prompts_of(ROWS), (0,))


@pytest.mark.parametrize("spoil", [renamed, ignored, emptied], ids=lambda f: f.__name__)
@pytest.mark.filterwarnings("ignore:.*is sampled without a state")
def test_the_remedy_named_works(spoil: Callable[[Any], None]) -> None:
    model = built("full attention")
    spoil(model)
    model.generation_config.use_cache = False
    rollout = TransformersGenerator(5).generate(model, prompts_of(ROWS), (0,))
    for ours, theirs in zip(sampler_logprobs(rollout), teacher_forced(model, rollout), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@dataclass
class Tomorrow(ModelOutput):
    """What a forward of a later release may give back."""

    logits: torch.Tensor | None = None
    recollection: Any = None


def test_a_state_under_any_name_is_given_back_under_it() -> None:
    """The next rename needs no release of ours."""
    model = built("full attention")
    forward, name = model.forward, cache_argument(model)

    def tomorrow(*args: Any, recollection: Any = None, **options: Any) -> Any:
        outputs = forward(*args, **options, **{name: recollection})
        return Tomorrow(logits=outputs.logits, recollection=outputs[name] if options.get("use_cache") else None)

    model.forward = tomorrow
    assert examined(model) == Decoding("recollection", ("position_ids", "logits_to_keep"))
    assert name not in inspect.signature(tomorrow).parameters
    rollout = TransformersGenerator(5).generate(model, prompts_of(ROWS), (0,))
    model.forward = forward
    for ours, theirs in zip(sampler_logprobs(rollout), teacher_forced(model, rollout), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_a_model_patched_after_it_was_used_is_found_out_when_it_is_examined_anew() -> None:
    model = built("full attention")
    examined(model)
    ignored(model)
    with pytest.raises(DecodingIsWrong):
        examined(model, anew=True)
