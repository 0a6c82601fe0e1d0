"""A roadmap over the codes: where the data are, and how to get from one place to another through them."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from oddity.geometry.manifold import Manifold
from oddity.geometry.tabulated import Tabulated
from oddity.numerics.ambient import doors
from oddity.numerics.graph import Routes, bridge, knn_edges, shortest_paths

__all__ = ["Roadmap", "among", "resampled"]

_ENOUGH = 2000  # more codes cost minutes and find the same valleys
_SOME = 500  # codes, where a lattice is at hand,
_NEXT = 3  # neighbours of a code to which a table has to know the way,
_TRUE = 0.05  # up to this share
_LATTICE = 38  # of so many nodes in each direction, or of twice as many nodes as there are codes


@doors
class Roadmap:
    """The k-nearest-neighbour graph of a set of codes, its edges as long as the manifold says.

    A geodesic found by a local method depends on its start. The shortest path on this graph is a start that knows
    the whole latent space: it goes around holes that a straight line crosses.

    Parameters
    ----------
    M
        The manifold.
    codes
        ``(n, d)``, n >= 2.
    k
        Neighbours of each code. Few neighbours make paths zigzag and miss valleys.
    steps
        Segments on which the length of a straight edge is measured.

    Attributes
    ----------
    codes : Tensor
        ``(n, d)``.
    edges : Tensor
        ``(E, 2)``, each once. Separate parts of the graph are joined by their shortest gaps, whose Riemannian
        lengths say what the crossing costs.
    lengths : Tensor
        ``(E,)``, the Riemannian length of each straight edge.
    sketch : Manifold
        A cheaper metric that is close around the codes and between them, where geodesics are solved first. In two
        dimensions a table of the metric (:mod:`oddity.geometry.tabulated`), which finds the paths too.

    Raises
    ------
    ValueError
        If the codes are unusable, or an edge has no finite length.

    Notes
    -----
    Chen et al., "Fast Approximate Geodesics for Deep Generative Models", ICANN 2019.

    Examples
    --------
    >>> import oddity
    >>> codes = torch.randn(50, 2, generator=torch.Generator("cpu").manual_seed(0))
    >>> roads = Roadmap(oddity.Euclidean(), codes)
    >>> roads.paths(codes[:3], codes[3:6], 16).shape
    torch.Size([3, 17, 2])
    """

    def __init__(self, M: Manifold, codes: Tensor, *, k: int = 40, steps: int = 8) -> None:
        M.admit(codes, "codes")
        if codes.ndim != 2 or len(codes) < 2:
            raise ValueError(f"codes have shape {tuple(codes.shape)}; a roadmap needs (n, d) with n >= 2")
        if k < 1 or steps < 1:
            raise ValueError(f"k and steps must be at least 1, got {k} and {steps}")
        self.M, self.k, self.steps = M, k, steps
        self.codes = codes.detach()
        self.edges = self._neighbours(self.codes)
        self.sketch = self._sketched()
        if self._ruler is M:
            _ = self.lengths  # so that an edge without a length is told at once

    @cached_property
    def lengths(self) -> Tensor:
        """The Riemannian length of each straight edge, ``(E,)``."""
        lengths = self._straight(self.codes[self.edges[:, 0]], self.codes[self.edges[:, 1]], self.M)
        if not bool(lengths.isfinite().all()):
            i, j = self.edges[~lengths.isfinite()][0].tolist()
            raise ValueError(f"the edge between codes {i} and {j} has no finite length; is the metric finite there?")
        return lengths

    @classmethod
    def thinned(cls, M: Manifold, codes: Tensor) -> Roadmap:
        """Roadmap over at most 2,000 of the codes, taken at equal steps of their order.

        Examples
        --------
        >>> import oddity
        >>> codes = torch.randn(4001, 2, generator=torch.Generator("cpu").manual_seed(0))
        >>> len(Roadmap.thinned(oddity.Euclidean(), codes).codes)
        1334
        """
        return cls(M, codes[:: max(1, -(-len(codes) // _ENOUGH))])

    def unfolded(self) -> dict[str, Any]:
        """Return all there is, tables too: for a worker process that shall not make them anew, as a pickle would."""
        return dict(self.__dict__)

    @classmethod
    def folded(cls, state: dict[str, Any]) -> Roadmap:
        """Put together what :meth:`unfolded` returned.

        Examples
        --------
        >>> import oddity
        >>> codes = torch.randn(9, 2, generator=torch.Generator("cpu").manual_seed(0))
        >>> Roadmap.folded(Roadmap(oddity.Euclidean(2), codes).unfolded())
        Roadmap(Euclidean(2), 9 codes, 36 edges)
        """
        roads = cls.__new__(cls)
        roads.__dict__.update(state)
        return roads

    def __getstate__(self) -> dict[str, Any]:
        """State without the tables of the metric and of all paths: they are large, and a copy makes them anew."""
        return {name: value for name, value in self.__dict__.items() if name not in ("sketch", "_net")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.sketch = self._sketched()

    def _sketched(self) -> Manifold:
        sketch = self.M.sketch(among(self.codes), most=len(self.edges) * (self.steps + 1))
        return sketch if not isinstance(sketch, Tabulated) or self._is_true(sketch) else self.M

    def _is_true(self, table: Manifold) -> bool:
        """Whether a table measures the ways from code to next code as the metric does: its cells hide no gap there."""
        edges = torch.from_numpy(knn_edges(self.codes.cpu().numpy(), _NEXT)).to(self.codes.device)
        ends = self.codes[edges[:, 0]], self.codes[edges[:, 1]]
        known, drawn = self._straight(*ends, self.M), self._straight(*ends, table)
        drawn, known = drawn[known.isfinite()], known[known.isfinite()]
        least = torch.finfo(known.dtype).eps ** 0.5 * known.sum() / max(1, len(known))
        return bool(((drawn - known).abs() <= _TRUE * known + least).all())

    def __repr__(self) -> str:
        return f"Roadmap({self.M}, {len(self.codes)} codes, {len(self.edges)} edges)"

    def paths(self, a: Tensor, b: Tensor, n: int) -> Tensor:
        """Shortest paths from a to b through the codes, on n segments of equal length: ``(B, d) -> (B, n+1, d)``.

        Each end is joined to its k nearest codes, and to no other end, so that a path does not depend on its
        companions. Where the sketch is a table, paths lead over some codes and a lattice. Where there is no path, it is
        the straight line.
        """
        if len(a) == 0:
            return a[:, None].expand(-1, n + 1, -1)
        B = len(a)
        if len(self.codes) > _ENOUGH and self._ruler is self.M:
            nodes, way = self._searched(torch.cat([a, b]))
        else:
            nodes, routes = self._net
            near, joins = (x.cpu().numpy() for x in self._joined(torch.cat([a, b]), nodes))
            way = routes.between(near[:B], joins[:B], near[B:], joins[B:])
        inner = torch.from_numpy(way).to(a.device)[..., None]
        inner = torch.where(inner < 0, a[:, None], nodes[inner[..., 0].clamp(min=0)])
        return resampled(self._ruler, torch.cat([a[:, None], inner, b[:, None]], 1), n)

    @cached_property
    def _net(self) -> tuple[Tensor, Routes]:
        """Nodes, and the shortest paths between all of them.

        Where a table measures lengths at no cost, fewer codes and a lattice lead to shorter valleys than all codes.
        """
        if self._ruler is self.M:
            nodes, edges, lengths = self.codes, self.edges, self.lengths
        else:
            nodes = torch.cat([self.codes[:: -(-len(self.codes) // _SOME)], _lattice(self.codes)])
            edges = self._neighbours(nodes)
            lengths = self._straight(nodes[edges[:, 0]], nodes[edges[:, 1]], self._ruler)
        return nodes, Routes(len(nodes), edges.cpu().numpy(), _positive(lengths).cpu().numpy())

    def _neighbours(self, points: Tensor) -> Tensor:
        """Edges of the k-nearest-neighbour graph, its parts joined: ``(n, d) -> (E, 2)``."""
        array = points.cpu().numpy()
        near = knn_edges(array, self.k)
        return torch.from_numpy(np.concatenate([near, bridge(array, near)])).to(points.device)

    @property
    def _ruler(self) -> Manifold:
        """What measures straight lines: a table is as good as the metric for that."""
        return self.sketch if isinstance(self.sketch, Tabulated) else self.M

    def _straight(self, a: Tensor, b: Tensor, ruler: Manifold) -> Tensor:
        t = torch.linspace(0, 1, self.steps + 1, dtype=a.dtype, device=a.device)[:, None]
        with torch.no_grad():
            return ruler._reckoned_lengths(a[:, None] + t * (b - a)[:, None])

    def _joined(self, ends: Tensor, nodes: Tensor) -> tuple[Tensor, Tensor]:
        """The k nodes nearest to each end, and the lengths of the straight lines there: ``(E, d) -> (E, k)`` twice."""
        k = min(self.k, len(nodes))
        near = torch.cdist(ends, nodes).topk(k, largest=False).indices
        joins = self._straight(ends[:, None].expand(-1, k, -1).flatten(0, 1), nodes[near.flatten()], self._ruler)
        return near, _positive(joins).nan_to_num(torch.inf, posinf=torch.inf).reshape(near.shape)

    def _searched(self, ends: Tensor) -> tuple[Tensor, np.ndarray]:
        """Nodes, and those of the shortest paths from the first half of the ends to the second.

        Path by path, for so many codes that all paths between them would fill the memory.
        """
        near, joins = self._joined(ends, self.codes)
        (E, k), n = near.shape, len(self.codes)
        B, out = E // 2, torch.arange(E, device=ends.device)[:, None].expand(-1, k) + n
        leave = torch.stack([out[:B], near[:B]], -1).reshape(-1, 2)
        enter = torch.stack([near[B:], out[B:]], -1).reshape(-1, 2)
        edges = torch.cat([self.edges, self.edges.flip(1), leave, enter]).cpu().numpy()
        lengths = torch.cat([_positive(self.lengths).repeat(2), joins.flatten()]).cpu().numpy()
        at = np.arange(B) + n
        way = shortest_paths(n + E, edges, lengths, at, at + B)
        return torch.cat([self.codes, ends]), way


def _lattice(codes: Tensor) -> Tensor:
    """A lattice over the extent of codes of the plane, and a little beyond: ``(n, 2) -> (m, 2)``."""
    low, high = codes.amin(0), codes.amax(0)
    side = min(_LATTICE, math.isqrt(2 * len(codes)) + 1)
    share = torch.linspace(-0.05, 1.05, side, dtype=codes.dtype, device=codes.device)
    return low + (high - low) * torch.cartesian_prod(share, share)


def _positive(lengths: Tensor) -> Tensor:
    """A sparse graph cannot hold an edge of length zero, such as from an end that is a code."""
    return lengths.clamp(min=torch.finfo(lengths.dtype).tiny)


def among(codes: Tensor, count: int = 256) -> Tensor:
    """Points among the codes and on straight lines between them: ``(n, d) -> (2 count, d)``."""
    generator = torch.Generator("cpu").manual_seed(0)
    pairs = torch.randint(len(codes), (count, 2), generator=generator, device="cpu").to(codes.device)
    share = torch.rand(count, 1, generator=generator, dtype=torch.float32, device="cpu").to(codes)
    a, b = codes[pairs[:, 0]], codes[pairs[:, 1]]
    return torch.cat([a, a + share * (b - a)])


def resampled(M: Manifold, polyline: Tensor, n: int) -> Tensor:
    """Put polylines ``(B, P, d)`` on n segments of equal Riemannian length: ``(B, n+1, d)``."""
    with torch.no_grad():
        sides = M._lengths(torch.stack([polyline[:, :-1], polyline[:, 1:]], 2))  # (B, P-1)
    travelled = torch.nn.functional.pad(sides.cumsum(-1), (1, 0))  # (B, P)
    goal = torch.linspace(0, 1, n + 1, dtype=sides.dtype, device=sides.device) * travelled[:, -1:]
    side = (torch.searchsorted(travelled, goal, right=True) - 1).clamp(0, sides.shape[1] - 1)  # (B, n+1)
    width = sides.gather(1, side)
    share = ((goal - travelled.gather(1, side)) / torch.where(width > 0, width, 1.0)).clamp(0, 1)
    left, right = (polyline.gather(1, (side + s)[..., None].expand(-1, -1, polyline.shape[-1])) for s in (0, 1))
    chain = left + share[..., None] * (right - left)
    chain[:, 0], chain[:, -1] = polyline[:, 0], polyline[:, -1]
    return chain
