"""RewardTrainer on tiny real models. What is expected is computed from the stock model, one row at a time."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, PromptTuningConfig
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    TrainingArguments,
)

from hfrlhf.models.reward.scoring import head_of, last_token_scores, load_reward_model
from hfrlhf.settings.reward import RewardConfig
from hfrlhf.trainers.reward import RewardTrainer

PROMPTS = ["the film", "a story", "the actor is", "but the story was very", "a"]
GOOD, BAD = [" good", " fine .", " very good and fine"], [" bad", " dull !", " very dull and a bad film was"]


def pairs(n: int = 10, **columns: Any) -> Dataset:
    """Pairs of many lengths whose chosen side praises."""
    rows = range(n)
    return Dataset.from_dict(
        {
            "prompt": [PROMPTS[i % 5] for i in rows],
            "chosen": [GOOD[i % 3] for i in rows],
            "rejected": [BAD[(i // 2) % 3] for i in rows],
            **{name: values[:n] for name, values in columns.items()},
        }
    )


def config(folder: Path, **changes: Any) -> RewardConfig:
    settings = {
        "output_dir": str(folder / "run"),
        "learning_rate": 0.1,
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "per_device_train_batch_size": 10,
        "per_device_eval_batch_size": 4,
        "train_sampling_strategy": "sequential",
        "max_grad_norm": 0,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 7,
    }
    return RewardConfig(**settings | changes)


def build(model: Any, folder: Path, data: Any = None, **changes: Any) -> RewardTrainer:
    """A trainer; `changes` are its own arguments or the configuration's fields."""
    own = {"eval_dataset", "processing_class", "peft_config"}
    given = {name: changes.pop(name) for name in list(changes) if name in own}
    model = str(model) if isinstance(model, Path) else model
    return RewardTrainer(model, config(folder, **changes), pairs() if data is None else data, **given)


def token_rows(tokenizer: Any, data: Dataset, side: str) -> list[list[int]]:
    """Prompt, completion, EOS; word-level tokens do not merge."""
    texts = [prompt + completion for prompt, completion in zip(data["prompt"], data[side], strict=True)]
    return [[*tokenizer(text).input_ids, tokenizer.eos_token_id] for text in texts]


def scores_alone(model: Any, rows: list[list[int]]) -> Tensor:
    """[n] the model's own output for each row by itself, without padding; gradients flow."""
    return torch.cat([model(input_ids=torch.tensor([row])).logits.flatten() for row in rows])


def losses_by_hand(
    model: Any, tokenizer: Any, data: Dataset, margin: Any = 0.0, c: float = 0, eps: float = 0
) -> Tensor:
    """[n] the pairwise loss, written with log1p(exp) instead of logsigmoid."""
    w, l = (scores_alone(model, token_rows(tokenizer, data, side)) for side in ("chosen", "rejected"))  # noqa: E741
    delta = w - l - torch.as_tensor(margin)
    return (1 - eps) * torch.log1p(torch.exp(-delta)) + eps * torch.log1p(torch.exp(delta)) + c * (w + l) ** 2


def parameters(model: Any) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def assert_same(left: dict[str, Tensor], right: dict[str, Tensor], atol: float = 0.0) -> None:
    assert left.keys() == right.keys()
    for name in left:
        torch.testing.assert_close(left[name], right[name], atol=atol, rtol=0, msg=lambda m, name=name: f"{name}: {m}")


@pytest.fixture
def tokenizer(tiny_model_folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model_folder)


# ---- One optimiser step -------------------------------------------------------------------------------------------

MARGINS = [0.0, 0.5, 1.0, 0.25, 2.0] * 2
OBJECTIVES = {
    "plain": ({}, {}),
    "margin": ({"margin": MARGINS}, {}),
    "centring": ({}, {"center_rewards_coefficient": 0.3}),
    "smoothing": ({}, {"label_smoothing": 0.2}),
    "all": ({"margin": MARGINS}, {"center_rewards_coefficient": 0.3, "label_smoothing": 0.2}),
}


