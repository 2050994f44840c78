"""BICEP, adaptive compute: inference plans that run inside kernels."""
