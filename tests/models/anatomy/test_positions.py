"""How many tokens a model can read, whatever its configuration calls it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models

from hfrlhf import PPOConfig, PPOTrainer, RewardConfig, RewardTrainer
from hfrlhf.models.anatomy.positions import positions_of
from tests.conftest import word_tokenizer

OPTIONS: dict[str, Any] = {"report_to": [], "disable_tqdm": True, "use_cpu": True, "save_strategy": "no"}
IDS = {"vocab_size": 20, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
LAYERS = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
OLD = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 12}


def gpt2(**more: Any) -> Any:
    return tf.GPT2LMHeadModel(tf.GPT2Config(**IDS, **(OLD | more)))


def mpt() -> Any:
    return tf.MptForCausalLM(tf.MptConfig(**IDS, d_model=16, n_layers=1, n_heads=2, max_seq_len=12))


def opt() -> Any:
    sizes = {"word_embed_proj_dim": 16, "ffn_dim": 16, "max_position_embeddings": 12}
    return tf.OPTForCausalLM(tf.OPTConfig(**IDS, **LAYERS, **sizes))


def roberta() -> Any:
    """Its positions begin behind the padding's row: of 12 rows 11 are used."""
    sizes = {"intermediate_size": 16, "max_position_embeddings": 12, "is_decoder": True}
    return tf.RobertaForCausalLM(tf.RobertaConfig(**IDS, **LAYERS, **sizes))


def gptj() -> Any:
    return tf.GPTJForCausalLM(tf.GPTJConfig(**IDS, **OLD, rotary_dim=4))


def ctrl() -> Any:
    sizes = {"n_embd": 16, "dff": 16, "n_layer": 1, "n_head": 2, "n_positions": 12}
    return tf.CTRLLMHeadModel(tf.CTRLConfig(vocab_size=20, **sizes))


def replaced() -> Any:
    """Its configuration still speaks of the 32 positions that it had."""
    model = gpt2(n_positions=32)
    model.transformer.wpe = torch.nn.Embedding(12, 16)
    return model


HARD: dict[str, tuple[Callable[[], Any], int]] = {
    **{build.__name__: (build, 12) for build in (gpt2, mpt, opt, gptj, ctrl, replaced)},
    "roberta": (roberta, 11),
    "gpt2, wrapped": (lambda: get_peft_model(gpt2(), LoraConfig(target_modules=["c_attn", "wpe"])), 12),
}


@pytest.mark.parametrize("name", HARD)
def test_so_many_tokens_can_be_read_and_no_more(name: str) -> None:
    build, most = HARD[name]
    model = build().eval()
    assert positions_of(model) == most
    with torch.no_grad():
        model(input_ids=torch.full((1, most), 3))
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.full((1, most + 1), 3))


def test_rotary_models_are_limited_to_what_they_were_trained_on() -> None:
    sizes = LAYERS | {"intermediate_size": 16, "max_position_embeddings": 12}
    assert positions_of(tf.LlamaForCausalLM(tf.LlamaConfig(**IDS, **sizes))) == 12


def test_models_that_read_on_and_on_have_no_limit() -> None:
    bloom = tf.BloomForCausalLM(tf.BloomConfig(**IDS, hidden_size=16, n_layer=1, n_head=2, seq_length=12)).eval()
    assert positions_of(bloom) is None
    assert bloom(input_ids=torch.full((1, 40), 3)).logits.isfinite().all()
    mamba = tf.MambaForCausalLM(tf.MambaConfig(**IDS, hidden_size=16, num_hidden_layers=1, state_size=4))
    assert positions_of(mamba) is None


def test_the_positions_of_a_picture_are_not_those_of_the_text() -> None:
    text = tf.Gemma3TextConfig(**IDS, **LAYERS, intermediate_size=16, head_dim=8, max_position_embeddings=64)
    vision = tf.SiglipVisionConfig(**LAYERS, intermediate_size=16, image_size=28, patch_size=14)
    model = tf.Gemma3ForConditionalGeneration(tf.Gemma3Config(text_config=text, vision_config=vision))
    tables = [module for name, module in model.named_modules() if name.endswith("position_embedding")]
    assert [table.num_embeddings for table in tables] == [4]
    assert positions_of(model) == 64


def length(completions: list[str], **_: Any) -> list[float]:
    return [float(len(text)) for text in completions]


