"""A language model so small that every response can be written down, and what the theory says about it, exactly.

A real GPT-2 in float64 over three tokens, one of them the stop token, and responses of at most three: 15 per prompt, so
an expectation is a sum. Log-probs come from the stock forward's logits; returns, values and true gradients from the
definitions. Nothing here uses the library, whose estimators are measured against it.

Legend: K episodes (prompt and response), A response positions, V tokens, S states (prompt and prefix), P parameters.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

EOS, VOCABULARY = 2, 3
PROMPTS = ((0,), (1, 0, 1))
State = tuple[int, tuple[int, ...]]


@dataclass(frozen=True, repr=False)
class World:
    """All that can happen: `episodes[k]` is (prompt, response), `states[s]` is (prompt, prefix).

    Shapes: actions [K,A] long and state [K,A] long (0 at padding), mask [K,A], scores [K] (made up), log_reference
    [K,A,V]; the prompts are equally likely.
    """

    model: Any
    reference: Any
    prompts: tuple[tuple[int, ...], ...]
    limit: int
    episodes: list[State]
    states: list[State]
    actions: Tensor
    mask: Tensor
    state: Tensor
    scores: Tensor
    log_reference: Tensor

    # ---- The policy ---------------------------------------------------------------------------------------------

    def log_policy(self, model: Any = None) -> Tensor:
        """[K,A,V] log π(·|s_t), 0 at padding, from the logits of the stock forward; it can be differentiated."""
        return _log_policy(model or self.model, self.prompts, self.episodes, self.limit)

    def taken(self, log_policy: Tensor) -> Tensor:
        """[K,A] log π(a_t|s_t), 0 at padding."""
        return log_policy.gather(-1, self.actions.unsqueeze(-1)).squeeze(-1)

    def chances(self, logprobs: Tensor) -> Tensor:
        """[K] the probability of each episode, its prompt's included."""
        return logprobs.sum(-1).exp() / len(self.prompts)

    @functools.cached_property
    def logprobs(self) -> Tensor:
        """[K,A] log π_θ(a_t|s_t), constants."""
        return self.taken(self.log_policy()).detach()

    @functools.cached_property
    def ref_logprobs(self) -> Tensor:
        """[K,A] log π_ref(a_t|s_t)."""
        return self.taken(self.log_reference)

    @functools.cached_property
    def score_gradients(self) -> Tensor:
        """[K,A,P] ∇log π_θ(a_t|s_t), 0 at padding."""
        logprobs = self.taken(self.log_policy())
        result = torch.zeros(*self.mask.shape, sum(p.numel() for p in self.model.parameters()), dtype=torch.float64)
        for k, t in self.mask.nonzero().tolist():
            result[k, t] = self.gradient(logprobs[k, t])
        return result

    def gradient(self, objective: Tensor, model: Any = None) -> Tensor:
        """[P] the derivative by every parameter, by autograd."""
        parameters = list((model or self.model).parameters())
        parts = torch.autograd.grad(objective, parameters, retain_graph=True, materialize_grads=True)
        return torch.cat([part.flatten() for part in parts])

    # ---- What the theory says -----------------------------------------------------------------------------------

    def last(self) -> Tensor:
        """[K,A] True at the last token of each episode."""
        return torch.arange(self.limit) == self.mask.sum(-1, keepdim=True) - 1

    def rewards(self, beta: float, logprobs: Tensor | None = None) -> Tensor:
        """[K,A] r_t = −β·(log π − log π_ref) + 1[t = n]·score; given log-probs with a graph, it has one."""
        penalty = -beta * ((self.logprobs if logprobs is None else logprobs) - self.ref_logprobs)
        return penalty + torch.where(self.last(), self.scores.unsqueeze(-1), 0.0)

    def discounts(self, gamma: float) -> Tensor:
        """[A] γ^{t−1}."""
        return gamma ** torch.arange(self.limit, dtype=torch.float64)

    def true_gradient(self, beta: float, gamma: float = 1.0, model: Any = None, fixed: Tensor | None = None) -> Tensor:
        """[P] ∇J, J = Σ_y π_θ(y|x)·Σ_t γ^{t−1}·r_t; with `fixed` [K,A] the rewards are those, not θ's own."""
        logprobs = self.taken(self.log_policy(model))
        rewards = self.rewards(beta, logprobs) if fixed is None else fixed
        returns = (self.discounts(gamma) * rewards).sum(-1)
        return self.gradient((self.chances(logprobs) * returns).sum(), model)

    def table(self, per_position: Tensor) -> Tensor:
        """[S,…] what a tensor [K,A,…] says at each state, where the first episode passes through it."""
        where = {s: place for place, s in reversed(list(enumerate(self.state[self.mask].tolist())))}
        return per_position[self.mask][[where[s] for s in range(len(self.states))]]

    def action_values(self, beta: float, gamma: float = 1.0) -> Tensor:
        """[S,V] Q^π(s,a) = r(s,a) + γ·V^π(s·a), backwards from the longest prefixes."""
        log_policy, log_reference = self.table(self.log_policy().detach()), self.table(self.log_reference)
        index = {state: i for i, state in enumerate(self.states)}
        ends = dict(zip(self.episodes, self.scores.tolist(), strict=True))
        q = -beta * (log_policy - log_reference)
        for s, (prompt, prefix) in reversed(list(enumerate(self.states))):
            for action in range(VOCABULARY):
                after = (prompt, (*prefix, action))
                if after in ends:
                    q[s, action] += ends[after]
                else:
                    following = index[after]
                    q[s, action] += gamma * (log_policy[following].exp() * q[following]).sum()
        return q

    def state_values(self, beta: float, gamma: float = 1.0) -> Tensor:
        """[S] V^π(s) = Σ_a π(a|s)·Q^π(s,a)."""
        return (self.table(self.log_policy().detach()).exp() * self.action_values(beta, gamma)).sum(-1)

    def at_states(self, values: Tensor) -> Tensor:
        """[K,A] a table of values [S] as episodes meet it, 0 at padding."""
        return torch.where(self.mask, values[self.state], 0.0)

    def at_actions(self, values: Tensor) -> Tensor:
        """[K,A] a table of values [S,V] as episodes meet it, 0 at padding."""
        return torch.where(self.mask, values[self.state, self.actions], 0.0)

    # ---- What an estimator gives on average ---------------------------------------------------------------------

    def expectation(self, psi: Tensor) -> Tensor:
        """[P] E[ Σ_t ∇log π(a_t|s_t)·Ψ_t ] for a Ψ [K,A] that depends on its own episode alone."""
        return self.weighted(self.chances(self.logprobs).unsqueeze(-1) * psi)

    def weighted(self, weights: Tensor) -> Tensor:
        """[P] Σ_kt w_kt·∇log π(a_t|s_t) for weights [K,A]."""
        return torch.einsum("ka,kap->p", weights, self.score_gradients)

    def expectation_over_batches(self, psi: Callable[[Tensor], Tensor], m: int) -> Tensor:
        """[P] E[ (1/m)·Σ_i Σ_t ∇log π·Ψ_it ] over batches of m independent episodes.

        `psi` takes the episodes of one batch, [m] long, and gives their Ψ, [m,A].
        """
        return self.weighted(self._mean_psi(psi, m, torch.arange(len(self.episodes)), self.chances(self.logprobs)))

    def expectation_over_groups(self, psi: Callable[[Tensor], Tensor], m: int) -> Tensor:
        """[P] the same where the m episodes are responses to one and the same prompt, whichever it is."""
        weights = torch.zeros(self.mask.shape, dtype=torch.float64)
        for prompt in range(len(self.prompts)):
            rows = torch.tensor([k for k, (of, _) in enumerate(self.episodes) if of == prompt])
            given = self.chances(self.logprobs)[rows] * len(self.prompts)
            weights += self._mean_psi(psi, m, rows, given) / len(self.prompts)
        return self.weighted(weights)

    def _mean_psi(self, psi: Callable[[Tensor], Tensor], m: int, rows: Tensor, chances: Tensor) -> Tensor:
        """[K,A] E[ (1/m)·Σ_i 1[i is k]·Ψ_it ]: the order of a batch does not matter, so every multiset counts once."""
        result = torch.zeros(self.mask.shape, dtype=torch.float64)
        choices, weights = _multisets(len(rows), m, chances)
        for some, weight in zip(choices.split(100_000), weights.split(100_000), strict=True):
            each = weight[:, None, None] / m * torch.func.vmap(psi)(rows[some])
            result.index_add_(0, rows[some].flatten(), each.flatten(0, 1))
        return result


