"""The package and its extras on every Python that it supports."""
