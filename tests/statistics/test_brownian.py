"""Brownian motion: laws on the sphere, the torus and flat space, boundaries, and failures."""

import math
import warnings

import numpy as np
import pytest
import torch
from scipy.stats import chi2, kstest
from torch import Tensor

import oddity
from oddity import Conformal, Euclidean, Hyperbolic, Manifold, Pullback, Sphere, TensorField
from oddity.statistics.brownian import (
    DataSupport,
    brownian_motion,
    heat_kernel_samples,
    manifold_samples,
    neighbour_time,
)

from ..geometry.cases import NAMES, cases, decoder, points

FOUR_SIGMA = chi2.sf(16, 1)  # chance of a normal variable beyond four standard deviations


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def off_by(samples: Tensor, expected: float) -> float:
    """Distance of a mean from what it should be, in standard errors."""
    return abs(float(samples.mean()) - expected) / (float(samples.std()) / math.sqrt(len(samples)))


# -- laws -------------------------------------------------------------------------------------------------------------


def cosine_on_the_sphere(t: float, steps: int, walkers: int = 6000, drift: bool = True) -> Tensor:
    """Cosine of the angle from the start on S^3."""
    S, start = Sphere(3), torch.zeros(walkers, 3, dtype=torch.float64)
    walk = brownian_motion(S, start, steps, t / steps, drift=drift, generator=rng())
    return S.dist(start, walk.points[:, -1]).cos()


def test_cosine_on_the_sphere() -> None:
    """cos r is an eigenfunction of the Laplacian: E cos r = exp(-d t / 2), 0.472 in three dimensions at t = 1/2."""
    assert off_by(cosine_on_the_sphere(0.5, 100), math.exp(-0.75)) < 4


def test_the_driftless_step_fails_on_the_sphere() -> None:
    cosine = cosine_on_the_sphere(0.5, 100, drift=False)
    assert off_by(cosine, math.exp(-0.75)) > 8
    assert float(cosine.mean()) == pytest.approx(0.41, abs=0.02)


@pytest.mark.slow
def test_the_law_is_of_first_order_in_the_step() -> None:
    """Error of E cos at t = 0.1 for one step and for four, each known to a tenth of itself."""
    errors = [float(cosine_on_the_sphere(0.1, n, 500_000).mean()) - math.exp(-0.15) for n in (1, 4)]
    assert 2.5 < errors[0] / errors[1] < 6


def test_walks_pass_a_pole_of_the_chart() -> None:
    """A walk that comes near the point at infinity goes on behind it; in the end all are spread over the sphere."""
    walk = brownian_motion(Sphere(2), torch.full((200, 2), 3.0), 30, 0.15, generator=rng())
    assert float(walk.points.norm(dim=-1).max()) > 50
    assert float(walk.bend.max()) > 1
    assert walk.completed.all()
    height = walk.points[:, -1].square().sum(-1)
    assert kstest((height / (1 + height)).numpy(), "uniform").pvalue > FOUR_SIGMA  # Archimedes


def test_walks_cross_folds_that_their_steps_do_not_resolve() -> None:
    """On a corrugated sheet, where a geodesic on coarse steps loses so much speed that it is not called converged."""
    sheet = Pullback(lambda z: torch.cat([z, torch.sin(10 * z[..., :1])], -1))
    walk = brownian_motion(sheet, torch.zeros(32, 2), 5, 0.05, generator=rng())
    assert float(walk.bend.max()) > 1
    assert walk.completed.all()


def test_hyperbolic_distance_grows() -> None:
    """cosh r is an eigenfunction too: E cosh r = exp(d t / 2)."""
    H, start = Hyperbolic(2), torch.tensor([0.3, -0.1], dtype=torch.float64)
    ends = heat_kernel_samples(H, start, 0.5, 6000, generator=rng())
    assert off_by(H.dist(start, ends).cosh(), math.exp(0.5)) < 4


def torus(z: Tensor) -> Tensor:
    """Torus of radii 3/2 and 1 in R^3; its volume is 3/2 + cos z_0."""
    ring = 1.5 + z[:, 0].cos()
    return torch.stack([ring * z[:, 1].cos(), ring * z[:, 1].sin(), z[:, 0].sin()], -1)


