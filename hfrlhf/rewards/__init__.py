"""Where scores come from: reward models, Python functions, or a weighted sum of them."""
