"""Fusion Alpha, the trading model: features, news, contradiction, experts, decisions."""
