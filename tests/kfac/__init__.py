"""Tests of acktr.kfac, written from the mathematics and the public interface alone."""
