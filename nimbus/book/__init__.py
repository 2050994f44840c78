"""Level-3 order books."""
