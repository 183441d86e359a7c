"""Measurements: their results as csv with a manifest, and the report that turns them into docs."""
