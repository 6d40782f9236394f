"""A response's score in PPO is its score in reward training, whatever template, BOS, ending or tokenizer there is."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

from hfrlhf import PPOTrainer, RewardConfig, RewardTrainer
from hfrlhf.data.written import texts_of
from hfrlhf.experience import Rollout
from hfrlhf.rewards.completions import Completions
from hfrlhf.rewards.reading import Reader
from tests.conftest import byte_tokenizer, word_tokenizer
from tests.trainers.helpers import config, trainer

CHAT = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ CONTENT }}<|im_end|>\n{% endfor %}"
CHAT += "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
TEMPLATES = {
    "plain": CHAT.replace("CONTENT", "m.content"),
    "trims": CHAT.replace("CONTENT", "m.content | trim"),
    "begins with BOS": "<bos>" + CHAT.replace("CONTENT", "m.content"),
    "ends with EOS": CHAT.replace("CONTENT", "m.content").replace("<|im_end|>\n", "<|im_end|><eos>"),
    "thinks first": CHAT.replace("CONTENT", "m.content").replace("assistant\n{%", "assistant\n<think>{%"),
    "no end": "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}",
}
USER = [{"role": "user", "content": "was the film good"}]


def language_model(tokenizer: Any) -> LlamaForCausalLM:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer) + 4, eos_token_id=None, **sizes))


def chat_tokenizer(template: str, **options: Any) -> PreTrainedTokenizerFast:
    made = byte_tokenizer(chat=True, **options)
    made.chat_template = template
    return made


def reward_trainer(tokenizer: Any, prompt: Any, answers: list[Any], folder: Path, **options: Any) -> RewardTrainer:
    """Of the answers, each beside the first."""
    columns = {"prompt": [prompt] * len(answers), "chosen": answers, "rejected": answers[:1] * len(answers)}
    args = RewardConfig(str(folder), use_cpu=True, report_to="none", save_strategy="no", max_steps=1)
    model = options.pop("model", None) or language_model(tokenizer)
    return RewardTrainer(model, args, Dataset.from_dict(columns), processing_class=tokenizer, **options)


def scores_in_training(built: RewardTrainer) -> list[float]:
    return built.predict(built.train_dataset).predictions[:, 0].tolist()


def rollout_of(prompt: list[int], answers: list[list[int]], stop: int | None) -> Rollout:
    """Rows of one prompt; each answer is followed by the stop token, or was cut off."""
    rows = [[*answer, *([] if stop is None else [stop])] for answer in answers]
    width = max(map(len, rows))
    action = torch.arange(width) < torch.tensor([len(row) for row in rows])[:, None]
    ids = torch.tensor([[*prompt, *row, *[0] * (width - len(row))] for row in rows])
    attention = torch.cat([torch.ones(len(rows), len(prompt)).bool(), action], 1)
    zeros = torch.zeros(len(rows), dtype=torch.long)
    ended = torch.full((len(rows),), stop is not None)
    return Rollout(ids, attention, action, ended, zeros, zeros, torch.zeros(action.shape))


def scores_in_ppo(
    policy_tokenizer: Any, reward: Any, prompt: Any, answers: list[str], stop: int | None, folder: Path, **options: Any
) -> tuple[list[float], PPOTrainer]:
    """The policy writes the answers, token by token as its tokenizer would after its prompt."""
    built = PPOTrainer(
        options.pop("model", None) or language_model(policy_tokenizer),
        reward,
        config(folder, stop_token_id=stop),
        Dataset.from_dict({"prompt": [prompt] * 8}),
        processing_class=policy_tokenizer,
        **options,
    )
    ids = [tokens_after(policy_tokenizer, built.prompts.texts[0], answer) for answer in answers]
    ended, cut = (rollout_of(built.prompts.ids[0], ids, s) for s in (stop or policy_tokenizer.eos_token_id, None))
    scores = [built.reward.sources[0](built.describe(seen, built.prompts)).tolist() for seen in (ended, cut)]
    assert scores[1] == pytest.approx(scores[0], abs=1e-5), "a response that was cut off is read with its ending too"
    return scores[0], built


def tokens_after(tokenizer: Any, prompt: str, answer: str) -> list[int]:
    """The answer's tokens where it stands, or by itself where a word would grow over the boundary."""
    head, whole, alone = (tokenizer(t, add_special_tokens=False).input_ids for t in (prompt, prompt + answer, answer))
    return whole[len(head) :] if whole[: len(head)] == head else alone


TEXT = {
    "adds BOS": {},
    "adds nothing": {"bos": None},
    "adds EOS": {"adds_eos": True},
    "EOS is pad": {"pad": "<eos>"},
    "EOS is all": {"eos": "<end>", "bos": "<end>", "pad": "<end>", "adds_eos": True},
    "prefix space": {"prefix_space": True},
}


