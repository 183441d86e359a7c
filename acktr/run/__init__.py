"""One training run in a directory: built from a configuration, saved, resumed, played, drawn."""
