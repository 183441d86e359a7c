"""Ratios of speed, how training scales over processes, and what checkpoints cost."""