def chi_square_on_the_torus(drift: bool) -> float:
    """p value of the volume as the law of the angle around the tube, for walks that have forgotten their start."""
    start = torch.zeros(1000, 2, dtype=torch.float64)
    walk = brownian_motion(Pullback(torus), start, 80, 0.12, drift=drift, generator=rng())
    angle = walk.points[:, -1, 0].remainder(2 * math.pi).numpy()
    edges = np.linspace(0, 2 * math.pi, 13)
    share = np.diff(1.5 * edges + np.sin(edges)) / (3 * math.pi)
    expected = 1000 * share
    return float(chi2.sf(((np.histogram(angle, edges)[0] - expected) ** 2 / expected).sum(), 11))


def test_the_stationary_law_is_the_volume() -> None:
    assert chi_square_on_the_torus(True) > FOUR_SIGMA


def test_the_stationary_law_of_the_driftless_step_is_not() -> None:
    assert chi_square_on_the_torus(False) < 1e-12


@pytest.mark.parametrize("name", ["expected metric", "into curved space", "tensor field", "sphere in three dimensions"])
def test_mean_and_covariance_of_a_step(name: str) -> None:
    """Ito drift 1/2 m^-1 d_j (m g^ij) and covariance g^ij, per unit time."""
    M, d = cases(torch.float64)[name]
    z = points(d, torch.float64)[0]
    volume = lambda x: M.metric(x).det().sqrt()  # noqa: E731
    slope = torch.autograd.functional.jacobian(lambda x: volume(x) * M.metric(x).inverse(), z)  # (d, d, d)
    drift = (torch.einsum("ijj->i", slope) / (2 * volume(z))).detach()
    inverse = M.metric(z).inverse().detach()
    starts = z.expand(5000, d)
    bent, straight = (
        brownian_motion(M, starts, 1, 1e-4, drift=on, generator=rng()).points[:, 1] - starts for on in (True, False)
    )
    assert float(drift.norm()) > 0.05
    for i in range(d):  # the same noise in both: their difference is what the drift adds
        assert off_by((bent - straight)[:, i], 1e-4 * float(drift[i])) < 4
        assert all(off_by(1e4 * bent[:, i] * bent[:, j], float(inverse[i, j])) < 4 for j in range(d))


def test_flat_space_gives_gaussian_increments_exactly() -> None:
    z = points(3, torch.float64)
    walk = brownian_motion(Euclidean(), z, 5, 0.25, generator=rng())
    generator = rng()
    for i in range(5):
        z = z + 0.5 * torch.randn(z.shape, dtype=z.dtype, generator=generator)
        assert torch.equal(walk.points[:, i + 1], z)
    assert walk.bend.max() == 0


def test_the_law_does_not_depend_on_the_chart() -> None:
    """A step bends with the metric: on a flat cone unrolled by exp, the walk is that of the plane."""
    M = Pullback(lambda z: torch.stack([z[:, 0].exp() * z[:, 1].cos(), z[:, 0].exp() * z[:, 1].sin()], 1))
    start = torch.zeros(5000, 2, dtype=torch.float64)
    ends = brownian_motion(M, start, 20, 0.0025, generator=rng()).points[:, -1]
    plane = ends[:, :1].exp() * torch.stack([ends[:, 1].cos(), ends[:, 1].sin()], -1)
    for x, mean in ((plane[:, 0], 1.0), (plane[:, 1], 0.0)):
        assert kstest(x.numpy(), "norm", (mean, math.sqrt(0.05))).pvalue > FOUR_SIGMA


# -- shapes and determinism -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", NAMES)
def test_walks_on_every_geometry(name: str, dtype: torch.dtype) -> None:
    M, d = cases(dtype)[name]
    z = points(d, dtype).reshape(2, 2, d).requires_grad_()
    walk = brownian_motion(M, z, 3, 1e-3, generator=rng())
    assert walk.points.shape == (2, 2, 4, d)
    assert walk.points.dtype == dtype
    assert not walk.points.requires_grad
    assert torch.equal(walk.points[..., 0, :], z)
    assert walk.points.isfinite().all()
    assert walk.completed.all()
    assert walk.why == [["", ""], ["", ""]]
    assert (walk.steps == 3).all()
    assert float(walk.bend.max()) < 0.5
    again = brownian_motion(M, z, 3, 1e-3, generator=rng())
    assert torch.equal(walk.points, again.points)


