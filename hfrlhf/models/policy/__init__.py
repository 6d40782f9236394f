"""The policy and what belongs to it: actor-critic, response states, reference, loading."""
