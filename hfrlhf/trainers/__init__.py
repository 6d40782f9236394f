"""Subclasses of `transformers.Trainer`: the reward model's and the policy-gradient family's."""
