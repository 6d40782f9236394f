"""Policy and critic as one module: one forward gives log-probs, entropy and values of the response tokens.

Only real tokens are computed: each row is moved to the left end of its line, so that causal attention needs no mask
and a prompt's padding costs nothing; the vocabulary head then runs on the response states alone, in chunks, and no
tensor of [B,T,V] is ever stored.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from typing_extensions import Self

from ...core.kl import entropy_from_logits
from ...core.masking import at_least_float32
from ...experience import Rollout
from ..adapters import VALUE_ADAPTER, adapter, recompute_with_same_adapter, roles_of
from ..anatomy.forward import forward_flags
from ..anatomy.sizes import device_of, embeddings_of, outputs_of, trunk_width
from ..libraries import attention_of, unsplit_blocks
from ..quantization import is_quantized, save_quantization
from ..reward.head import backbone_of, head_of
from ..reward.scoring import reward_shift_of
from ..saved_weights import existing, load_adapter_weights, load_policy_weights, load_weights
from .response_states import ResponseStates, causal_lm, vocabulary_logprobs
from .surface import PolicySurface

VALUE_HEAD_FILE = "value_head.safetensors"
VALUE_MODEL_FOLDER = "value_model"


class Evaluation(NamedTuple):
    """What the models say about a rollout's response tokens.

    A tuple: ZeRO-3 looks through those for the tensors whose backward pass needs the parameters again.

    Shapes: logprobs, entropy, values [B,A] float32, 0 at padding; bootstrap_values [B] float32 is V(s_{n+1}), the
    value after the last response token. With a Q head `values` are Q(s_t, a_t), best_values [B,A] max_a Q(s_t, a) and
    expected_values [B,A] Σ_a π(a|s_t)·Q(s_t, a). What was not asked for is None.
    """

    logprobs: Tensor
    entropy: Tensor | None = None
    values: Tensor | None = None
    bootstrap_values: Tensor | None = None
    best_values: Tensor | None = None
    expected_values: Tensor | None = None


class ActorCritic(PolicySurface):
    """A causal language model with a critic: a head on its own trunk, an adapter, a model of its own, or none.

    Args:
        policy: causal language model, plain or with adapters.
        value_model: sequence-classification model with one output, `"V"` for a zero-initialised linear layer on the
            policy's trunk (SPEC §3.4), `"Q"` for one with an output per token (SPEC §5), `"adapter"` for a linear layer
            on the policy's base with the `value` adapter, or None for no critic.
        temperature: sampling temperature; logits are divided by it here as in the sampler (SPEC §1).
        vocabulary: how many tokens there are (`vocabulary.py`); None for as many as the policy has logits for.
    """

    main_input_name = "input_ids"

    policy: Any
    value_model: Any
    value_head: Any

    def __init__(
        self,
        policy: nn.Module,
        value_model: nn.Module | str | None = "V",
        temperature: float = 1.0,
        vocabulary: int | None = None,
    ):
        super().__init__()
        self.policy = policy
        self.temperature, self.vocabulary = temperature, vocabulary
        self.value_model = value_model if isinstance(value_model, nn.Module) else None
        self.value_head = zero_value_head(policy, value_model) if isinstance(value_model, str) else None
        self.has_value_adapter = value_model == "adapter"
        self.stays_in_evaluation: list[nn.Module] = []  # noisy in training mode: see `training_mode`
        if isinstance(policy, PeftModel) and checkpoints_activations(causal_lm(policy)):
            self.activation_checkpointing_enable()  # once more, so that each block remembers its adapter
        if computes_here(policy):
            check_head(policy)

    def forward(
        self,
        rollout: Rollout,
        need_entropy: bool = True,
        detach_trunk: bool = False,
        need_expected_values: bool = False,
    ) -> Evaluation:
        """log π(a_t|s_t), the entropy of π(·|s_t) and V(s_t) for every response token (SPEC §1, 6.6, 3.4).

        Args:
            rollout: what to evaluate.
            need_entropy: skip the entropy where nobody uses it.
            detach_trunk: only the critic learns: no gradient reaches policy or trunk, and none is computed there.
            need_expected_values: also the largest and the mean action value of each state (Q heads only).
        """
        lm = causal_lm(self.policy)
        states = ResponseStates.of(rollout)
        # The trunk runs once for policy and head. The vocabulary head is not called as a whole: [B,L,V] logits would be
        # the largest tensor of all, so the log-probs are computed from the hidden states, some rows at a time.
        with torch.no_grad() if detach_trunk else nullcontext():
            trunk = states.run(backbone_of(lm))
            logprobs, entropy = states.logprobs(lm, trunk, self.temperature, need_entropy, self.vocabulary)
        values = self._values(states, trunk)
        if need_expected_values:
            best, mean = states.best_and_expected_values(lm, trunk, self.value_head, self.temperature, self.vocabulary)
            values |= {"best_values": best, "expected_values": mean}
        return Evaluation(logprobs, entropy, **values)

    def _values(self, states: ResponseStates, trunk: Tensor) -> dict[str, Tensor]:
        if self.value_head is not None and self.value_head.out_features > 1:
            # Q(s, a) of the action taken: after the last token there is none, and no value to bootstrap from.
            return {"values": states.action_values(trunk, self.value_head)}
        if self.has_value_adapter:
            with adapter(self.policy, VALUE_ADAPTER):
                both = states.values(states.run(backbone_of(self.policy)), self.value_head)
        elif self.value_head is not None:
            both = states.values(trunk, self.value_head)
        elif self.value_model is not None:
            hidden = states.run(backbone_of(self.value_model))
            both = states.values(hidden, head_of(self.value_model), reward_shift_of(self.value_model))
        else:
            return {}
        return dict(zip(("values", "bootstrap_values"), both, strict=True))

    # What the Trainer asks of a model; it would not find it behind a wrapper.
    @property
    def _no_split_modules(self) -> Any:
        """The blocks that FSDP wraps, each by itself."""
        return {name for model in self._models() for name in unsplit_blocks(model)}

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Switch on activation checkpointing in policy and critic (the Trainer's older name for it)."""
        self.activation_checkpointing_enable(gradient_checkpointing_kwargs, **kwargs)

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Switch on activation checkpointing in policy and critic."""
        for model in self._models():
            # transformers < 5.21 knows only the older name.
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            options = dict(activation_checkpointing_kwargs or {})
            if isinstance(model, PeftModel):
                # Several adapters share the blocks; only this kind of checkpoint can remember which one was active.
                options |= {"use_reentrant": False, "context_fn": recompute_with_same_adapter(model)}
            enable(options or None, **kwargs)
            if isinstance(model, PeftModel):
                # A frozen embedding gives the first checkpointed block no input that needs a gradient.
                model.enable_input_require_grads()

    def keep_in_evaluation(self, modules: list[nn.Module]) -> None:
        """From now on `train()` leaves these modules alone."""
        self.stays_in_evaluation = modules

    def train(self, mode: bool = True) -> Self:
        """Training mode as every module's, but for what is noisy in it."""
        super().train(mode)
        for module in self.stays_in_evaluation:
            module.training = False
        return self

    def _models(self) -> list[Any]:
        return [m for m in (self.policy, self.value_model) if m is not None]

    def named_value_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The critic's own parameters, under their names in this module."""
        of_adapter = {f"policy.{name}" for name, role in roles_of(self.policy).items() if role == VALUE_ADAPTER}
        for name, parameter in self.named_parameters():
            if name.startswith(("value_head.", "value_model.")) or name in of_adapter:
                yield name, parameter

    def policy_parameters(self) -> list[nn.Parameter]:
        """What of the policy trains."""
        critic = {id(parameter) for _, parameter in self.named_value_parameters()}
        return [p for p in self.policy.parameters() if p.requires_grad and id(p) not in critic]

    @property
    def critic_is_apart(self) -> bool:
        """Whether the critic shares no trained parameter with the policy."""
        return self.value_model is not None or self.has_value_adapter

    def stop_policy_gradients(self, whole: bool) -> None:
        """Forget the gradients that would move the policy; a shared trunk moves it too.

        Adam moves a weight whose gradient is 0, by its momentum; only a gradient of None leaves it where it is.

        Args:
            whole: also those of a value head on the shared trunk.
        """
        for parameter in self.policy_parameters():
            parameter.grad = None
        if whole and not self.critic_is_apart and self.value_head is not None:
            self.value_head.zero_grad(set_to_none=True)

    def save_pretrained(self, folder: str | Path, state_dict: dict[str, Tensor] | None = None) -> None:
        """The policy as transformers or peft save it, the critic beside it.

        Args:
            folder: written: the policy's files, and `value_head.safetensors` or `value_model/`.
            state_dict: gathered parameters of this module where they are not at hand (sharded training).
        """
        folder = Path(folder)
        parts = {part: _part(state_dict, part, getattr(self, part)) for part in ("policy", "value_head", "value_model")}
        adapters = {"selected_adapters": ["default"]} if isinstance(self.policy, PeftModel) else {}
        self.policy.save_pretrained(folder, state_dict=parts["policy"], **adapters)
        save_quantization(self.policy, folder)
        if self.value_head is not None:
            tensors = parts["value_head"] or self.value_head.state_dict()
            save_file({k: v.contiguous() for k, v in tensors.items()}, folder / VALUE_HEAD_FILE)
        if self.has_value_adapter:
            # PEFT writes each adapter but "default" into a folder of its name.
            self.policy.save_pretrained(folder, state_dict=parts["policy"], selected_adapters=[VALUE_ADAPTER])
        if self.value_model is not None:
            self.value_model.save_pretrained(folder / VALUE_MODEL_FOLDER, state_dict=parts["value_model"])

    def load_saved(self, folder: str | Path) -> None:
        """Read back in place what `save_pretrained` wrote.

        Raises:
            FileNotFoundError: the folder lacks the policy's or the critic's weights.
        """
        folder = Path(folder)
        load_policy_weights(self.policy, folder)
        if self.value_head is not None:
            self.value_head.load_state_dict(load_file(existing(folder / VALUE_HEAD_FILE)))
        if self.has_value_adapter:
            load_adapter_weights(self.policy, folder / VALUE_ADAPTER, VALUE_ADAPTER)
        if self.value_model is not None:
            load_weights(self.value_model, folder / VALUE_MODEL_FOLDER)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As every module's; but quantised weights bring entries of their own, which their base has already.

        Raises:
            RuntimeError: with `strict`, an entry is missing or unexpected; on a quantised base, one that trains.
        """
        # bitsandbytes keeps scales and code books beside each packed weight, under names that no module has.
        quantized = is_quantized(causal_lm(self.policy))
        found = super().load_state_dict(state_dict, strict=strict and not quantized, assign=assign)
        missing = {name for name, p in self.named_parameters() if p.requires_grad} & set(found.missing_keys)
        if strict and missing:
            raise RuntimeError(
                f"the state dict lacks {sorted(missing)[:3]}, which train: was it saved from this model?"
            )
        return found


def checkpoints_activations(model: nn.Module) -> bool:
    """Whether a transformers model recomputes activations in the backward pass, whoever switched that on."""
    return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def zero_value_head(policy: nn.Module, kind: str) -> nn.Linear:
    """A linear value head of zeros in float32 (DETAILS 40): the first advantages are the rewards-to-go themselves.

    Args:
        policy: whose trunk it stands on. kind: "V" or "adapter", one output, or "Q", one for each token.
    """
    lm = causal_lm(policy)
    outputs = outputs_of(lm) if kind == "Q" else 1
    dtype = torch.promote_types(lm.dtype, torch.float32)
    head = nn.Linear(trunk_width(lm), outputs, dtype=dtype)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def computes_here(policy: nn.Module) -> bool:
    """Whether a policy can compute where it is: flash attention waits until the trainer has brought it to its GPU."""
    lm = causal_lm(policy)
    return "flash" not in attention_of(lm.config) or device_of(lm).type != "cpu"


@torch.no_grad()
def check_head(policy: nn.Module) -> None:
    """Compare our log-probs and entropies with those of the model's own logits on four tokens.

    Raises:
        ValueError: they differ, so the architecture does to its logits what we do not know of; or they are no numbers.
    """
    lm = causal_lm(policy)
    was_training = lm.training
    lm.eval()  # in training mode the two passes below might draw other noise, and differ for no fault of ours
    ids = torch.arange(1, 5, device=device_of(lm))[None] % embeddings_of(lm)
    flags = forward_flags(lm, use_cache=False)
    hidden = backbone_of(lm)(input_ids=ids, **flags).last_hidden_state[0]
    seen = vocabulary_logprobs(lm, hidden, ids[0], 1.0)
    ours = torch.stack([part for part in seen if part is not None])
    logits = at_least_float32(lm(input_ids=ids, **flags).logits[0])
    theirs = torch.stack([logits.log_softmax(-1).gather(-1, ids.T).squeeze(-1), entropy_from_logits(logits)])
    lm.train(was_training)
    if logits.isnan().any():
        raise ValueError(
            f"{type(lm).__name__} gives logits that are NaN: its weights are NaN or infinite, or too large for "
            f"{lm.dtype}; load another checkpoint, or this one in float32"
        )
    # A forgotten cap or scale moves log-probs by tenths and more; rounding stays below these.
    tolerance = 1e-3 if lm.dtype in (torch.float32, torch.float64) else 0.1
    if not torch.allclose(ours, theirs, atol=tolerance, rtol=0):
        raise ValueError(
            f"{type(lm).__name__} changes its logits after the vocabulary head in a way this package does not know: "
            f"log-probs or entropies differ by {float((ours - theirs).abs().max()):.3g}; add the config field to "
            "LOGIT_TRANSFORMS"
        )


def _part(state_dict: dict[str, Tensor] | None, name: str, model: nn.Module) -> dict[str, Tensor] | None:
    if state_dict is None:
        return None
    # Tied weights are saved once; transformers knows them by their memory, which gathered ones do not share.
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    own = {k.removeprefix(f"{name}."): v for k, v in state_dict.items() if k.startswith(f"{name}.")}
    return {k: v for k, v in own.items() if k not in tied}
