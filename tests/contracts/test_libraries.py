"""What `hfrlhf/models/libraries.py` takes of other libraries is there, and is what it is taken for.

Run it against any releases: `pytest tests/contracts`. Nothing here is about this package.
"""

from __future__ import annotations

import argparse
import copy
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import evaluate
import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset, load_dataset
from peft import LoraConfig, TaskType, get_peft_model
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
    Gemma3nForCausalLM,
    Gemma3nTextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    RecurrentGemmaForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.utils import logging

from hfrlhf.models import libraries


class Sum(nn.Module):
    """A model whose loss the test knows: w · x."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor, **_: Any) -> dict[str, torch.Tensor]:
        return {"loss": (self.weight * x).mean()}


class Watch(TrainerCallback):
    """What `losses_of` gives after each step."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, float, int]] = []
        self.trainer: Any = None

    def on_step_end(self, *_: Any, **__: Any) -> None:
        pending, total, logged = libraries.losses_of(self.trainer)
        self.seen.append((float(pending), total, logged))


def stock_trainer(folder: Path, watch: Watch | None = None, **settings: Any) -> Any:
    """The stock Trainer on losses 1, 2, 3, 4; nothing moves."""
    rows = Dataset.from_dict({"x": [1.0, 2.0, 3.0, 4.0], "aside": [0, 0, 0, 0]})
    options: dict[str, Any] = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 1,
        "learning_rate": 0.0,
        "num_train_epochs": 1,
        "train_sampling_strategy": "sequential",
        "logging_steps": 3,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    arguments = TrainingArguments(**(options | settings))
    built: Any = Trainer(Sum(), arguments, train_dataset=rows, callbacks=[watch] if watch else None)
    if watch:
        watch.trainer = built
    return built


@pytest.fixture
def lm(tiny_model_folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_model_folder)


@pytest.fixture(scope="module")
def plain_and_four_bit(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    folder = tmp_path_factory.mktemp("quantised")
    sizes = {"vocab_size": 20, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1}
    LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2)).save_pretrained(folder)
    settings = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
    load = AutoModelForCausalLM.from_pretrained
    return load(folder), load(folder, quantization_config=settings)


# ---- Models -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["Dropout", "Dropout1d", "Dropout2d", "AlphaDropout", "FeatureAlphaDropout"])
def test_dropout_module(kind: str) -> None:
    layer = getattr(nn, kind)(0.5)
    assert isinstance(layer, libraries.DROPOUT_MODULE)
    layer.p = 0.0
    x = torch.ones(2, 3, 4)
    assert torch.equal(layer.train()(x), x)


def test_name_or_path(lm: Any, tiny_model_folder: Path) -> None:
    assert libraries.name_or_path(lm.config) == str(tiny_model_folder)
    assert libraries.name_or_path(LlamaConfig()) == ""


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_attention_of(tiny_model_folder: Path, implementation: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model_folder, attn_implementation=implementation)
    assert libraries.attention_of(model.config) == implementation


def test_is_stateful(lm: Any) -> None:
    assert libraries.is_stateful(RecurrentGemmaForCausalLM)
    assert not libraries.is_stateful(lm)


def test_unsplit_blocks(lm: Any) -> None:
    assert libraries.unsplit_blocks(lm) == {"LlamaDecoderLayer"}
    assert {type(layer).__name__ for layer in lm.model.layers} == {"LlamaDecoderLayer"}


def test_optional_file(tiny_model_folder: Path) -> None:
    assert libraries.optional_file(str(tiny_model_folder), "config.json") == str(tiny_model_folder / "config.json")
    assert libraries.optional_file(str(tiny_model_folder), "quantization.json") is None


def test_keep_training_format(plain_and_four_bit: tuple[Any, Any]) -> None:
    four_bit = plain_and_four_bit[1]
    layers = [module for module in four_bit.modules() if type(module).__name__ == "Linear4bit"]
    assert layers
    for layer in layers:
        assert layer.support_avx512bf16_for_cpu in (True, False)
        layer.support_avx512bf16_for_cpu = True
    libraries.keep_training_format(four_bit)
    assert not any(layer.support_avx512bf16_for_cpu for layer in layers)
    assert "support_avx512bf16_for_cpu" in inspect.getsource(type(layers[0]).forward)  # it is what forward asks


