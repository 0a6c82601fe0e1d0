"""One table of geometries, for every law: small decoders with fixed weights, closed forms, and their algebra."""

import numpy as np
import torch
from torch import Tensor, nn

import oddity
from oddity import Conformal, Euclidean, Hyperbolic, Manifold, Pullback, Sphere, TensorField


def mlp(d: int, D: int, seed: int = 0) -> nn.Module:
    """A small smooth network with fixed weights."""
    generator = torch.Generator().manual_seed(seed)
    net = nn.Sequential(nn.Linear(d, 16), nn.Tanh(), nn.Linear(16, D), nn.Sigmoid())
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    return net.eval()


def rbf(d: int, D: int) -> nn.Module:
    """An RBF precision network with fixed weights."""
    generator = torch.Generator().manual_seed(1)
    centres = torch.randn(5, d, generator=generator)
    network = oddity.RBFPrecision(centres, torch.full((5,), 0.7), D, zeta=0.1)
    with torch.no_grad():
        network.weight.copy_(torch.rand(network.weight.shape, generator=generator) + 0.1)
    return network.eval()


def decoder(d: int = 2, D: int = 6) -> oddity.GaussianDecoder:
    return oddity.GaussianDecoder(mlp(d, D), rbf(d, D)).eval()


def embedded_sphere(z: Tensor) -> Tensor:
    """Inverse stereographic projection of R^2 to the unit sphere in R^3."""
    rr = z.square().sum(-1, keepdim=True)
    return torch.cat([2 * z, rr - 1], -1) / (1 + rr)


def _bumpy(z: Tensor) -> Tensor:
    """A full, varying, positive-definite field."""
    s, c = z.sin(), z.cos()
    B = torch.stack([torch.stack([2 + s[..., 0], c[..., 1]], -1), torch.stack([s[..., 1], 2 - c[..., 0]], -1)], -2)
    return B @ B.mT + 0.5 * torch.eye(2, dtype=z.dtype, device=z.device)


def cases(dtype: torch.dtype) -> dict[str, tuple[Manifold, int]]:
    """Each geometry with the dimension of its chart, its weights in the given dtype."""
    two, three = decoder(2).to(dtype), decoder(3).to(dtype)
    mean = Pullback(two.mean)
    return {
        "euclidean": (Euclidean(3), 3),
        "sphere": (Sphere(2), 2),
        "sphere in three dimensions": (Sphere(3), 3),
        "hyperbolic": (Hyperbolic(2), 2),
        "conformal": (Conformal(lambda z: 1 + z.square().sum(-1)), 2),
        "tensor field": (TensorField(_bumpy, dim=2), 2),
        "embedded sphere": (Pullback(embedded_sphere), 2),
        "mean only": (mean, 2),
        "expected metric": (oddity.expected_metric(two), 2),
        "expected metric in three dimensions": (oddity.expected_metric(three), 3),
        "into curved space": (Pullback(two.mean, Conformal(lambda x: 1 + x.square().sum(-1))), 2),
        "scaled": (2.5 * mean, 2),
        "sum": (mean + 0.1 * Euclidean() + 0.5 * Sphere(2), 2),
        "quotient of a sum": (sum([mean, torch.tensor(0.5) * Euclidean(2)]) / np.float32(3), 2),
        "scaled sum of sums": (0.5 * (oddity.expected_metric(two) + mean), 2),
    }


NAMES = list(cases(torch.float64))


def points(d: int, dtype: torch.dtype) -> Tensor:
    """Four points inside the unit ball."""
    return 0.35 * torch.randn(4, d, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(dtype)
