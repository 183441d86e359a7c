"""ACKTR beside A2C, PPO and TRPO on one environment: settings, runs, their results and pictures.

``acktr compare`` and ``python -m benchmarks.run`` are built on it. From the bottom up: :mod:`.peers`
(the Zoo's settings, and models made of them), :mod:`.curve` (what is noted while one learns),
:mod:`.trial` (one training, in a process of its own), :mod:`.store` (csv files that are whole at any
moment), :mod:`.runner` (many trials, one process a core), :mod:`.plot`.
"""
