"""Clusters against scikit-learn, brute force and closed forms; what is lost, doubtful or failed is counted."""

import copy
import itertools
import math
import pickle
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import adjusted_rand_score
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import Tensor

import oddity
from oddity import ChainSolver, Euclidean, Hyperbolic, Manifold, Pullback, Sphere
from oddity.geometry import distances
from oddity.statistics import clustering
from oddity.statistics.clustering import GeodesicKMeans, GeodesicKMedoids

from ..geometry.cases import cases, embedded_sphere

HASTY = ChainSolver(segments=4, max_segments=4, resolution=1e-9)  # nothing is resolved
METHODS = ["graph", "refined", "exact"]


def clumps(n: int = 12, spread: float = 0.25, seed: int = 0) -> Tensor:
    """Three clumps of n points on the sphere's chart, one after the other."""
    places = torch.tensor([[0.0, 0.6], [0.5, -0.4], [-0.6, -0.3]])
    noise = torch.randn(3, n, 2, generator=torch.Generator().manual_seed(seed))
    return (places[:, None] + spread * noise).reshape(-1, 2).double()


@pytest.fixture
def few_waypoints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distances, "_WAYPOINTS", 144)


# scikit-learn's own checks hold without an exception: three of them are skipped where SCIPY_ARRAY_API is not set
@parametrize_with_checks([GeodesicKMeans(Euclidean(), n_init=1), GeodesicKMedoids(Euclidean(), n_init=1)])
def test_scikit_learn_checks(estimator: Any, check: Any) -> None:
    check(estimator)


# -- k-means against what is known ------------------------------------------------------------------------------------


def test_in_flat_space_it_is_the_usual_one() -> None:
    X = clumps(40).numpy()
    ours = GeodesicKMeans(Euclidean(), 3, random_state=0, tol=0).fit(X)
    theirs = KMeans(3, n_init=10, random_state=0, tol=0).fit(X)
    assert ours.inertia_ == pytest.approx(theirs.inertia_, rel=1e-9)
    assert adjusted_rand_score(ours.labels_, theirs.labels_) == 1
    order = [int(np.linalg.norm(ours.cluster_centers_ - c, axis=1).argmin()) for c in theirs.cluster_centers_]
    np.testing.assert_allclose(ours.cluster_centers_[order], theirs.cluster_centers_, atol=1e-9)
    np.testing.assert_allclose(ours.transform(X)[:, order], theirs.transform(X), atol=1e-9)
    assert ours.score(X) == pytest.approx(theirs.score(X))
    assert ours.error_ == ours.n_relocated_ == 0


