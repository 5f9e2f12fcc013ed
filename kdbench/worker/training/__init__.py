"""The training loop, its methods, and what is computed before the first step."""
