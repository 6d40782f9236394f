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

from hfrlhf.cli.algorithms import rows, settings_of
from hfrlhf.cli.data_arguments import POLICY_NEEDS, POLICY_PAGE, POLICY_PLACES, PolicyArguments
from hfrlhf.cli.first_look import first_look, value_given
from hfrlhf.cli.mistakes import told_in_a_line

FAMILY_PAGE = {"algorithm": "algorithm n_step penalty_target exclude_self value_epochs"} | POLICY_PAGE
TRPO_PAGE = {"the trust region": "max_kl cg_iterations cg_damping max_backtracks"}
ALGORITHM = (value_given("algorithm") or ("vpg" if sys.argv[1:] else "help")) if __name__ == "__main__" else "help"
ALONE = sys.argv[1:] in (["--algorithm", ALGORITHM], [f"--algorithm={ALGORITHM}"])  # the demo, with this algorithm

if ALGORITHM in rows() and not ALONE:  # help and slips are answered before the imports below take their seconds
    page = FAMILY_PAGE | (TRPO_PAGE if settings_of(ALGORITHM).endswith("TRPOConfig") else {})
    first_look(__doc__, page, [*POLICY_PLACES, settings_of(ALGORITHM)], POLICY_NEEDS)

from hfrlhf.algorithms import algorithm_named, algorithm_table


def main() -> None:
    """Find the algorithm, then do as recipes/ppo.py does, with its trainer."""
    if ALGORITHM == "help":
        from hfrlhf.cli.command_line import print_table

        return print_table(algorithm_table())
    algorithm_named(ALGORITHM)  # or the nearest name, and all of them
    if ALONE:
        from hfrlhf.demo import run_demo

        run_demo(algorithm=ALGORITHM)
        return None
    from hfrlhf.cli.command_line import parse_command_line
    from hfrlhf.trainers.family import family_of
    from trl import ModelConfig

    from ppo import run

    config, trainer = family_of(ALGORITHM)
    return run(*parse_command_line((PolicyArguments, config, ModelConfig)), trainer)


if __name__ == "__main__":
    with told_in_a_line():
        main()