@pytest.mark.parametrize("M", [Sphere(2), Hyperbolic(2)], ids=str)
def test_centres_are_the_means_of_their_clusters(M: Manifold) -> None:
    z = 0.6 * clumps()
    kmeans = GeodesicKMeans(M, 3, n_init=2, random_state=0, tol=0).fit(z)
    centres = torch.from_numpy(kmeans.cluster_centers_)
    D = M.dist(z[:, None], centres)
    assert (kmeans.labels_ == D.argmin(1).numpy()).all()
    assert kmeans.inertia_ == pytest.approx(float(D.amin(1).square().sum()))
    for c in range(3):
        mean = oddity.statistics.means.frechet_mean(M, z[kmeans.labels_ == c])
        torch.testing.assert_close(centres[c], mean.point, atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", METHODS)
def test_numerical_geodesics_agree_with_the_formula(method: str, few_waypoints: None) -> None:
    z = clumps(6)
    exact = GeodesicKMeans(Sphere(2), 3, random_state=0, tol=1e-8).fit(z)
    found = GeodesicKMeans(Pullback(embedded_sphere), 3, method=method, random_state=0, tol=1e-8).fit(z)
    assert adjusted_rand_score(found.labels_, exact.labels_) == 1
    error = {"graph": 0.1, "refined": 1e-4, "exact": 1e-4}[method]
    order = [int(np.linalg.norm(found.cluster_centers_ - c, axis=1).argmin()) for c in exact.cluster_centers_]
    np.testing.assert_allclose(found.cluster_centers_[order], exact.cluster_centers_, atol=error)
    assert found.inertia_ == pytest.approx(exact.inertia_, rel=1e-4 if method == "exact" else 0.06)
    assert found.inertia_ > exact.inertia_ * (1 - 1e-4)
    assert (found.error_ == 0) == (method == "exact")
    assert (found.predict(z) == found.labels_).all()
    np.testing.assert_allclose(
        found.transform(z), Sphere(2).dist(z[:, None], torch.from_numpy(found.cluster_centers_)), rtol=0.05, atol=1e-30
    )
    new = clumps(5, seed=7)
    nearest = Sphere(2).dist(new[:, None], torch.from_numpy(found.cluster_centers_))
    clear = nearest.sort(1).values[:, :2].diff(dim=1)[:, 0] > 0.05
    assert (found.predict(new) == nearest.argmin(1).numpy())[clear].all()


def test_codes_in_doubt_are_solved(few_waypoints: None, monkeypatch: pytest.MonkeyPatch) -> None:
    z = clumps(40, spread=0.5)
    solved: list[int] = []
    solve = clustering.Reach.solve
    monkeypatch.setattr(clustering.Reach, "solve", lambda self, a, b: (solved.append(len(a)), solve(self, a, b))[1])
    kmeans = GeodesicKMeans(Pullback(embedded_sphere), 3, random_state=0).fit(z)
    true = Sphere(2).dist(z[:, None], torch.from_numpy(kmeans.cluster_centers_))
    assert (kmeans.labels_ == true.argmin(1).numpy()).all()
    assert 0 < solved[-1] < 60


@pytest.mark.slow
def test_thinned_codes_have_nearly_the_same_centres(few_waypoints: None, monkeypatch: pytest.MonkeyPatch) -> None:
    z = clumps(40)
    whole = GeodesicKMeans(Pullback(embedded_sphere), 3, random_state=0, tol=1e-8).fit(z)
    monkeypatch.setattr(clustering, "_CELLS", 30)
    thin = GeodesicKMeans(Pullback(embedded_sphere), 3, random_state=0, tol=1e-8).fit(z)
    gap = np.linalg.norm(whole.cluster_centers_[:, None] - thin.cluster_centers_, axis=-1).min(1)
    assert 0 < gap.max() < 0.1 * 0.25
    assert adjusted_rand_score(whole.labels_, thin.labels_) > 0.97


@pytest.mark.parametrize("method", METHODS)
def test_a_decoder_in_single_precision(method: str, few_waypoints: None) -> None:
    M, z = cases(torch.float32)["expected metric"][0], 0.5 * clumps(5).float()
    kmeans = GeodesicKMeans(M, 2, method=method, random_state=0).fit(z)
    assert kmeans.cluster_centers_.dtype == kmeans.transform(z).dtype == np.float32
    D = M.dist(z[:, None], torch.from_numpy(kmeans.cluster_centers_)).detach().numpy()
    assert kmeans.inertia_ == pytest.approx(float(np.square(D.min(1)).sum()), rel=0.05)
    assert (kmeans.predict(z.numpy()) == kmeans.labels_).all()


# -- laws -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", [GeodesicKMeans, GeodesicKMedoids])
def test_the_seed_decides(estimator: type, few_waypoints: None) -> None:
    z, M = clumps(), Pullback(embedded_sphere)
    state = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    one, same = (estimator(M, 4, method="graph", random_state=3, n_init=1).fit(z) for _ in range(2))
    unjudged = estimator(M, 4, method="graph", random_state=3, n_init=1, sample=0).fit(z)
    assert math.isnan(unjudged.error_)
    np.testing.assert_array_equal(unjudged.labels_, one.labels_)
    assert (one.labels_ == same.labels_).all()
    assert (one.cluster_centers_ == same.cluster_centers_).all()
    others = [estimator(M, 4, method="graph", random_state=s, n_init=1).fit(z).labels_ for s in range(4, 7)]
    assert any((other != one.labels_).any() for other in others)
    assert (np.random.get_state()[1] == state[0]).all()  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), state[1])


def test_more_restarts_are_never_worse() -> None:
    z = clumps(10, spread=0.5)
    inertia = [GeodesicKMeans(Sphere(2), 6, n_init=n, random_state=1).fit(z).inertia_ for n in (1, 2, 5)]
    assert inertia == sorted(inertia, reverse=True)


