"""The life of a run, for any trainer: its folder and lock, checkpoints, processes, interruption, guard."""
