"""Policy, reference, critic and reward as adapters on one base, trained together."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

from hfrlhf import RewardConfig, RewardTrainer, load_reward_model
from hfrlhf.data.preferences import pad_right
from hfrlhf.models.adapters import roles_of
from hfrlhf.models.quantization import quantization_of
from hfrlhf.models.reward.adapter import add_reward_adapter
from hfrlhf.models.reward.adapter import logger as reward_adapter_logger
from hfrlhf.models.reward.scoring import last_token_scores
from hfrlhf.rewards.sources import reward_from_name, reward_source
from tests.conftest import word_tokenizer
from tests.trainers.helpers import parameters, reward, trainer, training_logs

POLICY = {"r": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
VALUE = LoraConfig(r=2, target_modules=["k_proj", "down_proj"])
REWARD = LoraConfig(r=3, target_modules=["o_proj", "up_proj"])
BITS = {32: None, 4: {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}}


def quantization(bits: int) -> dict[str, Any]:
    return {"quantization_config": BitsAndBytesConfig(**BITS[4])} if bits == 4 else {}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama wide enough for 4-bit blocks, with its tokenizer."""
    tokenizer = word_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=128,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    folder = tmp_path_factory.mktemp("base")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=[32, 4], ids=["float32", "4-bit"])
def bits(request) -> int:
    return request.param