def test_dequantize_module_weight(plain_and_four_bit: tuple[Any, Any]) -> None:
    original, layer = (model.model.layers[0].mlp.up_proj for model in plain_and_four_bit)
    weight = libraries.dequantize_module_weight(layer)
    assert weight.shape == original.weight.shape
    assert weight.is_floating_point()
    assert not layer.weight.is_floating_point()
    assert (weight.float() - original.weight).abs().max() < 0.2 * original.weight.abs().max()


def test_caches(lm: Any) -> None:
    """`Cache`, `DynamicLayer`, `DynamicSlidingWindowLayer`: what a forward gives back, and what it is made of."""
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    sliding = MistralForCausalLM(MistralConfig(**sizes, vocab_size=20, num_key_value_heads=2, sliding_window=3))
    for model, kind in ((lm, libraries.DynamicLayer), (sliding, libraries.DynamicSlidingWindowLayer)):
        with torch.no_grad():
            outputs = model(torch.tensor([[4, 5, 6, 7, 8]]), use_cache=True)
        [cache] = [value for value in outputs.values() if isinstance(value, libraries.Cache)]
        assert {type(layer) for layer in cache.layers} == {kind}
        for layer in cache.layers:
            assert layer.keys.shape[:2] == layer.values.shape[:2] == (1, 2)
        assert cache.layers[0].keys.shape[2] == (5 if model is lm else 2)


def test_empty_layer() -> None:
    """`EMPTY_LAYER`: what stands in a cache for a layer that reads another's keys and values."""
    sizes = {"hidden_size": 16, "intermediate_size": [32] * 4, "num_hidden_layers": 4, "num_attention_heads": 2}
    sizes |= {"num_key_value_heads": 1, "head_dim": 8, "vocab_size": 20, "vocab_size_per_layer_input": 20}
    sizes |= {"hidden_size_per_layer_input": 4, "laurel_rank": 4, "altup_num_inputs": 2}
    kinds = ["sliding_attention", "full_attention"] * 2
    config = Gemma3nTextConfig(
        **sizes, num_kv_shared_layers=2, layer_types=kinds, activation_sparsity_pattern=[0.0] * 4, sliding_window=3
    )
    outputs = Gemma3nForCausalLM(config)(torch.tensor([[4, 5, 6, 7]]), use_cache=True)
    [cache] = [value for value in outputs.values() if isinstance(value, libraries.Cache)]
    plain = {libraries.DynamicLayer, libraries.DynamicSlidingWindowLayer, libraries.EMPTY_LAYER}
    assert {type(layer) for layer in cache.layers} <= plain
    assert all(layer.keys is None for layer in cache.layers[2:])


def test_base_tuner_layer(lm: Any) -> None:
    tuned = get_peft_model(lm, LoraConfig(r=2, task_type=TaskType.CAUSAL_LM))
    layers = [module for module in tuned.modules() if isinstance(module, libraries.BaseTunerLayer)]
    assert len(layers) == 4  # q and v of two blocks
    for layer in layers:
        assert isinstance(layer.base_layer, nn.Linear)
        assert {"lora_A", "lora_B"} <= set(layer.adapter_layer_names)


def test_modules_to_save_wrapper(tiny_model_folder: Path) -> None:
    classifier = AutoModelForSequenceClassification.from_pretrained(tiny_model_folder, num_labels=1)
    tuned: Any = get_peft_model(classifier, LoraConfig(r=2, task_type=TaskType.SEQ_CLS))
    head = tuned.get_base_model().score
    assert isinstance(head, libraries.ModulesToSaveWrapper)
    assert set(head.modules_to_save) == set(head.active_adapters) == {"default"}
    assert isinstance(head.original_module, nn.Linear)
    assert head.original_module is not head.modules_to_save["default"]


def test_files_of_an_adapter(lm: Any, tmp_path: Path, tiny_model_folder: Path) -> None:
    """`SAFETENSORS_WEIGHTS_NAME`, `find_adapter_config_file`"""
    get_peft_model(lm, LoraConfig(r=2, task_type=TaskType.CAUSAL_LM)).save_pretrained(tmp_path)
    assert (tmp_path / libraries.SAFETENSORS_WEIGHTS_NAME).is_file()
    assert libraries.find_adapter_config_file(str(tmp_path)) == str(tmp_path / "adapter_config.json")
    assert libraries.find_adapter_config_file(str(tiny_model_folder)) is None


