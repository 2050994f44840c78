"""Compiled bodies of the operations for float32 on the CPU: mask, product, activation in one call."""
