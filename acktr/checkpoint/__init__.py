"""Exact, atomic checkpoints and saved models, in files that hold JSON and tensors alone."""
