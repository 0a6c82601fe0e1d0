"""Interpolation and analogy along geodesics, and how smooth the decoded frames are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from oddity.geometry.connect import ChainSolver, Init
from oddity.geometry.curve import Geodesic, nested
from oddity.geometry.manifold import Manifold
from oddity.geometry.roadmap import Roadmap
from oddity.models.checks import check_whole
from oddity.numerics.ambient import door, doors

__all__ = ["Analogy", "Interpolation", "analogy", "interpolate"]


class MeanDecoder(Protocol):
    """What decoding asks of a decoder: ``mean(z)``, ``(N, d) -> (N, ...)``."""

    def mean(self, z: Tensor) -> Tensor:
        """Mean of the data given z."""
        ...


class Autoencoder(Protocol):
    """What interpolation asks of a model: ``encode(x)``, and a decoder with a mean."""

    @property
    def decoder(self) -> MeanDecoder:
        """The way back to data."""
        ...

    def encode(self, x: Tensor) -> Tensor:
        """Codes of data, one each."""
        ...


@doors
@dataclass(frozen=True, eq=False, repr=False)
class Interpolation:
    """Frames decoded at equal Riemannian steps along geodesics.

    Attributes
    ----------
    images : Tensor
        ``(*, frames, ...)``, the decoder's means.
    codes : Tensor
        ``(*, frames, d)``.
    geodesic : Geodesic
        Where the codes lie, and whether to believe it: ``geodesic.converged``.
    """

    images: Tensor
    codes: Tensor
    geodesic: Geodesic

    @classmethod
    def along(cls, decoder: MeanDecoder, geodesic: Geodesic, frames: int = 9) -> Interpolation:
        """Decode frames along geodesics that are at hand, both ends included.

        Raises
        ------
        ValueError
            If there are fewer than two frames, or the decoder has no mean.
        """
        check_whole(2, frames=frames)  # both ends are frames
        if not callable(getattr(decoder, "mean", None)):
            raise ValueError(f"{type(decoder).__name__} has no mean(z) to decode with")
        points = geodesic.points
        codes = geodesic(torch.linspace(0, 1, frames, dtype=points.dtype, device=points.device))
        with torch.no_grad():
            images = decoder.mean(codes.reshape(-1, codes.shape[-1]))
        return cls(images.reshape(*codes.shape[:-1], *images.shape[1:]), codes, geodesic)

    @property
    def steps(self) -> Tensor:
        """Euclidean distance from each frame to the next: ``(*, frames - 1)``."""
        steps: Tensor = torch.linalg.vector_norm(self._rows.diff(dim=-2), dim=-1)
        return steps

    @property
    def unevenness(self) -> Tensor:
        """Coefficient of variation of the :attr:`steps`, their standard deviation over their mean: ``(*,)``.

        Zero where all frames are alike.
        """
        mean = self.steps.mean(-1)
        return self.steps.std(-1, correction=0) / torch.where(mean > 0, mean, 1.0)

    @property
    def autocorrelation(self) -> Tensor:
        """Pearson's correlation of each frame with each: ``(*, frames, frames)``.

        Smooth along a path that changes gradually, in blocks along one that jumps. A frame of one single value is
        correlated with itself only.
        """
        rows = self._rows - self._rows.mean(-1, keepdim=True)
        norm = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
        rows = rows / torch.where(norm > 0, norm, 1.0)
        correlation = (rows @ rows.mT).clamp(-1, 1)
        itself = torch.eye(rows.shape[-2], dtype=torch.bool, device=rows.device)
        return torch.where(itself, 1.0, correlation)

    @property
    def _rows(self) -> Tensor:
        return self.images.flatten(self.codes.ndim - 1)  # (*, frames, D)

    def __repr__(self) -> str:
        return f"Interpolation({self.codes.shape[-2]} frames along {self.geodesic})"


@door
def interpolate(
    vae: Autoencoder,
    M: Manifold,
    x0: Tensor,
    x1: Tensor,
    frames: int = 9,
    *,
    init: Init = None,
    solver: ChainSolver | None = None,
) -> Interpolation:
    """Interpolate between data: encode the ends, connect them by a geodesic, decode at equal Riemannian steps.

    Under ``M = Euclidean()`` this is linear interpolation of the codes, the usual one to compare with.

    Parameters
    ----------
    vae
        Anything with ``encode(x)`` and ``decoder.mean(z)``.
    M
        The metric of its latent space, e.g. ``expected_metric(vae.decoder)``.
    x0, x1
        Data as the encoder takes them, e.g. ``(*, D)``.
    frames
        Frames, both ends included. The first and the last are the model's pictures of the ends.
    init, solver
        As for :meth:`oddity.Manifold.geodesic`; a roadmap over the codes finds the way around holes.

    Returns
    -------
    Interpolation
        Images, codes and the geodesics. A geodesic that did not converge is used as it is, and says so.

    Raises
    ------
    ValueError
        If the ends, the start or the number of frames are unusable, or the model cannot encode and decode.

    Notes
    -----
    "Latent Space Oddity", ICLR 2018, section 5.2.

    Examples
    --------
    >>> import oddity
    >>> X = torch.rand(64, 5, generator=torch.Generator().manual_seed(0))
    >>> vae = oddity.fit_vae(X, hidden=(8, 4), epochs=2, variance_epochs=2, n_centres=4)
    >>> found = interpolate(vae, oddity.expected_metric(vae.decoder), X[0], X[1], frames=5)
    >>> found.images.shape, found.codes.shape, found.steps.shape
    (torch.Size([5, 5]), torch.Size([5, 2]), torch.Size([4]))
    """
    if not callable(getattr(vae, "encode", None)) or not hasattr(vae, "decoder"):
        raise ValueError(f"{type(vae).__name__} has no encode(x) or no decoder; interpolation needs both")
    with torch.no_grad():
        a, b = vae.encode(x0), vae.encode(x1)
    return Interpolation.along(vae.decoder, M.geodesic(a, b, init=init, solver=solver), frames)


@doors
@dataclass(frozen=True, eq=False, repr=False)
class Analogy:
    """Answers to "a is to b as c is to what", each with its verdict.

    Attributes
    ----------
    points : Tensor
        ``(*, d)``, finite; where no answer was found, c itself.
    converged : Tensor
        ``(*,)`` bool: both geodesics, the transport and the shot succeeded.
    why
        A sentence for each that did not converge, ``""`` for the others; a string for a single analogy, otherwise
        nested lists in the shape of the batch.
    """

    points: Tensor
    converged: Tensor
    why: Any

    def __repr__(self) -> str:
        return f"Analogy({self.converged.numel()} items, {int(self.converged.sum())} converged)"


@door
def analogy(
    M: Manifold,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    *,
    roads: Roadmap | None = None,
    solver: ChainSolver | None = None,
) -> Analogy:
    """Answer "a is to b as c is to what" by parallel transport: exp_c of log_a(b), carried along from a to c.

    In flat space the answer is c + b - a.

    Parameters
    ----------
    M
        The manifold.
    a, b, c
        ``(*, d)``; leading shapes broadcast.
    roads, solver
        Start and settings of the geodesics from a to b and from a to c, as for :meth:`oddity.Manifold.geodesic`.

    Returns
    -------
    Analogy
        With a verdict for each item. Detached.

    Raises
    ------
    ValueError
        If a point is unusable: NaN, wrong dimension, mixed dtype, shapes that do not broadcast.

    Notes
    -----
    Shao, Kumar, Fletcher, "The Riemannian Geometry of Deep Generative Models", CVPR Workshops 2018.

    Examples
    --------
    >>> import oddity
    >>> a, b, c = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
    >>> analogy(oddity.Euclidean(), a, b, c).points.round(decimals=3).tolist()
    [1.0, 2.0]
    """
    shape, (a, b, c) = _rows(M, a=a, b=b, c=c)
    way = M.geodesic(a, c, init=roads, solver=solver)
    v = M.log(a, b, init=roads, solver=solver)  # (N, d)
    with torch.no_grad():
        path = torch.where(way.converged[:, None, None], way.points, a[:, None])
        carried = M.transport(path, _or_zero(v))[:, -1]
    shot = M.shoot(c, _or_zero(carried))
    why = [
        next(filter(None, reasons), "")
        for reasons in zip(
            ("" if x else "no geodesic from a to b converged" for x in _finite(v)),
            (f"the geodesic from a to c: {x}" if x else "" for x in way.why),
            ("" if x else "the metric is singular on the way from a to c" for x in _finite(carried)),
            (f"the geodesic that leaves c: {x}" if x else "" for x in shot.why),
            strict=True,
        )
    ]
    converged = torch.tensor([not x for x in why], dtype=torch.bool, device=a.device)
    points = torch.where(converged[:, None], shot.points, c)
    return Analogy(points.reshape(*shape, -1), converged.reshape(shape), nested(why, shape))


def _rows(M: Manifold, **points: Tensor) -> tuple[torch.Size, list[Tensor]]:
    """Check points and bring them to their common shape: that shape, and each as ``(N, d)``."""
    for name, z in points.items():
        M.admit(z, name)
    try:
        a, *rest = torch.broadcast_tensors(*points.values())
    except RuntimeError:
        shapes = ", ".join(f"{name} {tuple(z.shape)}" for name, z in points.items())
        raise ValueError(f"the shapes do not broadcast: {shapes}") from None
    return a.shape[:-1], [z.detach().reshape(-1, z.shape[-1]) for z in (a, *rest)]


def _finite(v: Tensor) -> list[bool]:
    finite: list[bool] = v.isfinite().all(-1).tolist()
    return finite


def _or_zero(v: Tensor) -> Tensor:
    """Vectors that are not finite as zero, which goes nowhere."""
    return torch.where(v.isfinite().all(-1, keepdim=True), v, 0.0)
