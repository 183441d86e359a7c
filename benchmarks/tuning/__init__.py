"""The tables of how the presets were tuned."""