def test_seeds_are_drawn_by_their_squared_distance() -> None:
    D = np.abs(np.subtract.outer([0.0, 1.0, 3.0], [0.0, 1.0, 3.0]))
    count = np.zeros((3, 3))
    rng = np.random.RandomState(0)
    trials = 4000
    for _ in range(trials):
        first, second = clustering._seeds(lambda i: D[i], 3, 2, 2, rng)
        count[first, second] += 1
    np.testing.assert_allclose(count.sum(1), trials / 3, atol=4 * math.sqrt(trials * 2 / 9))
    # greedy: the better of two draws by squared distance; from 0, code 2 leaves 1 and code 1 leaves 4
    share = count[0, 2] / count[0].sum()
    assert abs(share - (1 - 0.1**2)) < 4 * math.sqrt(0.01 * 0.99 / count[0].sum())


@pytest.mark.parametrize("estimator", [GeodesicKMeans, GeodesicKMedoids])
@pytest.mark.parametrize("M", [Sphere(2), 2.0 * Euclidean(), cases(torch.float64)["expected metric"][0]], ids=str)
def test_a_copy_predicts_the_same(estimator: type, M: Manifold) -> None:
    fitted, new = estimator(M, 3, n_init=1, random_state=0).fit(clumps()), clumps(5, seed=7)
    pickled = pickle.dumps(fitted)
    assert len(pickled) < 2**21  # without the tables of a roadmap, which are made anew
    for other in (pickle.loads(pickled), copy.deepcopy(fitted)):
        np.testing.assert_array_equal(other.predict(new), fitted.predict(new))
        np.testing.assert_array_equal(other.transform(new), fitted.transform(new))


def test_arrays_tensors_and_pipelines() -> None:
    z = clumps().float()
    kmeans = clone(GeodesicKMeans(Sphere(2), 3, n_init=1, random_state=0))
    from_array, from_tensor = (kmeans.fit(x).labels_ for x in (z.numpy(), z.requires_grad_()))
    assert (from_array == from_tensor).all()
    assert kmeans.predict(z.double()).dtype == np.int64
    assert make_pipeline(kmeans).fit_transform(z.detach().numpy()).shape == (36, 3)
    assert kmeans.get_feature_names_out().tolist() == [f"geodesickmeans{c}" for c in range(3)]


# -- what is lost, equal or failed ------------------------------------------------------------------------------------


@pytest.mark.parametrize("M", [Sphere(2), Pullback(embedded_sphere)], ids=["formula", "graph"])
def test_a_cluster_that_loses_its_codes_gets_the_farthest(
    M: Manifold, few_waypoints: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    z = clumps()
    monkeypatch.setattr(clustering, "_seeds", lambda distances, n, k, power, rng: np.zeros(k, np.int64))
    kmeans = GeodesicKMeans(M, 3, n_init=1, random_state=0).fit(z)
    assert kmeans.n_relocated_ >= 2
    assert (np.bincount(kmeans.labels_) > 0).tolist() == [True] * 3


def test_a_lost_centre_is_replaced_while_its_mean_is_sought(few_waypoints: None) -> None:
    z = clumps()
    reach = clustering.Reach(Pullback(embedded_sphere), z, "refined", None)
    cells = np.arange(36), np.arange(36)
    centres = clustering._Means(reach, cells, z[[0, 0, 13]], 1e-4)
    labels, moved = clustering._assigned(centres)
    assert moved == 1
    assert (np.bincount(labels) > 0).all()
    assert not centres.step(labels)
    assert centres.mu.isfinite().all()
    assert len(np.unique(clustering._assigned(centres)[0])) == 3


@pytest.mark.parametrize("estimator", [GeodesicKMeans, GeodesicKMedoids])
@pytest.mark.parametrize("M", [Euclidean(), Pullback(embedded_sphere)], ids=["formula", "graph"])
def test_too_few_different_codes(estimator: type, M: Manifold, few_waypoints: None) -> None:
    for z, found in ((torch.ones(5, 2), 1), (torch.eye(2).double().repeat(4, 1), 2)):
        with pytest.warns(ConvergenceWarning, match=f"only {found} of 3 clusters have points"):
            clusters = estimator(M, 3, n_init=2, random_state=0).fit(z)
        assert len(np.unique(clusters.labels_)) == found
        assert clusters.inertia_ == pytest.approx(0.0, abs=1e-12)
        assert np.isfinite(clusters.cluster_centers_).all()
        assert (clusters.predict(z) == clusters.labels_).all()
        assert np.isfinite(clusters.transform(z)).all()


@pytest.mark.parametrize("estimator", [GeodesicKMeans, GeodesicKMedoids])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_codes_that_are_their_centre(estimator: type, dtype: torch.dtype, few_waypoints: None) -> None:
    z = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=dtype).repeat(10, 1)
    found = estimator(cases(dtype)["expected metric"][0], 3, n_init=1, random_state=0).fit(z)
    assert found.error_ == found.inertia_ == 0
    assert len(np.unique(found.labels_.reshape(10, 3), axis=0)) == 1


