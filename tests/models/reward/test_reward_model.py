"""Reward models: one score per sequence whatever the padding, normalised, and read by stock transformers and peft."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForSequenceClassification, LoraConfig, get_peft_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from hfrlhf.models.anatomy.padding import with_padding_token
from hfrlhf.models.reward.scoring import (
    backbone_of,
    fold_normalization,
    head_of,
    init_reward_head,
    last_token_scores,
    load_reward_model,
    save_adapter_settings,
)

SIZES = {"vocab_size": 300, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
LENGTHS = (7, 3, 1, 12)

LANGUAGE_MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, intermediate_size=32)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=300, n_embd=16, n_layer=2, n_head=2, n_positions=32)),
    "opt": lambda: OPTForCausalLM(OPTConfig(**SIZES, ffn_dim=32, word_embed_proj_dim=16)),
    "bloom": lambda: BloomForCausalLM(BloomConfig(vocab_size=300, hidden_size=16, n_layer=2, n_head=2)),
}


def rows_of_ids(ends_with: int | None = None) -> list[list[int]]:
    """Ragged rows of ordinary tokens; each may end with a given one."""
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randint(10, 300, (length,), generator=generator).tolist() for length in LENGTHS]
    return rows if ends_with is None else [[*row, ends_with] for row in rows]


def batch_of(rows: list[list[int]], fill: int, side: str, extra: int = 0) -> tuple[Tensor, Tensor]:
    width = max(map(len, rows)) + extra
    gaps = [width - len(row) for row in rows]
    left = side == "left"
    ids = [[fill] * gap + row if left else row + [fill] * gap for row, gap in zip(rows, gaps, strict=True)]
    mask = [
        [0] * gap + [1] * len(row) if left else [1] * len(row) + [0] * gap for row, gap in zip(rows, gaps, strict=True)
    ]
    return torch.tensor(ids), torch.tensor(mask)


def stock_logits_alone(model: Any, rows: list[list[int]]) -> Tensor:
    """What the model's own forward says of each row by itself: no padding, so nothing to find."""
    model.eval()
    with torch.no_grad():
        return torch.cat([model(torch.tensor([row])).logits.flatten() for row in rows])


@pytest.fixture
def reward_model(tiny_model_folder: Path) -> Any:
    return load_reward_model(str(tiny_model_folder), AutoTokenizer.from_pretrained(tiny_model_folder))


# ---- A row's score ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", LANGUAGE_MODELS)
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("fill", [0, 299, 10**6])
def test_a_rows_score_is_the_same_alone_padded_or_batched(family: str, side: str, fill: int) -> None:
    """On either side, more padding than needed, and with an id outside the vocabulary as padding."""
    model = load_reward_model(LANGUAGE_MODELS[family]())
    fold_normalization(model, mean=0.5)
    rows = rows_of_ids()
    alone = stock_logits_alone(model, rows) - 0.5
    scores = last_token_scores(model, *batch_of(rows, fill, side, extra=2))
    torch.testing.assert_close(scores, alone, atol=1e-5, rtol=0)
    assert scores.std() > 0.1, "all rows score alike; the test shows nothing"


def test_scoring_leaves_the_mode_and_needs_no_dropout() -> None:
    model = load_reward_model(
        GPT2LMHeadModel(GPT2Config(vocab_size=300, n_embd=16, n_layer=2, n_head=2, resid_pdrop=0.5))
    )
    ids, mask = batch_of(rows_of_ids(), 0, "right")
    model.train()
    first, second = last_token_scores(model, ids, mask), last_token_scores(model, ids, mask)
    assert torch.equal(first, second) and not first.requires_grad
    assert model.training and all(module.training for module in model.modules())


