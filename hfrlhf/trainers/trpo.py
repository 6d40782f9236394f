"""TRPO on a language model: one natural-gradient step of the policy per rollout, held in a trust region (SPEC §6.8).

The policy moves once, by `policy_step`; the Trainer's optimiser moves the critic alone, in that step and in the
`value_epochs` after it. A critic that is a head on the policy's trunk learns on a detached trunk: the trunk is the
policy's, and only the trust region may move it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.utils import logging

from ..core.trust_region import LineSearch, Trial, conjugate_gradient, line_search, natural_step
from ..learning.trust_region import TrustRegionProblem
from ..models.libraries import attention_of
from ..settings.policy_gradient import TRPOConfig
from .policy_gradient import PolicyGradientTrainer

logger = logging.get_logger(__name__)

BACKTRACK = 0.8


class TRPOTrainer(PolicyGradientTrainer):
    """Trust region policy optimisation (Schulman 2015), and the natural policy gradient (Kakade 2001).

        maximise E[ρ_t·A_t]  subject to  mean KL(π_old ‖ π_θ) ≤ δ                                      (SPEC §6.8)

    Arguments are `PolicyGradientTrainer`'s, settings a `TRPOConfig`. It works on full weights or on a LoRA adapter, on
    one process or several (DDP). It keeps five vectors of the trained parameters' size and, while it multiplies with
    the Fisher matrix, the graph of a forward and a backward pass of `max_tokens_per_micro_batch` tokens, logits
    included; where a whole rollout fits into one such pass, that graph serves every product: a third less time.

    Raises:
        ValueError: as `PolicyGradientTrainer`; also sharded parameters, and attention that has no second derivative.
    """

    CONFIG = TRPOConfig
    args: TRPOConfig
    policy_moves = False  # as far as the Trainer's optimiser goes: the policy moves by `policy_step`

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.strategy.check_whole(self.args.algorithm, "natural gradients")
        attention = attention_of(self.model.policy.config)
        if attention not in ("sdpa", "eager"):
            raise ValueError(
                f"TRPO differentiates the policy twice, which attn_implementation={attention!r} cannot; load the "
                "policy with attn_implementation='sdpa' or 'eager'"
            )

    def moved_by_optimizer(self, model: Any) -> dict[str, torch.nn.Parameter]:
        """The critic's parameters: the policy moves by `policy_step`."""
        return dict(model.named_value_parameters())

    def training_step(self, model: Any, inputs: dict[str, Tensor], num_items_in_batch: Any = None) -> Tensor:
        """The critic's micro-batch; after the last one of a rollout's first step, the policy's step."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        if self.accelerator.sync_gradients and self.moment.k == 0 and not self.moment.warming_up:
            self.policy_step()
        return loss

    def policy_step(self) -> LineSearch:
        """Gradient, conjugate gradient, line search; then the policy is where the search ended, or where it was."""
        args, problem = self.args, self.problem()
        gradient = problem.gradient()
        direction = conjugate_gradient(problem.fisher_vector_product, gradient, args.cg_iterations)
        full_step = natural_step(direction, problem.fisher_vector_product(direction), args.max_kl)
        problem.forget_graph()  # the line search has no use for it
        search = SEARCHES[self.algorithm.update](problem.evaluate, full_step, args.max_kl, args.max_backtracks)
        if search.step is not None:
            problem.move(search.step)
        self._note_step(problem, gradient, search)
        return search

    def problem(self) -> TrustRegionProblem:
        """The rollout in use as a problem around the policy as it is now; each process holds its rows."""
        self.model.eval()
        experience = self.in_use.experience
        rows = torch.cat(self.share.micro_batches(torch.arange(len(experience)), experience.lengths))
        mine = experience.select(rows), self.algorithm, experience.action_mask
        return TrustRegionProblem(self.unwrapped(), *mine, self.args, self.accelerator)

    def _note_step(self, problem: TrustRegionProblem, gradient: Tensor, search: LineSearch) -> None:
        last = search.trials[-1] if search.step is not None else Trial(0.0, 0.0, problem.start)
        self.watch.metrics.update(
            {
                "policy/kl": last.kl,
                "policy/surrogate_gain": last.surrogate - problem.start,
                "policy/step_fraction": last.fraction,
                "policy/grad_norm": float(gradient.norm()),
            }
        )
        if search.step is None:
            logger.warning(
                f"step {self.state.global_step}: of {len(search.trials)} steps tried none was finite, kept to "
                f"max_kl={self.args.max_kl} and improved the surrogate; the policy stays as it is"
            )


def _backtracking(evaluate: Any, full_step: Tensor, max_kl: float, max_backtracks: int) -> LineSearch:
    return line_search(evaluate, full_step, max_kl, BACKTRACK, max_backtracks)


def _whole_step(evaluate: Any, full_step: Tensor, max_kl: float, max_backtracks: int) -> LineSearch:
    """The natural policy gradient: the full step, measured but not questioned, unless it leads nowhere at all."""
    evaluate(torch.zeros_like(full_step))
    surrogate, kl = evaluate(full_step)
    is_finite = bool(torch.tensor([surrogate, kl]).isfinite().all())
    return LineSearch(full_step if is_finite else None, (Trial(1.0, kl, surrogate),))


SEARCHES = {"trust_region": _backtracking, "natural": _whole_step}
