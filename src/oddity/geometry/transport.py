"""Parallel transport: carrying a tangent vector along a curve without turning it."""

from __future__ import annotations

import torch
from torch import Tensor

from oddity.geometry.manifold import Manifold
from oddity.numerics.ambient import door
from oddity.numerics.chain import node_slopes

__all__ = ["transport", "turning"]


@door
def transport(M: Manifold, c: Tensor, v: Tensor) -> Tensor:
    """Parallel transport of v along a chain: dv^k/dt = -Gamma^k_ij c'^i v^j.

    The equation is linear, so that its matrix is found at all nodes and midpoints at once, and one Runge-Kutta
    step of fourth order joins two nodes. The curve is the cubic that
    :func:`~oddity.numerics.chain.interpolate_chain` sees. Inner products are kept to fourth order in 1/n.

    Parameters
    ----------
    M
        The manifold.
    c
        ``(*, n+1, d)``, nodes of a smooth curve at equal steps of its parameter, such as ``geodesic(a, b).points``.
    v
        ``(*, d)``, vectors at its first node; leading shapes broadcast.

    Returns
    -------
    Tensor
        ``(*, n+1, d)``, the vector at every node; NaN from the first point on where the metric is singular.

    Raises
    ------
    ValueError
        If c is not a curve of at least two nodes in the chart, or v does not fit it.

    Notes
    -----
    do Carmo, "Riemannian Geometry", 1992, chapter 2.

    Examples
    --------
    Along the sphere's equator, a vector that points along it stays so:

    >>> import oddity
    >>> t = torch.linspace(0, torch.pi / 2, 33)
    >>> quarter = torch.stack([t.cos(), t.sin()], -1)
    >>> v = transport(oddity.Sphere(2), quarter, torch.tensor([0.0, 1.0]))
    >>> (v[-1] + 0).round(decimals=3).abs().tolist()
    [1.0, 0.0]
    """
    M._admit_curve(c)
    _, v = M._admit_tangents(c[..., 0, :], v=v)
    nodes, slope = c, node_slopes(c)  # the parameter is the number of the node
    before, after, u, w = nodes[..., :-1, :], nodes[..., 1:, :], slope[..., :-1, :], slope[..., 1:, :]
    middle, middle_slope = (before + after) / 2 + (u - w) / 8, 1.5 * (after - before) - (u + w) / 4
    at_nodes, at_middle = turning(M, nodes, slope), turning(M, middle, middle_slope)  # (*, n, d, d)
    steps = _propagator(at_nodes[..., :-1, :, :], at_middle, at_nodes[..., 1:, :, :])
    path = [v]
    for step in steps.unbind(-3):
        path.append((step @ path[-1][..., None])[..., 0])
    return torch.stack(path, -2)


def turning(M: Manifold, z: Tensor, u: Tensor) -> Tensor:
    """Matrix of v -> -Gamma(u, v), from the acceleration by polarisation: ``(*, d), (*, d) -> (*, d, d)``."""
    d = z.shape[-1]
    size = torch.linalg.vector_norm(u, dim=-1, keepdim=True)[..., None]  # (*, 1, 1)
    size = torch.where(size > 0, size, 1.0)  # vectors of like size lose the fewest digits
    basis = size * torch.eye(d, dtype=z.dtype, device=z.device)  # (*, d, d)
    z, u = z[..., None, :].expand(basis.shape), u[..., None, :]
    return ((M._acceleration(z, u + basis) - M._acceleration(z, u - basis)) / (4 * size)).mT


def _propagator(left: Tensor, middle: Tensor, right: Tensor) -> Tensor:
    """Matrix of one Runge-Kutta step of v' = W(t) v, from W at three times: ``(*, d, d)``."""
    one = torch.eye(left.shape[-1], dtype=left.dtype, device=left.device)
    k1 = left
    k2 = middle @ (one + k1 / 2)
    k3 = middle @ (one + k2 / 2)
    k4 = right @ (one + k3)
    return one + (k1 + 2 * k2 + 2 * k3 + k4) / 6
