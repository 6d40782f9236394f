"""The variance of the policy gradient with every Ψ, on the same rollouts of a real policy: what each trick buys.

    OMP_NUM_THREADS=1 python tests/benchmarks/gradient_variance.py [--run FOLDER] [--help]

The policy is the embedded demo's after half of its PPO, its reward the demo's: reward-model score at the end,
missing-EOS penalty, k1 KL to the SFT model with the demo's β in every token. The critics of V and Q are fitted by
regression on rewards-to-go of other prompts. The rollouts fall into disjoint mini-samples of 64 episodes (16 prompts ×
4 responses), and every Ψ of `core.advantages.PSI` gives one gradient for each, over all the policy's parameters: sums
divided by episodes, no whitening, γ = 1. From independent mini-samples g_1 … g_n:

    signal  ‖μ‖² ≈ Σ_{i≠j} g_i·g_j / (n(n − 1))        variance  tr Cov ≈ Σ_i ‖g_i‖² / n − ‖μ‖²      (unbiased, both)

Intervals are 95 % bootstrap intervals over the mini-samples; those of a ratio resample both alike. `discounted_rewards`
is left out: it is no Ψ of this gradient but a per-decision weight's, and is the reward-to-go on-policy.

The same with the reward model's opinion handed out word by word, r_t = score(y_≤t) − score(y_<t), shows what depends on
a reward that comes only at the end.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from hfrlhf.core.advantages import PSI, td_error
from hfrlhf.core.kl import kl_penalty
from hfrlhf.core.masking import masked_sum
from hfrlhf.core.randomness import permutation
from hfrlhf.core.returns import reward_to_go
from hfrlhf.core.reward_shaping import missing_eos, token_rewards
from hfrlhf.core.trust_region import flatten
from hfrlhf.core.value_losses import explained_variance, squared_error
from hfrlhf.data.prompts import prepare_prompts, prompt_batch
from hfrlhf.demo import run_demo, world
from hfrlhf.demo.run import load_settings
from hfrlhf.experience import Rollout, concatenate
from hfrlhf.models.policy.actor_critic import ActorCritic
from hfrlhf.models.policy.reference import Reference, frozen
from hfrlhf.models.policy.response_states import ResponseStates, vocabulary_logits
from hfrlhf.models.policy.score_gradients import score_gradient_sq_norms
from hfrlhf.models.reward.head import backbone_of
from hfrlhf.models.reward.scoring import last_token_scores, load_reward_model
from hfrlhf.rollout.generation import TransformersGenerator

REPOSITORY = Path(__file__).resolve().parents[2]
RESULT = Path(__file__).with_suffix(".json")
FIGURE = REPOSITORY / "model_cards/figures/gradient_variance.png"

GROUP, MINI_SAMPLE, DRAWS = 4, 64, 4000
OPTIONS = {"gamma": 1.0, "gae_lambda": 0.95, "n_step": 5, "num_generations": GROUP, "exclude_self": False}
ROWS = [name for name in PSI if name != "discounted_rewards"]
NEEDS_VALUES = ["value_baseline", "td_error", "n_step", "gae"]
NEEDS_ACTION_VALUES = ["action_value", "expected_baseline"]
UNRESOLVED = 1e4  # a ratio whose interval reaches so far has a denominator that may be 0
UNBIASED = "value_baseline"  # whose mean gradient the others' directions are compared with

# What the theory suggests: the first of each pair has the smaller variance.
EXPECTED = [
    ("reward_to_go", "total_return", "rewards before the action do not belong to it"),
    ("constant_baseline", "total_return", "a baseline beats none"),
    ("minimal_variance_baseline", "total_return", "a baseline beats none"),
    ("minimal_variance_baseline", "constant_baseline", "the best constant beats the mean"),
    ("reward_to_go_constant_baseline", "reward_to_go", "a baseline beats none"),
    ("reward_to_go_constant_baseline", "constant_baseline", "rewards before the action do not belong to it"),
    ("time_dependent_baseline", "reward_to_go_constant_baseline", "the mean at that step knows more"),
    ("time_dependent_baseline", "constant_baseline", "rewards before the action do not belong to it"),
    ("leave_one_out", "reward_to_go", "a baseline beats none"),
    ("leave_one_out", "reward_to_go_constant_baseline", "the prompt's own mean knows more"),
    ("value_baseline", "reward_to_go_constant_baseline", "a state's value knows more"),
    ("value_baseline", "leave_one_out", "a state's value knows more than the prompt's mean of three"),
    ("gae", "value_baseline", "GAE lies between TD and R_t − V"),
    ("n_step", "value_baseline", "the critic replaces later rewards"),
    ("td_error", "gae", "GAE lies between TD and R_t − V"),
    ("td_error", "n_step", "fewer sampled rewards"),
    ("action_value", "reward_to_go", "Q is the mean of R_t"),
    ("expected_baseline", "action_value", "a baseline beats none"),
]


@dataclass(frozen=True)
class Pool:
    """Episodes of one policy with all that any Ψ reads.

    Shapes: rollout of K episodes, groups of 4 together; rewards [name -> [K,A]]; logprobs are the policy's [K,A].
    """

    rollout: Rollout
    rewards: dict[str, Tensor]


# ---- Rollouts and critics -------------------------------------------------------------------------------------------


class Demo:
    """The models of a demo's folder, and its rewards."""

    def __init__(self, folder: Path, settings: dict[str, Any]):
        self.settings, ppo = settings, settings["ppo"]
        self.tokenizer = AutoTokenizer.from_pretrained(folder / "policy")
        self.policy = AutoModelForCausalLM.from_pretrained(folder / "policy").eval()
        self.reference = Reference(frozen(AutoModelForCausalLM.from_pretrained(folder / "sft")), "the SFT model")
        self.reward_model = load_reward_model(str(folder / "reward_model")).eval()
        self.generator = TransformersGenerator(ppo["max_completion_length"], 1.0, self.tokenizer.eos_token_id)
        sizes = {name: settings["world"][name] for name in ("sft", "pairs", "ppo", "test")}
        self.prompts = world.make_splits(settings["seed"], **sizes).ppo

    @torch.no_grad()
    def pool(self, first: int, number: int, draw: int) -> Pool:
        """Four responses to each of some prompts, their rewards at the end and word by word.

        Args:
            first, number: which of the demo's PPO prompts. draw: address of the responses.
        """
        from datasets import Dataset

        prompts = Dataset.from_dict({"prompt": list(self.prompts[first : first + number])})
        rows = torch.arange(number).repeat_interleave(GROUP)
        batch = prompt_batch(prepare_prompts(prompts, self.tokenizer, None), rows, torch.arange(len(rows)))
        rollout = self.generator.generate(self.policy, batch, (self.settings["seed"], draw))
        parts = [Pool(part, self.rewards(part)) for part in rollout.split(1024)]
        rewards = {name: torch.cat([part.rewards[name] for part in parts]) for name in parts[0].rewards}
        return Pool(concatenate([part.rollout for part in parts]), rewards)

    def rewards(self, rollout: Rollout) -> dict[str, Tensor]:
        """[B,A] the demo's rewards, and the same score handed out word by word (SPEC §2.2)."""
        ppo, mask = self.settings["ppo"], rollout.action_mask
        opinions = ActorCritic(self.policy, self.reward_model)(rollout, need_entropy=False)
        kl = kl_penalty(opinions.logprobs, self.reference.logprobs(rollout, 1.0), "k1")
        scores = last_token_scores(self.reward_model, rollout.input_ids, rollout.attention_mask)
        penalty = missing_eos(torch.zeros_like(scores), rollout.terminated, ppo["missing_eos_penalty"])
        gains = td_error(torch.zeros_like(kl), opinions.values, mask, 1.0, opinions.bootstrap_values)
        at_end, otherwise = (token_rewards(s, kl, ppo["kl_coef"], mask) for s in (scores + penalty, penalty))
        return {"at the end": at_end, "word by word": otherwise + gains}

    def state_critic(self, pool: Pool, rewards: Tensor) -> ActorCritic:
        """A critic of its own that starts as the reward model, fitted to rewards-to-go."""
        critic = ActorCritic(self.policy, copy.deepcopy(self.reward_model))
        fit(critic, critic.value_model.parameters(), pool, rewards)
        return critic

    def action_critic(self, pool: Pool, rewards: Tensor) -> ActorCritic:
        """A Q head on a copy of the policy that is trained with it, fitted to rewards-to-go."""
        critic = ActorCritic(copy.deepcopy(self.policy), "Q")
        fit(critic, critic.parameters(), pool, rewards)
        return critic


