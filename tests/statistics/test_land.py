"""LAND: flat space, quadrature of the density, closed-form normalisers, maximum likelihood, draws, and failures."""

import copy
import math
import pickle
import warnings
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import logsumexp
from scipy.stats import multivariate_normal
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.mixture import GaussianMixture
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import Tensor

import oddity
from oddity import LAND, Conformal, Euclidean, Hyperbolic, Pullback, Sphere
from oddity.statistics import land

from ..geometry.cases import decoder, embedded_sphere


def normal(n: int, d: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def two_clusters() -> np.ndarray:
    first, second = normal(150).numpy(), normal(100, seed=1).numpy()
    return np.concatenate([first @ np.array([[1.0, 0.5], [0.0, 0.4]]), 0.5 * second + [2.5, 1.5]])


def on_sphere(n: int = 80, sd: tuple[float, float] = (0.8, 0.3), mean: tuple[float, float] = (0.6, 0.2)) -> Tensor:
    mu = torch.tensor(mean, dtype=torch.float64)
    orthonormal = normal(n) * torch.tensor(sd, dtype=torch.float64)
    return Sphere(2).exp(mu, orthonormal * (1 + mu.square().sum()) / 2)


def sphere_grid(n: int = 80) -> tuple[Tensor, Tensor, float]:
    """Points of the sphere in the chart and in space, and the area of each: midpoints of latitude and longitude."""
    height, angle = (torch.arange(n) + 0.5).double() / n * 2 - 1, (torch.arange(2 * n) + 0.5).double() / n * math.pi
    h, a = (x.flatten() for x in torch.meshgrid(height, angle, indexing="ij"))
    r = (1 - h**2).sqrt()
    space = torch.stack([r * a.cos(), r * a.sin(), h], 1)
    return space[:, :2] / (1 - space[:, 2:]), space, 4 * math.pi / len(h)


def square_grid(n: int, half: float) -> tuple[Tensor, float]:
    side = ((torch.arange(n) + 0.5) / n * 2 - 1).double() * half
    return torch.stack(torch.meshgrid(side, side, indexing="ij"), -1).reshape(-1, 2), (2 * half / n) ** 2


# -- flat space: the normal mixture of scikit-learn -------------------------------------------------------------------


# without an exception: one of them is skipped where SCIPY_ARRAY_API is not set
@parametrize_with_checks([LAND(Euclidean(), n_samples=32, max_iter=5)])
def test_scikit_learn_checks(estimator: Any, check: Any) -> None:
    check(estimator)


def test_in_flat_space_it_is_the_gaussian_mixture() -> None:
    X = two_clusters()
    flat = GaussianMixture(2, tol=1e-14, max_iter=5000, random_state=0).fit(X)
    mixture = LAND(Euclidean(2), 2, tol=1e-13, n_samples=32, random_state=0).fit(X)
    assert mixture.converged_
    order = mixture.means_[:, 0].argsort(), flat.means_[:, 0].argsort()
    for name in ("weights_", "means_", "covariances_"):
        found, expected = (getattr(model, name)[i] for model, i in zip((mixture, flat), order, strict=True))
        np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(mixture.score_samples(X), flat.score_samples(X), atol=1e-6)
    np.testing.assert_allclose(mixture.log_density(X), flat.score_samples(X), atol=1e-6)
    np.testing.assert_allclose(mixture.predict_proba(X)[:, order[0]], flat.predict_proba(X)[:, order[1]], atol=1e-6)
    assert mixture.bic(X) == pytest.approx(flat.bic(X), abs=1e-6)
    assert mixture.score(X) == pytest.approx(flat.score(X), abs=1e-9)
    assert mixture.lower_bound_ == pytest.approx(mixture.score(X), abs=1e-12)
    np.testing.assert_allclose(mixture.normalizers_, 2 * np.pi * np.linalg.det(mixture.covariances_) ** 0.5, rtol=1e-12)
    assert mixture.normalizer_errors_.max() < 1e-12
    assert mixture.cut_locus_.max() == 0


@pytest.mark.parametrize("d", [1, 3])
def test_one_component_in_flat_space_is_mean_and_covariance(d: int) -> None:
    X = (normal(60, d) @ normal(d, d, 5) + 3.0).numpy()
    one = LAND(3 * Euclidean(d), tol=1e-12, n_samples=32, reg_covar=0.0, random_state=0).fit(X)
    np.testing.assert_allclose(one.means_[0], X.mean(0), atol=1e-7)
    np.testing.assert_allclose(one.covariances_[0], np.cov(X.T, bias=True).reshape(d, d), atol=1e-7)
    expected = multivariate_normal(X.mean(0), np.cov(X.T, bias=True)).logpdf(X)
    np.testing.assert_allclose(one.score_samples(X), expected, atol=1e-6)
    np.testing.assert_allclose(one.log_density(X), expected - d / 2 * math.log(3), atol=1e-6)


# -- the density integrates to one ------------------------------------------------------------------------------------


@pytest.mark.parametrize("sd", [(0.3, 0.3), (1.2, 0.5), (2.0, 1.5)])
def test_on_the_sphere_the_density_integrates_to_one(sd: tuple[float, float]) -> None:
    """However wide: rays end where they meet, at the antipode."""
    grid, _, area = sphere_grid()
    model = LAND(Sphere(2), n_samples=64, random_state=0).fit(on_sphere(sd=sd))
    whole = float(np.exp(model.log_density(grid)).sum() * area)
    assert whole == pytest.approx(1, abs=0.005)
    assert model.normalizer_errors_[0] < 0.01 * model.normalizers_[0]


def test_on_a_decoder_the_density_integrates_to_one() -> None:
    """With respect to dz, which is dM times the magnification."""
    M = oddity.expected_metric(decoder().double().requires_grad_(False))
    model = LAND(M, random_state=0, n_samples=32).fit(0.5 * normal(60))
    grid, area = square_grid(20, 2.6)
    density = np.exp(model.score_samples(grid))
    assert density.sum() * area == pytest.approx(1, abs=0.005)
    ratio = model.log_density(grid) + M.log_volume(grid).numpy()
    np.testing.assert_allclose(np.log(density), ratio)


@pytest.mark.slow
def test_on_a_fitted_model_the_density_integrates_to_one() -> None:
    """A mixture of two on the codes of a VAE with walls of uncertainty; rays end at the cut locus behind them."""
    X, _ = oddity.datasets.load("digits", classes=[0, 1])
    vae = oddity.fit_vae(X, epochs=60, n_centres=8, seed=0)
    z, M = vae.encode(torch.as_tensor(X)), oddity.expected_metric(vae.decoder)
    model = LAND(M, 2, n_samples=128, random_state=0).fit(z[::5])
    assert (model.normalizer_errors_ / model.normalizers_).max() < 0.003
    half = 1.6 * (z.amax(0) - z.amin(0)) / 2
    square, area = square_grid(24, 1.0)
    grid = (z.amax(0) + z.amin(0)) / 2 + half * square.float()
    p = np.exp(model.log_density(grid)) * M.log_volume(grid).exp().numpy() * area * float(half.prod())  # dM
    edge = (square.abs() > 0.9).any(1).numpy()
    assert p.sum() == pytest.approx(1, abs=0.01)
    assert p[edge].sum() < 1e-3  # the grid holds all of it


def test_in_three_dimensions_by_monte_carlo() -> None:
    """The mean of the density over uniform points of S^3, within four standard errors."""
    points = torch.nn.functional.normalize(normal(4000, 4, 3), dim=1)
    X = 0.3 * normal(60, 3) * torch.tensor([1.0, 0.7, 0.4])
    model = LAND(Sphere(3), random_state=0, n_samples=32, tol=1e-2).fit(X)
    p = np.exp(model.log_density(points[:, :3] / (1 - points[:, 3:]))) * 2 * math.pi**2
    own = float(model.normalizer_errors_[0] / model.normalizers_[0])
    assert abs(p.mean() - 1) < 4 * math.hypot(p.std() / math.sqrt(len(p)), own)
    assert p.std() / math.sqrt(len(p)) < 0.06


# -- two conventions --------------------------------------------------------------------------------------------------


def radial(f, sd: float, upto: float) -> float:
    """Integral over the plane of exp(-r^2 / 2 sd^2) f(r)."""
    r = np.linspace(0, upto, 4001)
    return float(np.trapezoid(2 * np.pi * r * np.exp(-(r**2) / 2 / sd**2) * f(r), r))


def test_normalisers_of_both_measures_have_formulae_on_the_sphere() -> None:
    """Four points around the chart's origin: the mean is there, and the covariance isotropic.

    At chart length r the volume is 4 sin(2r) / 2r, and the magnification alone 4 cos(r)^4.
    """
    square = 0.4 * torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]], dtype=torch.float64)
    settings = {"tol": 1e-9, "n_samples": 32, "random_state": 0}
    model = LAND(Sphere(2), **settings).fit(square)
    np.testing.assert_allclose(model.means_, 0, atol=1e-6)
    sd = math.sqrt(model.covariances_[0, 0, 0])
    np.testing.assert_allclose(model.covariances_[0], sd**2 * np.eye(2), atol=1e-5)
    expected = radial(lambda r: 4 * np.sinc(2 * r / np.pi), sd, np.pi / 2)
    assert model.normalizers_[0] == pytest.approx(expected, rel=2e-4)

    authors = LAND(Sphere(2), measure="magnification", **settings).fit(square)
    sd = math.sqrt(authors.covariances_[0, 0, 0])
    assert authors.normalizers_[0] == pytest.approx(radial(lambda r: 4 * np.cos(r) ** 4, sd, 6 * sd), rel=2e-3)
    grid, _, area = sphere_grid()
    assert not 0.9 < np.exp(authors.log_density(grid)).sum() * area < 1.1  # not a density on the sphere


