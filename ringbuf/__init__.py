"""Rings, cells, clocks and agents in shared memory: the ground the engines stand on."""