def test_single_and_no_walkers() -> None:
    assert brownian_motion(Sphere(2), torch.zeros(2), 3, 0.1).points.shape == (4, 2)
    assert brownian_motion(Sphere(2), torch.zeros(2), 3, 0.1).why == ""
    assert brownian_motion(Sphere(2), torch.zeros(1, 2), 3, 0.1).points.shape == (1, 4, 2)
    assert brownian_motion(Pullback(torus), torch.zeros(0, 2), 3, 0.1).points.shape == (0, 4, 2)
    assert heat_kernel_samples(Sphere(2), torch.zeros(3, 2), 0.1, 5, steps=4).shape == (3, 5, 2)
    assert repr(brownian_motion(Sphere(2), torch.zeros(5, 2), 3, 0.1)) == "Walk(5 walkers, 3 steps, 5 completed)"


def test_bend_says_whether_the_step_resolves_the_metric() -> None:
    bend = [
        float(brownian_motion(Sphere(2), torch.ones(200, 2), 1, dt, generator=rng()).bend.max()) for dt in (1, 1e-4)
    ]
    assert bend[0] > 1
    assert bend[1] == pytest.approx(bend[0] / 100, rel=1e-3)


# -- boundaries -------------------------------------------------------------------------------------------------------


def disc(z: Tensor) -> Tensor:
    return z.norm(dim=-1) < 1


def test_a_walk_that_leaves_the_domain_is_stopped_and_counted() -> None:
    z = torch.zeros(300, 2, dtype=torch.float64)
    free = brownian_motion(Euclidean(), z, 60, 0.01, generator=rng())
    walk = brownian_motion(Euclidean(), z, 60, 0.01, domain=disc, generator=rng())
    inside = free.points.norm(dim=-1) < 1  # (300, 61)
    assert disc(walk.points).all()
    assert torch.equal(walk.completed, inside.all(1))
    assert 50 < int(walk.completed.sum()) < 250
    assert torch.equal(walk.steps, inside.long().cumprod(1).sum(1) - 1)
    for i, steps in enumerate(walk.steps.tolist()):
        assert torch.equal(walk.points[i, : steps + 1], free.points[i, : steps + 1])
        assert (walk.points[i, steps:] == free.points[i, steps]).all()
        stopped = f"step {steps + 1} leaves the domain: stopped at t = {0.01 * steps:.4g}"
        assert walk.why[i] == ("" if steps == 60 else stopped)


def test_a_reflected_walk_is_uniform_in_the_end() -> None:
    """In the disc, |z|^2 of a uniform point is uniform."""
    z = torch.zeros(3000, 2, dtype=torch.float64)
    walk = brownian_motion(Euclidean(), z, 400, 5e-3, domain=disc, reflect=True, generator=rng())
    assert disc(walk.points).all()
    assert walk.completed.all()
    assert (walk.steps < 400).any()
    assert kstest(walk.points[:, -1].square().sum(-1).numpy(), "uniform").pvalue > FOUR_SIGMA


@pytest.mark.parametrize(
    ("M", "start", "dt", "why"),
    [
        (Hyperbolic(2), [0.99999, 0.0], 0.25, "leaves the chart"),
        (Pullback(lambda z: z.relu()) + Pullback(lambda z: z[:, :1]), [0.0, 0.01], 0.1, "the metric is singular"),
        (Conformal(lambda z: torch.where(z[..., 0] > 0.1, torch.nan, 1.0)), [0.0, 0.0], 0.1, "the metric is singular"),
        (Conformal(lambda z: 1e-18 + 0 * z[..., 0]), [0.0, 0.0], 1e40, "no finite point"),
        (TensorField(lambda z: torch.diag_embed(1 - z.square())), [0.5, 0.5], 0.1, "the metric is singular"),
    ],
    ids=str,
)
def test_a_walk_that_comes_to_a_bad_point_is_stopped(M: Manifold, start: list[float], dt: float, why: str) -> None:
    z = torch.tensor([start] * 16)
    walk = brownian_motion(M, z, 5, dt, generator=rng())
    assert walk.points.isfinite().all()
    assert not walk.completed.all()
    assert any(why in reason for reason in walk.why)
    assert all(bool(reason) != bool(done) for reason, done in zip(walk.why, walk.completed.tolist(), strict=True))
    M.admit(walk.points)
    reflected = brownian_motion(M, z, 5, dt, reflect=True, generator=rng())
    assert reflected.points.isfinite().all()
    assert reflected.completed.all()
    assert (reflected.steps < 5).any()