@pytest.mark.slow
def test_a_pull_back_gives_what_the_formula_gives() -> None:
    """The sphere as the image of a map, by numerical geodesics, and in single precision."""
    X = on_sphere(30, (0.4, 0.2), (0.2, 0.1))
    exact = LAND(Sphere(2), tol=1e-6, n_samples=32, random_state=0).fit(X)
    mapped = LAND(Pullback(embedded_sphere), tol=1e-6, n_samples=32, random_state=0).fit(X)
    single = LAND(Sphere(2), tol=1e-6, n_samples=32, random_state=0).fit(X.float().numpy())
    for model in (mapped, single):
        np.testing.assert_allclose(model.means_, exact.means_, atol=2e-3)
        np.testing.assert_allclose(model.covariances_, exact.covariances_, atol=1e-3)
        assert model.lower_bound_ == pytest.approx(exact.lower_bound_, abs=2e-3)
    assert single.means_.dtype == np.float32


# -- maximum likelihood -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_it_is_the_maximum_of_the_likelihood() -> None:
    """Against a direct search that knows nothing of the method, its normaliser by quadrature of the sphere."""
    M, X = Sphere(2), on_sphere(60, (1.0, 0.4))
    r, angle = torch.linspace(0, torch.pi, 201).double(), torch.linspace(0, 2 * torch.pi, 65)[:-1].double()
    u = r[:, None, None] * torch.stack([angle.cos(), angle.sin()], -1)  # orthonormal

    def loss(p: np.ndarray) -> float:
        mean, root = torch.tensor(p[:2]), torch.tensor([[math.exp(p[2]), 0.0], [p[3], math.exp(p[4])]]).double()
        scale = 2 / (1 + mean.square().sum())
        logs = scale * M.log(mean, X)

        def squares(w: Tensor) -> Tensor:
            return torch.linalg.solve_triangular(root, w.reshape(-1, 2).mT, upper=False).square().sum(0)

        f = (-0.5 * squares(u).reshape(u.shape[:2])).exp().mean(1) * r.sin() * 2 * torch.pi
        return float(0.5 * squares(logs).mean() + torch.trapezoid(f, r).log())

    bounds: list[float] = []
    model = LAND(M, tol=1e-6, n_samples=64, random_state=0, progress=lambda _, bound: bounds.append(bound)).fit(X)
    assert all(after >= before for before, after in pairwise(bounds))
    root = np.linalg.cholesky(model.covariances_[0]) * 2 / (1 + (model.means_[0] ** 2).sum())
    start = np.r_[model.means_[0], math.log(root[0, 0]), root[1, 0], math.log(root[1, 1])]
    best = minimize(loss, start, method="Nelder-Mead", options={"maxiter": 600, "xatol": 1e-6, "fatol": 1e-9})
    assert loss(start) - best.fun < 1e-4
    assert model.log_density(X).mean() == pytest.approx(-loss(start), abs=1e-3)


