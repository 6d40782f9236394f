"""What TRPO asks of a policy on one rollout: the surrogate's gradient, Fisher-vector products, and both at a new place.

Everything is summed over all tokens of the rollout on all processes, some tokens at a time; the KL is exact, over the
whole vocabulary, in the states that were visited.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..algorithms import Algorithm
from ..core.kl import exact_kl
from ..core.masking import LOSS_ITEMS, at_least_float32, masked_sum
from ..core.policy_losses import POLICY_LOSSES
from ..core.trust_region import fisher_vector_product, flatten, kl_gradient, unflatten
from ..experience import Experience, chunks_by_length
from ..models.anatomy.sizes import outputs_of
from ..models.policy.actor_critic import ActorCritic
from ..models.policy.response_states import ResponseStates, causal_lm, rows_at_a_time, vocabulary_logits
from ..models.reward.head import backbone_of
from ..settings.policy_gradient import TRPOConfig


class TrustRegionProblem:
    """maximise E[ρ_t·A_t] subject to mean KL(π_old ‖ π_θ) ≤ δ, around the policy as it is now (SPEC §6.8).

    Args:
        actor_critic: the policy with its critic, in eval mode. mine: this process's rows of the rollout.
        row: whose loss is the surrogate. mask: [B,A] of the whole rollout, on all processes.
        args: settings. accelerator: precision and processes.
    """

    def __init__(
        self,
        actor_critic: ActorCritic,
        mine: Experience,
        row: Algorithm,
        mask: Tensor,
        args: TRPOConfig,
        accelerator: Accelerator,
    ) -> None:
        self.actor_critic, self.row, self.args, self.accelerator = actor_critic, row, args, accelerator
        self.parameters = self.actor_critic.policy_parameters()
        self.old = [parameter.data for parameter in self.parameters]
        chunks = chunks_by_length(mine.lengths, args.max_tokens_per_micro_batch)
        self.chunks = [mine.select(chunk).to(args.device) for chunk in chunks]
        self.tokens = LOSS_ITEMS["tokens"](mask)
        self.items = LOSS_ITEMS[args.loss_normalization](mask)
        self.kept: list[Tensor] = []  # the KL's gradient with its graph, between Fisher-vector products
        self.start = 0.0  # the surrogate of the policy as it is, known once `evaluate` was asked for it

    def gradient(self) -> Tensor:
        """[P] g, the gradient of the surrogate at θ_old."""
        total = torch.zeros_like(at_least_float32(flatten(self.old)))
        for chunk in self.chunks:
            with self.accelerator.autocast():
                logprobs = self.actor_critic(chunk, need_entropy=False).logprobs
            surrogate = self._surrogate(logprobs, chunk) / self.items
            total += flatten(torch.autograd.grad(surrogate, self.parameters, materialize_grads=True))
        return self._summed(total)

    def fisher_vector_product(self, vector: Tensor) -> Tensor:
        """[P] (H + damping·1)·v, with H the Hessian of the mean KL at θ_old."""
        total = torch.zeros_like(vector)
        keep = len(self.chunks) == 1  # one graph is what a micro-batch may hold; more are made again for each product
        for chunk in self.chunks:
            gradient = self.kept or self._kl_gradient(chunk)
            self.kept = gradient if keep else []
            total += fisher_vector_product(gradient, self.parameters, vector, keep)
        return self._summed(total) + self.args.cg_damping * vector

    def forget_graph(self) -> None:
        """No more products are asked for: the memory of the graph is free again."""
        self.kept = []

    def _kl_gradient(self, chunk: Experience) -> list[Tensor]:
        logits = self._logits(ResponseStates.of(chunk))
        return kl_gradient(exact_kl(logits.detach(), logits).sum() / self.tokens, self.parameters)

    @torch.no_grad()
    def evaluate(self, step: Tensor) -> tuple[float, float]:
        """Surrogate and mean KL(π_old ‖ π_θ) in nats per token, with the parameters moved by a step [P]."""
        total = torch.zeros(2, dtype=step.dtype, device=step.device)
        for chunk in self.chunks:
            kl, logprobs = self._moved_chunk(chunk, step)
            total += torch.stack([self._surrogate(logprobs, chunk) / self.items, kl / self.tokens])
        surrogate, kl = self._summed(total).tolist()
        if not step.any():
            self.start = surrogate
        return surrogate, kl

    def move(self, step: Tensor) -> None:
        """Leave the parameters where a step [P] leads."""
        for parameter, piece in zip(self.parameters, unflatten(step, self.old), strict=True):
            parameter.data.copy_(parameter.data + piece)

    @contextmanager
    def moved(self, step: Tensor) -> Iterator[None]:
        """The parameters moved by a step [P]; afterwards they are the tensors that they were, to the bit."""
        pieces = unflatten(step, self.old)
        try:
            for parameter, old, piece in zip(self.parameters, self.old, pieces, strict=True):
                parameter.data = (old + piece).to(old.dtype)  # rounded as it would be if the step were taken
            yield
        finally:
            for parameter, old in zip(self.parameters, self.old, strict=True):
                parameter.data = old

    def _surrogate(self, logprobs: Tensor, chunk: Experience) -> Tensor:
        """Σ_t ρ_t·A_t of a chunk: the algorithm's loss with its sign turned."""
        loss, options = POLICY_LOSSES[self.row.loss], self.args.options
        return -masked_sum(loss(logprobs, chunk.old_logprobs, chunk.advantages, options), chunk.action_mask)

    def _moved_chunk(self, chunk: Experience, step: Tensor) -> tuple[Tensor, Tensor]:
        """Σ_t KL(π_old ‖ π_θ) of a chunk, and [B,A] log π_θ(a_t|s_t); logits of some rows at a time."""
        states, kls, logprobs = ResponseStates.of(chunk), [], []
        before = self._hidden(states)
        with self.moved(step):
            after = self._hidden(states)
        for rows in torch.arange(len(before), device=before.device).split(self._rows_at_a_time()):
            old_logits = self._head(before[rows])
            with self.moved(step):
                logits = self._head(after[rows])
            kls.append(exact_kl(old_logits, logits).sum())
            logprobs.append(logits.log_softmax(-1).gather(-1, states.targets[rows, None]).squeeze(-1))
        return torch.stack(kls).sum(), states.spread(torch.cat(logprobs))

    def _logits(self, states: ResponseStates) -> Tensor:
        """[N,V] logits in the response states, by operations that can be differentiated twice."""
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no second derivative
            return self._head(self._hidden(states))

    def _hidden(self, states: ResponseStates) -> Tensor:
        with self.accelerator.autocast():
            return states.run(backbone_of(causal_lm(self.actor_critic.policy)))[states.index]

    def _head(self, hidden: Tensor) -> Tensor:
        with self.accelerator.autocast():
            policy, temperature = causal_lm(self.actor_critic.policy), self.actor_critic.temperature
            return vocabulary_logits(policy, hidden, temperature, self.actor_critic.vocabulary)

    def _rows_at_a_time(self) -> int:
        return rows_at_a_time(outputs_of(self.actor_critic.policy))

    def _summed(self, tensor: Tensor) -> Tensor:
        summed: Tensor = self.accelerator.reduce(tensor, "sum")
        return summed