def test_the_answer_of_a_walker_does_not_depend_on_the_fate_of_others() -> None:
    M = Pullback(torus)
    z = torch.zeros(20, 2, dtype=torch.float64)
    free = brownian_motion(M, z, 30, 0.02, generator=rng())
    walk = brownian_motion(M, z, 30, 0.02, domain=lambda x: x.norm(dim=-1) < 0.6, generator=rng())
    done = walk.completed
    assert 0 < int(done.sum()) < 20
    torch.testing.assert_close(walk.points[done], free.points[done], rtol=1e-12, atol=1e-12)


def test_stopped_samples_are_counted_in_a_warning() -> None:
    with pytest.warns(RuntimeWarning, match=r"\d+ of 100 walks were stopped before .*leaves the domain") as caught:
        ends = heat_kernel_samples(Euclidean(), torch.zeros(2), 1.0, 100, domain=disc, generator=rng())
    assert caught[0].filename == __file__
    assert ends.isfinite().all()
    assert disc(ends).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        heat_kernel_samples(Euclidean(), torch.zeros(2), 1.0, 100, domain=disc, reflect=True, generator=rng())


@pytest.mark.parametrize(
    ("z", "settings", "message"),
    [
        ([0.0, torch.nan], {}, r"z holds nan at index \(1,\)"),
        ([0.0, 0.0, 0.0], {}, "2 coordinates"),
        ([2.0, 0.0], {}, "Poincare ball"),
        ([0.0, 0.0], {"steps": 0}, "steps=0: it must be a whole number, and at least 1"),
        ([0.0, 0.0], {"steps": 2.5}, "steps=2.5: it must be a whole number"),
        ([0.0, 0.0], {"dt": 0.0}, "time 0.0; it must be positive"),
        ([0.0, 0.0], {"dt": math.nan}, "time nan; it must be positive"),
        ([0.5, 0.0], {"domain": lambda z: z[:, 0] < 0}, r"start 0 of 1, \[0.5, 0.0\], lies outside the domain"),
        ([0.5, 0.0], {"domain": lambda z: z < 0}, r"domain returned torch.bool \(1, 2\) for 1 points"),
        ([0.5, 0.0], {"domain": lambda z: True}, "domain returned bool for 1 points"),
    ],
)
def test_misuse_is_refused(z: list[float], settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        brownian_motion(Hyperbolic(2), torch.tensor(z), **{"steps": 3, "dt": 0.1, **settings})


def test_a_start_with_a_singular_metric_is_refused() -> None:
    M = Pullback(lambda z: z[:, :1])
    with pytest.raises(ValueError, match=r"start 1 of 2, .*singular metric: .*ridge, e.g. M \+ 1e-3"):
        brownian_motion(TensorField(lambda z: torch.diag_embed(1 - z)), torch.tensor([[0.0, 0.0], [2.0, 0.0]]), 3, 0.1)
    with pytest.raises(ValueError, match="singular"):
        manifold_samples(M, torch.randn(20, 2, generator=rng()), 4, t=0.1)
    with pytest.raises(ValueError, match="all 20 codes coincide"):
        manifold_samples(Euclidean(), torch.zeros(20, 2), 4, t=0.1)
    assert brownian_motion(M + Euclidean(), torch.zeros(2), 3, 0.1).completed
    for n in (0, 2.5, True):
        with pytest.raises(ValueError, match=f"n={n}: it must be a whole number, and at least 1"):
            heat_kernel_samples(Euclidean(), torch.zeros(2), 0.1, n)  # type: ignore[arg-type]


# -- where the data are -----------------------------------------------------------------------------------------------


def ring(n: int = 400) -> Tensor:
    angle = 2 * math.pi * torch.arange(n) / n
    return torch.stack([angle.cos(), angle.sin()], -1)


def test_support_is_where_the_codes_are() -> None:
    codes = torch.randn(500, 2, generator=rng())
    support = DataSupport(codes)
    distance = torch.cdist(codes.double(), codes.double(), compute_mode="donot_use_mm_for_euclid_dist")
    nearest = distance.fill_diagonal_(math.inf).amin(1)
    assert support.radius == pytest.approx(float(nearest.quantile(0.99)), rel=1e-6)
    assert support(codes).all()
    z = 4 * torch.rand(10, 50, 2, generator=rng()) - 2
    assert torch.equal(support(z), torch.cdist(z, codes).amin(-1) <= support.radius)
    assert repr(support) == f"DataSupport(500 codes, radius {support.radius:.3g})"


def test_samples_stay_with_the_data_and_are_new() -> None:
    codes = ring()
    for M in (Euclidean(), Sphere(2), oddity.expected_metric(decoder())):
        z = manifold_samples(M, codes, 200, generator=rng())
        assert z.shape == (200, 2)
        assert DataSupport(codes)(z).all()
        assert (torch.cdist(z, codes).amin(1) > 1e-5).all()
        assert torch.equal(z, manifold_samples(M, codes, 200, generator=rng()))


def test_samples_of_a_long_walk_forget_the_codes() -> None:
    """Codes on one side only; by and by the walks fill their domain evenly."""
    codes = torch.cat([torch.rand(200, 2, generator=rng()), torch.tensor([[3.0, 0.5]])])
    square = lambda z: ((z > 0) & (z < torch.tensor([4.0, 1.0]))).all(-1)  # noqa: E731
    z = manifold_samples(Euclidean(), codes, 1000, t=20.0, steps=1000, domain=square, generator=rng())
    assert kstest(z[:, 0].numpy() / 4, "uniform").pvalue > FOUR_SIGMA


def test_default_time_is_a_neighbourhood() -> None:
    """On a line of codes the tenth nearest is five gaps away; twice the length takes four times as long."""
    codes = torch.linspace(0, 1, 201)[:, None].double()
    everywhere = lambda z: torch.ones(len(z), dtype=torch.bool)  # noqa: E731
    for scale in (1.0, 2.0):
        z = manifold_samples(scale**2 * Euclidean(), codes, 4000, domain=everywhere, generator=rng())
        start = manifold_samples(Euclidean(), codes, 4000, t=1e-30, domain=everywhere, generator=rng())
        assert float((z - start).square().mean().sqrt()) == pytest.approx(0.025, rel=0.05)


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (torch.zeros(50, 2), "tenth nearest at the distance 0.0: remove duplicates, or give t"),
        (torch.arange(4.0)[:, None].repeat(20, 2), "tenth nearest at the distance 0.0"),
        (torch.zeros(1, 2), r"codes have shape \(1, 2\)"),
        (torch.zeros(2), r"codes have shape \(2,\)"),
        (torch.full((3, 2), torch.inf), "codes holds inf"),
    ],
)
def test_codes_that_cannot_be_sampled_from(codes: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        manifold_samples(Euclidean(2), codes, 3)


def test_codes_that_come_twice_have_the_same_support() -> None:
    once, twice = DataSupport(ring()), DataSupport(ring().repeat(2, 1))
    assert twice.radius == once.radius
    z = manifold_samples(Euclidean(2), ring().repeat(2, 1), 20, t=0.01, generator=rng())
    assert bool(once(z).all())


def test_edges_without_a_length_do_not_count_in_the_default_time() -> None:
    codes = torch.linspace(0, 1, 201)[:, None].double()
    known = neighbour_time(Euclidean(), codes)
    pole = Conformal(lambda z: torch.where(z[..., 0] > 0.95, torch.nan, 1.0))
    assert neighbour_time(pole, codes) == pytest.approx(known)
    with pytest.raises(ValueError, match="no way from a code to its tenth nearest has a finite length"):
        neighbour_time(Conformal(lambda z: torch.nan * z[..., 0]), codes)


def test_support_refuses_misuse() -> None:
    with pytest.raises(ValueError, match="quantile is 0"):
        DataSupport(ring(), 0)
    with pytest.raises(ValueError, match="finite codes"):
        DataSupport(torch.zeros(1, 2))
    with pytest.raises(ValueError, match="coincide"):
        DataSupport(torch.zeros(9, 2))
