"""Settings of a rollout: how many responses of which length are sampled, and what their scores and the KL become.

The arithmetic of batches, in sequences:

    rollout_batch_size = per_device_train_batch_size × gradient_accumulation_steps × processes × num_mini_batches
    optimiser steps per rollout = (num_ppo_epochs + value_epochs) × num_mini_batches
"""

from __future__ import annotations

from dataclasses import dataclass

from ..core.kl import KL_ESTIMATORS, KL_PLACES
from .fields import setting
from .updates import UpdateSettings


@dataclass
class RolloutSettings(UpdateSettings):
    """What `PolicyGradientConfig` says of sampling and of rewards, and how many episodes and steps that makes."""

    rollout_batch_size: int | None = setting(
        None,
        "Episodes per rollout over all processes. Default: per_device_train_batch_size × gradient_accumulation_steps × "
        "processes × num_mini_batches. If set, per_device_train_batch_size follows from it.",
        range="[1, ∞)",
        whole=True,
        resumed=True,
        shown=True,
        follows=True,
    )
    generator: str = setting(
        "transformers", "Who samples the responses: a row of rollout/generators.py. An object of yours: `generator=`."
    )
    num_generations: int = setting(
        1,
        "Responses sampled per prompt. More than 1 for baselines over a group.",
        range="[1, ∞)",
        whole=True,
        resumed=True,
        shown=True,
    )
    max_prompt_length: int | None = setting(
        512, "Longer prompts are left out, counted and reported.", unit="tokens", range="[1, ∞)", whole=True
    )
    max_completion_length: int = setting(
        128, "A response is cut off here if no stop token came.", unit="tokens", range="[1, ∞)", whole=True, shown=True
    )
    temperature: float = setting(
        1.0, "Sampling temperature, also in every log-prob. Typical: 0.7 to 1.0.", range="(0, ∞)", shown=True
    )
    stop_token_id: int | None = setting(None, "Token that ends a response. Default: the tokenizer's EOS.")

    missing_eos_penalty: float | None = setting(
        None, "Subtracted from the score of a cut-off response. Typical: 1.", range="[0, ∞)", shown=True
    )
    reward_clip: float | None = setting(
        None, "Scores are clipped to ± this. Typical: 5 to 10. Default: no clipping.", range="(0, ∞)"
    )
    reward_weights: list[float] | None = setting(None, "One weight per reward function. Default: 1 each.")
    reward_timeout: float | None = setting(
        None,
        "Seconds a reward function may take for one rollout before the run stops. It then runs in a thread of its own, "
        "where `signal` does not work. Typical: 600. Default: no limit.",
        range="(0, ∞)",
    )
    normalize_scores: bool = setting(False, "Divide scores by a running standard deviation, after a running mean.")
    kl_coef: float = setting(
        0.05,
        "β, price of one nat of KL to the reference in score units. Typical: 0.01 to 0.2.",
        range="[0, ∞)",
        shown=True,
    )
    kl_estimator: str | None = setting(
        None,
        f"One of {', '.join(KL_ESTIMATORS)}. Default: "
        + ", ".join(f"{estimator} in the {place}" for place, estimator in KL_PLACES.items())
        + ": the ones with the gradient of the KL.",
        choices=KL_ESTIMATORS,
    )
    kl_in: str = setting(
        "reward",
        "Where the KL enters: 'reward' (per token, as in RLHF: the whole gradient) or 'loss' (each state's own KL, "
        "without how earlier tokens lead to that state).",
        choices=KL_PLACES,
    )
    kl_target: float | None = setting(
        None,
        "If set, kl_coef adapts to hold it. Typical: 3 to 10.",
        unit="nats per response",
        range="(0, ∞)",
        shown=True,
    )
    kl_limit: float | None = setting(
        None,
        "Where a rollout's mean KL to the reference passes this, the run stops and saves nothing "
        "more. Typical: 5 to 10 × what you expect. Default: no limit.",
        unit="nats per response",
        range="(0, ∞)",
    )
    kl_horizon: float = setting(10_000, "Episodes over which the adaptive coefficient reacts.", range="(0, ∞)")
    whiten_rewards: bool = setting(False, "Scale per-token rewards to variance 1, keeping their mean.")

    @property
    def policy_steps_per_rollout(self) -> int:
        """Optimiser steps of the policy on one rollout: E × M."""
        assert self.num_ppo_epochs is not None  # settled when the configuration is made
        return self.num_ppo_epochs * self.num_mini_batches

    @property
    def steps_per_rollout(self) -> int:
        """Optimiser steps that use one rollout: those of the policy, then those of the critic alone."""
        return self.policy_steps_per_rollout + self.value_epochs * self.num_mini_batches

    @property
    def episodes_per_rollout(self) -> int:
        """`rollout_batch_size` as a number: it is settled once the configuration is made."""
        assert self.rollout_batch_size is not None
        return self.rollout_batch_size

    @property
    def prompts_per_rollout(self) -> int:
        """Prompts drawn for one rollout, over all processes."""
        return self.episodes_per_rollout // self.num_generations

    @property
    def mini_batch_size(self) -> int:
        """Episodes per optimiser step, over all processes."""
        return self.episodes_per_rollout // self.num_mini_batches

    @property
    def estimator(self) -> str:
        """The KL estimator in use: the one that was set, or the one that is right where the KL enters."""
        return self.kl_estimator or KL_PLACES[self.kl_in]

    @property
    def episodes_per_row(self) -> int:
        """Episodes of a rollout for each one of a micro-batch."""
        processes: int = self.world_size
        return self.gradient_accumulation_steps * processes * self.num_mini_batches