@pytest.fixture(scope="module")
def reward_adapter(base: Path, bits: int, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward adapter and its head, trained for two steps on that base in one call."""
    folder = tmp_path_factory.mktemp("reward") / str(bits)
    pairs = Dataset.from_dict({"chosen": ["the film is good", "a fine story"] * 8, "rejected": ["bad", "dull !"] * 8})
    args = RewardConfig(
        output_dir=str(folder), max_steps=2, learning_rate=1e-2, use_cpu=True, report_to="none", save_strategy="no"
    )
    built = RewardTrainer(str(base), args, pairs, peft_config=REWARD, **quantization(bits))
    built.train()
    built.save_model()
    return folder


def one_base(base: Path, folder: Path, bits: int, reward: Any, **changes: Any) -> Any:
    given = {"peft_config": LoraConfig(**POLICY), "value_model": VALUE, "model": str(base)} | quantization(bits)
    if not isinstance(changes.get("model", ""), str):
        given.pop("quantization_config", None)  # it is quantised already
    given |= changes
    return trainer(given.pop("model"), folder, AutoTokenizer.from_pretrained(base), reward_funcs=reward, **given)


def base_bytes(built: Any) -> str:
    """A hash of every parameter and buffer that belongs to no role."""
    policy, digest = built.unwrapped().policy, hashlib.sha256()
    roles = roles_of(policy)
    for name, tensor in sorted(policy.state_dict().items(), key=lambda item: item[0].replace(".base_layer", "")):
        if name not in roles:
            place = name.replace(".base_layer", "")  # where an adapter stands on it
            digest.update(place.encode() + tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def test_the_head_of_a_reward_adapter_is_trained_in_float32_and_saved(base, bits, reward_adapter):
    loaded = load_reward_model(str(reward_adapter))
    head = loaded.get_base_model().score.modules_to_save["default"]
    assert head.weight.dtype == torch.float32 and head.weight.abs().max() > 0


def test_one_base_is_loaded_once_and_scores_as_the_reward_model_alone(base, bits, reward_adapter, tmp_path):
    built = one_base(base, tmp_path, bits, str(reward_adapter))
    (source,) = built.reward.sources
    assert source.policy is built.unwrapped().policy
    assert built.reference.model is built.unwrapped().policy
    rollouts, scores, original = [], [], built.reward.parts

    def parts(completions):
        found = original(completions)
        rollouts.append(completions.rollout)
        scores.append(next(iter(found.values())))
        return found

    built.reward.parts = parts
    built.train()
    alone = load_reward_model(str(reward_adapter), **quantization(bits)).eval()
    for rollout, score in zip(rollouts, scores, strict=True):
        expected = last_token_scores(alone, *with_eos(rollout))
        torch.testing.assert_close(score, expected, atol=2e-4, rtol=0)
    assert torch.cat(scores).std() > 1e-3


def with_eos(rollout: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows as reward training reads them: each ends with EOS (2), also those that were cut off."""
    rows = [
        p + [t for t in c if t != 2] + [2]
        for p, c in zip(rollout.prompt_lists(), rollout.completion_lists(), strict=True)
    ]
    batch = pad_right(rows, 0)
    return batch["input_ids"], batch["attention_mask"]


def test_each_role_moves_what_is_its_own_and_the_base_never(base, bits, reward_adapter, tmp_path):
    built = one_base(base, tmp_path, bits, str(reward_adapter))
    roles, before, bytes_before = roles_of(built.unwrapped().policy), parameters(built), base_bytes(built)
    assert set(roles.values()) == {"default", "value", "reward"}
    built.train()
    after = parameters(built)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    by_role = {role: {f"policy.{n}" for n, r in roles.items() if r == role} for role in ("default", "value", "reward")}
    assert moved & by_role["default"] and moved & by_role["value"] and not moved & by_role["reward"]
    assert moved <= by_role["default"] | by_role["value"] | {"value_head.weight", "value_head.bias"}
    assert base_bytes(built) == bytes_before


def test_the_first_kl_is_exactly_zero(base, bits, reward_adapter, tmp_path):
    built = one_base(base, tmp_path, bits, str(reward_adapter), max_steps=8)
    seen, original = [], built.after_rollout
    built.after_rollout = lambda e: (seen.append((e.old_logprobs - e.ref_logprobs).abs().max()), original(e))[1]
    built.train()
    first, second = seen
    assert float(first) == 0.0 < float(second)


def test_what_was_saved_loads_with_peft_and_goes_on(base, bits, reward_adapter, tmp_path):
    built = one_base(base, tmp_path, bits, str(reward_adapter))
    built.train()
    built.save_model()
    folder = tmp_path / "run"
    assert {"adapter_model.safetensors", "value_head.safetensors", "value", "tokenizer.json", "README.md"} <= {
        path.name for path in folder.iterdir()
    }
    stock = AutoPeftModelForCausalLM.from_pretrained(folder, **quantization(bits)).eval()
    ids = torch.arange(3, 9)[None]
    ours = built.unwrapped().policy.eval()(ids).logits
    # On some processors stock 4-bit layers compute in bfloat16 once they are evaluated; ours are kept from it.
    torch.testing.assert_close(stock(ids).logits, ours, atol=2e-4 if bits == 32 else 1e-2, rtol=0)
    other = one_base(base, tmp_path / "other", bits, str(reward_adapter), seed=11)
    other.unwrapped().load_saved(folder)
    for (name, p), q in zip(parameters(built).items(), parameters(other).values(), strict=True):
        assert torch.equal(p, q), name


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_resumed_run_equals_the_uninterrupted_one(base, bits, reward_adapter, tmp_path, checkpointing):
    def run(resume=None):
        settings = {"save_strategy": "steps", "save_steps": 1, "max_steps": 8, "gradient_checkpointing": checkpointing}
        built = one_base(base, tmp_path, bits, str(reward_adapter), **settings)
        built.train(resume_from_checkpoint=resume and str(tmp_path / "run" / f"checkpoint-{resume}"))
        return built

    whole = run()
    expected = parameters(whole)
    continued = run(3)
    for name, p in parameters(continued).items():
        assert torch.equal(p, expected[name]), name
    assert training_logs(continued) == training_logs(whole)


def test_starting_from_an_adapter_the_reference_is_that_adapter(base, bits, reward_adapter, tmp_path):
    """KL exactly 0 against the policy it starts from, and clearly not against the raw base."""
    model = AutoModelForCausalLM.from_pretrained(base, **quantization(bits))
    start = PeftModel(model, LoraConfig(**POLICY))
    with torch.no_grad():
        for name, parameter in start.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(0)).mul_(0.5)
    built = one_base(base, tmp_path, bits, str(reward_adapter), model=start, peft_config=None)
    seen, original = [], built.after_rollout
    built.after_rollout = lambda e: (seen.append(e), original(e))[1]
    built.train()
    assert torch.equal(seen[0].old_logprobs, seen[0].ref_logprobs)


