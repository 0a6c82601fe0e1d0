"""Means and principal components against closed forms, finite differences and scikit-learn; failures counted."""

import itertools
import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import Tensor

from oddity import ChainSolver, Conformal, Euclidean, Hyperbolic, Manifold, Pullback, Roadmap, Sphere
from oddity.statistics.legs import legs_along
from oddity.statistics.means import Descent, frechet_mean
from oddity.statistics.tangent import TangentPCA

from ..geometry.cases import NAMES, cases, embedded_sphere, points


def cliff(z: Tensor) -> Tensor:
    return torch.cat([z, torch.where(z[:, :1] > 5, torch.nan, 1.0) * z[:, 1:].sin()], 1)


HASTY = ChainSolver(segments=4, max_segments=4, resolution=1e-9)  # nothing is resolved


def cloud(n: int = 12, d: int = 2, scale: float = 0.4, seed: int = 0) -> Tensor:
    return scale * torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# -- against what is known --------------------------------------------------------------------------------------------


def test_in_flat_space_it_is_the_weighted_mean() -> None:
    z = cloud(24, 3).reshape(2, 1, 12, 3)
    w = torch.rand(4, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    mean = frechet_mean(Euclidean(), z, w)
    share = w / w.sum(-1, keepdim=True)
    expected = (share[..., None] * z).sum(-2)
    assert mean.point.shape == (2, 4, 3)
    torch.testing.assert_close(mean.point, expected)
    torch.testing.assert_close(mean.variance, (share * (z - expected[..., None, :]).square().sum(-1)).sum(-1))
    torch.testing.assert_close(mean.log, z - expected[..., None, :])
    assert mean.converged.all()
    assert mean.why == [[""] * 4] * 2
    assert repr(mean) == "FrechetMean(8 means, 8 converged)"


@pytest.mark.parametrize("M", [Sphere(2), Hyperbolic(2), Sphere(3)], ids=str)
def test_points_that_balance_have_the_mean_between_them(M: Manifold) -> None:
    centre, v = 0.3 * torch.ones(M.dim, dtype=torch.float64), cloud(3, M.dim)
    z = torch.cat([M.exp(centre, s * v) for s in (-1.0, 1.0, 0.5)])
    weights = torch.tensor([1.0, 0.5, 1.0], dtype=torch.float64).repeat_interleave(3)
    mean = frechet_mean(M, z, weights)
    torch.testing.assert_close(mean.point, centre, atol=1e-7, rtol=0)
    variance = (weights * M.dist(centre, z).square()).sum() / weights.sum()
    torch.testing.assert_close(mean.variance, variance)


def test_numerical_geodesics_agree_with_the_formula() -> None:
    z, weights = cloud(), torch.linspace(0.2, 1, 12, dtype=torch.float64)
    exact, found = (frechet_mean(M, z, weights) for M in (Sphere(2), Pullback(embedded_sphere)))
    torch.testing.assert_close(found.point, exact.point, atol=1e-6, rtol=0)
    torch.testing.assert_close(found.variance, exact.variance, atol=1e-6, rtol=0)
    torch.testing.assert_close(found.log, exact.log, atol=1e-5, rtol=0)


def test_the_error_falls_with_the_fourth_power_of_the_grid() -> None:
    M, z = Pullback(embedded_sphere), cloud(scale=0.6)
    exact = frechet_mean(Sphere(2), z, tolerance=1e-15).point
    solvers = [ChainSolver(segments=n, max_segments=n, resolution=1.0) for n in (8, 16)]
    coarse, fine = (
        torch.linalg.vector_norm(frechet_mean(M, z, solver=s, tolerance=1e-15).point - exact) for s in solvers
    )
    assert 8 < coarse / fine < 32


# -- laws -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_the_logarithms_sum_to_zero(name: str) -> None:
    M, d = cases(torch.float64)[name]
    z, weights = points(d, torch.float64), torch.tensor([1.0, 2.0, 0.5, 1.5], dtype=torch.float64)
    mean = frechet_mean(M, z, weights).require()
    logs = M.log(mean.point, z)
    assert M.norm(mean.point, (weights[:, None] * logs).sum(0) / weights.sum()) < 1e-3 * mean.variance.sqrt()
    torch.testing.assert_close(mean.log, logs, atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(
        mean.variance, (weights * M.norm(mean.point, logs).square()).sum() / 5, rtol=1e-3, atol=0
    )


@pytest.mark.parametrize("M", [Sphere(2), pytest.param(Pullback(embedded_sphere), marks=pytest.mark.slow)], ids=str)
def test_each_set_of_a_batch_has_its_own_mean(M: Manifold) -> None:
    z = torch.stack([cloud(5), cloud(5, scale=0.1, seed=1) + 0.4, torch.ones(5, 2).double()])
    mean = frechet_mean(M, z)
    for i in range(3):
        alone = frechet_mean(M, z[i])
        torch.testing.assert_close(mean.point[i], alone.point, atol=1e-9, rtol=0)
        torch.testing.assert_close(mean.variance[i], alone.variance, atol=1e-9, rtol=0)
        assert mean.iterations[i] == alone.iterations


def test_a_weight_is_a_number_of_points_and_none_is_absence() -> None:
    z = cloud(4)
    mean = frechet_mean(Sphere(2), z, torch.tensor([2.0, 1.0, 0.0, 3.0]).double())
    repeated = frechet_mean(Sphere(2), z[[0, 0, 1, 3, 3, 3]])
    torch.testing.assert_close(mean.point, repeated.point)
    torch.testing.assert_close(mean.variance, repeated.variance)
    assert (mean.log[2] == 0).all()


def test_an_isometry_carries_the_mean_along() -> None:
    c, s = math.cos(0.7), math.sin(0.7)
    turn, z = torch.tensor([[c, -s], [s, c]]).double(), cloud()
    for M in (Hyperbolic(2), 2.0 * Sphere(2)):
        z = 0.5 * z
        torch.testing.assert_close(frechet_mean(M, z @ turn).point, frechet_mean(M, z).point @ turn, atol=1e-6, rtol=0)


def test_the_variance_never_rises_on_the_way() -> None:
    M, b = cases(torch.float64)["expected metric"][0], cloud(6, scale=2.0)
    mu = torch.tensor([[2.0, 2.0]]).double()
    g = M.geodesic(mu, b)
    legs = legs_along(M, b, g.points, g.length)
    owner, shares = torch.zeros(6, dtype=torch.long), torch.full((6,), 1 / 6).double()
    descent = Descent(M, legs, mu, owner, shares, 1e-10)
    values = [float(descent.total.value)]
    for tries in range(1, 30):
        descent.run(tries)
        values.append(float(descent.total.value))
    assert descent.stationary
    assert all(after <= before * (1 + 1e-10) for before, after in itertools.pairwise(values))
    assert values[-1] < 0.9 * values[0]


def test_the_dtype_is_kept_and_the_input_untouched() -> None:
    z = cloud().float().requires_grad_()
    before = z.detach().clone()
    mean = frechet_mean(Pullback(embedded_sphere), z)
    assert {x.dtype for x in (mean.point, mean.variance, mean.log)} == {torch.float32}
    assert torch.equal(z, before)
    assert mean.point.requires_grad
    assert not mean.log.requires_grad
    with torch.no_grad():
        assert not frechet_mean(Sphere(2), z).point.requires_grad
    torch.testing.assert_close(mean.point, frechet_mean(Sphere(2), z).point, atol=1e-3, rtol=0)


# -- derivatives ------------------------------------------------------------------------------------------------------


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("tensor field", "into curved space")]


@pytest.mark.parametrize("name", ["euclidean", "sphere", "hyperbolic", "expected metric", *SLOW])
def test_the_gradient_is_that_of_finite_differences(name: str) -> None:
    M, d = cases(torch.float64)[name]
    z, w = points(d, torch.float64).requires_grad_(), torch.tensor([1.0, 2.0, 0.0, 1.5]).double().requires_grad_()
    u = torch.arange(1.0, d + 1).double()

    def both(z: Tensor, w: Tensor) -> Tensor:
        mean = frechet_mean(M, z, w)
        return torch.stack([mean.point @ u, mean.variance])

    dz, dw, h = cloud(4, d, 1.0, seed=5), torch.tensor([0.3, -1.0, 0.7, 0.5]).double(), 1e-4
    value = both(z, w)
    with torch.no_grad():
        by_z = (both(z + h * dz, w) - both(z - h * dz, w)) / (2 * h)
        by_w = (-3 * both(z, w) + 4 * both(z, w + h * dw.abs()) - both(z, w + 2 * h * dw.abs())) / (2 * h)
    for k in (0, 1):
        grad_z, grad_w = torch.autograd.grad(value[k], (z, w), retain_graph=True)
        torch.testing.assert_close((grad_z * dz).sum(), by_z[k], rtol=1e-3, atol=1e-6)
        torch.testing.assert_close((grad_w * dw.abs()).sum(), by_w[k], rtol=1e-3, atol=1e-6)


def test_points_in_the_place_of_the_mean_have_a_derivative() -> None:
    z = torch.zeros(3, 2, dtype=torch.float64, requires_grad=True)
    for M in (Sphere(2), Pullback(embedded_sphere)):
        mean = frechet_mean(M, z)
        (grad,) = torch.autograd.grad(mean.point[0], z)
        torch.testing.assert_close(grad, torch.tensor([[1 / 3, 0.0]] * 3).double(), atol=1e-6, rtol=0)


# -- hard cases and failures ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("M", [Sphere(2), Pullback(embedded_sphere)], ids=str)
def test_one_point_and_equal_points_are_their_own_mean(M: Manifold) -> None:
    for n in (1, 3):
        mean = frechet_mean(M, torch.full((n, 2), 0.3))
        assert mean.converged
        assert mean.variance == 0
        assert mean.point.tolist() == torch.full((2,), 0.3).tolist()


@pytest.mark.slow
def test_steps_stay_in_the_chart() -> None:
    z = torch.tensor([[0.95, 0.0], [0.0, 0.97], [-0.9, 0.1], [0.94, 0.2]]).double()
    start = torch.tensor([0.0, -0.9]).double()
    exact, found = (frechet_mean(M, z, start=start).require() for M in (Hyperbolic(2), 4.0 * Hyperbolic(2)))
    torch.testing.assert_close(found.point, exact.point, atol=3e-3, rtol=0)
    torch.testing.assert_close(found.variance, 4 * exact.variance, rtol=1e-2, atol=0)


def test_the_roadmap_finds_the_way_around_a_hill() -> None:
    hill = Conformal(lambda z: 1 + 30 * torch.exp(-8 * z.square().sum(-1)))
    angle = torch.linspace(0, math.tau, 61)[:-1].double()
    ring = torch.stack([angle.cos(), angle.sin()], -1)
    z, start = ring[[0, 5, 25, 30]] + 0.01, ring[15]
    over, around = (frechet_mean(hill, z, start=start, init=i) for i in (None, Roadmap(hill, ring, k=4)))
    assert around.converged
    assert around.variance < over.variance + 1e-9
    assert torch.linalg.vector_norm(around.point) > 0.7


def test_a_point_without_a_geodesic_is_weighted_out_and_counted() -> None:
    z = torch.tensor([[1.0, 0.0], [0.8, 0.1], [1.1, -0.1], [-1.0, 0.0]]).double()
    stay = torch.tensor([1.0, 0.0]).double()
    with pytest.warns(RuntimeWarning, match="1 of 2 geodesics did not converge: their points do not count"):
        mean = frechet_mean(Sphere(2), z[[0, 3]], start=stay)  # antipodal
    assert not mean.converged  # it is the mean of the first alone
    assert mean.why == "geodesics to points with 0.5 of the weight failed: they do not count"
    assert mean.failed.tolist() == [False, True]
    torch.testing.assert_close(mean.point, stay)
    with pytest.warns(RuntimeWarning, match="1 of 4 geodesics"):
        mean = frechet_mean(Pullback(cliff), torch.cat([z[:3], torch.tensor([[9.0, 0.0]])]), start=z[0])
    torch.testing.assert_close(mean.point, frechet_mean(Pullback(cliff), z[:3]).point)
    assert mean.failed.tolist() == [False, False, False, True]
    assert mean.log.isfinite().all()


def test_a_set_without_any_geodesic_says_so_and_does_not_spoil_the_batch() -> None:
    z = torch.stack([cloud(3), torch.zeros(3, 2)])
    with pytest.warns(RuntimeWarning, match="2 of 6 geodesics"):  # the first point is the start itself
        mean = frechet_mean(Pullback(embedded_sphere), z, torch.tensor([1.0, 1.0, 1.0]).double(), solver=HASTY)
    assert mean.converged.tolist() == [False, True]
    with pytest.warns(RuntimeWarning, match="3 of 6 geodesics"):
        mean = frechet_mean(Pullback(embedded_sphere), z, start=torch.zeros(2).double(), solver=HASTY)
    assert mean.converged.tolist() == [False, True]
    assert mean.why == ["no geodesic from the mean converged", ""]
    assert mean.variance.tolist() == [math.inf, 0.0]
    assert mean.point.isfinite().all()
    with pytest.raises(RuntimeError, match="1 of 2 means did not converge; the first: no geodesic"):
        mean.require()


def test_no_sets_have_no_means() -> None:
    for M in (Sphere(2), Pullback(embedded_sphere)):
        mean = frechet_mean(M, torch.zeros(0, 3, 2))
        assert mean.point.shape == (0, 2)
        assert mean.variance.shape == mean.converged.shape == (0,)
        assert mean.require() is mean


def test_what_counts_for_nothing_but_a_derivative_cannot_stand_for_the_rest() -> None:
    z, weights = torch.tensor([[0.3, 0.0], [0.0, 0.3]]).double(), torch.tensor([0.0, 1.0]).double().requires_grad_()
    with pytest.warns(RuntimeWarning, match="1 of 1 geodesics"):
        mean = frechet_mean(Pullback(embedded_sphere), z, weights, start=z[0], solver=HASTY)
    assert not mean.converged
    assert mean.variance == math.inf
    assert torch.equal(mean.point, z[0])


def test_a_saddle_is_no_mean() -> None:
    far = math.tan(1.0)  # two radians from the pole, on both sides
    mean = frechet_mean(Sphere(2), torch.tensor([[far, 0.0], [-far, 0.0]]).double(), start=torch.zeros(2).double())
    assert not mean.converged
    assert "no minimum" in mean.why


def test_a_search_that_is_cut_short_says_so() -> None:
    mean = frechet_mean(Hyperbolic(2), cloud(scale=0.3), max_iterations=1)
    assert not mean.converged
    assert mean.iterations == 1
    assert "still moving after 1 steps" in mean.why
    with pytest.raises(RuntimeError, match="1 of 1 means did not converge; the first: still moving"):
        mean.require()


def test_a_singular_metric_is_reported() -> None:
    ribbon = Pullback(lambda z: z[:, :1].sin())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        mean = frechet_mean(ribbon, cloud(4))
    assert not mean.converged
    assert mean.why
    assert mean.point.isfinite().all()


@pytest.mark.parametrize(
    ("z", "kw", "message"),
    [
        (torch.tensor([[0.0, torch.nan]]), {}, r"z holds nan at index \(0, 1\)"),
        (torch.zeros(2), {}, r"z has shape \(2,\); a mean needs points in rows"),
        (torch.zeros(3, 0, 2), {}, "with n >= 1"),
        (torch.zeros(3, 2), {"weights": [1.0, 1.0, 1.0]}, "weights are list; bring them together"),
        (torch.zeros(3, 2), {"weights": torch.ones(3).double()}, "weights are torch.float64 on cpu"),
        (torch.zeros(3, 2), {"weights": torch.ones(2)}, r"weights have shape \(2,\), but a set has 3 points"),
        (torch.zeros(2, 3, 2), {"weights": torch.ones(5, 3)}, "do not broadcast"),
        (
            torch.zeros(3, 2),
            {"weights": torch.tensor([1.0, -1.0, 0.0])},
            "weights hold -1; they are finite and not neg",
        ),
        (torch.zeros(3, 2), {"weights": torch.tensor([1.0, torch.inf, 0.0])}, "weights hold inf"),
        (torch.zeros(3, 2), {"weights": torch.zeros(3)}, "all weights of a set are zero"),
        (torch.zeros(3, 2), {"start": torch.zeros(3)}, "start has shape"),
        (torch.zeros(3, 2), {"start": torch.zeros(4, 2)}, r"start has shape \(4, 2\), but the means have \(2,\)"),
        (torch.zeros(3, 2), {"start": torch.zeros(2).double()}, "start is torch.float64"),
        (torch.zeros(3, 2), {"init": torch.zeros(2)}, "init is a Tensor; give None or a Roadmap"),
        (torch.zeros(3, 2), {"tolerance": 0.0}, "must be positive"),
        (torch.zeros(3, 2), {"max_iterations": 0}, "must be positive"),
    ],
)
def test_misuse_is_one_clear_sentence(z: Tensor, kw: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        frechet_mean(Sphere(2), z, **kw)


# -- principal components ---------------------------------------------------------------------------------------------


@parametrize_with_checks([TangentPCA(Euclidean())])
def test_scikit_learn_checks(estimator: TangentPCA, check: Any) -> None:
    check(estimator)


def test_in_flat_space_they_are_the_usual_ones() -> None:
    X = cloud(30, 4).numpy() @ np.diag([1.0, 2.0, 3.0, 4.0])
    ours, theirs = TangentPCA(Euclidean(), 3).fit(X), PCA(3).fit(X)
    for name in ("mean_", "components_", "explained_variance_", "explained_variance_ratio_"):
        np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), atol=1e-9)
    np.testing.assert_allclose(ours.transform(X), theirs.transform(X), atol=1e-9)
    np.testing.assert_allclose(
        ours.inverse_transform(theirs.transform(X)), theirs.inverse_transform(theirs.transform(X)), atol=1e-9
    )
    assert ours.get_feature_names_out().tolist() == ["tangentpca0", "tangentpca1", "tangentpca2"]