def test_mixture_of_two_on_the_hyperbolic_plane() -> None:
    first, second = (0.15 * normal(40, seed=s) + torch.tensor(c) for s, c in ((0, [0.5, 0.2]), (1, [-0.5, 0.1])))
    X = torch.cat([first, second])
    models = [LAND(Hyperbolic(2), k, n_samples=32, random_state=0).fit(X) for k in (1, 2)]
    labels = models[1].predict(X)
    assert len(set(labels[:40])) == len(set(labels[40:])) == 1
    assert labels[0] != labels[-1]
    np.testing.assert_allclose(models[1].weights_, 0.5, atol=0.02)
    assert models[1].bic(X) < models[0].bic(X)
    np.testing.assert_allclose(models[1].predict_proba(X).sum(1), 1)


@pytest.mark.slow
def test_components_that_cannot_matter_are_left_out_without_consequence(monkeypatch: pytest.MonkeyPatch) -> None:
    M = oddity.expected_metric(decoder().double().requires_grad_(False))
    X = torch.cat([0.15 * normal(20) + 0.6, 0.15 * normal(20, seed=1) - 0.6])
    settings = {"n_samples": 32, "random_state": 0, "means_init": X[[0, 20]]}
    ends, finish = [], land._Land.finish
    monkeypatch.setattr(land._Land, "finish", lambda self, state: ends.append(state) or finish(self, state))
    few = LAND(M, 2, **settings).fit(X)
    assert not ends[-1].sight.tried.all()
    monkeypatch.setattr(land, "_NEGLIGIBLE", -math.inf)
    every = LAND(M, 2, **settings).fit(X)
    assert ends[-1].sight.tried.all()
    np.testing.assert_allclose(few.means_, every.means_, atol=1e-3)
    assert few.lower_bound_ == pytest.approx(every.lower_bound_, abs=1e-3)


