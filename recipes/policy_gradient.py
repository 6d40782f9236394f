"""Train a language model with any algorithm of the policy-gradient family.

`--algorithm help` prints them all: what each weighs the tokens' log-probs with (Ψ), its loss, its critic. With
`--algorithm NAME` alone it runs the embedded demo; with a model, prompts and rewards, which are given as to
recipes/ppo.py, it trains on them. Examples:

    python recipes/policy_gradient.py --algorithm help
    accelerate launch recipes/policy_gradient.py --algorithm trpo
    accelerate launch recipes/policy_gradient.py --algorithm rloo --num_generations 4 --model_name_or_path MODEL \\
        --dataset_name PROMPTS --reward_funcs runs/reward --output_dir runs/rloo
    accelerate launch recipes/policy_gradient.py --config recipes/configs/family_reviews.yaml --algorithm trpo
"""

import sys

from hfrlhf.algorithms import algorithm_table
from hfrlhf.trainers.command_line import parse_command_line, print_table, value_given
from hfrlhf.trainers.family import family_of
from trl import ModelConfig

from ppo import SHOWN, PPOArguments, run

FAMILY_SHOWN = {"algorithm": "algorithm n_step penalty_target exclude_self value_epochs"} | SHOWN
TRPO_SHOWN = {"the trust region": "max_kl cg_iterations cg_damping max_backtracks"}


def main() -> None:
    """Find the algorithm, then do as recipes/ppo.py does, with its trainer."""
    algorithm = value_given("algorithm") or ("vpg" if sys.argv[1:] else "help")
    if algorithm == "help":
        return print_table(algorithm_table())
    try:
        config, trainer = family_of(algorithm)
    except ValueError as error:
        raise SystemExit(str(error)) from None
    if sys.argv[1:] in (["--algorithm", algorithm], [f"--algorithm={algorithm}"]):
        from hfrlhf.demo import run_demo

        run_demo(algorithm=algorithm)
        return None
    shown = FAMILY_SHOWN | (TRPO_SHOWN if hasattr(config, "max_kl") else {})
    return run(*parse_command_line((PPOArguments, config, ModelConfig), __doc__, shown), trainer)


if __name__ == "__main__":
    main()