def test_as_many_clusters_as_codes() -> None:
    for estimator in (GeodesicKMeans, GeodesicKMedoids):
        clusters = estimator(Sphere(2), 6, random_state=0).fit(clumps(2))
        assert sorted(clusters.labels_) == list(range(6))
        assert clusters.inertia_ == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("method", ["refined", "exact"])
def test_geodesics_that_fail_are_counted(method: str, few_waypoints: None) -> None:
    M, z = Pullback(embedded_sphere), clumps(4)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        kmeans = GeodesicKMeans(M, 3, method=method, solver=HASTY, random_state=0).fit(z)
    said = [str(w.message) for w in caught if w.category is RuntimeWarning]
    assert any("geodesics did not converge: their codes do not count in the means" in text for text in said)
    assert np.isfinite(kmeans.cluster_centers_).all()
    assert (kmeans.labels_ == np.repeat(kmeans.labels_[[0, 4, 8]], 4)).all()
    if method == "exact":
        with pytest.warns(RuntimeWarning, match="of 36 geodesics did not converge: the shortest curve found stands"):
            D = kmeans.transform(z)
        np.testing.assert_allclose(D, Sphere(2).dist(z[:, None], torch.from_numpy(kmeans.cluster_centers_)), rtol=0.05)


@pytest.mark.parametrize("estimator", [GeodesicKMeans, GeodesicKMedoids])
def test_points_far_outside_are_counted(estimator: type, few_waypoints: None) -> None:
    found = estimator(Pullback(lambda z: 3 * z), 3, method="graph", n_init=1, random_state=0).fit(clumps())
    found.predict(clumps(20, seed=7))  # no word of codes that were held out
    new = torch.cat([clumps(2, seed=7), torch.tensor([[50.0, 50.0], [-80.0, 3.0]]).double()])
    for use in (found.predict, found.transform, found.score):
        with pytest.warns(RuntimeWarning, match="2 of 8 points lie far outside of the codes"):
            assert np.isfinite(use(new)).all()


def test_a_search_that_is_cut_short_is_warned_of() -> None:
    with pytest.warns(ConvergenceWarning, match="not at rest after 1 iterations"):
        GeodesicKMeans(Sphere(2), 3, max_iter=1, random_state=0).fit(clumps())
    with pytest.warns(ConvergenceWarning, match="1 swaps did not suffice"):
        GeodesicKMedoids(Sphere(2), 5, max_iter=1, n_init=1, random_state=0).fit(clumps())