@pytest.mark.parametrize("case", OBJECTIVES)
def test_a_step_descends_the_mean_loss_of_its_pairs(tiny_model_folder, tokenizer, tmp_path, case) -> None:
    columns, settings = OBJECTIVES[case]
    data = pairs(10, **columns)
    trainer = build(tiny_model_folder, tmp_path, data, normalize_scores="none", **settings)
    model = copy.deepcopy(trainer.model)
    c, eps = settings.get("center_rewards_coefficient", 0.0), settings.get("label_smoothing", 0.0)
    loss = losses_by_hand(model, tokenizer, data, torch.tensor(columns.get("margin", [0.0] * 10)), c, eps).mean()
    loss.backward()
    expected = {name: p.detach() - 0.1 * p.grad for name, p in model.named_parameters()}

    trainer.train()
    assert_same(parameters(trainer.model), expected, atol=1e-6)
    logged = [entry["train_loss"] for entry in trainer.state.log_history if "train_loss" in entry]
    assert logged == pytest.approx([loss.item()], abs=1e-6)


@pytest.mark.parametrize(("batch", "accumulation"), [(4, 2), (2, 4), (1, 8), (8, 1)])
def test_the_weights_do_not_depend_on_micro_batches(
    tiny_model_folder, tokenizer, tmp_path, batch, accumulation
) -> None:
    """11 pairs, 8 to a step: the second step has 3, in micro-batches of unequal size."""
    data = pairs(11, margin=[*MARGINS, 1.5])
    trainer = build(
        tiny_model_folder,
        tmp_path,
        data,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        normalize_scores="none",
    )
    model = copy.deepcopy(trainer.model)
    for rows in (range(8), range(8, 11)):
        model.zero_grad()
        part = data.select(rows)
        losses_by_hand(model, tokenizer, part, torch.tensor(part["margin"][:])).mean().backward()
        with torch.no_grad():
            for p in model.parameters():
                p -= 0.1 * p.grad
    trainer.train()
    assert trainer.state.global_step == 2
    assert_same(parameters(trainer.model), parameters(model), atol=2e-6)


def test_both_sides_go_through_one_forward(tiny_model_folder, tmp_path) -> None:
    trainer = build(tiny_model_folder, tmp_path, normalize_scores="none", per_device_train_batch_size=5)
    shapes = []
    trainer.model.model.register_forward_hook(lambda module, args, output: shapes.append(output[0].shape[0]))
    trainer.train()
    assert shapes == [10, 10]  # two batches of five pairs


def test_max_grad_norm_clips(tiny_model_folder, tmp_path) -> None:
    trainer = build(
        tiny_model_folder, tmp_path, max_grad_norm=0.01, learning_rate=1.0, normalize_scores="none", logging_steps=1
    )
    before = parameters(trainer.model)
    trainer.train()
    moved = torch.cat([(p - before[n]).flatten() for n, p in parameters(trainer.model).items()]).norm()
    assert float(moved) == pytest.approx(0.01, rel=1e-3)
    assert trainer.state.log_history[0]["grad_norm"] > 0.1, "nothing to clip; the test shows nothing"


@pytest.mark.parametrize("setting", ["bf16", "gradient_checkpointing"])
def test_the_trainers_own_switches_do_what_they_say(tiny_model_folder, tmp_path, setting) -> None:
    plain = build(tiny_model_folder, tmp_path / "plain", normalize_scores="none")
    other = build(tiny_model_folder, tmp_path / "other", normalize_scores="none", **{setting: True})
    seen = []
    other.model.model.layers[0].self_attn.q_proj.register_forward_hook(lambda m, i, o: seen.append(o.dtype))
    plain.train()
    other.train()
    assert {p.dtype for p in other.model.parameters()} == {torch.float32}
    if setting == "bf16":
        assert torch.bfloat16 in seen
        assert_same(parameters(other.model), parameters(plain.model), atol=2e-3)
    else:
        assert len(seen) == 2, "a checkpointed layer runs again for the backward"
        assert_same(parameters(other.model), parameters(plain.model), atol=1e-6)


