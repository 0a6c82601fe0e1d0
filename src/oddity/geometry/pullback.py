"""Metrics that a decoder pulls back from data space to its latent space."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any, Protocol, final, runtime_checkable

import torch
from torch import Tensor

from oddity.geometry.manifold import Curving, Manifold
from oddity.numerics.ambient import door
from oddity.numerics.autodiff import Differential
from oddity.numerics.chain import (
    ChainModel,
    energy_of_values,
    model_from_blocks,
    model_from_expansion,
    squared_steps,
)
from oddity.numerics.expansion import Expansion, PulledValue, gram, pull
from oddity.numerics.layered import LayeredProgram, program_of
from oddity.numerics.networks import has_parts, outputs_of, parts_of
from oddity.numerics.reduction import reduced

__all__ = ["Decoder", "Pullback", "StochasticDecoder", "expected_metric", "stochastic_parts"]


_OUTPUTS_AT_A_TIME = 200_000  # a frame of so many outputs of all points together stays in a processor's cache
_NUMBERS_IN_MEMORY = 1 << 25  # of all frames that are held at once: 128 MB in float32


@final
class Pullback(Manifold, rows=False):
    """The metric J(z)' G(f(z)) J(z) of a map f into a flat or curved space.

    Into flat space the chord f(b) - f(a) is the secant, so that energies and lengths need no Jacobian.

    Parameters
    ----------
    f
        Batch function ``(N, d) -> (N, ...)``, differentiable PyTorch code; trailing axes are flattened.
    ambient
        The manifold that f maps into; default flat Euclidean space.
    expansion
        Closed form ``(N, d) ->`` :class:`~oddity.numerics.expansion.Expansion` where one is at hand; default
        autodiff, and for a dense network its own closed form.

    Raises
    ------
    ValueError
        If a network behind f is in training mode and heeds it, or f holds a tensor made in inference mode.

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
        expansion: Callable[[Tensor], Expansion] | None = None,
    ) -> None:
        self.differential = Differential(f, expansion=expansion)
        self.differential.look()
        self.ambient = ambient
        self._is_sketch = False

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

    def _squares(self, c: Tensor, strides: tuple[int, ...]) -> list[Tensor]:
        if self.ambient is not None:
            return super()._squares(c, strides)
        # a sketch is so cheap that calls of PyTorch would be most of the price of its lengths
        if self._is_sketch and (squares := self._compiled_squares(c, strides)) is not None:
            return squares
        values = self.differential(_padded(c))[: c.shape[0] * c.shape[1]]  # each node mapped once for all strides
        return squared_steps(values.reshape(*c.shape[:-1], -1), strides)

    def _rounding(self, z: Tensor) -> Tensor:
        y = self.differential(z)
        size = torch.linalg.vector_norm(y if self.ambient is None else self.ambient.push(y, y), dim=-1)
        rounding: Tensor = torch.finfo(z.dtype).eps * size
        return rounding

    def frame(self, z: Tensor) -> Tensor:
        """Jacobian of f, seen in the ambient space: ``(*, d) -> (*, m, d)``."""
        J = self.differential.frame(z)
        if self.ambient is None:
            return J
        return self.ambient.push(self.differential(z)[..., None, :].expand(J.mT.shape), J.mT).mT

    def _few_grams(self, z: Tensor, dtype: torch.dtype) -> Tensor:
        if self.ambient is not None:
            return super()._few_grams(z, dtype)
        frame = self.differential.value_and_frame(z)[1].to(dtype)
        return gram(frame, frame)

    def chain_model(self, c: Tensor, widths: Tensor, *, exact: bool = False) -> ChainModel:
        """Quadratic model of the energy of chains; into flat space one frame a node serves all its segments."""
        if self.ambient is None:
            return self._by_chunks(c, widths, lambda c, h: self._flat_model(c, h, exact))
        if exact:
            return super().chain_model(c, widths, exact=True)
        return self._by_chunks(c, widths, self._curved_model)

    @property
    def _is_dear(self) -> bool:
        return True

    def _chain_slope(self, c: Tensor, widths: Tensor) -> tuple[Tensor, Tensor]:
        pulling = self.differential.pulling
        if pulling is None or self.ambient is not None:
            return super()._chain_slope(c, widths)
        size = max(1, 8 * self._points_at_a_time() // c.shape[1])
        parts = [_flat_slope(pulling, *part) for part in zip(c.split(size), widths.split(size), strict=True)]
        energies, gradients = zip(*parts, strict=True)
        return torch.cat(energies), torch.cat(gradients)

    def _points_at_a_time(self) -> int:
        return min(2048, max(16, _OUTPUTS_AT_A_TIME // max(1, self.differential.outputs)))

    def _curvatures_at_a_time(self) -> int:
        closed = self.ambient is None and self.differential.closed_form is not None
        return max(16, self._points_at_a_time() // 2) if closed else super()._curvatures_at_a_time()

    def _frames_in_memory(self, d: int) -> int:
        most = _NUMBERS_IN_MEMORY // (d * max(1, self.differential.outputs))
        return min(super()._frames_in_memory(d), max(1, most))

    def _sketch(self, z: Tensor, whiten: Tensor, tolerance: float) -> Manifold:
        form = self.differential.closed_form
        small = reduced(form, z, whiten, tolerance) if form is not None and self.ambient is None else None
        if small is None:
            return self
        sketch = Pullback(small.values, expansion=small)
        sketch._is_sketch = True
        return sketch

    def _program(self) -> LayeredProgram | None:
        stages = self.differential.stages() if self.ambient is None else None
        return None if stages is None else program_of(stages)

    def _flat_model(self, c: Tensor, widths: Tensor, exact: bool) -> ChainModel:
        return model_from_expansion(self.differential.expand(_padded(c)), widths, exact)

    def _momentum(self, c: Tensor, widths: Tensor) -> tuple[Tensor, int]:
        if self.ambient is not None:
            return super()._momentum(c, widths)
        single = self._first_pull(c[:, 0], c[:, 1]) / widths[:, :1]
        double = self._first_pull(c[:, 0], c[:, 2]) / widths[:, :2].sum(1, keepdim=True)
        return (double - 4 * single) / 3, 4

    def _curved_model(self, c: Tensor, widths: Tensor) -> ChainModel:
        values, frames = self._along(c)  # (B, n+1, D), (d, B, n+1, D)
        (B, nodes, D), d = values.shape, len(frames)
        ends = torch.cat([values[:, :-1], values[:, 1:]], -1).reshape(-1, 2 * D)
        left, right = frames[:, :, :-1], frames[:, :, 1:]
        zero = torch.zeros_like(left)
        directions = torch.cat([torch.cat([left, zero], -1), torch.cat([zero, right], -1)]).reshape(2 * d, -1, 2 * D)
        r, blocks = self._ambient_secant.tangents(ends, directions)
        blocks = blocks.reshape(2 * d, B, nodes - 1, -1)
        return model_from_blocks(r.reshape(B, nodes - 1, -1), blocks[:d], blocks[d:], widths)

    def force(self, z: Tensor, v: Tensor) -> Tensor:
        """Covector G z'' of the geodesic through (z, v), ``(*, d), (*, d) -> (*, d)``; into flat space -J'f''[v, v].

        Into a curved space the curve f(z(t)) has the acceleration J z'' + f''[v, v], and the ambient force pulls too.
        """
        f = self.differential
        if self.ambient is None:
            return -f.pulled_second(z, v, v)
        y = f(z)
        bend = self.ambient.push(y, f.second(z, v, v))  # (*, m)
        return f.pull(z, self.ambient.force(y, f.push(z, v))) - (self.frame(z).mT @ bend[..., None])[..., 0]

    def linear_curvature(self, z: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """Linear part of R(u, v, v, u), ``-> (*,)``; into flat space <f''[u, u], f''[v, v]> - |f''[u, v]|^2.

        Third derivatives of f cancel, so second ones suffice. Into a curved space the ambient linear curvature
        comes in along f, and the ambient forces along f''.
        """
        f = self.differential
        uu, uv, vv = f.second(z, u, u), f.second(z, u, v), f.second(z, v, v)  # (*, D)
        if self.ambient is None:
            return (uu * vv).sum(-1) - uv.square().sum(-1)
        N, y, Ju, Jv = self.ambient, f(z), f.push(z, u), f.push(z, v)
        gauss = (N.push(y, uu) * N.push(y, vv)).sum(-1) - N.push(y, uv).square().sum(-1)
        mixed = (N.force(y, Ju + Jv) - N.force(y, Ju - Jv)) / 4
        forces = (2 * mixed * uv - N.force(y, Ju) * vv - N.force(y, Jv) * uu).sum(-1)
        return N.linear_curvature(y, Ju, Jv) + gauss + forces

    def _metric_and_force(self, z: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        if self.ambient is not None:
            return super()._metric_and_force(z, v)
        frame, second = self.differential.bends(z, v[None], v[None])
        return gram(frame, frame), -pull(frame, second[0])

    def _curving(self, z: Tensor, u: Tensor, v: Tensor) -> Curving:
        if self.ambient is not None:
            return super()._curving(z, u, v)
        frame, (uu, uv, vv) = self.differential.bends(z, torch.stack([u, u, v]), torch.stack([u, v, v]))
        linear = (uu * vv).sum(-1) - uv.square().sum(-1)
        return Curving(gram(frame, frame), -pull(frame, uu), -pull(frame, uv), -pull(frame, vv), linear)

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
        form = self.differential.form
        read = f", read as {form}" if form else ""
        return f"Pullback({self.differential.name}{read}{'' if self.ambient is None else f', {self.ambient}'})"


def _flat_slope(pulling: Callable[[Tensor], PulledValue], c: Tensor, widths: Tensor) -> tuple[Tensor, Tensor]:
    """Energy and gradient of chains ``(B, n+1, d)``, by the transposed derivative alone."""
    value, pull_back = pulling(_padded(c))
    count, nodes = c.shape[0] * c.shape[1], c.shape[:2]
    weights = torch.empty_like(value)
    weights[count:] = 0
    energy = energy_of_values(value[:count].reshape(*nodes, -1), widths, weights[:count].view(*nodes, -1))
    return energy, pull_back(weights)[:count].reshape(c.shape)[:, 1:-1]


def _padded(c: Tensor) -> Tensor:
    """The nodes of all chains, and the last of them again until their number is a multiple of 16: ``(N, d)``.

    A processor treats the rest of an array that does not fill its registers by other code, with other rounding. Here
    that rest belongs to no chain, so that a chain's numbers do not depend on whether it is the last of its batch.
    """
    z = c.flatten(0, 1)
    return torch.cat([z, z[-1:].expand(-len(z) % 16, -1)]) if len(z) else z


@runtime_checkable
class StochasticDecoder(Protocol):
    """What the expected metric asks of an object: ``mean(z)`` and ``std(z)``, ``(N, d) -> (N, ...)``."""

    def mean(self, z: Tensor) -> Tensor:
        """Mean of the data given z."""
        ...

    def std(self, z: Tensor) -> Tensor:
        """Standard deviation of the data given z."""
        ...


Decoder = StochasticDecoder | Callable[..., Any]


@door
def expected_metric(decoder: Decoder, **given: Any) -> Manifold:
    """Expected metric of a decoder, J_mu'J_mu + J_sigma'J_sigma.

    For x = mu(z) + sigma(z) eps with one standard normal eps for the whole latent space, this is the mean over
    eps of the metric that x pulls back. A decoder without noise has the metric J_mu'J_mu.

    Parameters
    ----------
    decoder
        An object with ``mean(z)`` and ``std(z)``, each ``(N, d) -> (N, ...)``; where it also has ``expand_mean(z)``
        or ``expand_std(z)``, second-order expansions in closed form, those are used. Or any module or callable from
        z to a mean, to a pair (mean, std), to a ``torch.distributions`` Normal, Independent Normal or
        MultivariateNormal, to a mapping, dataclass or named tuple with ``mean`` and ``std``, or to a mapping that
        holds one tensor. A pair is read in this order, as ``repr`` says: a log-variance cannot be told from a std
        unless it is negative. Images and other shapes are flattened. A dense network has a closed form of its own;
        other networks are differentiated in a mode that they support.
    **given
        What a conditional decoder takes beside z: label, batch, library size. A tensor of one row is repeated for
        every point. ``functools.partial`` serves as well, where the decoder broadcasts by itself.

    Returns
    -------
    Manifold
        ``Pullback(decoder.mean) + Pullback(decoder.std)``, or the pull-back of z -> (mean, std) where one call gives
        both. It views the decoder: train the decoder further, and the metric follows.

    Raises
    ------
    ValueError
        At once if the decoder cannot be called, is quantised, a whole autoencoder, or in training mode and heeds it;
        at the first points if it cannot map them, is random, has no derivative, or returns another likelihood than a
        normal one; at any call if a standard deviation is negative somewhere.

    Notes
    -----
    Arvanitidis, Hansen, Hauberg, "Latent Space Oddity", ICLR 2018, theorem 1. The metric is only as good as the
    decoder's standard deviation: it must grow away from the data, as that of :class:`~oddity.RBFPrecision` does.
    Without one, shortest paths cut through regions that hold no data; :func:`~oddity.add_uncertainty` fits one.

    Weights in half precision are widened to the dtype of the points for the time of each call, so that the geometry is
    exact for the weights as they are; give points in float32.

    Examples
    --------
    >>> M = expected_metric(lambda z: (2 * z, (1 + z.square().sum(-1, keepdim=True)).sqrt()))
    >>> M.metric(torch.tensor([1.0, 0.0])).tolist()
    [[5.0, 0.0], [0.0, 4.0]]
    >>> expected_metric(lambda z, scale: scale * z, scale=3.0).metric(torch.zeros(1)).tolist()
    [[9.0]]
    """
    if has_parts(decoder):
        mean, std = stochastic_parts(decoder, **given)
        return mean + std
    outputs, expansion = outputs_of(decoder, given)
    return Pullback(outputs, expansion=expansion)


def stochastic_parts(decoder: Decoder, **given: Any) -> tuple[Pullback, Pullback]:
    """The pull-backs of mean and standard deviation, of which the expected metric is the sum."""
    mean, std = (Pullback(f, expansion=expansion) for f, expansion in parts_of(decoder, given))
    return mean, std
