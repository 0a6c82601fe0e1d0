"""Closed forms against the sphere and the hyperboloid in one more dimension, in 200 digits, at all extremes."""

import math

import mpmath
import pytest
import torch
from mpmath import mpf
from torch import Tensor

from oddity import Euclidean, Hyperbolic, Manifold, Sphere

mpmath.mp.dps = 200
DTYPES = [torch.float32, torch.float64]
SPACES = [Euclidean(3), Sphere(3), Hyperbolic(3)]
Point = list[mpf]

each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])
each_space = pytest.mark.parametrize("M", SPACES, ids=str)


class Truth:
    """A space of constant curvature k on the quadric up^2 + k |along|^2 = 1, by definitions."""

    def __init__(self, M: Manifold) -> None:
        self.k = getattr(M, "curvature", 0)
        self.cos, self.sin = (mpmath.cos, mpmath.sin) if self.k > 0 else (mpmath.cosh, mpmath.sinh)

    def lift(self, z: Point) -> Point:
        zz = dot(z, z)
        return [(1 - self.k * zz) / (1 + self.k * zz), *(2 * x / (1 + self.k * zz) for x in z)]

    def lift_tangent(self, z: Point, v: Point) -> Point:
        s, zv = 1 + self.k * dot(z, z), dot(z, v)
        return [-4 * self.k * zv / s**2, *(2 * y / s - 4 * self.k * zv * x / s**2 for x, y in zip(z, v, strict=True))]

    def chart(self, Z: Point) -> Point:
        return [x / (1 + Z[0]) for x in Z[1:]]

    def scale(self, z: Point) -> mpf:
        return 2 / (1 + self.k * dot(z, z)) if self.k else mpf(1)

    def dist(self, a: Point, b: Point) -> mpf:
        if not self.k:
            return mpmath.sqrt(dot(minus(b, a), minus(b, a)))
        chord2 = sum(s * x**2 for s, x in zip([self.k, 1, 1, 1], minus(self.lift(b), self.lift(a)), strict=True))
        half = mpmath.sqrt(abs(chord2)) / 2
        return 2 * (mpmath.asin(half) if self.k > 0 else mpmath.asinh(half))

    def exp(self, z: Point, v: Point) -> Point:
        if not self.k:
            return [x + y for x, y in zip(z, v, strict=True)]
        length = self.scale(z) * mpmath.sqrt(dot(v, v))
        if not length:
            return z
        return self.chart(combine(self.cos(length), self.lift(z), self.sin(length) / length, self.lift_tangent(z, v)))

    def between(self, a: Point, b: Point, t: mpf) -> Point:
        length = self.dist(a, b)
        if not self.k or not length:
            return combine(1 - t, a, t, b)
        shares = [self.sin(s * length) / self.sin(length) for s in (1 - t, t)]
        return self.chart(combine(shares[0], self.lift(a), shares[1], self.lift(b)))

    def log(self, a: Point, b: Point) -> Point:
        length = self.dist(a, b)
        if not self.k or not length:
            return minus(b, a)
        V = combine(length / self.sin(length), self.lift(b), -length / mpmath.tan(length), self.lift(a))
        if self.k < 0:
            V = combine(length / self.sin(length), self.lift(b), -length / mpmath.tanh(length), self.lift(a))
        A0 = 1 + self.lift(a)[0]  # the chart is along / (1 + up)
        return [x / A0 - V[0] * y / A0**2 for x, y in zip(V[1:], self.lift(a)[1:], strict=True)]


def dot(x: Point, y: Point) -> mpf:
    return sum((p * q for p, q in zip(x, y, strict=True)), mpf(0))


def minus(x: Point, y: Point) -> Point:
    return [p - q for p, q in zip(x, y, strict=True)]


def combine(s: mpf, x: Point, t: mpf, y: Point) -> Point:
    return [s * p + t * q for p, q in zip(x, y, strict=True)]


def exact(z: Tensor) -> Point:
    return [mpf(x) for x in z.double().tolist()]


def extremes(M: Manifold, dtype: torch.dtype, count: int, seed: int) -> Tensor:
    """Points from near the centre to where the dtype ends: ``(count, 3)``."""
    rng = torch.Generator().manual_seed(seed)
    z = torch.nn.functional.normalize(torch.randn(count, 3, generator=rng, dtype=torch.float64), dim=-1)
    bits = -torch.tensor(torch.finfo(dtype).eps, dtype=torch.float64).log2()
    reach = torch.rand(count, 1, generator=rng, dtype=torch.float64)
    if isinstance(M, Hyperbolic):
        inside = 2 ** (-12 * reach)
        z = z * torch.where(torch.rand(count, 1, generator=rng) < 0.5, inside, 1 - 2 ** (-(bits - 3) * reach))
    else:
        far = 2 * bits if isinstance(M, Sphere) else 5 * bits
        z = z * 2 ** (far * (2 * reach - 1))
    return z.to(dtype)


