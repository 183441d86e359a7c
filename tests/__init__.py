"""Tests of acktr; the folders mirror the package."""