# ---- The Trainer's and the accelerator's state ----------------------------------------------------------------------


def test_losses_of(tmp_path: Path) -> None:
    watch = Watch()
    stock_trainer(tmp_path, watch).train()
    # Logged after the third step, which is why the fourth begins anew.
    assert watch.seen == [(1.0, 0.0, 0), (3.0, 0.0, 0), (6.0, 0.0, 0), (4.0, 6.0, 3)]


def test_set_losses(tmp_path: Path) -> None:
    class Change(Watch):
        def on_step_end(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
            if state.global_step == 4:
                libraries.set_losses(self.trainer, torch.tensor(20.0), 60.0, 3)

    result = stock_trainer(tmp_path, Change()).train()
    assert isinstance(result, libraries.TrainOutput)
    assert result.training_loss == pytest.approx((20 + 60) / 4)
    assert result._replace(training_loss=1.0).training_loss == 1.0


def test_memory_tracker(tmp_path: Path) -> None:
    class Measured(Trainer):
        def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
            metrics: dict[str, float] = {}
            libraries.memory_tracker(self).start()
            libraries.memory_tracker(self).stop_and_update_metrics(metrics)
            return metrics

    model = torch.nn.Linear(1, 1)
    settings = {"use_cpu": True, "report_to": "none"}
    assert Measured(model, TrainingArguments(str(tmp_path), **settings)).evaluate() == {}
    measured = Measured(model, TrainingArguments(str(tmp_path), skip_memory_metrics=False, **settings)).evaluate()
    assert "eval_mem_cpu_alloc_delta" in measured


def test_speed_metrics() -> None:
    found = libraries.speed_metrics("eval", 0.0, num_samples=3)
    assert found["eval_samples_per_second"] == pytest.approx(3 / found["eval_runtime"], abs=1e-3)


def test_keep_columns(tmp_path: Path) -> None:
    built = stock_trainer(tmp_path)
    assert set(next(iter(built.get_train_dataloader()))) == {"x"}
    built = stock_trainer(tmp_path)
    libraries.keep_columns(built, ["aside"])
    assert set(next(iter(built.get_train_dataloader()))) == {"aside"}


def test_set_last_rates() -> None:
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.5)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    libraries.set_last_rates(schedule, [0.25])
    assert schedule.get_last_lr() == [0.25]


def test_gradients_stay() -> None:
    accelerator = Accelerator(cpu=True)
    model = nn.Linear(1, 1)
    assert accelerator.sync_gradients
    with libraries.gradients_stay(accelerator, model):
        assert not accelerator.sync_gradients
        assert not accelerator.gradient_state.sync_gradients
    assert accelerator.sync_gradients
    with pytest.raises(KeyError), libraries.gradients_stay(accelerator, model):
        raise KeyError
    assert accelerator.sync_gradients


def test_objects_of_all_processes() -> None:
    """`gather_object`, `broadcast_object_list`: on one process they are there, and give back what they got."""
    assert libraries.gather_object([{"a": 1}]) == [{"a": 1}]
    assert libraries.broadcast_object_list(["a"]) == ["a"]


def test_clear_device_cache() -> None:
    libraries.clear_device_cache()  # without a device there is nothing to clear


# ---- Data and the Hub -----------------------------------------------------------------------------------------------


def test_get_length_grouped_indices() -> None:
    lengths = [3, 9, 4, 8, 2, 7, 5, 6]
    order = libraries.get_length_grouped_indices(lengths, 4, generator=torch.Generator().manual_seed(0))
    assert sorted(order) == list(range(8))
    assert max(lengths) == lengths[order[0]]  # the longest row comes first, so that memory runs out at once
    batches = [[lengths[i] for i in order[start : start + 4]] for start in (0, 4)]
    assert all(batch == sorted(batch, reverse=True) for batch in batches)