def _multisets(number: int, m: int, chances: Tensor) -> tuple[Tensor, Tensor]:
    """Every choice of m out of `number` with repetition [N,m], and its probability [N] (multinomial)."""
    choices = torch.tensor(list(itertools.combinations_with_replacement(range(number), m)))
    counts = torch.zeros(len(choices), number, dtype=torch.float64)
    counts.scatter_add_(1, choices, torch.ones_like(choices, dtype=torch.float64))
    orders = float(math.factorial(m)) / torch.lgamma(counts + 1).exp().round().prod(-1)
    return choices, orders * chances[choices].prod(-1)


# ---- Building worlds ------------------------------------------------------------------------------------------------


@functools.cache
def world(number_of_prompts: int = 2, limit: int = 3) -> World:
    """The world of the first prompts and of responses of at most `limit` tokens; its scores and models are fixed."""
    prompts = PROMPTS[:number_of_prompts]
    states = [
        (p, prefix)
        for p in range(len(prompts))
        for length in range(limit)
        for prefix in itertools.product([token for token in range(VOCABULARY) if token != EOS], repeat=length)
    ]
    episodes = [
        (p, (*prefix, token))
        for p, prefix in states
        for token in range(VOCABULARY)
        if token == EOS or len(prefix) == limit - 1
    ]
    return _world(prompts, limit, states, episodes)