@pytest.mark.parametrize("prompt", ["the film", "the film <eos>", "the f"])
@pytest.mark.parametrize("options", TEXT.values(), ids=TEXT)
def test_text(tmp_path: Path, options: dict[str, Any], prompt: str) -> None:
    tokenizer = byte_tokenizer(**options)
    answers = [" was good", "", " is bad \n", "ilm €"]
    rm = reward_trainer(tokenizer, prompt, answers, tmp_path / "rm")
    expected = scores_in_training(rm)
    assert len({round(score, 4) for score in expected}) == len(answers)
    found, _ = scores_in_ppo(tokenizer, rm.model, prompt, answers, None, tmp_path)
    assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("stop", ["<|im_end|>", "<eos>"])
@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_chat(tmp_path: Path, template: str, stop: str) -> None:
    tokenizer = chat_tokenizer(template)
    answers = ["a good story", " bad \n", "", "the €"]
    rm = reward_trainer(tokenizer, USER, [[{"role": "assistant", "content": a}] for a in answers], tmp_path / "rm")
    expected = scores_in_training(rm)
    assert len({round(score, 4) for score in expected}) == len(answers)
    token = tokenizer.convert_tokens_to_ids(stop)
    found, _ = scores_in_ppo(tokenizer, rm.model, USER, answers, token, tmp_path)
    assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("content", ["m.content", "m.content | trim"])
def test_a_blank_that_the_template_writes_is_no_part_of_the_message(tmp_path: Path, content: str) -> None:
    turns = "{% if m.role == 'user' %}[ask] {{ m.content }} [/ask]{% else %} {{ CONTENT }}<eos>{% endif %}"
    turns = turns.replace("CONTENT", content)
    tokenizer = chat_tokenizer("{% for m in messages %}" + turns + "{% endfor %}")
    answers = ["a good story", "bad", "  the"] if "trim" not in content else ["a good story", "bad"]
    rm = reward_trainer(tokenizer, USER, [[{"role": "assistant", "content": a}] for a in answers], tmp_path / "rm")
    found, built = scores_in_ppo(tokenizer, rm.model, USER, [f" {a}" for a in answers], None, tmp_path)
    assert found == pytest.approx(scores_in_training(rm), abs=1e-5)
    rollout = rollout_of(built.prompts.ids[0], [tokenizer(" bad", add_special_tokens=False).input_ids], None)
    assert built.describe(rollout, built.prompts).completions == [[{"role": "assistant", "content": "bad"}]]


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_the_same_vocabulary_with_another_template(tmp_path: Path, template: str) -> None:
    tokenizer, policys = chat_tokenizer(template), chat_tokenizer("{{ messages[-1].content }}<|im_start|>")
    assert tokenizer.get_vocab() == policys.get_vocab()
    answers = ["a good story", "bad"]
    rm = reward_trainer(tokenizer, USER, [[{"role": "assistant", "content": a}] for a in answers], tmp_path / "rm")
    options = {"reward_processing_classes": tokenizer}
    found, _ = scores_in_ppo(policys, rm.model, USER, answers, None, tmp_path, **options)
    assert found == pytest.approx(scores_in_training(rm), abs=1e-5)


@pytest.mark.parametrize("chat", [True, False])
def test_two_different_tokenizers(tmp_path: Path, chat: bool) -> None:
    words, theirs = word_tokenizer(), chat_tokenizer(TEMPLATES["plain"])
    words.chat_template = "{% for m in messages %}{{ m.content }} {% endfor %}"
    prompt: Any = USER if chat else "the film"
    texts = ["is good .", "was very bad !"]
    # The words' tokenizer joins what it decodes with spaces, also at the boundary; in a chat there is a space already.
    said: list[Any] = [[{"role": "assistant", "content": t}] for t in texts] if chat else [f" {t}" for t in texts]
    rm = reward_trainer(theirs, prompt, said, tmp_path / "rm")
    options = {"reward_processing_classes": theirs}
    found, _ = scores_in_ppo(words, rm.model, prompt, [f" {t}" for t in texts], None, tmp_path, **options)
    assert found == pytest.approx(scores_in_training(rm), abs=1e-5)


