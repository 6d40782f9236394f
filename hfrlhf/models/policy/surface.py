"""What others ask of a model, answered by the policy where the actor-critic has no answer of its own.

Callbacks, pipelines and users meet the actor-critic as `trainer.model` and ask for what every model of transformers has
(`device`, `num_parameters`, `get_input_embeddings`, `can_generate`, …).
"""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import GenerationConfig

# By these the Trainer, accelerate and DeepSpeed decide what to do with a model as a whole, of which the policy is a
# part: that a base is quantised must not keep the value head off the device, nor its adapter from training. What of it
# has to be refused is refused where the policy is loaded.
OF_THE_POLICY_ALONE = frozenset(
    (
        "is_quantized",
        "quantization_method",
        "hf_quantizer",
        "is_loaded_in_4bit",
        "is_loaded_in_8bit",
        "hf_device_map",
        "is_parallelizable",
        "model_parallel",
        "is_distributed_loading_by_transformers",
        "tp_size",
        "fsdp_size",
        "accepts_loss_kwargs",
        "loss_type",
        "module",
    )
)


class PolicySurface(nn.Module):
    """A module around a `policy`, whose attributes are its own where it lacks them.

    Names that begin with an underscore (or with DeepSpeed's `ds_`) are marks that libraries leave on a module, and stay
    where they were left.
    """

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "policy" or name.startswith(("_", "ds_")) or name in OF_THE_POLICY_ALONE:
                raise
        try:
            return getattr(self.policy, name)
        except AttributeError as error:
            raise AttributeError(f"neither {type(self).__name__} nor its policy has {name!r}") from error

    @property
    def config(self) -> Any:
        """The policy's configuration."""
        return self.policy.config

    @property
    def generation_config(self) -> Any:
        """The policy's generation configuration."""
        return self.policy.generation_config

    @generation_config.setter
    def generation_config(self, value: GenerationConfig) -> None:
        """Pipelines set their own."""
        self.policy.generation_config = value

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """Generation with the policy."""
        return self.policy.generate(*args, **kwargs)
