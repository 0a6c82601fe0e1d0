"""Geodesics against closed forms, SciPy's boundary value solver, and the ways in which they can fail."""

import dataclasses
import itertools
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.integrate import solve_bvp
from torch import Tensor, nn

import oddity
from oddity import ChainSolver, Conformal, Euclidean, Hyperbolic, Manifold, Pullback, Roadmap, Sphere, TensorField
from oddity.geometry import manifold, tabulated
from oddity.numerics import bicubic, blocktri, chain, descent, elements

from .cases import decoder, embedded_sphere, mlp


def pairs(B: int = 12, scale: float = 0.6, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    a, b = scale * torch.randn(2, B, 2, generator=g, dtype=torch.float64)
    return a.to(dtype), b.to(dtype)


def numerical(M: Manifold, a: Tensor, b: Tensor, n: int) -> oddity.Geodesic:
    """Solve numerically even where the manifold knows a formula, on one grid."""
    return Manifold.geodesic(M, a, b, solver=ChainSolver(segments=n, max_segments=n, resolution=1))


@pytest.mark.parametrize("M", [Sphere(2), Pullback(embedded_sphere)], ids=["chart", "pull-back"])
def test_length_error_falls_by_four_per_doubling(M: Manifold) -> None:
    a, b = pairs()
    true = Sphere(2).dist(a, b)
    errors = [(M.length(numerical(M, a, b, n).points) - true).abs().mean() for n in (16, 32, 64, 128)]
    assert all(3.8 < e / f < 4.2 for e, f in itertools.pairwise(errors))


@pytest.mark.parametrize("M", [Sphere(2), Pullback(embedded_sphere), Hyperbolic(2)], ids=str)
def test_reported_length_beats_its_own_error_bound(M: Manifold) -> None:
    closed = M if isinstance(M, Hyperbolic) else Sphere(2)
    a, b = pairs(scale=0.3)
    g = numerical(M, a, b, 32)
    assert g.converged.all()
    assert ((g.length - closed.dist(a, b)).abs() <= g.length_error + 1e-12).all()


@pytest.mark.parametrize("M", [Sphere(2), Hyperbolic(2), Euclidean(2)], ids=str)
def test_closed_forms_agree_with_the_solver(M: Manifold) -> None:
    a, b = pairs(scale=0.3)
    exact, found = M.geodesic(a, b), numerical(M, a, b, 64)
    assert exact.converged.all()
    torch.testing.assert_close(exact.length, found.length, rtol=1e-6, atol=1e-9)
    t = torch.linspace(0, 1, 7, dtype=torch.float64)
    torch.testing.assert_close(exact(t), found(t), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("M", [Sphere(3), Hyperbolic(3), Euclidean(3)], ids=str)
def test_exp_and_log_are_inverse(M: Manifold) -> None:
    g = torch.Generator().manual_seed(0)
    a, b = 0.4 * torch.rand(2, 20, 3, generator=g, dtype=torch.float64)
    v = M.log(a, b)
    torch.testing.assert_close(M.exp(a, v), b)
    torch.testing.assert_close(M.norm(a, v), M.dist(a, b))
    torch.testing.assert_close(M.log(a, a), torch.zeros_like(a))


def test_distance_satisfies_the_triangle_inequality_and_is_symmetric() -> None:
    M = oddity.expected_metric(decoder().double())
    a, b = pairs(6)
    c = a.roll(1, 0)
    ab, ba, ac, cb = M.dist(a, b), M.dist(b, a), M.dist(a, c), M.dist(c, b)
    torch.testing.assert_close(ab, ba, rtol=1e-5, atol=0)
    assert (ab <= (ac + cb) * (1 + 1e-4)).all()


def test_invariance_under_a_change_of_chart() -> None:
    """The same surface in two charts: lengths agree, and the curves map to each other."""

    def warp(w: Tensor) -> Tensor:
        return torch.stack([w[..., 0] + 0.3 * w[..., 1].sin(), w[..., 1] + 0.2 * w[..., 0] ** 3], -1)

    f = decoder().double()
    one, other = Pullback(f.mean), Pullback(lambda w: f.mean(warp(w)))
    a, b = pairs(6)
    g, h = one.geodesic(warp(a), warp(b)), other.geodesic(a, b)
    assert (g.converged & h.converged).all()
    torch.testing.assert_close(g.length, h.length, rtol=1e-4, atol=0)
    t = torch.linspace(0, 1, 9, dtype=torch.float64)
    torch.testing.assert_close(g(t), warp(h(t)), atol=2e-3, rtol=0)


def test_agrees_with_scipys_boundary_value_solver() -> None:
    """Conformal metric e^(2 phi) I: the geodesic equation by hand, solved by SciPy."""

    def phi_gradient(x: np.ndarray) -> np.ndarray:
        return np.stack([np.cos(x[0]) * np.cos(x[1]), -np.sin(x[0]) * np.sin(x[1])])

    def equation(t: np.ndarray, y: np.ndarray) -> np.ndarray:
        x, v = y[:2], y[2:]
        grad = phi_gradient(x)
        return np.concatenate([v, (v * v).sum(0) * grad - 2 * (grad * v).sum(0) * v])

    a, b = np.array([-1.0, -0.4]), np.array([1.2, 0.9])
    t = np.linspace(0, 1, 50)
    line = a[:, None] + (b - a)[:, None] * t
    start = np.concatenate([line, np.repeat((b - a)[:, None], 50, 1)])
    found = solve_bvp(
        equation, lambda p, q: np.concatenate([p[:2] - a, q[:2] - b]), t, start, tol=1e-9, max_nodes=20000
    )
    assert found.success
    x, v = found.sol(0.37)[:2], found.sol(0.37)[2:]
    speed = np.exp(np.sin(x[0]) * np.cos(x[1])) * np.linalg.norm(v)

    M = Conformal(lambda z: (z[..., 0].sin() * z[..., 1].cos()).exp())
    g = M.geodesic(torch.from_numpy(a), torch.from_numpy(b), solver=ChainSolver(segments=128))
    assert g.converged
    np.testing.assert_allclose(float(g.length), speed, rtol=1e-6)
    np.testing.assert_allclose(g(0.37).numpy(), x, atol=1e-4)


def test_speed_is_constant() -> None:
    M = oddity.expected_metric(decoder().double())
    a, b = pairs(4)
    g = M.geodesic(a, b, solver=ChainSolver(segments=256))
    t = torch.linspace(0, 1, 21, dtype=torch.float64)
    speed = M.norm(g(t), g.velocity(t))
    torch.testing.assert_close(speed, g.length[:, None].expand_as(speed), rtol=5e-3, atol=0)


# -- starts -----------------------------------------------------------------------------------------------------------


def hill(z: Tensor) -> Tensor:
    """A hill on the straight line between (-2.2, 0) and (2.2, 0): by symmetry no local method leaves the line."""
    return torch.cat([z, 6 * torch.exp(-2 * z.square().sum(-1, keepdim=True))], 1)


def test_a_roadmap_finds_the_way_around_that_the_line_cannot_see() -> None:
    g = torch.Generator().manual_seed(0)
    angle = torch.pi * torch.rand(300, generator=g, dtype=torch.float64)
    codes = 2.2 * torch.stack([angle.cos(), angle.sin()], -1)
    codes += 0.1 * torch.randn(300, 2, generator=g, dtype=torch.float64)
    M = Pullback(hill)
    a, b = torch.tensor([[-2.2, 0.0]], dtype=torch.float64), torch.tensor([[2.2, 0.0]], dtype=torch.float64)
    line, road = M.geodesic(a, b), M.geodesic(a, b, init=Roadmap(M, codes))
    assert road.converged.all()
    assert road.length < 0.5 * line.length


def ripples(z: Tensor) -> Tensor:
    """A hill that draws curves off the line, into ripples that a grid of eight segments steps over."""
    x, y = z[:, :1], z[:, 1:]
    hill = (-20 * ((x - 0.5).square() + (y + 0.1).square())).exp()
    return torch.cat([x, y, hill, 0.3 * (40 * torch.pi * x).sin() * (10 * y).tanh()], 1)


def test_a_curve_longer_than_the_line_gives_way_to_it() -> None:
    M, blind = Pullback(ripples), ChainSolver(segments=8, max_segments=8, resolution=100)
    a, b = torch.tensor([[0.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    line = a + torch.linspace(0, 1, 2001, dtype=torch.float64)[:, None] * (b - a)
    g = M.geodesic(a, b, solver=blind)
    assert not g.converged
    assert "longer than the straight line" in g.why
    assert "given in its place" in g.why
    torch.testing.assert_close(g.length, M.length(line), rtol=1e-2, atol=0)
    assert g.points[:, 1].abs().max() == 0
    asked = M.geodesic(
        a, b, init=line + 0.05 * torch.tensor([[0.0, 1.0]]) * (line[:, :1] * (1 - line[:, :1])), solver=blind
    )
    assert "longer than the straight line" in asked.why  # a start of one's own stays in its valley
    assert asked.points[:, 1].abs().max() > 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_curve_is_as_long_as_its_length_says_where_it_leaps_through_the_chart(dtype: torch.dtype) -> None:
    """Far from the centres the metric is nearly zero: equal steps of length are leaps in the chart."""
    generator = torch.Generator().manual_seed(2)
    codes, far = torch.randn(60, 2, generator=generator), 3 * torch.randn(24, 2, generator=generator)
    scale = oddity.RBFPrecision(0.7 * torch.randn(8, 2, generator=generator), torch.full((8,), 2.0), 6, zeta=0.01)
    with torch.no_grad():
        scale.weight.copy_(20 + 100 * torch.rand(scale.weight.shape, generator=generator))
    decoder = oddity.GaussianDecoder(mlp(2, 6), scale).eval().to(dtype)
    M, codes, far = oddity.expected_metric(decoder), codes.to(dtype), far.to(dtype)
    g = M.geodesic(codes[:24], far, init=Roadmap(M, codes))
    with torch.no_grad():
        fine = M.length(g(torch.linspace(0, 1, 4097, dtype=dtype)))
    assert g.converged.sum() >= 20
    assert ((fine / g.length - 1).abs() <= 3e-3)[g.converged].all()


def test_velocity_is_the_derivative_of_the_curve() -> None:
    g = oddity.expected_metric(decoder().double()).geodesic(*(x[0] for x in pairs(1)))
    t, h = torch.linspace(0.0111, 0.99, 37, dtype=torch.float64), 1e-6
    torch.testing.assert_close(g.velocity(t), (g(t + h) - g(t - h)) / (2 * h), rtol=1e-6, atol=1e-6)


def gap(z: torch.Tensor) -> torch.Tensor:
    """A paraboloid that has no points near one place."""
    none = (z[:, :2] - torch.tensor([-0.5, 0.5]).to(z)).norm(dim=1, keepdim=True) < 0.1
    return torch.where(none, torch.nan, torch.cat([z, z.square().sum(-1, keepdim=True)], -1))


def test_a_join_without_a_length_is_no_way() -> None:
    """The straight line and some joins of the end run through the gap; others go around it."""
    codes = torch.rand(20, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    a, b = torch.tensor([[-1.0, 0.5], [0.9, 0.5]], dtype=torch.float64)
    g = Pullback(gap).geodesic(a, b, init=Roadmap(Pullback(gap), codes, steps=32)).require()
    assert g.start == "roadmap"


def test_an_end_without_any_way_does_not_converge_elsewhere() -> None:
    """More codes than all their paths are kept of; the first end lies where there is no metric."""

    def half(z: torch.Tensor) -> torch.Tensor:
        return torch.where(z[:, :1] > 5, torch.nan, z)

    codes = torch.rand(2100, 3, generator=torch.Generator().manual_seed(0))
    a, b = torch.tensor([[9.0, 0, 0], [0.1, 0.1, 0.1]]), torch.tensor([[0.5, 0.5, 0.5], [0.9, 0.9, 0.9]])
    g = Pullback(half).geodesic(a, b, init=Roadmap(Pullback(half), codes, k=5, steps=1))
    assert g.converged.tolist() == [False, True]
    assert torch.equal(g.points[:, 0], a)
    assert torch.equal(g.points[:, -1], b)


def test_the_shorter_start_wins_and_the_line_stays_in_the_race() -> None:
    M = Pullback(embedded_sphere)
    codes = 3 + torch.randn(30, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))  # far away
    a, b = pairs(5, 0.2)
    g = M.geodesic(a, b, init=Roadmap(M, codes))
    torch.testing.assert_close(g.length, Sphere(2).dist(a, b), rtol=1e-6, atol=0)


def ridge(y: Tensor) -> Tensor:
    return 1 + 0.5 * torch.exp(-((y / 0.01) ** 2))


def test_a_rival_nearby_in_the_chart_but_shorter_is_not_given_up() -> None:
    """On the crest of a thin ridge the line is stationary; a path beside it is shorter by a third."""
    M = Conformal(lambda z: ridge(z[..., 1]))
    x = torch.linspace(-1, 1, 40, dtype=torch.float64)
    codes = torch.stack([x, torch.full_like(x, 0.035)], -1)
    a, b = torch.tensor([[-1.0, 0.0]], dtype=torch.float64), torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    g = M.geodesic(a, b, init=Roadmap(M, codes, k=2))
    assert float(g.length) < 2.1  # by the road, or by a line that left its saddle


def test_a_thin_wall_that_a_coarse_line_steps_over_is_no_reproach() -> None:
    M = Conformal(lambda z: 1 + 10 * torch.exp(-(((z[..., 0] - 0.03) / 0.008) ** 2)))
    ends = torch.tensor([[-1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    g = M.geodesic(ends[0], ends[1])
    assert g.converged, g.why
    assert float(g.length) == pytest.approx(2 + 10 * 0.008 * torch.pi**0.5, rel=1e-4)


def test_a_bad_start_is_refused_whatever_its_companions() -> None:
    a, b = torch.zeros(2, 2), torch.tensor([[1.0, 0.0], [1e4, 0.0]])
    start = torch.linspace(0, 1, 9)[:, None] * b[:, None]
    start[0] += 0.5
    with pytest.raises(ValueError, match="does not join the ends"):
        Pullback(embedded_sphere).geodesic(a, b, init=start)


def test_a_roadmap_of_another_kind_is_refused() -> None:
    z = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    M = Pullback(embedded_sphere)
    with pytest.raises(ValueError, match="a roadmap in 3 dimensions, but the ends have 2"):
        M.geodesic(torch.zeros(2), torch.ones(2), init=Roadmap(Euclidean(), z))
    with pytest.raises(ValueError, match=r"a roadmap of torch.float64 on cpu, the ends are torch.float32"):
        M.geodesic(torch.zeros(2), torch.ones(2), init=Roadmap(Euclidean(), z[:, :2].double()))
    with pytest.raises(ValueError, match="init is a str"):
        Sphere(2).geodesic(torch.zeros(2), torch.ones(2), init="nonsense")  # type: ignore[arg-type]


def test_a_curve_may_be_the_start() -> None:
    M = Pullback(embedded_sphere)
    a, b = pairs(3, 0.3)
    start = M.geodesic(a, b).points
    g = M.geodesic(a, b, init=start)
    assert g.start == ["curve"] * 3
    assert g.iterations.max() <= 3
    torch.testing.assert_close(g.length, Sphere(2).dist(a, b), rtol=1e-6, atol=0)


def test_an_ends_companions_do_not_change_its_path() -> None:
    M = Euclidean()
    codes = torch.randn(80, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    roads = Roadmap(M, codes)
    a, b = pairs(6, 1.0)
    together = roads.paths(a, b, 16)
    apart = torch.cat([roads.paths(a[i : i + 1], b[i : i + 1], 16) for i in range(6)])
    torch.testing.assert_close(together, apart)


def test_a_decoder_that_only_runs_backwards_has_geodesics_too() -> None:
    class Attention(torch.nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            q = z[:, None, :, None]
            return torch.nn.functional.scaled_dot_product_attention(q, q, q).flatten(1)

    M = Pullback(Attention().eval()) + 0.1 * Euclidean()
    a, b = pairs(3, 0.5)
    assert M.geodesic(a, b).converged.all()


# -- shapes -----------------------------------------------------------------------------------------------------------


def test_shapes_broadcast_and_nothing_squeezes() -> None:
    M = Pullback(embedded_sphere)
    a, b = pairs(3, 0.3)
    single = M.geodesic(a[0], b[0])
    assert single.points.shape[1:] == (2,)
    assert single.length.shape == ()
    assert single.why == ""
    fan = M.geodesic(a[0], b[None])
    assert fan.length.shape == (1, 3)
    assert fan.why == [["", "", ""]]
    assert fan(0.5).shape == (1, 3, 2)
    assert fan(torch.tensor([0.0, 1.0])).shape == (1, 3, 2, 2)
    none = M.geodesic(a[:0], b[:0])
    assert none.length.shape == (0,)
    assert none.why == []
    assert repr(none) == "Geodesic(0 curves)"
    assert M.geodesic(a[:0], b[:0], init=Roadmap(M, torch.cat([a, b]))).length.shape == (0,)


# -- failures ---------------------------------------------------------------------------------------------------------


def test_a_bad_pair_is_told_and_its_neighbours_are_untouched() -> None:
    def cliff(z: Tensor) -> Tensor:
        return torch.cat([z, torch.where(z[:, :1] > 5, torch.nan, z[:, 1:].sin())], 1)

    M = Pullback(cliff)
    a, b = pairs(4)
    good = M.geodesic(a, b)
    b_bad = b.clone()
    b_bad[2, 0] = 9
    g = M.geodesic(a, b_bad)
    assert g.converged.tolist() == [True, True, False, True]
    assert g.why[2] == "the energy of the starting curve is not finite"
    keep = [0, 1, 3]
    assert torch.equal(g.length[keep], good.length[keep])
    assert torch.equal(g.points[keep], good.points[keep])
    with pytest.raises(RuntimeError, match="1 of 4 geodesics did not converge; number 2: the energy"):
        g.require()
    assert good.require() is good


@pytest.mark.parametrize("road", [False, True])
@pytest.mark.parametrize(("d", "D"), [(2, 784), (3, 784), (3, 301)])
def test_companions_do_not_matter_to_the_last_bit_at_the_size_of_images(d: int, D: int, road: bool) -> None:
    torch.manual_seed(0)
    z = torch.randn(60, d)
    mean = torch.nn.Sequential(
        torch.nn.Linear(d, 32), torch.nn.Tanh(), torch.nn.Linear(32, 64), torch.nn.Tanh(), torch.nn.Linear(64, D)
    )
    M = oddity.expected_metric(oddity.GaussianDecoder(mean, oddity.RBFPrecision.from_codes(z, D)).eval())
    init = Roadmap(M, z) if road else None
    a, b = z[:9], z[9:18]
    together = M.geodesic(a, b, init=init)
    assert together.converged.sum() > 4
    lost = b.clone()
    lost[4] = 1e30
    others = [0, 1, 2, 3, 5, 6, 7, 8]
    with_a_bad_one, alone = M.geodesic(a, lost, init=init), M.geodesic(a[8], b[8], init=init)
    assert not with_a_bad_one.converged[4]
    assert torch.equal(with_a_bad_one.length[others], together.length[others])
    assert torch.equal(alone.length, together.length[8])


@pytest.mark.parametrize("d", [2, 3])
def test_compiled_loops_change_no_answer(d: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    z = torch.randn(60, d, dtype=torch.float64)
    mean = torch.nn.Sequential(torch.nn.Linear(d, 16), torch.nn.Tanh(), torch.nn.Linear(16, 300)).double()
    M = oddity.expected_metric(oddity.GaussianDecoder(mean, oddity.RBFPrecision.from_codes(z, 300)).eval())
    init = Roadmap(M, z)
    assert init.sketch is not M
    compiled = M.geodesic(z[:9], z[9:18], init=init)
    for module in (bicubic, blocktri, chain, descent, elements, manifold, tabulated):
        monkeypatch.setattr(module, "serves", lambda *_: False)
    known = M.geodesic(z[:9], z[9:18], init=init)
    assert torch.equal(compiled.converged, known.converged)
    torch.testing.assert_close(compiled.length, known.length, rtol=1e-6, atol=0)


@pytest.mark.parametrize("road", [False, True])
@pytest.mark.parametrize("d", [2, 3])
def test_from_a_point_to_itself_is_no_way_whatever_a_processor_rounds(d: int, road: bool) -> None:
    def rounding(z: torch.Tensor) -> torch.Tensor:
        """A row's last digits depend on its place, as those of narrow matrix products do on some processors."""
        digits = 1e-6 * (torch.arange(len(z)) % 3)[:, None]
        return torch.cat([z, z.sin(), z.square()], 1) + digits

    M = oddity.Pullback(rounding)
    z = torch.randn(40, d, generator=torch.Generator().manual_seed(0))
    a, b = z[:4], z[[0, 10, 2, 11]]
    init = Roadmap(M, z) if road else None
    g = M.geodesic(a, b, init=init)
    assert g.length[[0, 2]].tolist() == [0, 0]
    assert g.iterations[[0, 2]].tolist() == [0, 0]
    assert g.converged[[0, 2]].all()
    assert torch.equal(g.points[[0, 2]], a[[0, 2], None].expand_as(g.points[[0, 2]]))
    assert (g.length[[1, 3]] > 0.1).all()
    assert M.log(a, b, init=init)[[0, 2]].abs().max() == 0
    assert M.length(a[:, None].expand(-1, 5, -1)).abs().max() == 0


def test_a_sketch_of_many_alike_parts_is_as_good_as_that_of_one() -> None:
    torch.manual_seed(0)
    z = torch.randn(200, 3)
    nets = [torch.nn.Sequential(torch.nn.Linear(3, 16), torch.nn.Tanh(), torch.nn.Linear(16, 200)) for _ in range(20)]
    M = oddity.ensemble_metric([net.eval() for net in nets])
    S = M.sketch(z)
    assert S is not M
    off = S._deviation(z, torch.linalg.cholesky(M.metric(z).double()))
    assert off.square().mean().sqrt() < 0.12
    roads = Roadmap(M, z)
    found, plain = (M.geodesic(z[:6], z[6:12], init=init) for init in (roads, None))
    assert found.converged.all()
    assert (found.length <= 1.001 * plain.length).all()


def test_a_point_without_a_metric_is_not_at_rest() -> None:
    M = Pullback(lambda z: torch.where(z[:, :1] > 2, torch.nan, z))
    a = torch.tensor([[0.0, 0.0], [3.0, 0.0]])
    g = M.geodesic(a, a)
    assert g.converged.tolist() == [True, False]
    assert g.length[0] == 0
    assert M.log(a, a)[0].tolist() == [0, 0]
    flat = Pullback(lambda z: z[:, :1] * torch.ones(1, 3))  # a direction costs nothing
    assert flat.log(a, a).tolist() == [[0, 0], [0, 0]]


def test_a_line_that_leaves_the_chart_is_no_rival() -> None:
    """On a cylinder over the plane less a disc, half a turn is pi long; the line between its ends has no length."""

    def cylinder(z: Tensor) -> Tensor:
        r = torch.linalg.vector_norm(z, dim=-1, keepdim=True)
        return torch.cat([z / r, torch.where(r > 0.5, r.log(), torch.nan)], -1)

    t = torch.linspace(0, torch.pi, 33, dtype=torch.float64)
    start = (1 + t.sin())[:, None] * torch.stack([t.cos(), t.sin()], -1)
    M = Pullback(cylinder)
    assert not M.geodesic(start[0], start[-1]).converged
    g = M.geodesic(start[0], start[-1], init=start).require()
    assert float(g.length) == pytest.approx(torch.pi, rel=1e-5)


def test_a_lost_dimension_is_named() -> None:
    g = Pullback(lambda z: z.square().sum(-1, keepdim=True)).geodesic(
        torch.tensor([-1.0, 0.0]), torch.tensor([0.0, 1.0])
    )
    assert g.why == "no step lowers the energy, and the matrix of the energy is singular: a direction costs nothing"


def test_an_unresolved_curve_is_not_called_converged() -> None:
    M = Pullback(lambda z: torch.cat([z, 3 * torch.tanh(40 * (z[:, :1] - 0.5))], 1))
    a, b = torch.tensor([0.0, 0.0], dtype=torch.float64), torch.tensor([1.0, 0.0], dtype=torch.float64)
    g = M.geodesic(a, b, solver=ChainSolver(segments=8, max_segments=8))
    assert not g.converged
    assert "do not resolve the curve" in g.why
    assert M.geodesic(a, b).converged


def test_a_rank_deficient_decoder_is_no_trap() -> None:
    M = Pullback(lambda z: torch.cat([z[:, :1].sin(), z[:, :1].cos()], 1))  # blind to the second axis
    a, b = torch.tensor([[0.0, 0.0]], dtype=torch.float64), torch.tensor([[2.0, 1.0]], dtype=torch.float64)
    g = M.geodesic(a, b)
    assert g.points.isfinite().all()
    torch.testing.assert_close(g.length, torch.tensor([2.0], dtype=torch.float64), rtol=1e-5, atol=0)
    assert (M + 1e-3 * Euclidean()).geodesic(a, b).converged


def test_antipodes_are_not_called_converged() -> None:
    g = Sphere(2).geodesic(torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 0.0]))
    assert not g.converged
    assert "antipodal" in g.why
    assert float(g.length) == pytest.approx(torch.pi)


def test_an_indefinite_field_is_told() -> None:
    M = TensorField(lambda z: torch.diag_embed(torch.stack([z[..., 0], torch.ones_like(z[..., 0])], -1)))
    g = M.geodesic(torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 0.0]))
    assert not g.converged
    assert "not finite" in g.why


def test_a_plateau_outside_the_data_still_gives_an_answer_for_each() -> None:
    """Far from the codes an RBF decoder's metric all but vanishes; no exception, each curve with its verdict."""
    M = oddity.expected_metric(decoder().double())
    a, b = pairs(6, 8.0)
    g = M.geodesic(a, b, solver=ChainSolver(max_segments=64, max_iterations=30))
    assert g.points.isfinite().all()
    assert (g.iterations <= 30).all(), "on all grids together"
    assert any("still moving after 30 iterations" in why for why in g.why)
    assert all((why == "") == bool(ok) for why, ok in zip(g.why, g.converged, strict=True))


@pytest.mark.parametrize(
    ("a", "b", "kw", "message"),
    [
        ([0.0, torch.nan], [1.0, 0.0], {}, r"a holds nan at index \(1,\)"),
        ([0.0, 0.0], [torch.inf, 0.0], {}, r"b holds inf at index \(0,\)"),
        ([[0.0, 0.0]] * 2, [[1.0, 0.0]] * 3, {}, r"do not broadcast: \(2, 2\) and \(3, 2\)"),
        ([0.0, 0.0], [1.0, 0.0], {"init": torch.zeros(9, 2)}, "does not join the ends: it misses by 1"),
        ([0.0, 0.0], [1.0, 0.0], {"init": torch.zeros(2)}, "a start has shape"),
        ([0.0, 0.0], [1.0, 0.0], {"init": torch.zeros(4, 9, 2)}, "the batch of end points is"),
        ([0.0, 0.0], [1.0, 0.0], {"init": torch.zeros(9, 2).double()}, "init is torch.float64 on cpu but"),
        ([0.0, 0.0], [1.0, 0.0], {"init": "graph"}, "init is a str"),
    ],
)
def test_misuse_is_refused_at_the_door(a, b, kw, message: str) -> None:
    M = Pullback(embedded_sphere)
    with pytest.raises(ValueError, match=message):
        M.geodesic(torch.tensor(a), torch.tensor(b), **kw)


def test_more_misuse() -> None:
    M = oddity.expected_metric(decoder())
    z = torch.zeros(2)
    with pytest.raises(ValueError, match=r"cannot map points of shape \(n, 3\)"):
        M.metric(torch.zeros(3))
    with pytest.raises(ValueError, match=r"points are torch.float64 but the weights .* torch.float32"):
        M.geodesic(z.double(), z.double())
    with pytest.raises(ValueError, match="bring them together"):
        Sphere(2).geodesic(z, z.double())
    with pytest.raises(ValueError, match=r"give float32 or float64 coordinates"):
        M.metric(torch.zeros(2, dtype=torch.long))
    with pytest.raises(ValueError, match=r"points of Sphere\(2\) have 2 coordinates"):
        Sphere(2).metric(torch.zeros(3))
    with pytest.raises(ValueError, match=r"give a tensor, e.g. torch.as_tensor\(z\)"):
        M.metric([0.0, 0.0])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the Poincare ball is"):
        Hyperbolic(2).metric(torch.tensor([1.0, 1.0]))
    with pytest.raises(ValueError, match=r"lies outside \[0, 1\]"):
        Sphere(2).geodesic(z, z + 0.1)(1.5)
    with pytest.raises(ValueError, match="positive number only"):
        -1.0 * M
    with pytest.raises(ValueError, match="different dimension"):
        Sphere(2) + Sphere(3)
    with pytest.raises(ValueError, match="at least two nodes"):
        M.length(torch.zeros(1, 2))
    with pytest.raises(ValueError, match="an even number of segments from 2"):
        ChainSolver(segments=1)
    with pytest.raises(ValueError, match="an even number of segments"):
        ChainSolver(segments=9)
    with pytest.raises(ValueError, match="needs \\(n, d\\) with n >= 2"):
        Roadmap(M, z[None])
    with pytest.raises(ValueError, match="is singular; add a ridge"):
        Pullback(lambda z: z[:, :1]).sample_tangent(z)
    with pytest.raises(TypeError):
        M + 1.0


def test_a_decoder_in_training_mode_is_refused() -> None:
    training = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).train()
    with pytest.raises(ValueError, match=r"training mode.*call \.eval\(\)"):
        oddity.expected_metric(training)
    with pytest.raises(ValueError, match="float is no decoder: give a module"):
        oddity.expected_metric(3.0)  # type: ignore[arg-type]


def test_the_solver_leaves_no_trace() -> None:
    model = decoder()
    a, b = (x.requires_grad_() for x in pairs(2, 0.3, torch.float32))
    before = [p.clone() for p in model.parameters()]
    oddity.expected_metric(model).geodesic(a, b)
    assert a.grad is None
    assert all(
        p.grad is None and p.requires_grad and torch.equal(p, q)
        for p, q in zip(model.parameters(), before, strict=True)
    )


def test_the_equation_residual_is_that_of_the_geodesic_equation() -> None:
    M, (a, b) = Pullback(embedded_sphere), pairs(5)
    g = M.geodesic(a, b, solver=ChainSolver(segments=64))
    assert float(g.equation_residual.max()) < 1e-4
    closed = Sphere(2).geodesic(a, b, solver=ChainSolver(segments=64))
    assert float(closed.equation_residual.max()) < 1e-4
    circle = torch.stack([torch.cos(g.points[..., 0]), torch.sin(g.points[..., 0])], -1)  # no geodesics
    bent = dataclasses.replace(g, points=circle, length=M.length(circle))
    assert float(bent.equation_residual.min()) > 1e-2
    assert float(M.geodesic(a, a).equation_residual.abs().max()) == 0
    with pytest.raises(RuntimeError, match="it takes four"):
        _ = dataclasses.replace(g, points=g.points[..., ::64, :]).equation_residual


def test_a_sketch_saves_time_and_touches_no_result() -> None:
    M = oddity.expected_metric(decoder())
    z = torch.randn(100, 2, generator=torch.Generator().manual_seed(0))
    roads = Roadmap(M, z)
    with_sketch = M.geodesic(z[:8], z[8:16], init=roads)
    roads.sketch = M
    without = M.geodesic(z[:8], z[8:16], init=roads)
    assert with_sketch.converged.all()
    torch.testing.assert_close(with_sketch.length, without.length, rtol=1e-3, atol=0)
    flat = Euclidean()
    assert flat.sketch(z) is flat


# -- what lies between nodes, cells and codes -------------------------------------------------------------------------


@pytest.mark.parametrize("width", [3e-3, 1e-3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_wall_between_the_nodes_is_seen(width: float, dtype: torch.dtype) -> None:
    height = 2.5 / (width * (2 * torch.pi) ** 0.5)
    M = Conformal(lambda z: 1 + height * torch.exp(-((z[:, 0] / width) ** 2) / 2), dim=2)
    g = M.geodesic(torch.tensor([-1.0, 0.03], dtype=dtype), torch.tensor([1.0, -0.02], dtype=dtype))
    own = M.length(g(torch.linspace(0, 1, 20001, dtype=dtype)))
    assert not g.converged or (own - g.length).abs() <= 0.01 * own


@pytest.mark.parametrize("opening", [4e-3, 3e-2])
def test_no_curve_is_longer_than_the_way_through_a_gap_that_codes_line(
    opening: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table whose cells are wider than the gap is not used, even if it is close enough at nine in ten places."""
    monkeypatch.setattr("oddity.geometry.tabulated._CLOSE", 10.0)

    def scale(z: Tensor) -> Tensor:
        wall = 10 * torch.exp(-((z[:, 0] / 0.1) ** 2) / 2)
        return 1 + wall * (1 - torch.exp(-(((z[:, 1] - 0.5) / opening) ** 2) / 2))

    M = Pullback(lambda z: 1 * z, Conformal(scale))
    codes = 2.2 * torch.rand(200, 2, generator=torch.Generator().manual_seed(7), dtype=torch.float64) - 1.1
    way = torch.linspace(-0.2, 0.2, 100, dtype=torch.float64)
    roads = Roadmap(M, torch.cat([codes, torch.stack([way, torch.full_like(way, 0.5)], 1)]))
    assert roads.sketch is M
    a, b = torch.tensor([[-1.0, 0.0], [-0.9, -0.6]]).double(), torch.tensor([[1.0, 0.2], [0.8, 0.9]]).double()
    g = M.geodesic(a, b, init=roads).require()
    through = torch.stack([a, a.new_tensor([-0.3, 0.5]).expand_as(a), a.new_tensor([0.3, 0.5]).expand_as(a), b], 1)
    t = torch.linspace(0, 1, 2001, dtype=torch.float64)[:, None]
    longest = sum(M.length(x[:, None] + t * (y - x)[:, None]) for x, y in pairwise(through.unbind(1)))
    assert (g.length <= longest).all()


def test_a_metric_that_loses_a_direction_on_the_way_certifies_nothing() -> None:
    """In a band along the second axis the first coordinate costs nothing."""
    M = Pullback(lambda z: torch.cat([torch.relu(z[:, :1] - 0.3) - torch.relu(-z[:, :1] - 0.3), z[:, 1:]], 1))
    g = M.geodesic(torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 0.5]))
    assert not g.converged
    assert "a direction costs nothing on a part of the curve" in g.why


def bump(at: float, width: float, turns: float, offset: float) -> Pullback:
    """A line with a bump that is narrower than a segment, on a circle or far from the origin."""

    def f(z: Tensor) -> Tensor:
        t = z[:, :1]
        way = torch.cat([(turns * t).cos(), (turns * t).sin()], 1) if turns else t
        return torch.cat([way, torch.exp(-(((t - at) / width) ** 2) / 2), torch.full_like(t, offset)], 1)

    return Pullback(f)


@pytest.mark.parametrize(
    ("M", "dtype", "solver"),
    [
        (bump(0.515625, 2e-3, 6.0, 0.0), torch.float64, ChainSolver(max_segments=16)),  # resolved to fourth order only
        (bump(0.508, 1e-3, 0.0, 100.0), torch.float32, ChainSolver()),  # a chord is little beside its ends
    ],
)
def test_a_bump_is_seen_on_the_last_grid_and_beside_large_values(
    M: Pullback, dtype: torch.dtype, solver: ChainSolver
) -> None:
    a = torch.zeros(1, dtype=dtype)
    g = M.geodesic(a, a + 1, solver=solver)
    true = M.length(torch.linspace(0, 1, 40001, dtype=torch.float64)[:, None])
    assert not g.converged or (g.length - true).abs() <= g.length_error


def test_a_failure_among_decoders_that_take_no_empty_batch_is_told() -> None:
    M = Pullback(lambda z: torch.stack([z, z.sin()], -1).reshape(len(z), -1))
    g = M.geodesic(torch.zeros(2, 2), torch.ones(2, 2), solver=ChainSolver(max_iterations=1, tolerance=1e-30))
    assert not g.converged.any()


# -- corridors --------------------------------------------------------------------------------------------------------


def corridor(dtype: torch.dtype) -> tuple[Manifold, Tensor]:
    """A helix in three dimensions whose noise rises on all sides, and its codes."""
    t = torch.linspace(0, 1, 200, dtype=torch.float64)
    z = torch.stack([(9 * t).cos(), (9 * t).sin(), 2 * t], 1).to(dtype)
    net = nn.Linear(3, 24).to(dtype).eval().requires_grad_(False)
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=g))
    x = net(z) + 0.01 * torch.randn(200, 24, generator=g).to(dtype)
    return oddity.expected_metric(oddity.add_uncertainty(net, z, x)), z


@pytest.mark.parametrize("segments", [2, 6, 12, 16, 20, 28, 64])
def test_what_converges_between_walls_keeps_to_the_corridor_whatever_the_first_grid(segments: int) -> None:
    M, z = corridor(torch.float32)
    i, j = torch.tensor([5, 20]), torch.tensor([120, 190])
    g = M.geodesic(z[i], z[j], init=oddity.Roadmap(M, z), solver=ChainSolver(segments=segments))
    along = torch.stack([M.length(z[int(a) : int(b) + 1]) for a, b in zip(i, j, strict=True)])
    assert bool((g.points[:, [0, -1]] == torch.stack([z[i], z[j]], 1)).all())
    assert bool(g.converged.all()) or segments < 16, "a grid that coarse may lose its way, and says so"
    assert bool((g.length <= 1.01 * along)[g.converged].all())
    assert bool((g.length >= 0.9 * along)[g.converged].all())


def test_single_precision_ends_where_double_does() -> None:
    lengths = []
    for dtype in (torch.float32, torch.float64):
        M, z = corridor(dtype)
        i, j = torch.arange(0, 60, 10), torch.arange(100, 160, 10)
        lengths.append(M.geodesic(z[i], z[j], init=oddity.Roadmap(M, z)).require().length.double())
    torch.testing.assert_close(*lengths, rtol=2e-3, atol=0.0)