@pytest.mark.slow
def test_to_fit_and_predict_at_once() -> None:
    X = torch.cat([0.1 * normal(15), 0.1 * normal(15) + 1])
    model = LAND(Sphere(2), 2, n_samples=32, random_state=0)
    labels = model.fit_predict(X)
    np.testing.assert_array_equal(labels, model.predict(X))
    assert (labels == np.repeat(labels[[0, -1]], 15)).all()


def test_restarts_keep_the_best_and_repeat() -> None:
    X = torch.cat(
        [0.1 * normal(30, seed=s) + torch.tensor(c) for s, c in enumerate([[0.5, 0.0], [-0.5, 0.0], [0.0, 0.6]])]
    )
    settings = {"n_samples": 32, "tol": 1e-2}
    once, often, again = (LAND(Sphere(2), 3, n_init=n, random_state=1, **settings).fit(X) for n in (1, 2, 2))
    assert often.lower_bound_ >= once.lower_bound_ - 1e-9
    np.testing.assert_array_equal(often.means_, again.means_)
    np.testing.assert_array_equal(often.score_samples(X), again.score_samples(X))
    begun = LAND(Sphere(2), 3, init_params="geodesic", random_state=0, **settings).fit(X)
    assert begun.lower_bound_ == pytest.approx(often.lower_bound_, abs=0.05)