@pytest.mark.parametrize(
    "M",
    [Hyperbolic(2), pytest.param(cases(torch.float64)["expected metric"][0], marks=pytest.mark.slow)],
    ids=["formula", "decoder"],
)
def test_components_are_orthonormal_and_coordinates_lead_back(M: Manifold) -> None:
    z = cloud(8, scale=0.25)
    pca = TangentPCA(M).fit(z)
    mean, components = torch.from_numpy(pca.mean_), torch.from_numpy(pca.components_)
    torch.testing.assert_close(components @ M.metric(mean) @ components.T, torch.eye(2).double())
    coordinates = pca.transform(z)
    np.testing.assert_allclose(np.linalg.norm(coordinates, axis=1), M.dist(mean, z).detach(), rtol=1e-4)
    np.testing.assert_allclose(pca.inverse_transform(coordinates), z, atol=1e-4)
    np.testing.assert_allclose(coordinates.T @ coordinates / 7, np.diag(pca.explained_variance_), atol=1e-4)
    one = TangentPCA(M, 1).fit(z)
    assert one.explained_variance_ratio_[0] == pytest.approx(pca.explained_variance_ratio_[0])
    assert one.inverse_transform(one.transform(z)).shape == (8, 2)


def test_equal_codes_have_no_variance() -> None:
    pca = TangentPCA(Sphere(2)).fit(np.ones((4, 2)))
    assert pca.explained_variance_.tolist() == pca.explained_variance_ratio_.tolist() == [0.0, 0.0]


