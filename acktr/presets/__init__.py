"""Tuned settings as YAML, one file a family, and the loader that makes a configuration of them."""

from acktr.presets.loader import Resolution, resolve, resolve_resumed
from acktr.presets.schema import Configuration, Normalize, validate

__all__ = ["Configuration", "Normalize", "Resolution", "resolve", "resolve_resumed", "validate"]
