"""Nimbus, the execution engine: feeds, books, orders, FIX, journal and the paper venue."""