def fit(critic: ActorCritic, parameters: Any, pool: Pool, rewards: Tensor, epochs: int = 4) -> None:
    """Least squares on rewards-to-go, 64 episodes a step."""
    parameters, targets = list(parameters), reward_to_go(rewards, pool.rollout.action_mask, 1.0)
    optimizer = torch.optim.AdamW(parameters, lr=1e-3)
    batches = [permutation(len(targets), (0, epoch)).split(64) for epoch in range(epochs)]
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, sum(map(len, batches)))
    for rows in (rows for epoch in batches for rows in epoch):
        batch = pool.rollout.select(rows)
        error = squared_error(critic(batch, need_entropy=False).values, targets[rows])
        optimizer.zero_grad()
        (masked_sum(error, batch.action_mask) / batch.action_mask.sum()).backward()
        optimizer.step()
        schedule.step()


@torch.no_grad()
def critics_say(
    policy: Any, state_critic: ActorCritic, action_critic: ActorCritic, rollout: Rollout
) -> dict[str, Tensor]:
    """[B,A] V(s_t), Q(s_t, a_t), max_a Q(s_t, a), and Σ_a π(a|s_t)·Q(s_t, a) under the policy itself."""
    states = ResponseStates.of(rollout)
    every = action_critic.value_head(states.run(backbone_of(action_critic.policy))[states.index])
    chances = vocabulary_logits(policy, states.run(backbone_of(policy))[states.index], 1.0).softmax(-1)
    flat = {
        "Q": every.gather(-1, states.targets[:, None]).squeeze(-1),
        "best": every.amax(-1),
        "expected": (chances * every).sum(-1),
    }
    return {"V": state_critic(rollout, need_entropy=False).values} | {k: states.spread(x) for k, x in flat.items()}