# ---- What cannot work is refused before any training ------------------------------------------------------------


def spoiled(folder: Path, tmp_path: Path, settings: dict[str, Any] | None = None, weights: Any = None) -> Path:
    """A copy of a reward adapter with other settings, or other weights."""
    copied = tmp_path / "spoiled"
    shutil.copytree(folder, copied)
    file = copied / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | (settings or {})))
    if weights is not None:
        save_file(weights(load_file(copied / "adapter_model.safetensors")), copied / "adapter_model.safetensors")
    return copied


def without_head(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in weights.items() if "score" not in name}


def narrower(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {n: t[:, :32].contiguous() if ".lora_A." in n else t for n, t in weights.items()}


def other_modules(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.replace("layers.1.", "layers.7."): tensor for name, tensor in weights.items()}


@pytest.mark.parametrize(
    ("settings", "weights", "message"),
    [
        ({"task_type": "CAUSAL_LM"}, None, "task type CAUSAL_LM"),
        ({}, without_head, "no head"),
        ({}, narrower, "does not fit the policy's base: .* has width 64 there"),
        ({}, other_modules, "layers.7.* has no counterpart"),
    ],
    ids=["another kind", "no head", "another width", "another depth"],
)
def test_a_reward_adapter_that_does_not_fit(base, bits, reward_adapter, tmp_path, settings, weights, message):
    with pytest.raises(ValueError, match=message):
        one_base(base, tmp_path, bits, str(spoiled(reward_adapter, tmp_path, settings, weights)))


def with_settings(folder: Path, **changes: Any) -> Path:
    """The same adapter with other words in its reward_model.json."""
    file = folder / "reward_model.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return folder


def nothing(completions: list[str]) -> list[float]:
    return [0.0] * len(completions)


def test_the_same_base_under_another_name_is_the_same_base(base, bits, reward_adapter, tmp_path):
    shutil.copytree(base, tmp_path / "copy")
    one_base(base, tmp_path, bits, str(reward_adapter), model=str(tmp_path / "copy"))


def test_another_base_under_the_same_name_is_another(base, bits, reward_adapter, tmp_path):
    """What an SFT adapter was merged into, with small changes of every weight, still says where it was loaded from."""
    model = AutoModelForCausalLM.from_pretrained(base)
    torch.manual_seed(0)
    sft = PeftModel(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    for name, parameter in sft.named_parameters():
        if "lora" in name:
            parameter.data.mul_(0.1)  # weights that change by 4 %
    merged = sft.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    policy = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", **quantization(bits))
    policy.config._name_or_path = str(base)
    with pytest.raises(ValueError, match=r"the weights of the policy's base .* are others"):
        one_base(base, tmp_path, bits, str(reward_adapter), model=policy)


def test_an_adapter_that_does_not_tell_its_weights_is_known_by_name(base, bits, reward_adapter, tmp_path):
    elsewhere = spoiled(reward_adapter, tmp_path, {"base_model_name_or_path": "somebody/else"})
    with_settings(elsewhere, base_fingerprint=None)
    with pytest.raises(ValueError, match="was trained on 'somebody/else', the policy's base is"):
        one_base(base, tmp_path, bits, str(elsewhere))


def test_looking_at_the_weights_changes_none(base, bits):
    from hfrlhf.models.base_fingerprint import base_fingerprint

    how = quantization(bits) or {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}
    model = AutoModelForCausalLM.from_pretrained(base, **how)
    before = {name: t.clone() for name, t in model.state_dict().items() if isinstance(t, torch.Tensor)}
    first = base_fingerprint(model)
    assert len(first) == 8 and base_fingerprint(model) == first
    after = model.state_dict()
    assert all(torch.equal(t, after[name]) for name, t in before.items())


def test_a_refused_reward_adapter_leaves_the_policy_as_it_was(base, bits, reward_adapter, tmp_path):
    policy = PeftModel(AutoModelForCausalLM.from_pretrained(base, **quantization(bits)), LoraConfig(**POLICY))
    fewer = spoiled(reward_adapter, tmp_path, weights=lambda w: {n: t for n, t in w.items() if "layers.1.mlp" not in n})
    with pytest.raises(ValueError, match="matrices where the policy's base takes"):
        add_reward_adapter(policy, str(fewer))
    assert set(policy.peft_config) == {"default"} and set(roles_of(policy).values()) == {"default"}
    assert policy.active_adapter == "default"
    assert all(p.requires_grad == ("lora" in n) for n, p in policy.named_parameters())


def test_a_model_that_another_trainer_left_its_adapters_on(base, tmp_path):
    first = one_base(base, tmp_path / "a", 32, nothing, model=AutoModelForCausalLM.from_pretrained(base))
    used = first.unwrapped().policy
    with pytest.raises(ValueError, match=r"still has the adapters \['value'\] of another trainer"):
        one_base(base, tmp_path / "b", 32, nothing, model=used, peft_config=None)
    with pytest.raises(ValueError, match="already has an adapter's layers in it"):
        one_base(base, tmp_path / "b", 32, nothing, model=used.get_base_model())
    used.delete_adapter("value")
    one_base(base, tmp_path / "b", 32, nothing, model=used, peft_config=None).train()


def test_a_reward_adapter_without_its_settings_is_taken_with_a_warning(base, bits, reward_adapter, tmp_path):
    bare = spoiled(reward_adapter, tmp_path)
    (bare / "reward_model.json").unlink()
    warnings: list[str] = []
    reward_adapter_logger.addFilter(lambda record: bool(warnings.append(record.getMessage())) or True)
    built = one_base(base, tmp_path, bits, str(bare))
    assert built.reward.sources[0].shift == 0
    assert any("has no reward_model.json" in text for text in warnings)


def test_a_reward_adapter_with_a_base_of_its_own_needs_its_head_too(base, bits, reward_adapter, tmp_path):
    with pytest.raises(ValueError, match="has no head"):
        load_reward_model(str(spoiled(reward_adapter, tmp_path, weights=without_head)))


def test_a_quantised_model_in_memory_makes_no_reward_model(base):
    model = AutoModelForCausalLM.from_pretrained(base, **quantization(4))
    with pytest.raises(ValueError, match=r"is quantised in memory.*pass the model's name"):
        load_reward_model(model)


@pytest.mark.parametrize("word", ["adaptor", "Adapter"])
def test_a_misspelt_adapter_is_no_name_to_look_for(base, tmp_path, word):
    with pytest.raises(ValueError, match="the word for a LoRA critic is 'adapter'"):
        one_base(base, tmp_path, 32, nothing, value_model=word)


def test_another_trainers_actor_critic_is_not_the_policy(base, tmp_path):
    first = one_base(base, tmp_path, 32, nothing)
    with pytest.raises(TypeError, match="pass its `policy`"):
        one_base(base, tmp_path, 32, nothing, model=first.model)


def test_a_folder_without_a_model_says_what_is_in_it(base, tmp_path):
    (tmp_path / "run" / "checkpoint-4").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"holds no model .*it has checkpoint-4"):
        one_base(base, tmp_path / "new", 32, str(tmp_path / "run"))


def test_the_report_counts_what_packed_weights_stand_for(base, bits, tmp_path, capsys):
    built = one_base(base, tmp_path, bits, nothing)
    built.train()
    whole = sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(base).parameters())
    adapters = sum(
        p.numel() for n, p in built.unwrapped().policy.named_parameters() if n in roles_of(built.unwrapped().policy)
    )
    assert f"of {whole + adapters:,} parameters trained" in capsys.readouterr().out


