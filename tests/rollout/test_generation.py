"""The decode loop against `generate()` of transformers, full forward passes and exact probabilities, on real models."""

from __future__ import annotations

import dataclasses
import itertools
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from peft import LoraConfig, get_peft_model
from torch import Tensor

from hfrlhf.experience import Prompts, Rollout
from hfrlhf.rollout.decoding import similar_lengths
from hfrlhf.rollout.generation import TransformersGenerator, rows_that_fit

V = 41
SIZES: dict[str, Any] = {"vocab_size": V, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
ROPE = SIZES | {"num_hidden_layers": 2, "num_key_value_heads": 2, "max_position_embeddings": 64, "head_dim": 8}
NO_IDS: dict[str, Any] = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}

# name -> a small random model. Windows are shorter than prompt and response together, so that they matter.
MODELS: dict[str, Callable[[], Any]] = {
    "llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**ROPE, **NO_IDS)),
    "gpt2": lambda: tf.GPT2LMHeadModel(
        tf.GPT2Config(vocab_size=V, n_embd=32, n_layer=2, n_head=4, n_positions=64, **NO_IDS)
    ),
    "bloom": lambda: tf.BloomForCausalLM(tf.BloomConfig(vocab_size=V, hidden_size=32, n_layer=2, n_head=4, **NO_IDS)),
    "mistral, sliding window": lambda: tf.MistralForCausalLM(tf.MistralConfig(**ROPE, sliding_window=6, **NO_IDS)),
    "gemma, sliding and full": lambda: tf.Gemma3ForCausalLM(
        tf.Gemma3TextConfig(
            **ROPE,
            sliding_window=6,
            layer_types=["sliding_attention", "full_attention"],
            query_pre_attn_scalar=8,
            **NO_IDS,
        )
    ),
    "lfm, convolution and attention": lambda: tf.Lfm2ForCausalLM(
        tf.Lfm2Config(**ROPE, layer_types=["conv", "full_attention"], conv_L_cache=3, **NO_IDS)
    ),
    "mamba": lambda: tf.MambaForCausalLM(
        tf.MambaConfig(vocab_size=V, hidden_size=32, state_size=4, num_hidden_layers=2, time_step_rank=4, **NO_IDS)
    ),
}


