"""4-bit and 8-bit base models: loaded by transformers, prepared by peft, and never trained without an adapter."""

from __future__ import annotations

from typing import Any

from peft import PeftModel, prepare_model_for_kbit_training


def is_quantized(model: Any) -> bool:
    """Whether a model's weights are quantised (4-bit or 8-bit)."""
    return bool(getattr(model, "is_quantized", False) or getattr(model, "quantization_method", None))


def refuse_untrainable(model: Any, peft_config: Any) -> None:
    """Refuse a quantised model without an adapter: its weights hold no gradient.

    Raises:
        ValueError: the model is quantised, `peft_config` is None and the model has no adapter.
    """
    if is_quantized(model) and peft_config is None and not isinstance(model, PeftModel):
        raise ValueError(
            "the model is quantised and its weights cannot be trained; pass `peft_config=LoraConfig(...)` to train an "
            "adapter on it, or load it without `quantization_config`"
        )


def prepare_quantized(model: Any, gradient_checkpointing: bool) -> Any:
    """Freeze a quantised base and put its norms and head in float32 (peft's preparation); others pass unchanged."""
    if not is_quantized(model):
        return model
    keep_training_format(model)
    return prepare_model_for_kbit_training(model, use_gradient_checkpointing=gradient_checkpointing)


def keep_training_format(model: Any) -> None:
    """Keep 4-bit weights on a CPU in the one format that has a gradient.

    On processors with AVX512-BF16 bitsandbytes repacks a layer's weights at its first evaluation. From then on no
    gradient flows through the layer, also in training mode, and saving the model, which undoes the packing, changes the
    weights (a score of 1.61 became 1.19). Rollouts and evaluations come between the training steps here.
    """
    for module in model.modules():
        if getattr(module, "support_avx512bf16_for_cpu", False):
            module.support_avx512bf16_for_cpu = False