def test_a_reward_adapter_that_shares_the_base_has_its_tokenizer(base, bits, reward_adapter, tmp_path):
    other = word_tokenizer()
    other.add_tokens(["extra"])
    policy = PeftModel(AutoModelForCausalLM.from_pretrained(base, **quantization(bits)), LoraConfig(**POLICY))
    with pytest.raises(ValueError, match=r"another vocabulary.*own:"):
        reward_source(str(reward_adapter), word_tokenizer(), other, policy=policy)


def test_own_gives_a_reward_adapter_a_base_of_its_own(base, bits, reward_adapter, tmp_path):
    name = reward_from_name(f"own:{reward_adapter}")
    built = one_base(base, tmp_path, bits, [str(reward_adapter), name])
    shared, apart = built.reward.sources
    assert shared.policy is built.unwrapped().policy and apart.model.get_base_model() is not shared.policy
    built.train()
    one, other = built.reward.parts(built.describe(built.cycle.experience, built.prompts)).values()
    torch.testing.assert_close(one, other.cpu(), atol=2e-4, rtol=0)


def test_a_reward_adapter_is_loaded_in_the_quantisation_it_was_trained_in(base, bits, reward_adapter):
    loaded = load_reward_model(str(reward_adapter))
    assert quantization_of(loaded) == quantization_of(load_reward_model(str(reward_adapter), **quantization(bits)))
    assert bool(quantization_of(loaded)) == (bits == 4)
    if bits == 4:
        eight = BitsAndBytesConfig(load_in_8bit=True)
        with pytest.raises(ValueError, match="load_in_4bit was True and is False; load_in_8bit was False and is True"):
            load_reward_model(str(reward_adapter), quantization_config=eight)
        assert quantization_of(load_reward_model(str(reward_adapter), quantization_config=None)) is None