def test_scores_are_float32_also_of_a_half_precision_trunk() -> None:
    """bfloat16 keeps 8 bits: near 4 its numbers are 1/32 apart, and rows would tie."""
    model = load_reward_model(LANGUAGE_MODELS["llama"]().to(torch.bfloat16))
    head_of(model).weight.data *= 4 / last_token_scores(model, *batch_of(rows_of_ids(), 0, "right")).abs().max()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = last_token_scores(model, *batch_of(rows_of_ids(), 0, "right"))
    assert scores.dtype == torch.float32 and head_of(model).weight.dtype == torch.float32
    assert (scores != scores.to(torch.bfloat16).float()).any()


# ---- Head and normalisation ---------------------------------------------------------------------------------------


def test_a_new_head_has_the_spread_of_the_specification() -> None:
    config = LlamaConfig(
        vocab_size=8, hidden_size=4096, num_hidden_layers=0, num_attention_heads=1, intermediate_size=8
    )
    model = load_reward_model(LlamaForCausalLM(config), seed=3)
    weight = head_of(model).weight
    assert weight.shape == (1, 4096) and head_of(model).bias is None
    # 4,096 draws: their standard deviation is known to about 1.1 %, their mean to 1.6 % of it.
    assert float(weight.detach().std()) == pytest.approx(4097**-0.5, rel=0.05)
    assert abs(float(weight.detach().mean())) < 0.06 * 4097**-0.5


def test_the_head_is_a_function_of_the_seed_alone(tiny_model_folder: Path) -> None:
    heads = []
    for seed, disturbance in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(disturbance)
        heads.append(head_of(load_reward_model(str(tiny_model_folder), seed=seed)).weight)
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])


def test_normalising_shifts_and_scales_what_is_read(reward_model: Any) -> None:
    batch = batch_of(rows_of_ids_below(20), 0, "right")
    for std in (None, 2.0):
        before = last_token_scores(reward_model, *batch)
        fold_normalization(reward_model, mean=0.7, std=std)
        torch.testing.assert_close(last_token_scores(reward_model, *batch), (before - 0.7) / (std or 1.0))


def rows_of_ids_below(vocabulary: int) -> list[list[int]]:
    return [[4 + token % (vocabulary - 4) for token in row] for row in rows_of_ids()]


@pytest.mark.parametrize(("mean", "std"), [(float("nan"), None), (0.0, 0.0), (0.0, float("inf")), (0.0, -1.0)])
def test_a_senseless_normalisation_is_refused(reward_model: Any, mean: float, std: float | None) -> None:
    with pytest.raises(ValueError, match="cannot be normalised"):
        fold_normalization(reward_model, mean, std)


# ---- Saving and loading -------------------------------------------------------------------------------------------

TOKENIZERS = {
    "distinct pad": {},
    "no pad": {"pad": None},
    "pad is eos": {"pad": "<eos>"},
    "one special token for all": {"bos": "<eos>", "pad": "<eos>"},
    "no pad, no bos": {"bos": None, "pad": None},
}