@pytest.mark.parametrize("chat", [True, False])
def test_an_adapter_on_the_policys_base(tmp_path: Path, chat: bool) -> None:
    tokenizer = chat_tokenizer(TEMPLATES["plain"], pad="<eos>")
    language_model(tokenizer).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    answers = ["a good story", "bad \n", ""]
    prompt: Any = USER if chat else "the film"
    said: list[Any] = [[{"role": "assistant", "content": a}] for a in answers] if chat else answers
    lora = LoraConfig(r=2, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
    rm = reward_trainer(tokenizer, prompt, said, tmp_path / "rm", model=str(tmp_path / "base"), peft_config=lora)
    rm.save_model()
    assert json.loads((tmp_path / "rm" / "reward_model.json").read_text())["reward_ends_with_eos"] is True
    policy = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    options = {"model": str(tmp_path / "base"), "peft_config": policy}
    stop = tokenizer.convert_tokens_to_ids("<|im_end|>") if chat else None
    found, built = scores_in_ppo(tokenizer, str(tmp_path / "rm"), prompt, answers, stop, tmp_path, **options)
    assert built.reward.sources[0].policy is built.unwrapped().policy
    assert found == pytest.approx(scores_in_training(rm), abs=1e-5)


def test_tools_and_template_settings_reach_what_the_reward_model_reads(tmp_path: Path) -> None:
    tokenizer = chat_tokenizer("{{ tools | tojson if tools }}{{ mood }}" + TEMPLATES["plain"])
    row = {"prompt": USER, "tools": [{"name": "clock"}], "chat_template_kwargs": {"mood": "calm"}}
    built = trainer(
        language_model(tokenizer),
        tmp_path,
        tokenizer,
        reward_funcs=_reward_model(tokenizer),
        train_dataset=Dataset.from_list([row] * 8),
    )
    rollout = rollout_of(built.prompts.ids[0], [tokenizer("good", add_special_tokens=False).input_ids], 2)
    ids, mask = built.reward.sources[0]._inputs(built.describe(rollout, built.prompts))
    assert tokenizer.decode(ids[0][mask[0]]) == (
        '[{"name": "clock"}]calm<|im_start|>user\nwas the film good<|im_end|>\n'
        "<|im_start|>assistant\ngood<|im_end|>\n<eos>"
    )


def _reward_model(tokenizer: Any) -> Any:
    sizes = language_model(tokenizer).config.to_dict() | {"num_labels": 1}
    return LlamaForSequenceClassification(LlamaConfig(**sizes))


def test_a_reward_model_in_memory_is_read_with_the_tokenizer_it_was_trained_with(tmp_path: Path) -> None:
    """Not with the one that lies beside its base, which has no template."""
    tokenizer = chat_tokenizer(TEMPLATES["plain"])
    language_model(tokenizer).save_pretrained(tmp_path / "base")
    byte_tokenizer(chat=False).save_pretrained(tmp_path / "base")
    said = [[{"role": "assistant", "content": text}] for text in ("a good story", "bad")]
    rm = reward_trainer(tokenizer, USER, said, tmp_path / "rm", model=str(tmp_path / "base"))
    found, _ = scores_in_ppo(tokenizer, rm.model, USER, ["a good story", "bad"], None, tmp_path)
    assert found == pytest.approx(scores_in_training(rm), abs=1e-5)


# ---- The policy's own tokens ----------------------------------------------------------------------------------------


def read(reader: Reader, tokenizer: Any, completion: list[int], prompt: str = "the film", **row: Any) -> list[int]:
    rollout = rollout_of(tokenizer(prompt).input_ids, [completion], row.get("stop"))
    return reader.read(Completions(rollout, [prompt], texts_of(tokenizer, rollout), rollout.completion_lists()))[0].ids


def test_a_text_is_read_as_the_policy_spelt_it() -> None:
    """In single letters, where its tokenizer would have written a word."""
    tokenizer = byte_tokenizer()
    reader = Reader(tokenizer, tokenizer, 300)
    letters = [*tokenizer.convert_tokens_to_ids(list("Ġgood")), 5]
    assert tokenizer(tokenizer.decode(letters)).input_ids != letters
    for stop in (2, None):
        assert read(reader, tokenizer, letters, stop=stop) == [*tokenizer("the film").input_ids, *letters, 2]
    half = tokenizer("€", add_special_tokens=False).input_ids[:2]
    assert read(reader, tokenizer, half) == [*tokenizer("the film").input_ids, *half, 2]


def test_a_tokenizer_that_has_more_tokens_reads_the_policys(tmp_path: Path) -> None:
    """RewardTrainer gives a tokenizer without a pad token one."""
    tokenizer = byte_tokenizer(pad=None)
    theirs = copy.deepcopy(tokenizer)
    theirs.add_special_tokens({"pad_token": "<|pad|>"})
    letters = tokenizer.convert_tokens_to_ids(list("Ġgood"))
    prompt = tokenizer("the film").input_ids
    assert read(Reader(theirs, tokenizer, 310), tokenizer, letters) == [*prompt, *letters, tokenizer.eos_token_id]


def test_no_id_that_the_reward_model_does_not_know_reaches_it() -> None:
    """A vocabulary padded to a round number has embeddings without a token; a smaller model lacks the last tokens."""
    tokenizer = byte_tokenizer()
    word = tokenizer.convert_tokens_to_ids("Ġfilm")
    prompt = tokenizer("the").input_ids
    assert read(Reader(tokenizer, tokenizer, 400), tokenizer, [word, 350, word], "the") == [*prompt, word, word, 2]
    small = Reader(tokenizer, tokenizer, word)
    assert max(read(small, tokenizer, [word, 3], "the")) < word


def test_a_model_that_was_trained_without_eos_says_so(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer()
    model = _reward_model(tokenizer)
    model.config.reward_ends_with_eos = False
    reader = Reader.of(model, tokenizer, tokenizer)
    assert read(reader, tokenizer, [7, 8], stop=2) == [*tokenizer("the film").input_ids, 7, 8]


def test_a_reward_model_says_in_its_config_how_it_was_trained(tmp_path: Path) -> None:
    rm = reward_trainer(byte_tokenizer(), "the film", ["good", "bad"], tmp_path / "rm")
    rm.save_model()
    assert json.loads((tmp_path / "rm" / "config.json").read_text())["reward_ends_with_eos"] is True
