"""Settings that every test shares."""

import multiprocessing

import torch

# Workers and ranks are forked from a server that has imported this once.
multiprocessing.set_forkserver_preload(["acktr"])

# Results must not depend on how many cores a machine has, and small products are faster on one.
torch.set_num_threads(1)