@pytest.mark.parametrize("case", TOKENIZERS)
def test_stock_transformers_reads_a_saved_folder_as_we_do(case: str, make_tokenizer, tmp_path: Path) -> None:
    """A ragged batch, padded by the saved tokenizer: logits − reward_shift are our scores."""
    tokenizer = make_tokenizer(**TOKENIZERS[case])
    before = tokenizer.get_vocab()
    model = load_reward_model(LANGUAGE_MODELS["llama"](), tokenizer)
    fold_normalization(model, mean=0.3, std=0.5)
    model.save_pretrained(tmp_path)
    with_padding_token(tokenizer, 300).save_pretrained(tmp_path)

    stock = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    saved = AutoTokenizer.from_pretrained(tmp_path)
    texts = [text + tokenizer.eos_token for text in ("the film", "a good story and a very dull actor", "")]
    encoded = saved(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        theirs = stock(**encoded).logits.squeeze(-1) - stock.config.reward_shift
    ours = last_token_scores(load_reward_model(str(tmp_path)), encoded.input_ids, encoded.attention_mask)
    torch.testing.assert_close(theirs, ours, atol=1e-5, rtol=0)

    rows = [ids[mask.bool()].tolist() for ids, mask in zip(encoded.input_ids, encoded.attention_mask, strict=True)]
    assert all(row[-1] == tokenizer.eos_token_id for row in rows)
    torch.testing.assert_close(stock_logits_alone(model, rows) - model.config.reward_shift, ours, atol=1e-5, rtol=0)
    assert saved.pad_token_id == stock.config.pad_token_id != tokenizer.eos_token_id
    assert tokenizer.get_vocab() == before == saved.get_vocab(), "the reward model still has the policy's vocabulary"


def test_the_pad_token_is_one_that_text_does_not_contain(make_tokenizer) -> None:
    for case, expected in {"distinct pad": "<pad>", "no pad": "<bos>", "one special token for all": "ÿ"}.items():
        given = make_tokenizer(**TOKENIZERS[case])
        chosen = with_padding_token(given, 300)
        assert chosen.pad_token == expected
        assert chosen("naïve, à la carte").input_ids == given("naïve, à la carte").input_ids
    given.add_special_tokens({"additional_special_tokens": ["<|padding|>"]})
    assert with_padding_token(given, 300).pad_token == "<|padding|>"


def test_a_spare_embedding_serves_before_a_word_does() -> None:
    """Words alone, and EOS: no token that text could not hold."""
    words = Tokenizer(WordLevel({"film": 0, "<eos>": 1, "good": 2}, unk_token="film"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>")
    assert with_padding_token(tokenizer, vocabulary=5).pad_token_id == 3
    assert with_padding_token(tokenizer, vocabulary=3).pad_token_id in (0, 2)
    assert tokenizer.pad_token is None and len(tokenizer) == 3


def test_a_checkpoint_of_either_kind_and_objects_of_either_kind(tiny_model_folder: Path, tmp_path: Path) -> None:
    from_lm, is_new = load_reward_model(str(tiny_model_folder), seed=1, return_new_head=True)
    assert is_new
    from_lm.save_pretrained(tmp_path)
    again, is_new = load_reward_model(tmp_path, return_new_head=True)
    assert not is_new
    in_memory, is_new = load_reward_model(again, return_new_head=True)
    assert not is_new and in_memory is again
    policy = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
    of_policy, is_new = load_reward_model(policy, seed=1, return_new_head=True)
    assert is_new
    batch = batch_of(rows_of_ids_below(20), 0, "right")
    scores = [last_token_scores(model, *batch) for model in (from_lm, again, of_policy)]
    assert torch.equal(scores[0], scores[1]) and torch.equal(scores[0], scores[2])
    ours = {p.data_ptr() for p in of_policy.parameters()}
    assert not ours & {p.data_ptr() for p in policy.parameters()}, "the policy's weights would train with the reward's"


@pytest.fixture
def adapter_folder(tiny_model_folder: Path, tmp_path: Path) -> tuple[Any, Path]:
    base = load_reward_model(str(tiny_model_folder), AutoTokenizer.from_pretrained(tiny_model_folder), seed=5)
    model = get_peft_model(base, LoraConfig(task_type="SEQ_CLS", r=2, init_lora_weights=False))
    with torch.no_grad():
        head_of(model).weight.mul_(3)
    fold_normalization(model, mean=0.4, std=0.5)
    model.save_pretrained(tmp_path / "adapter")
    save_adapter_settings(model, tmp_path / "adapter")
    return model, tmp_path / "adapter"


def test_an_adapter_comes_back_with_its_head_and_its_shift(adapter_folder: tuple[Any, Path]) -> None:
    model, folder = adapter_folder
    batch = batch_of(rows_of_ids_below(20), 0, "left")
    loaded, is_new = load_reward_model(str(folder), seed=99, return_new_head=True)
    assert not is_new
    torch.testing.assert_close(last_token_scores(loaded, *batch), last_token_scores(model, *batch), atol=1e-6, rtol=0)
    assert torch.equal(head_of(loaded).weight, head_of(model).weight)
    assert loaded.config.pad_token_id == model.config.pad_token_id == 0
    assert backbone_of(loaded) is loaded.get_base_model().model


def test_stock_peft_and_transformers_read_a_saved_adapter(adapter_folder: tuple[Any, Path]) -> None:
    model, folder = adapter_folder
    rows = rows_of_ids_below(20)
    expected = last_token_scores(model, *batch_of(rows, 0, "right")) + model.config.reward_shift
    for loader in (AutoPeftModelForSequenceClassification, AutoModelForSequenceClassification):
        stock = loader.from_pretrained(str(folder), num_labels=1)
        torch.testing.assert_close(stock_logits_alone(stock, rows), expected, atol=1e-5, rtol=0)


def test_an_adapter_merges_into_a_plain_reward_model(adapter_folder: tuple[Any, Path], tmp_path: Path) -> None:
    model, _ = adapter_folder
    batch = batch_of(rows_of_ids_below(20), 0, "right")
    expected = last_token_scores(model, *batch)
    copy.deepcopy(model).merge_and_unload().save_pretrained(tmp_path / "merged")
    merged = load_reward_model(str(tmp_path / "merged"))
    torch.testing.assert_close(last_token_scores(merged, *batch), expected, atol=1e-5, rtol=0)


# ---- What is refused ----------------------------------------------------------------------------------------------


def test_encoder_decoders_are_refused_by_name_and_as_objects(tmp_path: Path) -> None:
    config = T5Config(vocab_size=20, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    model = T5ForConditionalGeneration(config)
    model.save_pretrained(tmp_path)
    for given in (model, str(tmp_path)):
        with pytest.raises(ValueError, match="is an encoder–decoder: only decoder language models are supported"):
            load_reward_model(given)


def test_a_classifier_of_several_labels_is_refused(tiny_model_folder: Path, tmp_path: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(tiny_model_folder, num_labels=3)
    model.save_pretrained(tmp_path)
    for given in (model, str(tmp_path)):
        with pytest.raises(ValueError, match="classifies into 3 labels; a reward model has one output"):
            load_reward_model(given)


def test_a_policys_adapter_is_no_reward_model(tiny_model_folder: Path, tmp_path: Path) -> None:
    policy = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model_folder), LoraConfig(task_type="CAUSAL_LM"))
    policy.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is of task type CAUSAL_LM, a reward model's is SEQ_CLS"):
        load_reward_model(str(tmp_path))
    with pytest.raises(ValueError, match="has no reward head; pass its merged model"):
        load_reward_model(policy)


def test_other_objects_and_misplaced_options_are_refused(reward_model: Any) -> None:
    with pytest.raises(TypeError, match="must be a name, a path or a transformers/peft model, got Linear"):
        load_reward_model(torch.nn.Linear(2, 1))
    with pytest.raises(ValueError, match=r"\['dtype'\] apply when a model is loaded by name"):
        load_reward_model(reward_model, dtype=torch.float32)
    with pytest.raises(ValueError, match="neither a reward model nor a plain causal language model"):
        load_reward_model(backbone_of(reward_model))


def test_missing_weights_are_not_made_up(tiny_model_folder: Path, tmp_path: Path) -> None:
    """transformers would draw them at random and only warn."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
    state = {name: value for name, value in model.state_dict().items() if "layers.1.mlp" not in name}
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(ValueError, match=r"lacks weights .*layers\.1\.mlp"):
        load_reward_model(str(tmp_path))


def test_the_head_must_have_one_output(reward_model: Any) -> None:
    reward_model.score = torch.nn.Linear(16, 2)
    for use in (head_of, lambda m: init_reward_head(m, 0)):
        with pytest.raises(ValueError, match="with one output; LlamaForSequenceClassification has Linear"):
            use(reward_model)