def test_what_fails_in_the_components_is_counted_or_refused() -> None:
    z = cloud(6).float()
    with (
        pytest.warns(RuntimeWarning, match="5 of 6 geodesics did not converge: their points do not count"),
        pytest.warns(
            ConvergenceWarning, match="the mean did not converge: geodesics to points with 0.833 of the weight"
        ),
    ):
        pca = TangentPCA(Pullback(embedded_sphere), solver=HASTY).fit(z)
    with pytest.warns(RuntimeWarning, match="of 6 geodesics did not converge: the best curve found stands"):
        found = pca.transform(z)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), Sphere(2).dist(torch.from_numpy(pca.mean_), z), rtol=0.05)
    pca = TangentPCA(Sphere(2)).fit([[1.0, 0.0], [1.0, 0.0]])
    with pytest.raises(RuntimeError, match="1 of 2 points have no tangent vector; the first: the ends are antipodal"):
        pca.transform([[1.0, 0.0], [-1.0, 0.0]])
    pca = TangentPCA(Pullback(cliff), 1).fit([[4.0, 0.0], [4.5, 0.0]])
    with pytest.raises(RuntimeError, match="1 of 3 tangent vectors lead to no point; the first: the acceleration"):
        pca.inverse_transform([[0.1], [3.0], [-3.0]])


