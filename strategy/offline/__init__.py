"""Training and evaluation, away from the market."""
