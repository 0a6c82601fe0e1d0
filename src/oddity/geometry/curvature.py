"""Curvature at a point, from what is linear in the metric and what the forces add."""

from __future__ import annotations

import torch
from torch import Tensor

from oddity.geometry.manifold import Manifold
from oddity.numerics.ambient import door

__all__ = ["riemann", "scalar_curvature", "sectional_curvature"]


@door
def riemann(M: Manifold, z: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """R(u, v, v, u), positive on spheres: ``(*, d)`` three times ``-> (*,)``; NaN where the metric is singular.

    The curvature tensor is a part linear in the metric, and a part of squares of Christoffel symbols:
    R(u, v, v, u) = linear + |Gamma(u, v)|^2 - <Gamma(u, u), Gamma(v, v)>, with Gamma(v, v) = -G^-1 force(v). For a
    map into flat space this is the equation of Gauss, the squares of Gamma being what of f'' is tangential.

    Parameters
    ----------
    M
        The manifold.
    z, u, v
        A point and two tangent vectors, ``(*, d)``; leading shapes broadcast.

    Raises
    ------
    ValueError
        If z, u or v is unusable: NaN, wrong dimension, mixed dtype, shapes that do not broadcast.

    Notes
    -----
    do Carmo, "Riemannian Geometry", 1992, chapters 4 and 6.

    Examples
    --------
    >>> import oddity
    >>> basis = torch.eye(2)
    >>> float(riemann(oddity.Sphere(2), torch.zeros(2), basis[0], basis[1]))  # |u|^2 |v|^2 = 4 * 4
    16.0
    """
    return M._by_rows(lambda *x: _riemann(M, *x), *M._admit_tangents(z, u=u, v=v))


def _riemann(M: Manifold, z: Tensor, u: Tensor, v: Tensor) -> Tensor:
    return M._curving(z, u, v).curvature()


@door
def sectional_curvature(M: Manifold, z: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Sectional curvature R(u, v, v, u) / (|u|^2 |v|^2 - <u, v>^2) of the plane that u and v span.

    In two dimensions there is one plane, and this is the Gaussian curvature. By exact derivatives: second ones of
    the map for a pull-back, of the push otherwise.

    Parameters
    ----------
    M
        The manifold.
    z, u, v
        A point and two tangent vectors, ``(*, d)``; leading shapes broadcast.

    Returns
    -------
    Tensor
        ``(*,)``; NaN where u and v are parallel, and where the metric is singular.

    Raises
    ------
    ValueError
        If z, u or v is unusable: NaN, wrong dimension, mixed dtype, shapes that do not broadcast.

    Examples
    --------
    A paraboloid is most curved at its top:

    >>> import oddity
    >>> paraboloid = oddity.Pullback(lambda z: torch.cat([z, z.square().sum(-1, keepdim=True)], -1))
    >>> z, (u, v) = torch.tensor([[0.0, 0.0], [1.0, 0.0]]), torch.eye(2)
    >>> K = sectional_curvature(paraboloid, z, u, v)  # 4 / (1 + 4 r^2)^2
    >>> [round(k, 4) for k in K.tolist()]
    [4.0, 0.16]
    """
    z, u, v = M._admit_tangents(z, u=u, v=v)
    u, Au = _unit(u, M.push(z, u))
    v, Av = _unit(v, M.push(z, v))
    cosine = (Au * Av).sum(-1, keepdim=True)  # (*, 1)
    across, A_across = v - cosine * u, Av - cosine * Au  # Gram and Schmidt
    sine = torch.linalg.vector_norm(A_across, dim=-1, keepdim=True)
    across = torch.where(sine > 8 * torch.finfo(z.dtype).eps, across / sine, torch.nan)
    return M._by_rows(lambda *x: _riemann(M, *x), z, u, across)


def _unit(v: Tensor, Av: Tensor) -> tuple[Tensor, Tensor]:
    """Divide a vector and its push by its Riemannian norm."""
    norm = torch.linalg.vector_norm(Av, dim=-1, keepdim=True)
    return v / norm, Av / norm


@door
def scalar_curvature(M: Manifold, z: Tensor) -> Tensor:
    """Scalar curvature, the sum of the sectional curvatures over all ordered pairs of an orthonormal basis.

    It is twice the Gaussian curvature in two dimensions, and d (d - 1) on the unit sphere.

    Parameters
    ----------
    M
        The manifold.
    z
        ``(*, d)``. The work grows like d^2 second derivatives.

    Returns
    -------
    Tensor
        ``(*,)``; NaN where the metric is singular; zero in one dimension, where nothing is curved.

    Raises
    ------
    ValueError
        If z is not a finite floating-point tensor of the chart's dimension.

    Examples
    --------
    >>> import oddity
    >>> round(float(scalar_curvature(oddity.Hyperbolic(3), torch.tensor([0.2, 0.1, 0.0]))), 3)
    -6.0
    """
    d = z.shape[-1]
    L, info = torch.linalg.cholesky_ex(M.metric(z))
    basis: Tensor = torch.linalg.inv_ex(L).inverse  # its rows e_i keep <e_i, e_j> = delta_ij, since L^-1 G L^-T = 1
    basis = torch.where((info > 0)[..., None, None], torch.nan, basis)
    i, j = torch.triu_indices(d, d, 1, device=z.device)
    u, v = basis[..., i, :], basis[..., j, :]  # (*, d (d-1) / 2, d)
    pairs = M._by_rows(lambda *x: _riemann(M, *x), z[..., None, :].expand(u.shape), u, v)
    return 2 * pairs.sum(-1)