def _world(prompts: tuple[tuple[int, ...], ...], limit: int, states: list[State], episodes: list[State]) -> World:
    actions, state = torch.zeros(2, len(episodes), limit, dtype=torch.long)
    index = {known: i for i, known in enumerate(states)}
    for k, (prompt, response) in enumerate(episodes):
        actions[k, : len(response)] = torch.tensor(response)
        state[k, : len(response)] = torch.tensor([index[prompt, response[:t]] for t in range(len(response))])
    reference = language_model(seed=1)
    with torch.no_grad():
        log_reference = _log_policy(reference, prompts, episodes, limit)
    return World(
        model=language_model(seed=0),
        reference=reference,
        prompts=prompts,
        limit=limit,
        episodes=episodes,
        states=states,
        actions=actions,
        mask=torch.arange(limit) < torch.tensor([len(response) for _, response in episodes])[:, None],
        state=state,
        scores=random(len(episodes), seed=2).float().double(),  # a trainer keeps scores in float32
        log_reference=log_reference,
    )


def language_model(seed: int) -> Any:
    """A real GPT-2 of some hundred parameters, in float64, whose distributions are far from uniform.

    Not a Llama: its RMSNorm computes in float32 even where the model is float64.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=8,
        n_embd=8,
        n_layer=1,
        n_head=2,
        n_inner=8,
        initializer_range=0.4,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=EOS,
        eos_token_id=EOS,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return GPT2LMHeadModel(config).double().eval()


def moved(model: Any, by: float, seed: int = 5) -> Any:
    """A copy of the model, every parameter moved by normal noise of that size."""
    import copy

    there = copy.deepcopy(model)
    for i, parameter in enumerate(there.parameters()):
        parameter.data += by * random(*parameter.shape, seed=seed * 1000 + i)
    return there


def random(*shape: int, seed: int) -> Tensor:
    """Normal float64 numbers, always the same."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def relative_error(actual: Tensor, exact: Tensor) -> float:
    """‖actual − exact‖ / ‖exact‖."""
    return ((actual - exact).norm() / exact.norm()).item()


def _log_policy(model: Any, prompts: tuple[tuple[int, ...], ...], episodes: list[State], limit: int) -> Tensor:
    """[K,A,V], one unpadded forward per episode."""
    rows = []
    for prompt, response in episodes:
        ids = torch.tensor([(*prompts[prompt], *response)])
        logits = model(input_ids=ids, use_cache=False).logits[0, len(prompts[prompt]) - 1 : -1]
        rows.append(torch.nn.functional.pad(logits.log_softmax(-1), (0, 0, 0, limit - len(response))))
    return torch.stack(rows)
