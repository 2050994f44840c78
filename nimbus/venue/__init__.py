"""The paper exchange and the generated day."""
