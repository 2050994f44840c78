"""Order pool, pre-trade risk and positions."""