# ---- Learning, evaluation -----------------------------------------------------------------------------------------


def test_it_learns_who_praises(tiny_model_folder, tmp_path) -> None:
    trainer = build(
        tiny_model_folder,
        tmp_path,
        pairs(60),
        eval_dataset=pairs(30),
        optim="adamw_torch",
        learning_rate=1e-2,
        num_train_epochs=6,
        train_sampling_strategy="group_by_length",
        logging_steps=6,
    )
    trainer.train()
    metrics = trainer.evaluate()
    assert metrics["eval_accuracy"] == 1.0 and metrics["eval_margin"] > 1
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert logs[-1]["accuracy"] == 1.0 and logs[-1]["margin"] > logs[0]["margin"]


def test_evaluation_counts_every_pair_once(tiny_model_folder, tokenizer, tmp_path) -> None:
    """10 pairs in batches of 4: the last batch has 2, and weighs 2."""
    data = pairs(10, margin=MARGINS)
    trainer = build(tiny_model_folder, tmp_path, data, eval_dataset=data)
    metrics = trainer.evaluate()
    with torch.no_grad():
        model = trainer.model.eval()
        w, l = (scores_alone(model, token_rows(tokenizer, data, side)) for side in ("chosen", "rejected"))  # noqa: E741
        losses = losses_by_hand(model, tokenizer, data, torch.tensor(MARGINS))
    assert metrics["eval_loss"] == pytest.approx(float(losses.mean()), abs=1e-6)
    assert metrics["eval_accuracy"] == pytest.approx(float((w > l).float().mean()))
    assert metrics["eval_margin"] == pytest.approx(float((w - l).mean()), abs=1e-6)
    assert metrics["eval_chosen_score_mean"] == pytest.approx(float(w.mean()), abs=1e-6)
    assert metrics["eval_rejected_score_std"] == pytest.approx(float(l.std(correction=0)), abs=1e-6)
    assert metrics["eval_score_mean"] == pytest.approx(float(torch.cat([w, l]).mean()), abs=1e-6)


def test_predictions_come_in_the_order_of_the_data(tiny_model_folder, tokenizer, tmp_path) -> None:
    data = pairs(10)
    trainer = build(tiny_model_folder, tmp_path, data, train_sampling_strategy="group_by_length")
    predicted = torch.from_numpy(trainer.predict(data).predictions)
    for column, side in enumerate(("chosen", "rejected")):
        alone = scores_alone(trainer.model, token_rows(tokenizer, data, side)).detach()
        torch.testing.assert_close(predicted[:, column], alone, atol=1e-5, rtol=0)


def test_several_evaluation_sets_by_name(tiny_model_folder, tmp_path) -> None:
    trainer = build(tiny_model_folder, tmp_path, eval_dataset={"one": pairs(3), "two": pairs(5)})
    metrics = trainer.evaluate()
    assert {"eval_one_accuracy", "eval_two_accuracy", "eval_two_loss"} <= metrics.keys()


def test_training_keeps_the_models_dropout_and_scoring_has_none(tokenizer, tmp_path) -> None:
    sizes = {"vocab_size": 20, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, attention_dropout=0.5))
    trainer = build(model, tmp_path, processing_class=tokenizer)
    assert trainer.model.config.attention_dropout == 0.5
    trainer.model.train()
    first, second = (trainer.predict(pairs()).predictions for _ in range(2))
    assert (first == second).all()


# ---- Normalisation, saving, resume --------------------------------------------------------------------------------


