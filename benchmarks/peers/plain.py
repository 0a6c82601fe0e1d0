"""The decoder of a problem in plain PyTorch, without Oddity: for the peer, and for the measure of all curves."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import linear


class PlainDecoder:
    """z ``(*, d)`` to mean and standard deviation side by side ``(*, 2D)``."""

    def __init__(self, problem: Mapping[str, np.ndarray], dtype: torch.dtype = torch.float32) -> None:
        def tensor(name: str) -> Tensor:
            return torch.as_tensor(problem[name]).to(dtype)

        depth = sum(name.startswith("W") for name in problem)
        self.layers = [(tensor(f"W{i}"), tensor(f"b{i}")) for i in range(depth)]
        self.centres, self.bandwidths = tensor("centres"), tensor("bandwidths")
        self.weight, self.zeta = tensor("weight"), tensor("zeta")
        self.bound = float(problem["largest_exponent"])

    def __call__(self, z: Tensor) -> Tensor:
        return torch.cat([self.mean(z), self.std(z)], -1)

    def mean(self, z: Tensor) -> Tensor:
        for W, b in self.layers[:-1]:
            z = torch.tanh(linear(z, W, b))
        return torch.sigmoid(linear(z, *self.layers[-1]))

    def std(self, z: Tensor) -> Tensor:
        exponent = self.bandwidths * (z[..., None, :] - self.centres).square().sum(-1)
        return linear(torch.exp(-exponent.clamp(max=self.bound)), self.weight, self.zeta).rsqrt()
