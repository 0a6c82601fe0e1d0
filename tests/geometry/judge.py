"""Distances that owe nothing to the solver under test: closed forms, quadratures, and a minimiser of their own.

Surfaces whose metric depends on one coordinate have distances by quadrature. With ds^2 = A(u)^2 du^2 + B(u)^2 dw^2 the
number p = B^2 w' / |c'| is constant (Clairaut, Snell), and the length as a function of it,

    L(p) = p |dw| + sum over the legs of the integral of A sqrt(1 - p^2 / B^2) du,

is stationary exactly at the geodesics: an error in p counts by its square.
"""

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import torch
from scipy.fft import dst
from scipy.interpolate import CubicSpline
from scipy.optimize import brentq, minimize, minimize_scalar
from scipy.sparse import coo_array
from scipy.sparse.csgraph import dijkstra
from torch import Tensor

Profile = Callable[[np.ndarray], np.ndarray]
Secants = Callable[[Tensor], Tensor]  # chain (n+1, d) in float64 -> steps (n, m) as long as the metric says

# -- quadrature -------------------------------------------------------------------------------------------------------


def _panels(edges: np.ndarray, order: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights between edges ``(..., k)``, exact for square roots at either end of a panel too."""
    x, w = np.polynomial.legendre.leggauss(order)
    angle = np.pi * (x + 1) / 2
    low, high = edges[..., :-1, None], edges[..., 1:, None]
    u = (low + high) / 2 - (high - low) / 2 * np.cos(angle)
    weight = (high - low) / 2 * np.sin(angle) * np.pi / 2 * w
    return u.reshape(*u.shape[:-2], -1), weight.reshape(*u.shape[:-2], -1)


def between(u0: float, u1: float, at: Sequence[float]) -> np.ndarray:
    """Edges of panels from u0 to u1 that meet where an integrand is sudden."""
    low, high = min(u0, u1), max(u0, u1)
    return np.unique([low, high, *np.linspace(low, high, 33), *(x for x in at if low < x < high)])


def through_slabs(A: Profile, B: Profile, u0: float, u1: float, dw: float, at: Sequence[float] = ()) -> float:
    """Length of the geodesic along which u goes one way from u0 to u1: L is concave there, and this its maximum."""
    u, weight = _panels(between(u0, u1, at))
    cost, width = A(u) * weight, B(u)

    def loss(p: float) -> float:
        return -float(p * abs(dw) + (cost * np.sqrt(np.clip(1 - (p / width) ** 2, 0, None))).sum())

    most = float(min(width.min(), B(np.array([u0, u1])).min()))
    return -minimize_scalar(loss, bounds=(0, most), method="bounded", options={"xatol": 1e-13 * most}).fun


def around_an_axis(A: Profile, r0: float, r1: float, angle: float) -> float:
    """Shortest geodesic of dr^2 A(r)^2 + r^2 dphi^2, one way or by its point nearest to the axis."""
    near, far = sorted((r0, r1))
    if angle < 1e-12:
        u, weight = _panels(between(near, far, ()))
        return float((A(u) * weight).sum())

    def leg(p: np.ndarray, r: float) -> tuple[np.ndarray, np.ndarray]:
        """Length less p times angle, and angle, from the nearest point out to r; smooth in q^2 = r^2 - p^2."""
        reach = np.sqrt(np.clip(r**2 - p**2, 0, None))[..., None]
        grades = np.minimum(
            p[..., None] * 4.0 ** np.arange(-1, 24), reach
        )  # the integrands know p and r, no other scale
        q, weight = _panels(np.sort(np.concatenate([reach * np.linspace(0, 1, 33), grades], -1), -1), 16)
        rr = p[..., None] ** 2 + q**2
        cost = A(np.sqrt(rr)) * weight
        return (cost * q**2 / rr).sum(-1), (cost * p[..., None] / rr).sum(-1)

    lengths = []
    for sign in (1, -1):

        def slope(p: np.ndarray, sign: int = sign) -> np.ndarray:
            return angle - leg(p, far)[1] - sign * leg(p, near)[1]

        ends = np.geomspace(1e-12, 1e-2, 60)
        p = near * np.concatenate([ends, np.linspace(0.01, 0.99, 200)[1:-1], 1 - ends[::-1]])
        values = slope(p)
        for i in ((values[:-1] > 0) != (values[1:] > 0)).nonzero()[0]:
            at = np.asarray(brentq(lambda x, f=slope: float(f(np.asarray(x))), p[i], p[i + 1], xtol=1e-15))
            lengths.append(float(at * angle + leg(at, far)[0] + sign * leg(at, near)[0]))
    return min(lengths)


def vincenty(lat0: np.ndarray, lat1: np.ndarray, dlon: np.ndarray, a: float, f: float) -> np.ndarray:
    """Geodesic distance on an ellipsoid of revolution, ends by *reduced* latitude, to 1e-10 and better.

    Vincenty, "Direct and inverse solutions of geodesics on the ellipsoid", Survey Review 1975.
    """
    s0, c0, s1, c1, lam = np.sin(lat0), np.cos(lat0), np.sin(lat1), np.cos(lat1), dlon.copy()
    for _ in range(200):
        sin_s = np.hypot(c1 * np.sin(lam), c0 * s1 - s0 * c1 * np.cos(lam))
        cos_s = s0 * s1 + c0 * c1 * np.cos(lam)
        sigma, sin_a = np.arctan2(sin_s, cos_s), c0 * c1 * np.sin(lam) / sin_s
        cc = 1 - sin_a**2
        mid = cos_s - 2 * s0 * s1 / cc
        C = f / 16 * cc * (4 + f * (4 - 3 * cc))
        lam = dlon + (1 - C) * f * sin_a * (sigma + C * sin_s * (mid + C * cos_s * (2 * mid**2 - 1)))
    k = np.sqrt(1 + cc * (1 / (1 - f) ** 2 - 1))
    k = (k - 1) / (k + 1)
    P, Q = (1 + k**2 / 4) / (1 - k), k * (1 - 3 * k**2 / 8)
    bend = Q / 6 * mid * (4 * sin_s**2 - 3) * (4 * mid**2 - 3)
    return a * (1 - f) * P * (sigma - Q * sin_s * (mid + Q / 4 * (cos_s * (2 * mid**2 - 1) - bend)))


# -- an independent minimiser -----------------------------------------------------------------------------------------


def polyline_length(secants: Secants, curve: np.ndarray) -> float:
    return float(np.linalg.norm(secants(torch.from_numpy(curve)).numpy(), axis=-1).sum())


def measured(secants: Secants, nodes: np.ndarray, parts: int = 8) -> float:
    """Length of the spline through nodes ``(n+1, d)``: steps of second order, extrapolated."""
    n = len(nodes) - 1
    curve = CubicSpline(np.linspace(0, 1, n + 1), nodes)
    coarse, fine = (polyline_length(secants, curve(np.linspace(0, 1, m * n + 1))) for m in (parts, 2 * parts))
    return (4 * fine - coarse) / 3


def evenly(secants: Secants, curve: np.ndarray, n: int) -> np.ndarray:
    """Put a polyline on n segments of equal length under the metric."""
    t = np.linspace(0, 1, len(curve))
    fine = np.linspace(0, 1, max(8 * n, 4 * len(curve)) + 1)
    dense = np.stack([np.interp(fine, t, x) for x in curve.T], -1)
    steps = np.linalg.norm(secants(torch.from_numpy(dense)).numpy(), axis=-1)
    travelled = np.concatenate([[0], (steps + 1e-9 * steps.mean()).cumsum()])
    goal = np.linspace(0, travelled[-1], n + 1)
    out = np.stack([np.interp(goal, travelled, x) for x in dense.T], -1)
    out[0], out[-1] = curve[0], curve[-1]
    return out


def settled(secants: Secants, curve: np.ndarray, n: int) -> np.ndarray:
    """The curve of least energy in the valley of the one given, by L-BFGS in the path's own modes: ``(n+1, d)``."""
    stiffness = 2 * np.sin(np.pi * np.arange(1, n) / (2 * n))[:, None] * np.sqrt(n)

    def modes(x: np.ndarray) -> np.ndarray:
        return dst(x, type=1, norm="ortho", axis=0)

    for _ in range(3):
        start = evenly(secants, curve, n)

        def energy(u: np.ndarray, start: np.ndarray = start) -> tuple[float, np.ndarray]:
            c = start.copy()
            c[1:-1] += modes(u.reshape(n - 1, -1) / stiffness)
            z = torch.from_numpy(c).requires_grad_()
            value = n / 2 * secants(z).square().sum()
            (slope,) = torch.autograd.grad(value, z)
            return value.item(), (modes(slope[1:-1].numpy()) / stiffness).ravel()

        options = {"maxiter": 2000, "maxfun": 4000, "maxcor": 30, "ftol": 1e-13, "gtol": 1e-9}
        found = minimize(energy, np.zeros(start[1:-1].size), jac=True, method="L-BFGS-B", options=options)
        curve = start.copy()
        curve[1:-1] += modes(found.x.reshape(n - 1, -1) / stiffness)
        if energy(0 * found.x)[0] - found.fun < 1e-9 * found.fun:
            break
    return curve


def valley(secants: Secants, curve: np.ndarray, n: int = 256) -> float:
    """Length of the geodesic in the valley of a curve, on grids so fine that two in a row leave no doubt above 2e-7."""
    curve = settled(secants, curve, n)
    length = measured(secants, curve)
    while n < 8192:
        n, rough, curve = 2 * n, length, settled(secants, curve, 2 * n)
        length = measured(secants, curve)
        if (
            abs(length - rough) <= 3e-6 * length
        ):  # of fourth order, so that 15/16 of the difference was the coarse grid's
            return length + (length - rough) / 15
    raise AssertionError(f"the judge is in doubt: {rough} or {length}")


# -- a dense graph: which valley is the shortest ----------------------------------------------------------------------

_MOVES = [(i, j) for i in range(4) for j in range(-3, 4) if np.gcd(i, j) == 1 and (i > 0 or j == 1)]


class Lattice:
    """Shortest paths over a square lattice with sixteen and more directions, each edge measured on 12 steps."""

    def __init__(self, secants: Secants, low: float, high: float, side: int) -> None:
        self.secants, self.side = secants, side
        axis = np.linspace(low, high, side)
        self.nodes = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
        index = np.arange(side * side).reshape(side, side)
        edges = []
        for i, j in _MOVES:
            left, right = index[: side - i, max(0, -j) : side - max(0, j)], index[i:, max(0, j) : side + min(0, j)]
            edges.append(np.stack([left.ravel(), right.ravel()], -1))
        self.edges = np.concatenate(edges)
        self.lengths = self._straight(self.nodes[self.edges[:, 0]], self.nodes[self.edges[:, 1]])

    def _straight(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        t = torch.linspace(0, 1, 13, dtype=torch.float64)[:, None]
        ends = zip(torch.from_numpy(a)[:, None].split(50_000), torch.from_numpy(b)[:, None].split(50_000), strict=True)
        return torch.cat([self.secants(x + t * (y - x)).norm(dim=-1).sum(-1) for x, y in ends]).numpy()

    def path(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Nodes of the shortest path from a to b: ``(k, 2)``."""
        n, ends = len(self.nodes), np.stack([a, b])
        near = np.argsort(((self.nodes[None] - ends[:, None]) ** 2).sum(-1), 1)[:, :24]
        joins = np.stack([np.repeat([n, n + 1], 24), near.ravel()], -1)
        lengths = np.concatenate([self.lengths, self._straight(np.repeat(ends, 24, 0), self.nodes[near.ravel()])])
        edges = np.concatenate([self.edges, joins])
        graph = coo_array((np.maximum(lengths, 1e-300), edges.T), shape=(n + 2, n + 2)).tocsr()
        _, before = dijkstra(graph, directed=False, indices=n, return_predecessors=True)
        way = [n + 1]
        while way[-1] != n:
            way.append(int(before[way[-1]]))
        return np.concatenate([self.nodes, ends])[way[::-1]]


@cache
def lattice(secants: Secants, low: float = -1.4, high: float = 1.4, side: int = 161) -> Lattice:
    return Lattice(secants, low, high, side)


def bowed(a: np.ndarray, b: np.ndarray, by: float) -> np.ndarray:
    """A parabola from a to b in the plane, by a share of their distance off the line."""
    t = np.linspace(0, 1, 65)[:, None]
    across = np.array([a[1] - b[1], b[0] - a[0]])
    return a + t * (b - a) + 4 * by * t * (1 - t) * across


def shortest(secants: Secants, starts: Sequence[np.ndarray], n: int = 256) -> float:
    """Least length over the valleys of several starts: all of them on a grid of n, the best two on finer ones."""
    rough = sorted(((measured(secants, c), c) for c in (settled(secants, s, n) for s in starts)), key=lambda x: x[0])
    return min(valley(secants, c, n) for length, c in rough[:2] if length <= 1.05 * rough[0][0])