def saved_scores(folder: Path, tokenizer: Any, data: Dataset) -> Tensor:
    """The chosen responses' scores as a reader who knows only transformers and `reward_shift` would get them."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        return scores_alone(model, token_rows(tokenizer, data, "chosen")) - model.config.reward_shift


@pytest.mark.parametrize("how", ["mean", "mean_std", "none"])
def test_a_saved_model_is_normalised(tiny_model_folder, tokenizer, tmp_path, how) -> None:
    data = pairs(30)
    trainer = build(tiny_model_folder, tmp_path, data, normalize_scores=how)
    plain = build(tiny_model_folder, tmp_path / "plain", data, normalize_scores="none")
    trainer.train()
    plain.train()
    trainer.save_model()
    scores = saved_scores(tmp_path / "run", tokenizer, data)
    raw = scores_alone(plain.model, token_rows(tokenizer, data, "chosen")).detach()
    assert abs(float(raw.mean())) > 1e-2 and abs(float(raw.std(correction=0)) - 1) > 0.1, "nothing to normalise"
    mean = float(raw.mean()) if how != "none" else 0.0
    std = float(raw.std(correction=0)) if how == "mean_std" else 1.0
    torch.testing.assert_close(scores, (raw - mean) / std, atol=1e-4, rtol=0)
    loaded = load_reward_model(str(tmp_path / "run"))
    rows = token_rows(tokenizer, data, "chosen")
    ours = [float(last_token_scores(loaded, torch.tensor([row]), torch.ones(1, len(row)))) for row in rows]
    torch.testing.assert_close(torch.tensor(ours), scores, atol=1e-5, rtol=0)


def test_at_most_1024_rows_spread_over_the_data_make_the_normalisation(tiny_model_folder, tmp_path) -> None:
    """Rows 0 … 1,499 are one text, the rest another: a prefix would not be centred."""
    half = 1500
    data = Dataset.from_dict({"chosen": ["good"] * half + ["the bad film"] * half, "rejected": ["dull"] * 2 * half})
    trainer = build(tiny_model_folder, tmp_path, data, per_device_eval_batch_size=512)
    scores = trainer.reference_scores()
    assert len(scores) == 1024 and len(set(scores.tolist())) == 2
    assert (scores == scores[0]).sum() == 512


def test_scores_without_spread_are_not_blown_up(tiny_model_folder, tmp_path, caplog) -> None:
    data = Dataset.from_dict({"chosen": ["good"] * 3, "rejected": ["bad"] * 3})
    trainer = build(tiny_model_folder, tmp_path, data, normalize_scores="mean_std")
    trainer.train()
    assert "shifted, not scaled" in caplog.text
    assert abs(float(trainer.reference_scores().mean())) < 1e-6 and torch.isfinite(head_of(trainer.model).weight).all()


def test_a_checkpoint_is_centred_and_training_does_not_notice(tiny_model_folder, tokenizer, tmp_path) -> None:
    steps = {"per_device_train_batch_size": 2, "center_rewards_coefficient": 0.1}
    plain = build(tiny_model_folder, tmp_path / "plain", **steps)
    saving = build(tiny_model_folder, tmp_path / "saving", save_strategy="steps", save_steps=2, **steps)
    plain.train()
    saving.train()
    assert_same(parameters(saving.model), parameters(plain.model))
    assert saving.model.config.reward_shift == plain.model.config.reward_shift
    checkpoints = sorted((tmp_path / "saving" / "run").glob("checkpoint-*"))
    assert [c.name for c in checkpoints] == ["checkpoint-2", "checkpoint-4", "checkpoint-5"]
    means = [float(saved_scores(c, tokenizer, pairs()).mean()) for c in checkpoints]
    assert means == pytest.approx([0, 0, 0], abs=1e-6)


@pytest.mark.parametrize("peft", [False, True])
def test_a_resumed_run_is_the_uninterrupted_one(tiny_model_folder, tmp_path, peft) -> None:
    """With dropout, a decaying rate, Adam and shuffling: all of them must continue."""
    settings = {
        "per_device_train_batch_size": 2,
        "num_train_epochs": 2,
        "optim": "adamw_torch",
        "lr_scheduler_type": "linear",
        "train_sampling_strategy": "group_by_length",
        "normalize_scores": "mean_std",
        "peft_config": LoraConfig(r=2, lora_dropout=0.2) if peft else None,
    }
    whole = build(tiny_model_folder, tmp_path / "whole", **settings)
    whole.train()
    first = build(tiny_model_folder, tmp_path / "parts", save_strategy="steps", save_steps=3, **settings)
    first.train()
    run = tmp_path / "parts" / "run"
    for name in ("checkpoint-6", "checkpoint-9", "checkpoint-10"):
        for file in (run / name).iterdir():
            file.unlink()
        (run / name).rmdir()
    second = build(tiny_model_folder, tmp_path / "parts", **settings)
    second.train(resume_from_checkpoint=True)
    assert second.state.global_step == whole.state.global_step == 10
    assert_same(parameters(second.model), parameters(whole.model))
    assert second.model.config.reward_shift == whole.model.config.reward_shift


def test_what_a_saved_folder_holds(tiny_model_folder, tmp_path) -> None:
    trainer = build(tiny_model_folder, tmp_path, eval_dataset=pairs(4), hub_token="secret-token", save_strategy="epoch")
    trainer.card["datasets"] = ["someone/pairs"]
    trainer.train()
    trainer.evaluate()
    trainer.save_model()
    for folder in (tmp_path / "run", tmp_path / "run" / "checkpoint-1"):
        names = {path.name for path in folder.iterdir()}
        assert {"config.json", "model.safetensors", "tokenizer.json", "training_args.json", "README.md"} <= names
        assert "training_args.bin" not in names
        text = (folder / "training_args.json").read_text()
        assert json.loads(text)["normalize_scores"] == "mean" and "secret-token" not in text
    card = (tmp_path / "run" / "README.md").read_text()
    assert "someone/pairs" in card and "eval_accuracy" in card and "reward" in card
    trainer.create_model_card(model_name="x")
    assert (tmp_path / "run" / "README.md").read_text() == card


CASES = {"no pad": {"pad": None}, "pad is eos": {"pad": "<eos>"}, "one for all": {"bos": "<eos>", "pad": "<eos>"}}


FAMILIES = {
    "llama": lambda: LlamaForCausalLM(
        LlamaConfig(vocab_size=300, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
    ),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=300, n_embd=16, n_layer=2, n_head=2, n_positions=64)),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("case", CASES)
def test_without_a_pad_token_of_its_own_the_model_is_read_alike_by_all(make_tokenizer, tmp_path, case, family) -> None:
    tokenizer = make_tokenizer(**CASES[case])
    data = pairs(8)
    trainer = build(FAMILIES[family](), tmp_path, data, processing_class=tokenizer)
    trainer.train()
    trainer.save_model()
    ours = torch.from_numpy(trainer.predict(data).predictions)[:, 0]
    stock = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run").eval()
    saved = AutoTokenizer.from_pretrained(tmp_path / "run")
    texts = [p + c + saved.eos_token for p, c in zip(data["prompt"], data["chosen"], strict=True)]
    with torch.no_grad():
        logits = stock(**saved(texts, padding=True, return_tensors="pt")).logits.squeeze(-1)
    torch.testing.assert_close(logits - stock.config.reward_shift, ours, atol=1e-5, rtol=0)


# ---- Adapters -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task_type", [None, "CAUSAL_LM", "SEQ_CLS"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_an_adapter_and_the_head_train_save_and_load(
    tiny_model_folder, tokenizer, tmp_path, task_type, checkpointing
) -> None:
    data = pairs(10)
    lora = LoraConfig(r=2, task_type=task_type)
    trainer = build(tiny_model_folder, tmp_path, data, peft_config=lora, gradient_checkpointing=checkpointing)
    assert lora.task_type == task_type, "the caller's configuration is the caller's"
    before = parameters(trainer.model)
    trainable = {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert trainable and all("lora_" in name or ".score." in name for name in trainable)
    trainer.train()
    changed = {name for name, p in parameters(trainer.model).items() if not torch.equal(p, before[name])}
    # A fresh LoRA's A has no gradient yet (B is 0); B and the head have.
    assert changed == {name for name in trainable if "lora_A" not in name}
    trainer.save_model()
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "reward_model.json", "tokenizer.json"} <= names
    loaded = load_reward_model(str(tmp_path / "run"))
    rows = token_rows(tokenizer, data, "chosen")
    scores = torch.tensor([float(last_token_scores(loaded, torch.tensor([r]), torch.ones(1, len(r)))) for r in rows])
    assert isinstance(loaded, PeftModel) and abs(float(scores.mean())) < 1e-5
    predicted = torch.from_numpy(trainer.predict(data).predictions)[:, 0]
    torch.testing.assert_close(predicted, scores, atol=1e-5, rtol=0)


def test_a_saved_reward_model_or_adapter_can_be_trained_on(tiny_model_folder, tmp_path) -> None:
    for kind, lora in {"plain": None, "adapter": LoraConfig(r=2)}.items():
        first = build(tiny_model_folder, tmp_path / kind, peft_config=lora)
        first.train()
        first.save_model()
        second = build(tmp_path / kind / "run", tmp_path / kind / "again")
        wanted, found = (torch.from_numpy(t.predict(pairs()).predictions) for t in (first, second))
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
        before = head_of(second.model).weight.clone()
        second.train()
        assert not torch.equal(before, head_of(second.model).weight)
        assert abs(float(second.reference_scores().mean())) < 1e-5


# ---- Data kinds, bad input ----------------------------------------------------------------------------------------


def test_chat_pairs_train_and_over_length_pairs_are_counted(make_tokenizer, tmp_path) -> None:
    tokenizer = make_tokenizer(chat=True, eos="<|im_end|>", bos=None)
    sizes = {"vocab_size": 300, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, max_position_embeddings=40))

    def turn(role: str, text: str) -> list[dict[str, str]]:
        return [{"role": role, "content": text}]

    long = "the film was a good story " * 10
    data = Dataset.from_dict(
        {
            "prompt": [turn("user", "the film"), turn("user", long), turn("user", "a story")],
            "chosen": [turn("assistant", "good")] * 3,
            "rejected": [turn("assistant", "bad")] * 3,
        }
    )
    # The setting allows 1,024 tokens, the model has 40 positions.
    trainer = build(model, tmp_path, data, eval_dataset=data, processing_class=tokenizer)
    assert trainer.dropped == {"train": 1, "eval": 1} and trainer.max_length == 40
    trainer.train()
    assert trainer.state.global_step == 1


def test_a_language_model_in_memory_is_copied(tiny_model_folder, tokenizer, tmp_path) -> None:
    policy = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
    before = parameters(policy)
    build(policy, tmp_path, processing_class=tokenizer).train()
    assert_same(parameters(policy), before)


def test_half_precision_checkpoints_train_in_float32(tiny_model_folder, tokenizer, tmp_path) -> None:
    AutoModelForCausalLM.from_pretrained(tiny_model_folder).to(torch.bfloat16).save_pretrained(tmp_path / "half")
    trainer = build(tmp_path / "half", tmp_path, processing_class=tokenizer)
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}


def big_tokenizer(folder: Path) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["excellent", "awful"])
    return tokenizer


def t5() -> Any:
    return T5ForConditionalGeneration(T5Config(vocab_size=20, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2))


def test_bad_input_is_refused_at_construction(tiny_model_folder, tokenizer, tmp_path) -> None:
    """What needs a model or a trainer to show; the data's own errors are tests of data/preferences.py."""
    lora = LoraConfig(r=2)
    adapter = build(tiny_model_folder, tmp_path, peft_config=lora).model
    prompt_tuning = PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2)
    too_big = r"row 0 of the train dataset holds the token 'excellent' \(20\).* at 19.*resize_token_embeddings\(22\)"
    excellent = Dataset.from_dict({"chosen": ["excellent"], "rejected": ["bad"]})
    one_column = Dataset.from_dict({"chosen": ["good"]})
    cases: list[tuple[type, str, dict[str, Any]]] = [
        (ValueError, too_big, {"processing_class": big_tokenizer(tiny_model_folder), "data": excellent}),
        (ValueError, "encoder–decoder", {"model": t5(), "processing_class": tokenizer}),
        (ValueError, "pass the tokenizer as `processing_class`", {"model": t5()}),
        (ValueError, "already has an adapter", {"model": adapter, "processing_class": tokenizer, "peft_config": lora}),
        (ValueError, "PROMPT_TUNING.*use LoRA", {"peft_config": prompt_tuning}),
        (ValueError, r"no column 'rejected'; .*this one has \['chosen'\]", {"data": one_column}),
        (ValueError, "the eval dataset is empty", {"eval_dataset": pairs(0)}),
        (ValueError, r"all 10 pairs .* longer than 3 tokens", {"max_length": 3}),
        (TypeError, r"several splits, \['train'\]", {"data": {"train": pairs()}}),
    ]
    for error, message, given in cases:
        given = {"model": tiny_model_folder, **given}
        with pytest.raises(error, match=message):
            build(given.pop("model"), tmp_path, **given)