def test_the_cards_snippets_load_the_base_as_it_was(base, bits, reward_adapter, tmp_path, capsys):
    built = one_base(base, tmp_path, bits, str(reward_adapter))
    built.train()
    built.save_model()
    capsys.readouterr()
    for folder in (tmp_path / "run", reward_adapter):
        card = (folder / "README.md").read_text()
        block = card.split("```python\n")[1].split("```")[0]
        seen: dict[str, Any] = {}
        exec(block, seen)
        assert capsys.readouterr().out.strip()
        assert quantization_of(seen["model"]) == quantization_of(built.unwrapped().policy)


def test_a_failing_score_leaves_the_policy_in_its_mode(base, bits, reward_adapter, tmp_path):
    built = one_base(base, tmp_path, bits, str(reward_adapter))
    built.train()
    completions = built.describe(built.cycle.experience, built.prompts)
    policy, source = built.unwrapped().policy.train(), built.reward.sources[0]
    source.head = None
    with pytest.raises(AttributeError):
        source(completions)
    assert policy.training and policy.active_adapter == "default"


def test_an_8_bit_base_trains_too(base, tmp_path):
    eight = {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}
    built = one_base(base, tmp_path, 32, reward, **eight)
    before, bytes_before, roles = parameters(built), base_bytes(built), roles_of(built.unwrapped().policy)
    built.train()
    after = parameters(built)
    moved = {roles.get(name.removeprefix("policy.")) for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"default", "value", None} and base_bytes(built) == bytes_before


def test_a_reward_adapter_of_another_quantisation(base, bits, reward_adapter, tmp_path):
    with pytest.raises(ValueError, match="the same quantisation, or pass `load_reward_model"):
        one_base(base, tmp_path, 36 - bits, str(reward_adapter))


def test_a_second_reward_adapter(base, bits, reward_adapter, tmp_path):
    with pytest.raises(ValueError, match="one reward adapter shares the policy's base"):
        one_base(base, tmp_path, bits, [str(reward_adapter), str(reward_adapter)])


