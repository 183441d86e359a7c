"""Bytes on disk: trees as JSON and tensors, bundles, saved models, checkpoints, locks; no learner is known here."""