# ---- Gradients ------------------------------------------------------------------------------------------------------


def gradients(policy: Any, pool: Pool, reward: str, critics: tuple[Any, Any], norms: Tensor) -> dict[str, Tensor]:
    """Ψ -> [n,P], the gradient of each mini-sample: one forward, and one backward for each Ψ.

    Args:
        critics: of V and of Q. norms: [K] ‖∇log π(τ)‖² of each episode.
    """
    actor, parameters = ActorCritic(policy, None), [p for p in policy.parameters() if p.requires_grad]
    found: dict[str, list[Tensor]] = {name: [] for name in ROWS}
    for rows in torch.arange(len(norms)).split(MINI_SAMPLE):
        batch = pool.rollout.select(rows)
        seen = critics_say(policy, *critics, batch)
        known = {"grad_sq_norms": norms[rows], "best_values": seen["best"], "expected_values": seen["expected"]}
        logprobs = actor(batch, need_entropy=False).logprobs
        for name in ROWS:
            values = seen["Q" if name in NEEDS_ACTION_VALUES else "V"]
            psi = PSI[name](pool.rewards[reward][rows], values, batch.action_mask, OPTIONS | known)
            surrogate = masked_sum(psi * logprobs, batch.action_mask) / MINI_SAMPLE
            found[name].append(flatten(torch.autograd.grad(surrogate, parameters, retain_graph=name != ROWS[-1])))
    return {name: torch.stack(rows) for name, rows in found.items()}


def measure(demo: Demo, mini_samples: int) -> dict[str, Any]:
    """Everything: rollouts, critics, gradients with both rewards, and what follows from them."""
    prompts = mini_samples * MINI_SAMPLE // GROUP
    others = len(demo.prompts) - prompts
    if others < 256:
        raise ValueError(f"{mini_samples} mini-samples leave {others} of {len(demo.prompts)} prompts for the critics")
    pool, fitting = demo.pool(0, prompts, 20), demo.pool(prompts, min(others, 1024), 21)
    parameters = [p for p in demo.policy.parameters() if p.requires_grad]
    norms = score_gradient_sq_norms(ActorCritic(demo.policy, None), pool.rollout, parameters)
    facts: dict[str, Any] = {
        "mini_samples": mini_samples,
        "episodes": len(norms),
        "critic_episodes": len(fitting.rollout),
        "parameters": sum(p.numel() for p in parameters),
        "tokens_per_response": float(pool.rollout.completion_lengths.float().mean()),
        "rewards": {},
    }
    for name, rewards in fitting.rewards.items():
        critics = demo.state_critic(fitting, rewards), demo.action_critic(fitting, rewards)
        explained = explained_by(demo.policy, critics, pool, pool.rewards[name])
        gram = grams(gradients(demo.policy, pool, name, critics, norms))
        facts["rewards"][name] = {"explained": explained, **summary(gram)}
    return facts


