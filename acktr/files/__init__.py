"""Bytes on disk: trees as JSON and tensors, bundles, models, checkpoints, locks; no learner."""
