"""Metrics that a decoder pulls back from data space to its latent space."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from oddity.geometry.manifold import Manifold
from oddity.numerics.autodiff import Differential
from oddity.numerics.chain import ChainModel, model_from_blocks, model_from_frames

__all__ = ["Pullback", "StochasticDecoder", "expected_metric"]


class Pullback(Manifold):
    """The metric J(z)' G(f(z)) J(z) of a map f into a flat or curved space.

    Into flat space the chord f(b) - f(a) is the secant, so that energies and lengths need no Jacobian.

    Parameters
    ----------
    f
        Batch function ``(N, d) -> (N, ...)``, differentiable PyTorch code; trailing axes are flattened.
    ambient
        The manifold that f maps into; default flat Euclidean space.
    jacobian
        Closed form ``(N, d) -> (N, D, d)`` of the derivative of f where one is at hand; default autodiff.

    Raises
    ------
    ValueError
        If f is a module, or a method of one, in training mode.

    Notes
    -----
    Arvanitidis, Hansen, Hauberg, "Latent Space Oddity", ICLR 2018, section 2. The metric is singular where f
    is not an immersion; add a ridge in plain sight if you need one: ``Pullback(f) + 1e-3 * Euclidean()``.

    Examples
    --------
    >>> cylinder = Pullback(lambda z: torch.stack([z[:, 0].cos(), z[:, 0].sin(), z[:, 1]], 1))
    >>> cylinder.metric(torch.tensor([0.3, -2.0])).round(decimals=4).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """

    def __init__(
        self,
        f: Callable[[Tensor], Tensor],
        ambient: Manifold | None = None,
        *,
        jacobian: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.differential = Differential(f, jacobian=jacobian)
        self.ambient = ambient

    def push(self, z: Tensor, v: Tensor) -> Tensor:
        """J(z) v, seen in the ambient space: ``(*, d), (*, d) -> (*, m)``."""
        Jv = self.differential.push(z, v)
        return Jv if self.ambient is None else self.ambient.push(self.differential(z), Jv)

    def secant(self, a: Tensor, b: Tensor) -> Tensor:
        """Chord f(b) - f(a), or the ambient secant: ``(*, d), (*, d) -> (*, m)``."""
        f = self.differential
        return f(b) - f(a) if self.ambient is None else self.ambient.secant(f(a), f(b))

    def secants(self, c: Tensor) -> Tensor:
        """Secants along a chain, each node mapped once: ``(*, n+1, d) -> (*, n, m)``."""
        values = self.differential(c)
        return values.diff(dim=-2) if self.ambient is None else self.ambient.secants(values)

    def frame(self, z: Tensor) -> Tensor:
        """Jacobian of f, seen in the ambient space: ``(*, d) -> (*, m, d)``."""
        J = self.differential.frame(z)
        if self.ambient is None:
            return J
        return self.ambient.push(self.differential(z)[..., None, :].expand(J.mT.shape), J.mT).mT

    def chain_model(self, c: Tensor, *, exact: bool = False) -> ChainModel:
        """Quadratic model of the energy of chains; into flat space one frame a node serves both its segments."""
        if self.ambient is None:
            return self._by_chunks(c, lambda part: self._flat_model(part, exact))
        return super().chain_model(c, exact=True) if exact else self._by_chunks(c, self._curved_model)

    def _flat_model(self, c: Tensor, exact: bool) -> ChainModel:
        values, frames = self._along(c)
        bend = None
        if exact:
            inner = c[:, 1:-1]
            w = 2 * values[:, 1:-1] - values[:, :-2] - values[:, 2:]
            bend = self.differential.curvature(inner.flatten(0, 1), w.flatten(0, 1))
            bend = bend.reshape(*inner.shape, inner.shape[-1])
        return model_from_frames(values, frames[:, :, 1:-1], bend)

    def _curved_model(self, c: Tensor) -> ChainModel:
        values, frames = self._along(c)  # (B, n+1, D), (d, B, n+1, D)
        (B, nodes, D), d = values.shape, len(frames)
        ends = torch.cat([values[:, :-1], values[:, 1:]], -1).reshape(-1, 2 * D)
        left, right = frames[:, :, :-1], frames[:, :, 1:]
        zero = torch.zeros_like(left)
        directions = torch.cat([torch.cat([left, zero], -1), torch.cat([zero, right], -1)]).reshape(2 * d, -1, 2 * D)
        r, blocks = self._ambient_secant.tangents(ends, directions)
        blocks = blocks.reshape(2 * d, B, nodes - 1, -1)
        return model_from_blocks(r.reshape(B, nodes - 1, -1), blocks[:d], blocks[d:])

    def _along(self, c: Tensor) -> tuple[Tensor, Tensor]:
        values, frames = self.differential.value_and_frame(c.reshape(-1, c.shape[-1]))
        D = values.shape[-1]
        return values.reshape(*c.shape[:-1], D), frames.reshape(len(frames), *c.shape[:-1], D)

    @cached_property
    def _ambient_secant(self) -> Differential:
        assert self.ambient is not None
        return self.ambient._secant_differential

    def admit(self, z: Tensor, name: str = "z") -> None:
        """Refuse points that f cannot map: wrong dimension, dtype or device, or a model in training mode."""
        super().admit(z, name)
        self.differential.check(z)

    def __repr__(self) -> str:
        inside = self.differential.name + ("" if self.ambient is None else f", {self.ambient}")
        return f"Pullback({inside})"


@runtime_checkable
class StochasticDecoder(Protocol):
    """What the expected metric asks of a decoder: ``mean(z)`` and ``std(z)``, ``(N, d) -> (N, ...)``."""

    def mean(self, z: Tensor) -> Tensor:
        """Mean of the data given z."""
        ...

    def std(self, z: Tensor) -> Tensor:
        """Standard deviation of the data given z."""
        ...


def expected_metric(decoder: StochasticDecoder) -> Manifold:
    """Expected metric of a stochastic decoder, J_mu'J_mu + J_sigma'J_sigma.

    For x = mu(z) + sigma(z) eps with one standard normal eps for the whole latent space, this is the mean over
    eps of the metric that x pulls back.

    Parameters
    ----------
    decoder
        Anything with ``mean(z)`` and ``std(z)``, each ``(N, d) -> (N, ...)``. Where it also has
        ``std_jacobian(z)``, ``(N, d) -> (N, D, d)``, that closed form is used.

    Returns
    -------
    Manifold
        ``Pullback(decoder.mean) + Pullback(decoder.std)``. It views the decoder: train the decoder further, and
        the metric follows.

    Raises
    ------
    ValueError
        If the decoder lacks a mean or a standard deviation, or is in training mode.

    Notes
    -----
    Arvanitidis, Hansen, Hauberg, "Latent Space Oddity", ICLR 2018, theorem 1. The metric is only as good as the
    decoder's standard deviation: it must grow away from the data, as that of :class:`~oddity.RBFPrecision` does.

    Examples
    --------
    >>> class Decoder:
    ...     def mean(self, z): return 2 * z
    ...     def std(self, z): return (1 + z.square().sum(-1, keepdim=True)).sqrt()
    >>> expected_metric(Decoder()).metric(torch.tensor([1.0, 0.0])).tolist()
    [[4.5, 0.0], [0.0, 4.0]]
    """
    missing = [name for name in ("mean", "std") if not callable(getattr(decoder, name, None))]
    if missing:
        raise ValueError(
            f"{type(decoder).__name__} has no {' and no '.join(f'{m}(z)' for m in missing)}; the expected metric needs "
            "both. For a decoder without uncertainty use Pullback(decoder)"
        )
    return Pullback(decoder.mean) + Pullback(decoder.std, jacobian=getattr(decoder, "std_jacobian", None))