@pytest.mark.parametrize(
    ("changes", "plan"),
    [
        ({"num_train_epochs": 2}, "4 optimiser steps of 8 pairs = 2 epochs"),
        ({"num_train_epochs": 0.5}, "1 optimiser step of 8 pairs = 0.5 epochs"),
        ({"max_steps": 3}, "3 optimiser steps of 8 pairs = max_steps"),
    ],
)
def test_it_says_what_it_is_about_to_do(tiny_model_folder, tmp_path, capsys, changes, plan) -> None:
    rows = [*pairs(10).to_list(), {"prompt": "a", "chosen": " good" * 30, "rejected": " bad"}]
    settings = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_length": 20} | changes
    trainer = build(tiny_model_folder, tmp_path, data=Dataset.from_list(rows), **settings)
    trainer.train()
    parameters = sum(p.numel() for p in trainer.model.parameters())
    first, model, planned, tokens, *_ = capsys.readouterr().out.splitlines()
    assert first == "reward model on 10 pairs (1 longer than 20 tokens left out)"
    assert model.split(", ", 1)[1] == f"{parameters:,} of {parameters:,} parameters trained"
    assert planned.split(maxsplit=1)[1] == plan
    assert tokens.split(maxsplit=1)[1] == "at most 20 per prompt and response; 1 process on cpu"
    assert trainer.state.global_step == int(plan.split()[0])


def test_it_says_how_much_of_a_model_with_an_adapter_is_trained(tiny_model_folder, tmp_path, capsys) -> None:
    trainer = build(tiny_model_folder, tmp_path, peft_config=LoraConfig(r=2), max_steps=1)
    trainer.train()
    trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    assert f"{trained:,} of " in capsys.readouterr().out.splitlines()[1]


def test_other_settings_classes_are_refused(tiny_model_folder, tmp_path) -> None:
    with pytest.raises(TypeError, match=r"must be hfrlhf's RewardConfig, got transformers.*TrainingArguments"):
        RewardTrainer(str(tiny_model_folder), TrainingArguments(output_dir=str(tmp_path)), pairs())


def test_a_folder_with_another_run_is_not_overwritten(tiny_model_folder, tmp_path) -> None:
    first = build(tiny_model_folder, tmp_path)
    first.train()
    first.save_model()
    with pytest.raises(FileExistsError, match="has trained before"):
        first.train()
    with pytest.raises(FileExistsError, match="already holds a run"):
        build(tiny_model_folder, tmp_path).train()
    with pytest.raises(ValueError, match="holds no checkpoint"):
        build(tiny_model_folder, tmp_path).train(resume_from_checkpoint=True)
