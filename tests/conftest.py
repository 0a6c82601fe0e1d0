"""Settings of the whole suite."""

import torch

# The tests' tensors are small: one thread is faster than two, and much faster than two on a busy machine.
torch.set_num_threads(1)