# -- draws ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_draws_follow_the_density() -> None:
    """Means of the coordinates in space and of the log density, within four standard errors of their integrals."""
    X = torch.cat([on_sphere(40, (0.9, 0.3)), on_sphere(30, (0.3, 0.3), (-1.0, -0.8))])
    model = LAND(Sphere(2), 2, n_samples=32, random_state=0).fit(X)
    grid, space, area = sphere_grid()
    log_p = model.log_density(grid)
    p = np.exp(log_p) * area
    drawn, labels = model.sample(200, random_state=3)
    assert drawn.shape == (200, 2)
    z = torch.from_numpy(drawn)
    seen = np.c_[embedded_sphere(z).numpy(), model.log_density(z)]
    expected = np.r_[(p[:, None] * space.numpy()).sum(0), (p * log_p).sum()]
    error = seen.std(0) / math.sqrt(200)
    assert (np.abs(seen.mean(0) - expected) < 4 * error).all(), (seen.mean(0) - expected) / error
    share = (labels == 0).mean()
    assert abs(share - model.weights_[0]) < 4 * math.sqrt(share * (1 - share) / 200)
    np.testing.assert_array_equal(drawn, model.sample(len(drawn), random_state=3)[0])


def test_draws_in_flat_space_are_normal() -> None:
    X = (normal(50) @ torch.tensor([[1.0, 0.6], [0.0, 0.5]], dtype=torch.float64)).numpy()
    model = LAND(Euclidean(2), n_samples=32, random_state=0).fit(X)
    drawn, _ = model.sample(400, random_state=0)
    u = np.linalg.solve(np.linalg.cholesky(model.covariances_[0]), (drawn - model.means_[0]).T)
    for moment, expected, spread in ((u, 0, 1), (u**2, 1, 2), (u[:1] * u[1:], 0, 1), (u**4, 3, 96)):
        assert (np.abs(moment.mean(1) - expected) < 4 * math.sqrt(spread / 400)).all()


# -- as an estimator --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("M", [Sphere(2), decoder()], ids=["formula", "decoder"])
def test_a_copy_has_the_same_density(M: object) -> None:
    M = oddity.expected_metric(M.double()) if isinstance(M, oddity.GaussianDecoder) else M
    X = 0.3 * normal(20)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = LAND(M, 2, n_samples=32, max_iter=1, random_state=0).fit(X)
    pickled = pickle.dumps(model)
    assert len(pickled) < 2**23
    for other in (pickle.loads(pickled), copy.deepcopy(model)):
        np.testing.assert_array_equal(other.score_samples(X[:5]), model.score_samples(X[:5]))
        np.testing.assert_array_equal(other.predict(X), model.predict(X))
        np.testing.assert_array_equal(other.sample(3, 0)[0], model.sample(3, 0)[0])


def test_arrays_and_tensors_are_alike() -> None:
    X = on_sphere(30)
    model = clone(LAND(Sphere(2), n_samples=32, tol=1e-2, random_state=0)).fit(X.numpy())
    same = clone(model).fit(X)
    np.testing.assert_array_equal(model.means_, same.means_)
    np.testing.assert_array_equal(model.score_samples(X), model.score_samples(X.numpy()))
    assert model.n_features_in_ == 2
    assert model.log_density(X[:1]).shape == (1,)
    assert model.predict(X).tolist() == [0] * 30
    assert model.sample()[0].shape == (1, 2)
    alone = np.concatenate([model.score_samples(x[None]) for x in X[:3]])
    np.testing.assert_allclose(alone, model.score_samples(X)[:3], rtol=1e-12)


# -- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"measure": "lebesgue"}, "unknown measure 'lebesgue'; choose riemannian or magnification"),
        ({"init_params": "random"}, "unknown init_params 'random'; choose kmeans or geodesic"),
        ({"n_components": 0}, "n_components=0: it must be"),
        ({"n_components": "2"}, "n_components='2': it must be a whole number, and at least 1"),
        ({"n_components": 1.5}, "n_components=1.5: it must be"),
        ({"n_components": True}, "n_components=True: it must be"),
        ({"max_iter": 0}, "max_iter=0: it must be"),
        ({"max_iter": 2.5}, "max_iter=2.5: it must be"),
        ({"roadmap": 3}, "roadmap=3: it must be None or a Roadmap"),
        ({"solver": 3}, "solver=3: it must be None or a ChainSolver"),
        ({"reg_covar": -1.0}, "reg_covar is -1.0"),
        ({"tol": math.nan}, "tol is nan"),
        ({"n_components": 11}, "minimum of 11 is required"),
        ({"means_init": [[0.0, 0.0]], "n_components": 2}, r"means_init has shape \(1, 2\), but 2 means have \(2, 2\)"),
        ({"M": "sphere"}, "M is a str; give a Manifold"),
    ],
)
def test_misuse_is_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LAND(**{"M": Sphere(2), **settings}).fit(0.1 * normal(10))


