"""Half the squared distance from a mean to a point, with two derivatives, along a geodesic that moves with the mean.

A leg follows its mean along its Jacobi fields. That, and the correction that it then needs, costs a third of a new
geodesic.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol, Self, TypeVar

import torch
from torch import Tensor

from oddity.geometry.connect import ChainSolver
from oddity.geometry.manifold import Manifold, in_chart
from oddity.geometry.transport import turning
from oddity.numerics.autodiff import Differential
from oddity.numerics.blocktri import solve_block_tridiagonal
from oddity.numerics.chain import ChainModel, at_rest, interpolate_chain
from oddity.numerics.descent import solve

__all__ = ["Legs", "Taylor", "covariant_hessian", "has_formula", "legs_along", "where"]


class Taylor(NamedTuple):
    """Half the squared distances of N pairs (a, b), and their derivatives in the chart."""

    value: Tensor  # (N,)
    slope: Tensor  # (N, d)   by a
    slope_b: Tensor  # (N, d)   by b
    hessian: Tensor  # (N, d, d)   by a and a
    cross: Tensor  # (N, d, d)   by a and b


class Legs(Protocol):
    """Geodesics from means to points."""

    taylor: Taylor

    def moved(self, a: Tensor) -> Self:
        """Legs to the same points that begin at a, ``(N, d)``."""
        ...

    def where(self, mask: Tensor, other: Self) -> Self:
        """Legs of self where the mask ``(N,)`` is true, of the other elsewhere."""
        ...

    def only(self, mask: Tensor) -> Self:
        """Legs where the mask ``(N,)`` is true."""
        ...

    def sound(self) -> Tensor:
        """Whether each is a geodesic still: stationary, resolved, no longer than the straight line: ``(N,)``."""
        ...

    def curves(self) -> Tensor | None:
        """All legs on one grid, ``(N, n+1, d)``; None where a formula makes them superfluous."""
        ...


def has_formula(M: Manifold) -> bool:
    """Whether geodesics have a formula."""
    return type(M).geodesic is not Manifold.geodesic


def legs_along(M: Manifold, b: Tensor, curves: Tensor, length: Tensor, solver: ChainSolver | None = None) -> Legs:
    """Legs to the points b ``(N, d)`` along solved geodesics ``(N, n+1, d)`` of known length."""
    if has_formula(M):
        return _FormulaLegs.at(M, curves[:, 0], b)
    return _ChainLegs.along(M, curves, length, solver or ChainSolver())


def covariant_hessian(M: Manifold, z: Tensor, slope: Tensor, hessian: Tensor) -> Tensor:
    """Hessian along geodesics, that in the chart less the slope along Gamma: ``(N, d), (N, d, d) -> (N, d, d)``."""
    basis = torch.eye(z.shape[1], dtype=z.dtype, device=z.device).expand(*z.shape, -1)
    connection = turning(M, z[:, None].expand(basis.shape), basis)  # (N, i, k, j)   -Gamma^k_ij
    return hessian + torch.einsum("nk,nikj->nij", slope, connection)


_Rows = TypeVar("_Rows", bound=NamedTuple)


def where(mask: Tensor, a: _Rows, b: _Rows) -> _Rows:
    """Rows of one named tuple of tensors where the mask is true, of another elsewhere."""
    return a._make(torch.where(mask.reshape(-1, *[1] * (x.ndim - 1)), x, y) for x, y in zip(a, b, strict=True))


def _rows(mask: Tensor, a: _Rows) -> _Rows:
    return a._make(x[mask] for x in a)


# -- by a formula -----------------------------------------------------------------------------------------------------


class _FormulaLegs:
    """Legs in a space with a formula for the logarithm, which is differentiated automatically."""

    def __init__(self, M: Manifold, a: Tensor, b: Tensor, taylor: Taylor) -> None:
        self.M, self.a, self.b, self.taylor = M, a, b, taylor

    @classmethod
    @torch.no_grad()
    def at(cls, M: Manifold, a: Tensor, b: Tensor) -> _FormulaLegs:
        """Legs from a to b."""

        def slope(ab: Tensor) -> Tensor:
            a, b = ab.chunk(2, -1)
            return -(M.frame(a).mT @ M.push(a, M.log(a, b))[..., None])[..., 0]

        N, d = a.shape
        basis = torch.eye(2 * d, dtype=a.dtype, device=a.device)[:, None].expand(2 * d, N, 2 * d)
        slope_a, columns = Differential(slope, mode="double backward").tangents(torch.cat([a, b], -1), basis)
        hessian, cross = columns.permute(1, 2, 0).chunk(2, -1)
        same, G = (a == b).all(-1)[:, None, None], M.metric(a)  # where the derivative of |b - a| is lost
        hessian, cross = torch.where(same, G, hessian), torch.where(same, -G, cross)
        return cls(M, a, b, Taylor(M.dist(a, b).square() / 2, slope_a, slope(torch.cat([b, a], -1)), hessian, cross))

    def moved(self, a: Tensor) -> _FormulaLegs:
        return self.at(self.M, a, self.b)

    def where(self, mask: Tensor, other: _FormulaLegs) -> _FormulaLegs:
        a = torch.where(mask[:, None], self.a, other.a)
        return _FormulaLegs(self.M, a, self.b, where(mask, self.taylor, other.taylor))

    def only(self, mask: Tensor) -> _FormulaLegs:
        return _FormulaLegs(self.M, self.a[mask], self.b[mask], _rows(mask, self.taylor))

    def sound(self) -> Tensor:
        return self.taylor.value.isfinite()

    def curves(self) -> None:
        return None


# -- by chains --------------------------------------------------------------------------------------------------------


class _Chains(NamedTuple):
    """Solved chains on one even grid, with the derivatives of their energies by their ends."""

    points: Tensor  # (N, n+1, d)
    stationary: Tensor  # (N,) bool
    response: Tensor  # (N, n-1, d, d)   of the inner nodes to the first: the Jacobi fields that vanish at the last
    value: Tensor
    slope: Tensor
    slope_b: Tensor
    hessian: Tensor
    cross: Tensor

    @classmethod
    @torch.no_grad()
    def solve(cls, M: Manifold, start: Tensor) -> _Chains:
        """Solve chains, and eliminate their inner nodes: the Hessian in the ends is what remains (Schur complement)."""
        found = solve(M, start, max_iterations=_MOST, exact=True)
        still, n = at_rest(start), start.shape[1] - 1  # whatever a processor rounds
        c = torch.where(still[:, None, None], start, found.points)
        # two segments more before and behind, of length zero and infinitely wide, so that the ends too are inner nodes
        longer = torch.cat([c[:, :1], c[:, :1], c, c[:, -1:], c[:, -1:]], 1)
        widths = torch.nn.functional.pad(c.new_full((len(c), n), 1 / n), (2, 2), value=torch.inf)
        model = M.chain_model(longer, widths, exact=True)
        blocks, response = _eliminated(model)
        still &= model.energy.isfinite()
        gradient = model.gradient.masked_fill(still[:, None, None], 0)[:, 1:-1]
        (own, near, far), (_, near_b, far_b) = blocks.first(), blocks.last()
        return cls(
            points=c,
            stationary=found.stationary | still,
            response=response,
            value=model.energy.masked_fill(still, 0),
            slope=gradient[:, 0] + torch.einsum("nkij,nki->nj", response, gradient[:, 1:-1]),
            slope_b=gradient[:, -1],
            hessian=own + near @ response[:, 0] + far @ response[:, 1],
            cross=response[:, -1].mT @ near_b + response[:, -2].mT @ far_b,
        )

    def moved(self, M: Manifold, a: Tensor) -> _Chains:
        """Let the chains begin at a, along their Jacobi fields."""
        shift = (a - self.points[:, 0])[:, None, :, None]
        inner = self.points[:, 1:-1] + (self.response @ shift)[..., 0]
        found = _Chains.solve(M, torch.cat([a[:, None], inner, self.points[:, -1:]], 1))
        return found._replace(
            value=torch.where(in_chart(M, found.points), found.value, torch.nan)
        )  # beyond, it is none

    def sound(self, M: Manifold, resolution: float) -> Tensor:
        """Whether each chain is stationary, as long as its curve on a finer grid, and no longer than the line."""
        length, ends = (2 * self.value.clamp(min=0)).sqrt(), self.points[:, [0, -1]]
        slack, fine = resolution * length, _on_grid(self.points, 2 * (self.points.shape[1] - 1))
        line = M._lengths(_on_grid(ends, _LINE))
        return self.stationary & ((M._lengths(fine) - length).abs() <= slack) & (length <= line + slack)


class _Blocks(NamedTuple):
    """Hessian of a chain's energy in all its nodes."""

    diagonal: Tensor  # (N, n+1, d, d)
    upper: Tensor  # (N, n, d, d)
    skip: Tensor  # (N, n/2, d, d)   between nodes 0 and 2, 2 and 4, ...

    def first(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of the first node, with itself, the next and the one after it."""
        return self.diagonal[:, 0], self.upper[:, 0], self.skip[:, 0]

    def last(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of the last node with itself, and of the one before and the one before that with it."""
        return self.diagonal[:, -1], self.upper[:, -1], self.skip[:, -1]

    def response(self) -> tuple[Tensor, Tensor]:
        """Response of the inner nodes to the first, and whether their Hessian is positive definite."""
        N, nodes, d, _ = self.diagonal.shape
        pull = self.diagonal.new_zeros(d, N, nodes - 2, d)  # one right-hand side for each coordinate of the first node
        pull[:, :, 0], pull[:, :, 1] = -self.upper[:, 0].permute(1, 0, 2), -self.skip[:, 0].permute(1, 0, 2)
        H, U, S = (x[:, 1:-1].expand(d, N, -1, d, d).flatten(0, 1) for x in self)
        x, definite = solve_block_tridiagonal(H, U, pull.flatten(0, 1), S)
        return x.reshape(pull.shape).permute(1, 2, 3, 0), definite[:N]


def _eliminated(model: ChainModel) -> tuple[_Blocks, Tensor]:
    """Hessian of the chain between the additional segments, and the response of its inner nodes to the first.

    Where the exact Hessian of the inner nodes is not positive definite, its Gauss-Newton part stands for it.
    """
    bent, flat = (_Blocks(*m.hessian()) for m in (model, model.without_bend()))
    bent, flat = (_Blocks(b.diagonal[:, 1:-1], b.upper[:, 1:-1], b.skip) for b in (bent, flat))
    response, definite = bent.response()
    if bool(definite.all()):
        return bent, response
    return where(definite, bent, flat), torch.where(definite[:, None, None, None], response, flat.response()[0])


_MOST = 50  # iterations; a leg that needs more was moved too far
_FEWEST = 4  # segments, for the ends not to be neighbours
_LINE = 32  # segments on which a straight line is measured


class _Strand(NamedTuple):
    """Legs that need the same grid."""

    at: Tensor  # (K,)   their numbers
    chains: _Chains


class _ChainLegs:
    """Legs as chains, each on the grid that it needs."""

    def __init__(self, M: Manifold, strands: list[_Strand], like: Tensor, resolution: float) -> None:
        self.M, self.strands, self.resolution = M, strands, resolution
        N, d = like.shape
        self.taylor = Taylor(*(like.new_empty(s) for s in ((N,), (N, d), (N, d), (N, d, d), (N, d, d))))
        for at, chains in strands:
            for whole, part in zip(self.taylor, chains[3:], strict=True):
                whole[at] = part

    @classmethod
    def along(cls, M: Manifold, curves: Tensor, length: Tensor, solver: ChainSolver) -> _ChainLegs:
        """Legs along curves, each on the coarsest grid whose chain is as long as the curve."""
        n = finest = curves.shape[1] - 1
        need = torch.full((len(curves),), finest, device=curves.device)
        while n % 4 == 0 and n > max(solver.segments, _FEWEST):
            n //= 2
            chain = M._lengths(curves[:, :: finest // n])
            need[(chain - length).abs() <= solver.resolution * length] = n
        every = [(n, (need == n).nonzero()[:, 0]) for n in need.unique().tolist()]
        strands = [_Strand(at, _Chains.solve(M, _on_grid(curves[at], max(n, _FEWEST)))) for n, at in every]
        return cls(M, strands, curves[:, 0], solver.resolution)

    def moved(self, a: Tensor) -> _ChainLegs:
        strands = [_Strand(at, chains.moved(self.M, a[at])) for at, chains in self.strands]
        return _ChainLegs(self.M, strands, a, self.resolution)

    def where(self, mask: Tensor, other: _ChainLegs) -> _ChainLegs:
        pairs = zip(self.strands, other.strands, strict=True)
        strands = [_Strand(mine.at, where(mask[mine.at], mine.chains, theirs.chains)) for mine, theirs in pairs]
        return _ChainLegs(self.M, strands, self.taylor.slope, self.resolution)

    def only(self, mask: Tensor) -> _ChainLegs:
        place = mask.cumsum(0) - 1
        strands = [_Strand(place[at[mask[at]]], _rows(mask[at], chains)) for at, chains in self.strands]
        kept = [strand for strand in strands if len(strand.at)]
        return _ChainLegs(self.M, kept, self.taylor.slope[mask], self.resolution)

    def sound(self) -> Tensor:
        sound = torch.zeros_like(self.taylor.value, dtype=torch.bool)
        for at, chains in self.strands:
            sound[at] = chains.sound(self.M, self.resolution)
        return sound

    def curves(self) -> Tensor:
        like = self.taylor.slope
        n = max((chains.points.shape[1] - 1 for _, chains in self.strands), default=_FEWEST)
        whole = like.new_empty(len(like), n + 1, like.shape[1])
        for at, chains in self.strands:
            whole[at] = _on_grid(chains.points, n)
        return whole


def _on_grid(c: Tensor, n: int) -> Tensor:
    return interpolate_chain(c, torch.linspace(0, 1, n + 1, dtype=c.dtype, device=c.device))