def explained_by(policy: Any, critics: tuple[Any, Any], pool: Pool, rewards: Tensor) -> dict[str, float]:
    """Share of the variance of the rewards-to-go that V and Q explain on the rollouts they were not fitted to."""
    seen = [critics_say(policy, *critics, part) for part in pool.rollout.split(512)]
    mask = pool.rollout.action_mask
    returns = reward_to_go(rewards, mask, 1.0)
    return {name: float(explained_variance(torch.cat([s[name] for s in seen]), returns, mask)) for name in ("V", "Q")}


# ---- Statistics -----------------------------------------------------------------------------------------------------


def grams(gradient: dict[str, Tensor]) -> dict[str, Tensor]:
    """Ψ -> [2,n,n]: inner products of its gradients with each other, and with those of the unbiased Ψ, in float64."""
    return {
        name: torch.stack([g.double() @ g.double().T, g.double() @ gradient[UNBIASED].double().T])
        for name, g in gradient.items()
    }


def moments(gram: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """tr Cov, ‖μ‖², and μ·μ' with the unbiased Ψ's mean, for each way of counting the mini-samples.

        ‖μ‖² = Σ_{i≠j} w_i·w_j·g_i·g_j / Σ_{i≠j} w_i·w_j,   tr Cov = Σ_i w_i·‖g_i‖² / n − ‖μ‖²

    Shapes: gram [2,n,n], weights [D,n] how often each mini-sample counts (n in all) -> [D] each.
    """
    n = gram.shape[-1]
    own, cross = gram
    pairs = n * n - weights.square().sum(-1)  # of mini-samples that are not the same one
    signal, along = (
        (((weights @ x) * weights).sum(-1) - weights.square() @ x.diagonal()) / pairs for x in (own, cross)
    )
    return weights @ own.diagonal() / n - signal, signal, along


def summary(gram: dict[str, Tensor]) -> dict[str, Any]:
    """Variances, noise-to-signal ratios and directions of every Ψ, and the expected order, with intervals."""
    n = next(iter(gram.values())).shape[-1]
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(n, (DRAWS, n), generator=generator)
    weights = torch.zeros(DRAWS, n, dtype=torch.float64).scatter_add_(1, drawn, torch.ones(DRAWS, n).double())
    weights = torch.cat([torch.ones(1, n, dtype=torch.float64), weights])  # the first way of counting: as they are
    seen = {name: moments(g, weights) for name, g in gram.items()}
    signal = seen[UNBIASED][1]
    rows = {
        name: {
            "variance": interval(variance),
            "noise_to_signal": interval(variance / own.clamp(min=1e-12)),
            "cosine": interval(along / (own.clamp(min=1e-12) * signal.clamp(min=1e-12)).sqrt()),
        }
        for name, (variance, own, along) in seen.items()
    }
    order = [
        {"smaller": a, "larger": b, "why": why, "ratio": interval(seen[a][0] / seen[b][0])} for a, b, why in EXPECTED
    ]
    return {"rows": rows, "order": order}


def interval(x: Tensor) -> list[float]:
    """The measured value (the first), and the 2.5 % and 97.5 % quantiles of the bootstrap's (the others)."""
    low, high = x[1:].quantile(torch.tensor([0.025, 0.975], dtype=x.dtype)).tolist()
    return [float(f"{value:.5g}") for value in (float(x[0]), low, high)]


# ---- Report ---------------------------------------------------------------------------------------------------------


def verdict(ratio: list[float]) -> str:
    """What the interval of a ratio says about an expected "smaller"."""
    _, low, high = ratio
    return "as expected" if high < 1 else "the opposite" if low > 1 else "no difference seen"


def shown(values: list[float]) -> str:
    """A value with its interval; a signal that cannot be told from 0 bounds a ratio on one side only."""
    middle, low, high = values
    return f"> {low:.3g}" if high > UNRESOLVED else f"{middle:.3g} ({low:.3g}–{high:.3g})"


def print_tables(facts: dict[str, Any]) -> None:
    """Markdown: each Ψ with both rewards, then the expected order."""
    for reward, found in facts["rewards"].items():
        v, q = (found["explained"][critic] for critic in "VQ")
        print(f"\nReward {reward}; explained variance V {v:.2f}, Q {q:.2f}\n")
        print("| Ψ | formula | tr Cov | tr Cov / ‖μ‖² | cosine |\n| --- | --- | --- | --- | --- |")
        for name, row in found["rows"].items():
            cells = [shown(row[column]) for column in ("variance", "noise_to_signal")]
            cells.append("–" if row["noise_to_signal"][2] > UNRESOLVED else shown(row["cosine"]))
            formula = (PSI[name].__doc__ or "").strip().replace("|", "\\|")
            print(f"| `{name}` | {formula} | {' | '.join(cells)} |")
    rewards = list(facts["rewards"])
    print(f"\n| smaller | than | because | {' | '.join(f'{r}: ratio | measured' for r in rewards)} |")
    print("| --- " * (3 + 2 * len(rewards)) + "|")
    for rows in zip(*(facts["rewards"][reward]["order"] for reward in rewards), strict=True):
        cells = [f"`{rows[0]['smaller']}`", f"`{rows[0]['larger']}`", rows[0]["why"]]
        for row in rows:
            cells += [shown(row["ratio"]), verdict(row["ratio"])]
        print(f"| {' | '.join(cells)} |")


COLOURS = {"no critic": "#2b6cb0", "V": "#b7791f", "Q": "#805ad5"}


def plot(facts: dict[str, Any], path: Path) -> None:
    """Bars with intervals: variance and noise-to-signal ratio with the demo's reward, variance with the dense one."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.patches import Patch

    panels = [
        ("at the end", "variance", "Score at the end:\nvariance, tr Cov"),
        ("at the end", "noise_to_signal", "Score at the end:\nnoise to signal, tr Cov / ‖μ‖²"),
        ("word by word", "variance", "Score word by word:\nvariance, tr Cov"),
    ]
    figure, axes = plt.subplots(1, len(panels), figsize=(11, 5), sharey=True, constrained_layout=True)
    kinds = ["Q" if n in NEEDS_ACTION_VALUES else "V" if n in NEEDS_VALUES else "no critic" for n in ROWS]
    for axis, (reward, column, title) in zip(axes, panels, strict=True):
        rows = [facts["rewards"][reward]["rows"][name][column] for name in ROWS]
        middle = [row[0] for row in rows]
        spread = [[abs(row[0] - row[1]) for row in rows], [abs(row[2] - row[0]) for row in rows]]
        axis.barh(range(len(ROWS)), middle, xerr=spread, color=[COLOURS[k] for k in kinds], error_kw={"linewidth": 1})
        axis.set_xscale("log")
        seen = [x for row in rows for x in row if 0 < x < UNRESOLVED]
        axis.set_xlim(min(seen) / 1.5, max(seen) * 1.5)
        axis.set_title(title, fontsize=10)
        axis.grid(axis="x", which="both", alpha=0.25)
    axes[0].set_yticks(range(len(ROWS)), [name.replace("_", " ") for name in ROWS], fontsize=9)
    axes[0].invert_yaxis()
    axes[-1].legend(handles=[Patch(color=c, label=k) for k, c in COLOURS.items()], title="critic", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Train the demo if need be, measure, print the tables, draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="folder of an earlier run of the demo; by default a new one is made")
    parser.add_argument("--mini-samples", type=int, default=128, help="of 64 episodes each")
    parser.add_argument("--output", type=Path, default=RESULT, help="JSON of what was measured")
    parser.add_argument("--figure", type=Path, default=FIGURE)
    parser.add_argument("--plot-only", action="store_true", help="tables and figure of the JSON there is")
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if not options.plot_only:
        torch.set_num_threads(1)
        settings = load_settings()
        settings["ppo"]["max_steps"] //= 2
        with tempfile.TemporaryDirectory() as folder:
            run = options.run or run_demo(Path(folder) / "demo", settings=settings)
            start = time.process_time()
            facts = measure(Demo(run, settings), options.mini_samples)
            facts["cpu_seconds"] = round(time.process_time() - start)
        options.output.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    facts = json.loads(options.output.read_text(encoding="utf-8"))
    print_tables(facts)
    plot(facts, options.figure)


if __name__ == "__main__":
    main()
