"""How good a model is: modules of the `evaluate` library that need no network."""
