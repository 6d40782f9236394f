"""Datasets: columns in, tensors out."""