@cache
def model_named(name: str) -> Any:
    """A random model whose next-token distributions are neither flat nor certain."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MODELS[name]()
        for parameter in model.parameters():
            if parameter.ndim == 2:
                torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


every_model = pytest.mark.parametrize("name", MODELS)

# Lengths 1 to 9, in no order; the ids 0 and V - 1 occur.
ROWS = [[3, 9, 4], [7], [0, 0, 5, 11, 2, 40, 6, 1, 8], [20, 21], [12, 13, 14, 15, 16], [30, 5], [9, 9, 9, 9, 9, 9, 9]]


def prompts_of(rows: list[list[int]], episodes: list[int] | None = None) -> Prompts:
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[False] * (width - len(row)) + [True] * len(row) for row in rows])
    episode = torch.tensor(list(range(len(rows))) if episodes is None else episodes)
    return Prompts(ids, mask, episode, episode + 100)


def common_token(model: Any, options: dict[str, Any], address: tuple[int, ...]) -> int:
    """The token that the most unstopped texts hold: as a stop token it ends them at different times."""
    texts = TransformersGenerator(12, **options).generate(model, prompts_of(ROWS), address).completion_lists()
    return max(range(V), key=lambda token: sum(token in text for text in texts))


def teacher_forced(model: Any, rollout: Rollout, temperature: float = 1.0) -> list[Tensor]:
    """Log-probs of each response from a full forward of its row alone, without padding, mask or cache."""
    results = []
    for prompt, response in zip(rollout.prompt_lists(), rollout.completion_lists(), strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + response]), use_cache=False).logits[0]
        logprobs = torch.log_softmax(logits.double() / temperature, -1)[len(prompt) - 1 : -1]
        results.append(logprobs.gather(1, torch.tensor(response)[:, None]).squeeze(1))
    return results


def sampler_logprobs(rollout: Rollout) -> list[Tensor]:
    return [x[mask].double() for x, mask in zip(rollout.sampler_logprobs, rollout.action_mask, strict=True)]


# ---- Against the oracles ------------------------------------------------------------------------------------------


@every_model
def test_the_most_probable_tokens_are_those_of_transformers_generate(name: str) -> None:
    model, prompts = model_named(name), prompts_of(ROWS)
    stop = common_token(model, {"temperature": 0.0}, (0,))
    rollout = TransformersGenerator(12, temperature=0.0, stop_token_id=stop).generate(model, prompts, (0,))
    for row, ours in zip(ROWS, rollout.completion_lists(), strict=True):
        ids = torch.tensor([row])
        theirs = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12,
            eos_token_id=stop, pad_token_id=0,
        )  # fmt: skip
        assert ours == theirs[0, len(row) :].tolist()


@every_model
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_log_probs_are_those_of_a_full_forward(name: str, temperature: float) -> None:
    model = model_named(name)
    stop = common_token(model, {"temperature": temperature}, (1, 2))
    rollout = TransformersGenerator(12, temperature, stop_token_id=stop).generate(model, prompts_of(ROWS), (1, 2))
    assert rollout.completion_lengths.unique().numel() > 1  # rows left the loop at different times
    expected = teacher_forced(model, rollout, temperature)
    for ours, theirs in zip(sampler_logprobs(rollout), expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@every_model
def test_prompts_of_very_different_lengths_share_a_batch(name: str) -> None:
    model = model_named(name)
    rows = [row[:1] for row in ROWS] * 3 + [ROWS[2] * 3 + row for row in ROWS * 2]  # 1, and 28 to 36 tokens
    rollout = TransformersGenerator(4).generate(model, prompts_of(rows), (7,))
    assert rollout.prompt_lists() == rows
    for ours, theirs in zip(sampler_logprobs(rollout), teacher_forced(model, rollout), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_log_probs_of_the_most_probable_tokens_are_at_temperature_1() -> None:
    model = model_named("llama")
    rollout = TransformersGenerator(6, temperature=0.0).generate(model, prompts_of(ROWS), (0,))
    for ours, theirs in zip(sampler_logprobs(rollout), teacher_forced(model, rollout), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_pairs_of_tokens_come_as_often_as_the_model_says(temperature: float) -> None:
    model, episodes = model_named("gpt2"), 8_000
    rows = prompts_of([[3, 9, 4]] * episodes)
    rollout = TransformersGenerator(2, temperature, max_rows=4096).generate(model, rows, (5,))
    with torch.no_grad():
        followed = torch.tensor([[3, 9, 4, first] for first in range(V)])
        first, second = (model(followed).logits[:, -2:].double() / temperature).softmax(-1).unbind(1)
    expected = (first[0][:, None] * second).flatten() * episodes
    pairs = rollout.completion_ids[:, 0] * V + rollout.completion_ids[:, 1]
    observed = torch.bincount(pairs, minlength=V * V).double()
    common = expected >= 5  # the rare pairs count as one cell
    assert common.sum() > 60
    observed, expected = (torch.cat([x[common], x[~common].sum(0, keepdim=True)]) for x in (observed, expected))
    chi_square, freedom = ((observed - expected) ** 2 / expected).sum(), len(expected) - 1
    # Mean n and variance 2n under the right distribution; 4 standard deviations.
    assert abs(chi_square - freedom) < 4 * (2 * freedom) ** 0.5


# ---- The text depends on nothing but model, prompt, address and episode --------------------------------------------


@every_model
def test_the_text_does_not_depend_on_batch_order_or_row_limit(name: str) -> None:
    model = model_named(name)
    generator = TransformersGenerator(12, stop_token_id=common_token(model, {}, (1, 2)))
    prompts = prompts_of(ROWS, episodes=[4, 0, 9, 2, 31, 5, 6])
    texts = generator.generate(model, prompts, (1, 2)).completion_lists()
    assert len({tuple(text) for text in texts}) == len(texts)

    order = torch.tensor([5, 2, 0, 6, 1, 4, 3])
    shuffled = generator.generate(model, prompts.select(order), (1, 2))
    assert shuffled.completion_lists() == [texts[i] for i in order]
    assert torch.equal(shuffled.row, prompts.row[order])
    for i in range(len(ROWS)):
        alone = generator.generate(model, prompts.select(torch.tensor([i])), (1, 2))
        assert alone.completion_lists() == [texts[i]]
    for max_rows in (1, 2, 3, 6):
        limited = dataclasses.replace(generator, max_rows=max_rows).generate(model, prompts, (1, 2))
        assert limited.completion_lists() == texts
        assert limited.prompt_lists() == ROWS


def test_another_address_or_episode_gives_another_text() -> None:
    model, generator = model_named("llama"), TransformersGenerator(12)
    prompts = prompts_of([ROWS[0]] * 3, episodes=[0, 1, 0])
    texts = generator.generate(model, prompts, (1, 2)).completion_lists()
    assert texts[0] == texts[2] != texts[1]
    assert generator.generate(model, prompts, (1, 3)).completion_lists()[0] != texts[0]


def test_a_longer_limit_continues_the_same_text() -> None:
    model, prompts = model_named("llama"), prompts_of(ROWS)
    short, long = (TransformersGenerator(n).generate(model, prompts, (3,)).completion_lists() for n in (4, 11))
    assert [text[:4] for text in long] == short


def test_the_global_generators_are_neither_read_nor_moved() -> None:
    model, prompts, generator = model_named("llama"), prompts_of(ROWS), TransformersGenerator(5)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = generator.generate(model, prompts, (0,))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(generator.generate(model, prompts, (0,)).input_ids, first.input_ids)


# ---- Where a response ends ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", range(0, V, 3))
def test_a_response_is_the_unstopped_text_up_to_its_first_stop_token(stop: int) -> None:
    # ROWS hold the stop token in some prompts, 0 among them: only the response is looked at, and only by its mask.
    model, prompts = model_named("llama"), prompts_of(ROWS)
    endless = TransformersGenerator(12).generate(model, prompts, (1, 2))
    assert not endless.terminated.any()
    assert endless.action_mask.all()
    expected = [text[: text.index(stop) + 1] if stop in text else text for text in endless.completion_lists()]
    rollout = TransformersGenerator(12, stop_token_id=stop).generate(model, prompts, (1, 2))
    assert rollout.completion_lists() == expected
    assert rollout.terminated.tolist() == [stop in text for text in expected]
    assert rollout.prompt_lists() == ROWS


def test_the_padding_behind_a_response_is_0_everywhere() -> None:
    rollout = TransformersGenerator(12, stop_token_id=7).generate(model_named("llama"), prompts_of(ROWS), (1, 2))
    padding = ~rollout.action_mask
    assert padding.any()
    assert (rollout.completion_ids[padding] == 0).all()
    assert (rollout.sampler_logprobs[padding] == 0).all()
    assert torch.equal(rollout.attention_mask[:, -rollout.action_mask.shape[1] :], rollout.action_mask)
    assert rollout.action_mask.shape[1] == rollout.completion_lengths.max()
    assert rollout.sampler_logprobs.dtype == torch.float32


def first_tokens(model: Any) -> list[int]:
    return [t[0] for t in TransformersGenerator(1).generate(model, prompts_of(ROWS), (1, 2)).completion_lists()]


def test_a_response_may_be_the_stop_token_alone() -> None:
    model = model_named("llama")
    first = first_tokens(model)
    rollout = TransformersGenerator(9, stop_token_id=first[2]).generate(model, prompts_of(ROWS), (1, 2))
    assert rollout.completion_lists()[2] == [first[2]]
    assert rollout.terminated[2]
    alone = TransformersGenerator(9, stop_token_id=first[2]).generate(model, prompts_of(ROWS[2:3], [2]), (1, 2))
    assert alone.action_mask.tolist() == [[True]]  # and a rollout no wider than that


def test_a_limit_of_one_token() -> None:
    model = model_named("llama")
    first = first_tokens(model)
    rollout = TransformersGenerator(1, stop_token_id=first[0]).generate(model, prompts_of(ROWS), (1, 2))
    assert rollout.action_mask.shape == (len(ROWS), 1)
    assert rollout.terminated.tolist() == [token == first[0] for token in first]


def test_no_prompts_at_all() -> None:
    none = prompts_of(ROWS).select(torch.zeros(0, dtype=torch.long))
    assert len(TransformersGenerator(4, stop_token_id=7).generate(model_named("llama"), none, (0,))) == 0


# ---- What the loop does to the model, and what it spares ----------------------------------------------------------


class Forwards:
    """The shapes [rows, columns] of every forward of a model while the context is open."""

    def __init__(self, model: Any):
        self.model = model
        self.shapes: list[tuple[int, int]] = []

    def __enter__(self) -> Forwards:
        def note(_module: Any, _args: Any, options: dict[str, Any], output: Any) -> None:
            self.shapes.append(tuple(options["input_ids"].shape))
            assert output.logits.shape[1] == 1  # only the last position meets the vocabulary

        self.handle = self.model.register_forward_hook(note, with_kwargs=True)
        return self

    def __exit__(self, *_: object) -> None:
        self.handle.remove()


def test_finished_rows_leave_and_the_loop_ends_with_the_last() -> None:
    model, prompts = model_named("llama"), prompts_of(ROWS * 4)
    stop = common_token(model, {}, (1, 2))
    with Forwards(model) as forwards:
        rollout = TransformersGenerator(50, stop_token_id=stop).generate(model, prompts, (1, 2))
    steps = [rows for rows, _ in forwards.shapes[1:]]
    longest = int(rollout.completion_lengths.max())
    still_running = [int((rollout.completion_lengths > t).sum()) for t in range(1, longest)]
    assert still_running[-1] < len(prompts)
    # With 28 rows 1/16 is less than two rows, so that hardly any step computes a finished row.
    assert len(steps) == len(still_running)
    assert sum(steps) <= 1.1 * sum(still_running)


def test_a_cache_that_cannot_lose_rows_keeps_them() -> None:
    model, prompts = model_named("lfm, convolution and attention"), prompts_of(ROWS)
    stop = common_token(model, {}, (1, 2))
    with Forwards(model) as forwards:
        rollout = TransformersGenerator(12, stop_token_id=stop).generate(model, prompts, (1, 2))
    assert rollout.completion_lengths.min() < rollout.completion_lengths.max()
    assert {rows for rows, _ in forwards.shapes} == {len(ROWS)}


def test_prompts_of_similar_length_are_prefilled_together() -> None:
    model = model_named("llama")
    rows = [[3] * 4] * 100 + [[5] * 40] * 10
    with Forwards(model) as forwards:
        TransformersGenerator(1).generate(model, prompts_of(rows), (0,))
    assert forwards.shapes == [(100, 4), (10, 40)]


def test_groups_of_similar_length() -> None:
    def sizes(lengths: list[int]) -> list[list[int]]:
        return [lengths[group] for group in similar_lengths(lengths)]

    assert sizes([4, 5, 9]) == [[4, 5, 9]]  # 27 tokens: one group, however unlike
    assert sizes([100] * 50) == [[100] * 50]
    assert sizes([9, 10, 299, 300, 301, 400]) == [[9, 10], [299], [300, 301, 400]]  # from the long end
    assert sizes([1] * 3 + [1000]) == [[1, 1, 1], [1000]]


def test_modes_and_switches_are_left_as_they_were_and_change_nothing() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        config = tf.LlamaConfig(**ROPE, **NO_IDS, attention_dropout=0.5)
        model: Any = tf.LlamaForCausalLM(config)
    prompts, generator = prompts_of(ROWS), TransformersGenerator(8)
    expected = generator.generate(model.eval(), prompts, (1,))

    model.train()
    model.model.norm.eval()
    model.gradient_checkpointing_enable()
    model.config.use_cache = False
    before = [module.training for module in model.modules()]
    with Forwards(model) as forwards:
        rollout = generator.generate(model, prompts, (1,))
    assert torch.equal(rollout.input_ids, expected.input_ids)
    assert [columns for _, columns in forwards.shapes[-7:]] == [1] * 7  # the cache was used
    assert [module.training for module in model.modules()] == before
    assert model.is_gradient_checkpointing
    assert model.config.use_cache is False
    assert not rollout.sampler_logprobs.requires_grad


def test_the_mode_is_restored_after_an_error() -> None:
    model = tf.LlamaForCausalLM(tf.LlamaConfig(**ROPE, **NO_IDS)).train()
    with torch.no_grad():
        model.lm_head.weight[3] = torch.nan
    with pytest.raises(FloatingPointError, match=r"no finite probabilities in 7 of 7 responses.*learning rate"):
        TransformersGenerator(4, stop_token_id=7).generate(model, prompts_of(ROWS), (0,))
    assert all(module.training for module in model.modules())


def test_adapters_sample_like_the_merged_model() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(4)
        base = tf.LlamaForCausalLM(tf.LlamaConfig(**ROPE, **NO_IDS))
        model: Any = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.5))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter)
    prompts, generator = prompts_of(ROWS), TransformersGenerator(10, stop_token_id=7)
    with_adapter = generator.generate(model.train(), prompts, (6,))
    with model.disable_adapter():
        without = generator.generate(model, prompts, (6,))
    merged = generator.generate(model.merge_and_unload(), prompts, (6,))
    assert with_adapter.completion_lists() == merged.completion_lists() != without.completion_lists()


def test_autocast_runs_in_16_bits_and_records_float32() -> None:
    model = model_named("llama")
    with torch.autocast("cpu", torch.bfloat16):
        rollout = TransformersGenerator(12, stop_token_id=7).generate(model, prompts_of(ROWS), (1, 2))
    assert rollout.sampler_logprobs.dtype == torch.float32
    pairs = zip(sampler_logprobs(rollout), teacher_forced(model, rollout), strict=True)
    differences = torch.cat([ours - theirs for ours, theirs in pairs]).abs()
    assert 1e-4 < differences.max() < 0.3


def test_half_precision_weights() -> None:
    model = tf.LlamaForCausalLM(tf.LlamaConfig(**ROPE, **NO_IDS)).to(torch.bfloat16)
    rollout = TransformersGenerator(6).generate(model, prompts_of(ROWS), (1, 2))
    assert rollout.sampler_logprobs.dtype == torch.float32
    assert rollout.sampler_logprobs.isfinite().all()


# ---- What is said -------------------------------------------------------------------------------------------------


def test_sampling_settings_of_the_model_are_not_used_and_named_once() -> None:
    model = MODELS["llama"]()
    generator, prompts = TransformersGenerator(4, temperature=1.0), prompts_of(ROWS)
    expected = generator.generate(model, prompts, (0,))
    model.generation_config = tf.GenerationConfig(
        do_sample=True, top_k=3, top_p=0.875, repetition_penalty=1.25, temperature=0.625, min_new_tokens=0
    )
    with pytest.warns(UserWarning, match="top_k=3, top_p=0.875, repetition_penalty=1.25, temperature=0.625") as caught:
        rollout = generator.generate(model, prompts, (0,))
        generator.generate(model, prompts, (1,))
    assert len(caught) == 1
    assert "min_new_tokens" not in str(caught[0].message)
    assert torch.equal(rollout.input_ids, expected.input_ids)


def test_settings_that_change_nothing_are_not_named() -> None:
    model = MODELS["llama"]()
    model.generation_config = tf.GenerationConfig(do_sample=True, top_k=0, top_p=1.0, temperature=1.0, num_beams=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TransformersGenerator(2, temperature=1.0).generate(model, prompts_of(ROWS), (0,))


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_more_tokens_than_the_model_has_positions_for(name: str) -> None:
    model, prompts = model_named(name), prompts_of(ROWS)
    TransformersGenerator(55).generate(model, prompts, (0,))  # 9 + 55 = 64: just fits
    with pytest.raises(ValueError, match=r"prompt has 9 tokens and max_completion_length=56.* positions for 64"):
        TransformersGenerator(56).generate(model, prompts, (0,))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_completion_length": 0}, "max_completion_length=0"),
        ({"max_completion_length": 4, "temperature": -1.0}, "temperature=-1.0"),
        ({"max_completion_length": 4, "temperature": float("nan")}, "temperature=nan"),
        ({"max_completion_length": 4, "max_rows": 0}, "max_rows=0"),
    ],
)
def test_numbers_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TransformersGenerator(**options)


def test_rows_are_limited_by_the_memory_of_their_cache() -> None:
    # One token takes 2 (key, value) · 2 layers · 2 heads · 8 numbers · 4 bytes = 256 bytes; the cache may have 1 GiB.
    model = model_named("llama")
    assert rows_that_fit(model, 2**14) == 2**30 // (256 * 2**14) == 256
    assert rows_that_fit(model, 2**23) == 1
    assert rows_that_fit(model, 2) == 512


# ---- A trained model ----------------------------------------------------------------------------------------------

SHARED = Path(__file__).resolve().parents[3] / "shared"


@pytest.mark.skipif(not (SHARED / "models/reviews-sft").is_dir(), reason="no trained model at hand")
def test_a_trained_model_ends_its_texts_and_its_log_probs_agree() -> None:
    model = tf.AutoModelForCausalLM.from_pretrained(SHARED / "models/reviews-sft")
    tokenizer = tf.AutoTokenizer.from_pretrained(SHARED / "models/reviews-sft")
    starts = ["the director has", "a film", "despite the surface", "the acting in this film is"]
    rows = list(itertools.islice(itertools.cycle(tokenizer(starts).input_ids), 16))
    rollout = TransformersGenerator(64, stop_token_id=2).generate(model, prompts_of(rows), (0,))
    assert rollout.terminated.float().mean() > 0.7
    for ours, theirs in zip(sampler_logprobs(rollout), teacher_forced(model.eval(), rollout), strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0)