def test_points_that_cannot_be_fitted_are_refused() -> None:
    with pytest.raises(ValueError, match="NaN"):
        LAND(Sphere(2)).fit(np.array([[0.0, np.nan], [1.0, 0.0]]))
    with pytest.raises(ValueError, match="all 5 points of X are equal"):
        LAND(Sphere(2)).fit(torch.ones(5, 2))
    with pytest.raises(ValueError, match="X holds 2 different points, too few for 3 components"):
        LAND(Sphere(2), 3).fit(torch.eye(2).repeat(3, 1))
    with pytest.raises(ValueError, match="the Poincare ball"):
        LAND(Hyperbolic(2)).fit(torch.tensor([[0.0, 0.0], [2.0, 0.0]]))
    with pytest.raises(ValueError, match="is singular; add a ridge"):
        LAND(Pullback(lambda z: torch.cat([z[:, :1], z[:, :1]], 1))).fit(normal(5))
    with pytest.raises(NotFittedError):
        LAND(Sphere(2)).predict(torch.zeros(1, 2))
    model = LAND(Euclidean(2), n_samples=32, random_state=0).fit(normal(20))
    for count in (0, 2.5):
        with pytest.raises(ValueError, match=f"n_samples={count}: it must be a whole number, and at least 1"):
            model.sample(count)  # type: ignore[arg-type]


def test_a_covariance_that_degenerates() -> None:
    """Points on a line: refused without regularisation, floored with it."""
    line = np.c_[np.linspace(-0.5, 0.5, 20), np.zeros(20)]
    with pytest.raises(ValueError, match="covariance of a component degenerates; raise reg_covar"):
        LAND(Sphere(2), reg_covar=0.0, n_samples=32).fit(line)
    model = LAND(Sphere(2), reg_covar=1e-4, n_samples=32, random_state=0).fit(line)
    small = np.linalg.eigvalsh(model.covariances_[0])[0] * 4 / (1 + (model.means_[0] ** 2).sum()) ** 2
    assert small == pytest.approx(1e-4, rel=0.05)
    assert np.isfinite(model.score_samples(line)).all()


def test_duplicate_points_count_as_often_as_they_come() -> None:
    X = on_sphere(25)
    once, twice = (LAND(Sphere(2), n_samples=32, random_state=0).fit(x) for x in (X, X.repeat(2, 1)))
    np.testing.assert_allclose(once.means_, twice.means_, atol=1e-9)
    np.testing.assert_allclose(once.covariances_, twice.covariances_, atol=1e-9)


def test_a_component_that_has_no_points_is_told() -> None:
    X = 0.1 * normal(30)
    with pytest.warns(ConvergenceWarning, match="component 1 has lost its points"):
        model = LAND(Sphere(2), 2, means_init=[[0.0, 0.0], [5.0, 5.0]], n_samples=32, random_state=0).fit(X)
    assert model.weights_[1] == 0
    assert np.isfinite(model.score_samples(X)).all()
    assert model.predict(X).tolist() == [0] * 30
    assert model.sample(5, 0)[1].tolist() == [0] * 5


