"""Ensembles of decoders: their mean metric, and an energy that is not one."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from oddity.geometry.manifold import Manifold, Sum
from oddity.geometry.pullback import StochasticDecoder, expected_metric
from oddity.numerics.ambient import door
from oddity.numerics.autodiff import Differential

__all__ = ["ensemble_metric", "independent_members_energy"]

Member = Manifold | StochasticDecoder | Callable[[Tensor], Tensor]


@door
def ensemble_metric(decoders: Sequence[Member] | torch.nn.ModuleList) -> Manifold:
    """Mean of the metrics of several decoders of one latent space: the expected metric of a member drawn at random.

    Where the members agree it is the metric of each; where they disagree, away from the data, it is longer than that of
    their mean by the variance of their Jacobians. For deterministic members it is the pullback of all outputs
    together, divided by sqrt(S).

    Parameters
    ----------
    decoders
        S >= 1 members, trained with one encoder, as :func:`~oddity.fit_ensemble` does: a map z -> x, which counts by
        its ``Pullback``; an object with ``mean(z)`` and ``std(z)``, by its expected metric; or a manifold, for example
        ``fisher_metric(member)``.

    Returns
    -------
    Manifold
        ``(1 / S) * (M_1 + ... + M_S)``.

    Raises
    ------
    ValueError
        If there is no member, or one is in training mode.

    Notes
    -----
    One member is drawn for the whole curve, as one eps is for the whole latent space in the paper: this is a
    Riemannian metric. :func:`independent_members_energy` draws anew at every node, and is not.

    Examples
    --------
    >>> M = ensemble_metric([lambda z: z, lambda z: 3 * z])
    >>> M.metric(torch.zeros(2)).round(decimals=4).tolist()
    [[5.0, 0.0], [0.0, 5.0]]
    """
    members = _admitted(decoders)
    return (1 / len(members)) * Sum(*map(_metric, members))


def _admitted(decoders: Sequence[Member] | torch.nn.ModuleList) -> list[Member]:
    if not isinstance(decoders, Sequence | torch.nn.ModuleList) or len(decoders) == 0:
        raise ValueError(f"expected a list of at least one decoder, got {decoders!r}")
    return list(decoders)


def _metric(member: Member) -> Manifold:
    return member if isinstance(member, Manifold) else expected_metric(member)


@door
def independent_members_energy(decoders: Sequence[Member] | torch.nn.ModuleList, c: Tensor) -> Tensor:
    """Energy n/2 sum E|f_a(c_i+1) - f_b(c_i)|^2 of chains, with two members a and b drawn anew for every segment.

    With the mean m and the variance V of the members, the expectation is taken exactly: each segment counts
    |m(c_i+1) - m(c_i)|^2 + V(c_i) + V(c_i+1).

    Parameters
    ----------
    decoders
        S >= 1 maps z -> x, or objects with ``mean(z)``, whose mean then counts; all of one output.
    c
        ``(*, n+1, d)``.

    Returns
    -------
    Tensor
        ``(*,)``, differentiable in c.

    Raises
    ------
    ValueError
        If there is no member, the outputs differ in size, or c is no curve.

    Notes
    -----
    This is **no Riemannian energy**, of no metric: the covariance of near points is dropped, so that the energy of a
    curve grows with the square of the number of its segments wherever the members disagree, and no length belongs to
    it. Compare it between chains of one n only. :func:`ensemble_metric` keeps the covariance and has a limit.

    References
    ----------
    Syrota, Moreno-Munoz, Hauberg, "Decoder ensembling for learned latent geometries", 2024, arXiv 2408.07507.

    Examples
    --------
    Members that disagree make a standing still cost energy:

    >>> still = torch.zeros(5, 2)
    >>> float(independent_members_energy([lambda z: z, lambda z: z + 1], still))
    8.0
    """
    members = _admitted(decoders)
    if not isinstance(c, Tensor) or c.ndim < 2 or c.shape[-2] < 2:
        shape = tuple(c.shape) if isinstance(c, Tensor) else type(c).__name__
        raise ValueError(f"c has shape {shape}; a curve has shape (*, n+1, d) with at least two nodes")
    values = []
    for member in members:
        f = Differential(member.mean if isinstance(member, StochasticDecoder) else member)  # type: ignore[arg-type]
        f.check(c)
        values.append(f(c))  # (*, n+1, D)
    if len({value.shape[-1] for value in values}) > 1:
        raise ValueError(f"the decoders have outputs of different size: {[value.shape[-1] for value in values]}")
    stacked = torch.stack(values)
    spread = stacked.var(0, correction=0).sum(-1)  # (*, n+1)
    squares = stacked.mean(0).diff(dim=-2).square().sum(-1) + spread[..., :-1] + spread[..., 1:]
    return 0.5 * squares.shape[-1] * squares.sum(-1)