def pairs(M: Manifold, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Random, coincident, neighbouring, and on the sphere nearly antipodal ones."""
    a, b = (extremes(M, dtype, 24, seed) for seed in (0, 1))
    eps = torch.finfo(dtype).eps
    b[:2] = a[:2]
    b[2:6] = a[2:6] * (1 - torch.tensor([[1], [4], [100], [1e4]], dtype=dtype) * eps)
    a[6], b[7] = 0, 0
    if isinstance(M, Sphere):
        far = -a[8:12] / a[8:12].double().square().sum(-1, keepdim=True).to(dtype)
        b[8:12] = far * (1 + torch.tensor([[0.1], [0.01], [1e-3], [1e-3]], dtype=dtype))
    return a, b


def hold(found: Tensor, truth: list[Point], sway: list[mpf], slack: float, rim: float = 0) -> None:
    """Found up to rounding: of itself, and of what is given, by how far its truth sways with that.

    What the dtype cannot hold is left out, and NaN so near to the rim of a ball.
    """
    eps, top = torch.finfo(found.dtype).eps, torch.finfo(found.dtype)
    worst = (0.0, -1)
    for i, (x, y, s) in enumerate(zip(found.reshape(len(truth), -1), truth, sway, strict=True)):
        size = mpmath.sqrt(dot(y, y))
        if size > top.max or 0 < size < top.tiny or (x.isnan().any() and rim and 1 - size < rim * (eps + s)):
            continue
        off = minus(exact(x), y)
        share = float(mpmath.sqrt(dot(off, off)) / (eps * size + s)) if size or s else float(any(off))
        worst = max(worst, (share if share == share else float("inf"), i))
    i = worst[1]
    assert worst[0] <= slack, (worst, found[i], [float(x) for x in truth[i]], float(sway[i]))


def swaying(f, *points: Point, eps: float) -> mpf:
    """How far the truth moves when each number that it is given moves by a rounding error."""
    base, total = f(*points), mpf(0)
    for i, p in enumerate(points):
        for j, x in enumerate(p):
            moved = [list(q) for q in points]
            moved[i][j] = x * (1 + mpf(eps))
            off = minus(f(*moved), base)
            total += mpmath.sqrt(dot(off, off))
    return total


@each_dtype
@each_space
def test_distances(M: Manifold, dtype: torch.dtype) -> None:
    T, (a, b) = Truth(M), pairs(M, dtype)
    ends = [(exact(x), exact(y)) for x, y in zip(a, b, strict=True)]
    sway = [swaying(lambda *x: [T.dist(*x)], *x, eps=torch.finfo(dtype).eps ** 1.5) for x in ends]  # far less
    hold(M.dist(a, b)[:, None], [[T.dist(*x)] for x in ends], sway, 20)


@each_dtype
@each_space
def test_lengths_of_vectors(M: Manifold, dtype: torch.dtype) -> None:
    T, z = Truth(M), extremes(M, dtype, 24, 0)
    v = torch.ones_like(z)
    ends = [exact(x) for x in z]
    sway = [swaying(lambda x: [T.scale(x)], x, eps=torch.finfo(dtype).eps ** 1.5) for x in ends]
    hold(M.norm(z, v)[:, None], [[T.scale(x) * mpmath.sqrt(3)] for x in ends], sway, 20)


@each_dtype
@each_space
def test_logarithms(M: Manifold, dtype: torch.dtype) -> None:
    T, (a, b) = Truth(M), pairs(M, dtype)
    ends = [(exact(x), exact(y)) for x, y in zip(a, b, strict=True)]
    sway = [swaying(T.log, *x, eps=torch.finfo(dtype).eps) for x in ends]
    hold(M.log(a, b), [T.log(*x) for x in ends], sway, 20)


@each_dtype
@each_space
def test_exponentials(M: Manifold, dtype: torch.dtype) -> None:
    T, (a, b) = Truth(M), pairs(M, dtype)
    v = M.log(a, b)
    known = v.isfinite().all(-1)
    assert int(known.sum()) > 20
    starts = [(exact(x), exact(y)) for x, y in zip(a[known], v[known], strict=True)]
    sway = [swaying(T.exp, *x, eps=torch.finfo(dtype).eps) for x in starts]
    hold(M.exp(a[known], v[known]), [T.exp(*x) for x in starts], sway, 20, rim=32)


@each_dtype
@each_space
def test_points_of_geodesics(M: Manifold, dtype: torch.dtype) -> None:
    T, (a, b) = Truth(M), pairs(M, dtype)
    g = M.geodesic(a, b)
    n = g.points.shape[-2] - 1
    for j in (1, n // 2):
        t = mpf(j) / n
        ends = [(exact(x), exact(y)) for x, y in zip(a[g.converged], b[g.converged], strict=True)]
        sway = [swaying(lambda x, y, t=t: T.between(x, y, t), *x, eps=torch.finfo(dtype).eps) for x in ends]
        hold(g.points[g.converged][:, j], [T.between(*x, t) for x in ends], sway, 20)


# -- derivatives ------------------------------------------------------------------------------------------------------


def places(M: Manifold) -> Tensor:
    """Near the centre, in the middle, and far out: ``(3, d)``."""
    far = 0.999 if isinstance(M, Hyperbolic) else 30.0
    way = torch.tensor([[0.6, 0.48, 0.64], [0.0, -0.6, 0.8], [0.36, 0.48, -0.8]], dtype=torch.float64)
    return torch.tensor([[1e-6], [0.5], [far]], dtype=torch.float64) * way


@pytest.mark.parametrize("step", [0.0, 1e-9, 0.5])
@each_space
def test_first_and_second_derivatives_of_exp_and_log(M: Manifold, step: float) -> None:
    z = places(M)
    v = (
        step
        * torch.tensor([[1.0, 0.0, 0.0], [0.6, 0.8, 0.0], [0.0, 0.6, -0.8]], dtype=torch.float64)
        / M.norm(z, z)[:, None]
        * torch.linalg.vector_norm(z, dim=1, keepdim=True)
    )
    b = M.exp(z, v)
    for f, x in ((M.exp, v), (M.log, b)):
        for a, y in zip(z, x, strict=True):
            scale = 1 / M.norm(a, torch.eye(3, dtype=a.dtype)).mean()  # a unit of length there
            ends = [torch.zeros(3, dtype=a.dtype, requires_grad=True) for _ in range(2)]

            def moved(p: Tensor, q: Tensor, f=f, a=a, y=y, s=scale) -> Tensor:
                return f(a + s * p, y + s * q) / s

            assert torch.autograd.gradcheck(moved, ends, eps=1e-5, atol=1e-4, rtol=1e-4)
            weights = [torch.tensor([0.9, -0.5, 0.2], dtype=a.dtype, requires_grad=True)]
            assert torch.autograd.gradgradcheck(moved, ends, weights, eps=1e-5, atol=1e-4, rtol=1e-4)


@each_space
def test_the_distance_has_a_kink_and_its_square_by_the_logarithm_none(M: Manifold) -> None:
    a = places(M)
    b = a.clone().requires_grad_()
    (slope,) = torch.autograd.grad(M.dist(a, b).sum(), b, create_graph=True)
    assert slope.abs().max() == 0
    assert torch.autograd.grad(slope.sum(), b)[0].isnan().all()  # no number that is silently wrong

    def square(b: Tensor) -> Tensor:
        v = M.log(a[0], b)
        return M.inner(a[0], v, v)

    hessian = torch.autograd.functional.hessian(square, a[0].clone())
    torch.testing.assert_close(hessian, 2 * M.metric(a[0]), rtol=1e-9, atol=1e-9)


@each_space
def test_derivatives_of_the_distance(M: Manifold) -> None:
    a = 0.3 * places(M)[1:]
    ends = [a[:1].requires_grad_(), a[1:].requires_grad_()]
    assert torch.autograd.gradcheck(M.dist, ends)
    assert torch.autograd.gradgradcheck(M.dist, ends, [torch.ones(1, dtype=a.dtype, requires_grad=True)])


@each_dtype
def test_the_ball_ends_where_its_numbers_do(dtype: torch.dtype) -> None:
    """As far as exp leads, its end is a point of the ball, and as far away as the dtype can say there."""
    H = Hyperbolic(2)
    length = torch.linspace(0.5, 45.0, 90, dtype=dtype)
    z = torch.zeros(len(length), 2, dtype=dtype)
    end = H.exp(z, torch.stack([0.3 * length, 0.4 * length], -1))
    arrived = end.isfinite().all(-1)
    H.admit(end[arrived])
    assert torch.equal(arrived, length < -math.log(torch.finfo(dtype).eps))
    eps = torch.finfo(dtype).eps
    off = (H.dist(z, end.nan_to_num(0.0)) - length).abs()[arrived]
    assert (off <= 2 * eps * (4 * length + length.exp())[arrived]).all()


def test_the_far_end_of_the_sphere_is_near_the_pole() -> None:
    S, far = Sphere(2), torch.tensor([3e30, -4e30])
    assert float(S.dist(torch.zeros(2), far)) == pytest.approx(torch.pi)
    assert float(S.dist(far, -far)) == pytest.approx(4 / 5e30, rel=1e-6)