def test_a_component_whose_geodesics_fold_at_once_has_no_density(monkeypatch: pytest.MonkeyPatch) -> None:
    """As outside of a decoder's support, where the metric is all but singular: its moments were NaN."""
    fan = land._Land._fan

    def folded(self: land._Land, mean: Tensor, *rest: object, **settings: object) -> land._Fan:
        found = fan(self, mean, *rest, **settings)
        return found._replace(spread=0 * found.spread) if mean[0] > 3 else found

    monkeypatch.setattr(land._Land, "_fan", folded)
    X = torch.cat([0.1 * normal(30), torch.tensor([[4.0, 0.0]]).double()])
    settings = {"reg_covar": 1e-3, "n_samples": 32, "random_state": 0}
    with pytest.warns(ConvergenceWarning, match=r"component 1 has no points: at \[4\.0, 0\.0\] geodesics fold at once"):
        model = LAND(Euclidean(2), 2, means_init=X[[0, -1]], **settings).fit(X)
    assert model.weights_.tolist() == [1, 0]
    assert model.normalizers_[1] == math.inf
    assert np.isfinite(model.score_samples(X)).all()
    assert model.sample(5, 0)[1].tolist() == [0] * 5
    with pytest.raises(ValueError, match=r"no component can be measured: .* leave out points far from the others"):
        LAND(Euclidean(2), means_init=X[[-1]], **settings).fit(X)


def test_geodesics_that_fail_are_counted_and_have_no_weight() -> None:
    """The metric ends beside the first two of the points."""
    M, X = Conformal(lambda z: torch.where(z[..., 0] > 1.5, torch.nan, 1 + 0.1 * z[..., 1] ** 2)), 0.3 * normal(30)
    beyond = torch.tensor([[2.0, 0.0], [3.0, 1.0]], dtype=X.dtype)
    settings = {"n_samples": 32, "random_state": 0, "means_init": X[[0]]}
    alone = LAND(M, **settings).fit(X)
    with pytest.warns(RuntimeWarning) as caught:
        model = LAND(M, **settings).fit(torch.cat([beyond, X]))
    assert [str(w.message) for w in caught] == [
        "2 of 32 geodesics did not converge: they have no weight",
        "no geodesic from a mean reaches 2 of 32 points",
    ]
    np.testing.assert_allclose(model.means_, alone.means_, atol=1e-9)
    np.testing.assert_allclose(model.covariances_, alone.covariances_, atol=1e-9)
    assert model.lower_bound_ == pytest.approx(alone.lower_bound_)
    with pytest.warns(RuntimeWarning) as caught:
        scores = model.score_samples(torch.stack([beyond[0], X[0]]))
    assert "1 of 2 geodesics did not converge: their components do not count there" in {str(w.message) for w in caught}
    assert np.isneginf(scores).tolist() == [True, False]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        assert model.predict_proba(beyond).tolist() == [[1.0], [1.0]]
        assert np.isneginf(model.log_density(beyond)).all()


def test_rays_that_fail_are_counted() -> None:
    """A metric with a kink: the speed of rays that cross it jumps, and they are left out on both sides of the ratio."""

    class Kinked(oddity.Manifold):
        dim = 2

        def push(self, z: Tensor, v: Tensor) -> Tensor:
            return v

        def force(self, z: Tensor, v: Tensor) -> Tensor:
            return torch.where(z[..., :1] > 1.5, 3 * v.square().sum(-1, keepdim=True) * z, 0.0)

    with pytest.warns(RuntimeWarning, match=r"\d+ of 32 rays did not converge"):
        model = LAND(Kinked(), n_samples=32, random_state=0).fit(0.5 * normal(40))
    assert np.isfinite(model.normalizers_).all()
    assert 0.8 < model.normalizers_[0] / (2 * np.pi * np.linalg.det(model.covariances_[0]) ** 0.5) < 1.2


def test_too_few_moves_are_told() -> None:
    with pytest.warns(ConvergenceWarning, match="still rises after 1 moves"):
        LAND(Sphere(2), max_iter=1, tol=0.0, n_samples=32, random_state=0).fit(on_sphere(30))


def test_a_flat_mixture_by_hand() -> None:
    """The log density of two components is the log of their weighted sum."""
    model = LAND(Euclidean(2), 2, n_samples=32, random_state=0).fit(two_clusters())
    parts = [
        multivariate_normal(m, S).logpdf(two_clusters()) for m, S in zip(model.means_, model.covariances_, strict=True)
    ]
    np.testing.assert_allclose(
        model.score_samples(two_clusters()), logsumexp(np.stack(parts, 1) + np.log(model.weights_), 1)
    )
