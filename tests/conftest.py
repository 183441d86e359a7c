"""Settings that every test shares."""

import torch

# Results must not depend on how many cores a machine has, and small products are faster on one.
torch.set_num_threads(1)
