"""Reward models: building, head, scores, as an adapter."""
