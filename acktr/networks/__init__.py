"""Policies, feature extractors and what is asked of them."""
