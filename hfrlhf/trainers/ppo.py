"""PPO as a preset of the template: Ψ = GAE, clipped ratio, several epochs over each rollout (SPEC §6.3, 7)."""

from __future__ import annotations

from ..settings.policy_gradient import PPOConfig
from .policy_gradient import PolicyGradientTrainer
from .trainer_checks import with_arguments_of


@with_arguments_of(PolicyGradientTrainer)
class PPOTrainer(PolicyGradientTrainer):
    """Proximal policy optimisation of a language model (Schulman 2017; Ziegler 2019; SPEC §7).

        L = −Σ_t min(ρ_t·A_t, clip(ρ_t, 1 − ε, 1 + ε)·A_t) / N + c_v·L_value − c_e·H,   ρ_t = π_θ(a_t|s_t) / π_old

    The first term is `core.policy_losses.ppo_clip`, the whole `learning.objective`; A is `core.advantages.gae`. The
    loop is `PolicyGradientTrainer`'s; `PPOConfig` names the algorithm and its usual numbers.
    """

    CONFIG = PPOConfig