@pytest.mark.parametrize("estimator", [GeodesicKMeans, GeodesicKMedoids])
@pytest.mark.parametrize(
    ("X", "kw", "message"),
    [
        (np.ones((2, 2)), {}, "n_samples = 2 is less than n_clusters = 3"),
        (np.full((4, 2), np.nan), {}, "contains NaN"),
        (np.full((4, 2), np.inf), {}, "contains infinity"),
        (np.ones(4), {}, "Expected 2D array"),
        (np.ones((4, 3)), {}, r"X has shape \(4, 3\), but points of Sphere\(2\) have 2 coordinates"),
        (np.ones((4, 2)), {"M": Hyperbolic(2)}, "X holds a point of norm 1.414; the Poincare ball"),
        (np.ones((4, 2)), {"M": None}, "M is a NoneType; give a Manifold"),
        (np.ones((4, 2)), {"method": "fast"}, "unknown method 'fast'; choose refined, exact, graph"),
        (np.ones((4, 2)), {"sample": 0}, "sample=0: it must be a whole number, and at least 1"),
        (np.ones((4, 2)), {"sample": -1, "method": "graph"}, "sample=-1: it must be a whole number, and at least 0"),
        (np.ones((4, 2)), {"n_clusters": 0}, "n_clusters=0: it must be a whole number, and at least 1"),
        (np.ones((4, 2)), {"n_clusters": 2.5}, "n_clusters=2.5: it must be"),
        (np.ones((4, 2)), {"n_clusters": True}, "n_clusters=True: it must be a whole number, and at least 1"),
        (np.ones((4, 2)), {"solver": 4}, "solver=4: it must be None or a ChainSolver"),
        (np.ones((4, 2)), {"n_init": 0}, "n_init=0: it must be"),
        (np.ones((4, 2)), {"max_iter": 0}, "max_iter=0: it must be"),
    ],
)
def test_misuse_is_one_clear_sentence(estimator: type, X: Any, kw: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        estimator(**{"M": Sphere(2), "n_clusters": 3, **kw}).fit(X)


def test_the_rest_of_misuse() -> None:
    with pytest.raises(ValueError, match=r"tol is -1\.0"):
        GeodesicKMeans(Sphere(2), 3, tol=-1.0).fit(clumps())
    with pytest.raises(ValueError, match=r"the points are torch\.float64 but the weights"):
        GeodesicKMeans(cases(torch.float32)["expected metric"][0], 3).fit(clumps())


# -- k-medoids --------------------------------------------------------------------------------------------------------


def test_no_other_medoids_are_better() -> None:
    z = clumps(5, spread=0.4)
    for M in (Euclidean(), Sphere(2)):
        kmedoids = GeodesicKMedoids(M, 3, random_state=0, n_init=5).fit(z)
        D = M.dist(z[:, None], z).numpy()
        best = min(D[list(some)].min(0).sum() for some in itertools.combinations(range(15), 3))
        assert kmedoids.inertia_ == pytest.approx(best)
        assert (kmedoids.cluster_centers_ == z.numpy()[kmedoids.medoid_indices_]).all()
        assert (kmedoids.labels_ == D[:, kmedoids.medoid_indices_].argmin(1)).all()
        assert kmedoids.score(z) == pytest.approx(-best)


@pytest.mark.parametrize("k", [1, 4])
def test_the_change_by_a_swap(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clustering, "_ROWS", 50)  # several blocks
    D = Sphere(2).dist(clumps(5)[:, None], clumps(5)).numpy()
    medoids = np.array([2, 3, 8, 14])[:k]
    change = clustering._changes(D, medoids)
    for c, i in itertools.product(range(k), range(15)):
        swapped = np.where(np.arange(k) == c, i, medoids)
        assert change[c, i] == pytest.approx(D[swapped].min(0).sum() - D[medoids].min(0).sum(), abs=1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_medoids_by_numerical_geodesics(method: str, few_waypoints: None) -> None:
    z = clumps(5)
    exact = GeodesicKMedoids(Sphere(2), 3, random_state=0).fit(z)
    found = GeodesicKMedoids(Pullback(embedded_sphere), 3, method=method, random_state=0).fit(z)
    assert found.inertia_ == pytest.approx(exact.inertia_, rel=1e-6 if method == "exact" else 0.05)
    assert adjusted_rand_score(found.labels_, exact.labels_) > 0.7
    assert (found.predict(z) == found.labels_).all()
    assert found.transform(clumps(2, seed=3)).shape == (6, 3)


# -- at full size -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_three_thousand_codes() -> None:
    M, z = cases(torch.float32)["expected metric"][0], 0.7 * clumps(1000).float()
    kmeans = GeodesicKMeans(M, 3, random_state=0).fit(z)
    assert 0 < kmeans.error_ < 0.02
    some = z[::50]
    D = M.dist(some[:, None], torch.from_numpy(kmeans.cluster_centers_)).detach().numpy()
    two = np.sort(D, 1)
    clear = two[:, 1] > 1.01 * two[:, 0]
    assert (kmeans.labels_[::50] == D.argmin(1))[clear].all()
