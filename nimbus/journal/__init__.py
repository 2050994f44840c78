"""The audit trail: a ring, segments on disk, a hash chain."""