def test_dataset_generation_error(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"a": 1\n', encoding="utf-8")
    with pytest.raises(libraries.DatasetGenerationError):
        load_dataset("json", data_files=str(tmp_path / "bad.jsonl"), cache_dir=str(tmp_path / "cache"))


def test_names_on_the_hub() -> None:
    """`validate_repo_id`, `HFValidationError`"""
    libraries.validate_repo_id("owner/model")
    with pytest.raises(libraries.HFValidationError):
        libraries.validate_repo_id("a/b/c")


# ---- The command line -----------------------------------------------------------------------------------------------


def test_the_hubs_bars_come_back_after_transformers_has_taken_them_away() -> None:
    """`are_progress_bars_disabled`, `enable_progress_bars`"""
    libraries.enable_progress_bars()
    assert not libraries.are_progress_bars_disabled()
    logging.disable_progress_bar()
    assert libraries.are_progress_bars_disabled()
    libraries.enable_progress_bars()
    assert not libraries.are_progress_bars_disabled() and not logging.is_progress_bar_enabled()
    logging.enable_progress_bar()


def test_options_of_a_parser() -> None:
    """`actions_of`"""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rate", help="how fast")
    assert [action.dest for action in libraries.actions_of(parser)] == ["help", "rate"]


# ---- DeepSpeed ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def deepspeed() -> Iterator[Any]:
    yield pytest.importorskip("deepspeed")


def test_without_deepspeed_config(deepspeed: Any) -> None:
    from transformers.integrations import HfDeepSpeedConfig, is_deepspeed_zero3_enabled

    remembered = HfDeepSpeedConfig({"zero_optimization": {"stage": 3}})
    assert is_deepspeed_zero3_enabled()
    with libraries.without_deepspeed_config():
        assert not is_deepspeed_zero3_enabled()
    assert is_deepspeed_zero3_enabled()
    del remembered
    assert not is_deepspeed_zero3_enabled()


def test_gathered_parameters(deepspeed: Any) -> None:
    layer = nn.Linear(2, 2)
    for rank in (None, 0):
        with libraries.gathered_parameters(layer.parameters(), modifier_rank=rank):
            assert layer.weight.shape == (2, 2)


def test_without_zero_hooks(deepspeed: Any) -> None:
    """What it does to an engine that holds pieces is tried in `tests/distributed`; others it leaves alone."""
    with libraries.without_zero_hooks(nn.Linear(1, 1)):
        pass


ENGINE = ("backward", "get_global_grad_norm", "set_gradient_accumulation_boundary", "step", "zero_optimization")


@pytest.mark.parametrize("name", ENGINE)
def test_what_is_asked_of_an_engine(deepspeed: Any, name: str) -> None:
    assert callable(getattr(deepspeed.DeepSpeedEngine, name))
    if name == "backward":
        source = inspect.getsource(deepspeed.runtime.engine)  # its signature is hidden by a wrapper
        assert re.search(r"def backward\(self, [^)]*\bscale_wrt_gas\b", source)
        assert "self.deepspeed_engine_wrapped = " in inspect.getsource(Accelerator)


# ---- What is overridden, beside the Trainer's -----------------------------------------------------------------------


def test_metric_hooks() -> None:
    class Constant(evaluate.Metric):
        def _info(self) -> Any:
            from datasets import Features, Value

            features = Features({"predictions": Value("float64"), "references": Value("float64")})
            return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

        def _compute(self, predictions: list[float], references: list[float]) -> dict[str, float]:
            return {"sum": sum(predictions) + sum(references)}

    assert {"_info", "_compute"} == set(libraries.METRIC_HOOKS) <= set(vars(Constant))
    assert Constant().compute(predictions=[1.0], references=[2.0]) == {"sum": 3.0}


def test_model_hooks() -> None:
    """accelerate asks a model which blocks FSDP is to wrap."""
    from accelerate.utils import fsdp_utils

    for name in libraries.MODEL_HOOKS:
        assert f'getattr(model, "{name}", None)' in inspect.getsource(fsdp_utils)


# ---- The file itself ------------------------------------------------------------------------------------------------


def test_every_name_has_its_test() -> None:
    tests = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_*.py"))
    untested = [name for name in libraries.__all__ if not re.search(rf"libraries\.{name}\b", tests)]
    assert untested == []


def test_every_name_is_listed() -> None:
    """What the file defines or imports for others is in `__all__`; nothing in it is unused."""
    here = copy.copy(libraries.__all__)
    package = Path(libraries.__file__).parents[1]
    sources = [path for path in package.rglob("*.py") if path != Path(libraries.__file__)]
    used = "".join(path.read_text(encoding="utf-8") for path in sources)
    hooks = {"TRAINER_HOOKS", "METRIC_HOOKS", "MODEL_HOOKS"}
    assert [name for name in here if name not in hooks and not re.search(rf"\b{name}\b", used)] == []