@pytest.mark.parametrize("role", ["policy", "reference", "value model"])
def test_ppo_refuses_more_tokens_than_any_of_its_models_can_read(role: str, tmp_path: Path) -> None:
    roles = {"policy": gpt2(n_positions=64), "ref_model": gpt2(n_positions=64), "value_model": gpt2(n_positions=64)}
    roles[{"policy": "policy", "reference": "ref_model", "value model": "value_model"}[role]] = mpt()
    args = PPOConfig(str(tmp_path), rollout_batch_size=8, max_completion_length=11, **OPTIONS)
    rows = Dataset.from_dict({"prompt": ["the film"] * 8})
    with pytest.raises(ValueError, match=f"has 3 tokens and .* the {role} has positions for 12"):
        PPOTrainer(roles.pop("policy"), length, args, rows, processing_class=word_tokenizer(), **roles)


@pytest.mark.parametrize("build", [mpt, opt])
def test_reward_training_leaves_out_what_its_model_cannot_read(build: Callable[[], Any], tmp_path: Path) -> None:
    rows = {"prompt": ["the film"] * 4, "chosen": ["is good"] * 4, "rejected": ["is bad " * n for n in (1, 4, 5, 9)]}
    args = RewardConfig(str(tmp_path), max_steps=1, **OPTIONS)
    trainer = RewardTrainer(build(), args, Dataset.from_dict(rows), processing_class=word_tokenizer())
    assert trainer.max_length == 12
    assert (len(trainer.train_dataset), trainer.dropped["train"]) == (2, 2)
    trainer.train()


# ---- Reward models --------------------------------------------------------------------------------------------------


def reward_model(positions: int, vocabulary: int = 20) -> Any:
    sizes = OLD | {"n_positions": positions, "num_labels": 1}
    config = tf.GPT2Config(
        **(IDS | {"vocab_size": vocabulary}), **sizes, architectures=["GPT2ForSequenceClassification"]
    )
    return tf.GPT2ForSequenceClassification(config)


def ppo(folder: Path, reward: Any, **more: Any) -> PPOTrainer:
    args = PPOConfig(str(folder), rollout_batch_size=8, max_completion_length=8, max_steps=1, **OPTIONS)
    rows = Dataset.from_dict({"prompt": ["the film"] * 8})
    return PPOTrainer(gpt2(n_positions=64), reward, args, rows, processing_class=word_tokenizer(), **more)


def test_a_reward_model_needs_positions_for_prompt_response_and_ending(tmp_path: Path) -> None:
    """Three tokens of prompt, eight of a response that is cut off, and the EOS that it is read with."""
    ppo(tmp_path, reward_model(12)).train()
    with pytest.raises(ValueError, match=r"are 4 tokens for the reward model .*, which has positions for 11"):
        ppo(tmp_path, reward_model(11))


def spelling_tokenizer() -> Any:
    """Of the same texts it makes more tokens: a letter each."""
    letters = {token: i for i, token in enumerate(["<pad>", "<eos>", "<unk>", *"abcdefghijklmnopqrstuvwxyz.! "])}
    inner = Tokenizer(models.BPE(letters, [], unk_token="<unk>"))
    names = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    return tf.PreTrainedTokenizerFast(tokenizer_object=inner, **names)


def test_of_what_another_tokenizer_makes_too_long_the_end_is_read(tmp_path: Path, caplog: Any) -> None:
    """`the film` and an EOS are 9 tokens for it, eight words of a response up to 48 more: nobody knows beforehand."""
    spelling, judge = spelling_tokenizer(), reward_model(12, 40)
    with caplog.at_level("WARNING"):
        trainer = ppo(tmp_path, judge, reward_processing_classes=spelling)
    assert "9 tokens for the reward model" in caplog.text and "positions for 12" in caplog.text
    completions = trainer.describe(trainer.generate(*trainer.training_prompts(0)), trainer.prompts)
    source = trainer.reward.sources[0]
    ids, mask = source._inputs(completions)
    for row, text in enumerate(completions.completions):
        whole = [*spelling("the film" + text)["input_ids"], spelling.eos_token_id]
        assert ids[row][mask[row]].tolist() == whole[-12:]
    assert source(completions).isfinite().all()
    trainer.train()
    with pytest.raises(ValueError, match="positions for 9"):
        ppo(tmp_path / "again", reward_model(9, 40), reward_processing_classes=spelling)
