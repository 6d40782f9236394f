"""What a rollout and an optimiser step are, with no Trainer in sight: collaborators in, records out."""