def test_a_mean_that_does_not_converge_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "oddity.statistics.tangent.frechet_mean", lambda *args, **kw: frechet_mean(*args, **kw, max_iterations=1)
    )
    with pytest.warns(ConvergenceWarning, match="the mean did not converge: still moving"):
        TangentPCA(Hyperbolic(2)).fit(cloud(scale=0.3))


@pytest.mark.parametrize(
    ("X", "kw", "message"),
    [
        (np.ones((1, 2)), {}, "minimum of 2 is required"),
        (np.full((3, 2), np.nan), {}, "contains NaN"),
        (np.ones((3, 2)), {"n_components": 3}, "n_components is 3; 3 codes in 2 dimensions allow 1 to 2"),
        (np.ones((3, 3)), {}, r"X has shape \(3, 3\), but points of Sphere\(2\) have 2 coordinates"),
        (np.ones((3, 2)), {"M": None}, "M is a NoneType; give a Manifold"),
        (np.ones((3, 2)), {"M": Pullback(lambda z: z[:, :1])}, "the metric at the mean is singular; add a ridge"),
    ],
)
@pytest.mark.filterwarnings("ignore:the mean did not converge")
def test_the_components_refuse_misuse(X: Any, kw: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TangentPCA(**{"M": Sphere(2), **kw}).fit(X)