def test_a_reward_adapter_may_bring_a_base_of_its_own(base, bits, reward_adapter, tmp_path):
    apart = load_reward_model(str(reward_adapter), **quantization(bits))
    built = one_base(base, tmp_path, bits, [str(reward_adapter), apart])
    built.train()
    one, other = built.reward.parts(built.describe(built.cycle.experience, built.prompts)).values()
    torch.testing.assert_close(one, other.cpu(), atol=2e-4, rtol=0)


@pytest.mark.parametrize("role", ["peft_config", "value_model"])
def test_target_modules_that_match_nothing(base, bits, tmp_path, role):
    config = LoraConfig(target_modules=["w_query"], task_type="CAUSAL_LM")
    message = r"the (policy's adapter|adapter 'value'): .*w_query.* not found in the base model.*'q_proj', 'up_proj'"
    with pytest.raises(ValueError, match=message):
        one_base(base, tmp_path, bits, nothing, **{role: config})


def test_a_quantised_model_without_an_adapter(base, tmp_path):
    with pytest.raises(ValueError, match=r"quantised .* pass `peft_config=LoraConfig"):
        one_base(base, tmp_path, 4, nothing, peft_config=None, value_model=None)


def test_a_quantised_base_that_was_not_prepared(base, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16, **quantization(4))
    with pytest.raises(ValueError, match="prepare_model_for_kbit_training"):
        one_base(
            *(base, tmp_path, 4, nothing),
            model=PeftModel(model, LoraConfig(**POLICY)),
            peft_config=None,
        )


def test_a_critic_as_an_adapter_on_a_policy_that_trains_whole(base, tmp_path):
    with pytest.raises(ValueError, match="pass `peft_config=LoraConfig"):
        one_base(base, tmp_path, 32, nothing, peft_config=None)


def test_loading_a_reward_adapter_leaves_the_base_as_it_was(base, bits, reward_adapter, tmp_path):
    alone = one_base(base, tmp_path / "a", bits, nothing)
    assert base_bytes(one_base(base, tmp_path / "b", bits, str(reward_adapter))) == base_bytes(alone)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"modules_to_save": ["score", "embed_tokens"]}, "also trained embed_tokens"), ({"bias": "all"}, "biases")],
)
def test_a_reward_adapter_that_changed_its_base(base, bits, reward_adapter, tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        one_base(base, tmp_path, bits, str(spoiled(reward_adapter, tmp_path, settings)))


@pytest.mark.parametrize("role", ["peft_config", "value_model"])
@pytest.mark.parametrize(
    ("settings", "message"),
    [({"bias": "all"}, "bias='none'"), ({"init_lora_weights": "pissa"}, "rewrites the weights")],
)
def test_an_adapter_that_would_change_the_base(base, tmp_path, role, settings, message):
    config = LoraConfig(**POLICY | settings)
    with pytest.raises(ValueError, match=message):
        one_base(base, tmp_path, 32, nothing, **{role: config})


def test_the_users_configuration_is_left_alone(base, tmp_path):
    mine = LoraConfig(r=4, target_modules="all-linear", lora_dropout=0.1)
    one_base(base, tmp_path, 32, nothing, peft_config=mine)
    assert mine.target_modules == "all-linear" and mine.lora_dropout == 0.1 and mine.task_type is None


def test_a_run_starts_from_a_saved_adapter_on_the_base_it_was_trained_on(base, bits, reward_adapter, tmp_path):
    first = one_base(base, tmp_path / "sft", bits, str(reward_adapter))
    first.train()
    first.save_model()
    start = {"model": str(tmp_path / "sft" / "run"), "peft_config": None, **quantization(bits)}
    second = one_base(base, tmp_path / "ppo", bits, str(reward_adapter), **start)
    seen, original = [], second.after_rollout
    second.after_rollout = lambda e: (seen.append(e), original(e))[1]
    second.train()
    assert torch.equal(seen[0].old_logprobs, seen[0].ref_logprobs)
    other = {"quantization_config": None} | quantization(36 - bits)
    with pytest.raises(ValueError, match=r"it was trained in .*, the base is in"):
        one_base(base, tmp_path / "no", 36 - bits, str(reward_adapter), **start | other)
