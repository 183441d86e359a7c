"""Kills, changed files, and guards taken out: what becomes of a run."""
