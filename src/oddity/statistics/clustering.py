"""Clusters in a curved space: k-means and k-medoids by geodesic distance, as scikit-learn estimators.

Other methods need only the distances. The geodesic k-nearest-neighbour classifier is scikit-learn's own:

>>> import oddity
>>> from sklearn.neighbors import KNeighborsClassifier
>>> S = oddity.Sphere(2)
>>> z = torch.tensor([[0.0, 0.1], [0.0, -0.1], [2.0, 0.1], [2.0, -0.1]])
>>> knn = KNeighborsClassifier(n_neighbors=1, metric="precomputed")
>>> knn = knn.fit(oddity.pairwise_distances(S, z), [0, 0, 1, 1])
>>> knn.predict(oddity.pairwise_distances(S, torch.tensor([[1.5, 0.0], [0.3, 0.0]]), z)).tolist()
[1, 0]
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol, Self, TypeAlias, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, ClusterMixin, TransformerMixin
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import pairwise_distances_argmin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from oddity.geometry.connect import ChainSolver
from oddity.geometry.distances import neighbour_graph, pairwise_distances
from oddity.geometry.manifold import Manifold
from oddity.models.checks import check_kind, check_whole
from oddity.numerics.ambient import doors
from oddity.numerics.graph import distances_from
from oddity.statistics.legs import Legs, has_formula, legs_along
from oddity.statistics.means import Descent, admit_codes, total, warn_of_failures

__all__ = ["GeodesicKMeans", "GeodesicKMedoids", "Reach"]

Method: TypeAlias = Literal["refined", "exact", "graph"]
Array: TypeAlias = NDArray[np.float64]
Numbers: TypeAlias = NDArray[np.int64]

_CELLS = 256  # representatives of the codes, on which their means are found
_NEAR = 1.25  # a representative has legs to the centres that are at most so many times as far as the nearest
_FAR = 5.0  # times the longest way from a code to its nearest other, beyond which a point is far outside
_JOINS = 16  # nodes of the graph to which a new point is joined
_PAIRS = 256  # pairs whose paths are sought at a time
_ROWS = 1 << 20  # numbers in a block
_TINY = 1e-30  # what a graph's edge of length zero stays below
_TRIES = 2  # Newton steps of the centres between two assignments
_SURELY = 0.95  # share of those errors within which two distances may have changed places


# -- the estimators ---------------------------------------------------------------------------------------------------


@doors
class _Clusterer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, ClusterMixin, BaseEstimator):  # type: ignore[misc]
    """What k-means and k-medoids share: the door, and what follows once the centres are known."""

    _power: int  # of the distances in the inertia

    def predict(self, X: ArrayLike | Tensor) -> Numbers:
        """Number of the nearest centre: ``(n, d) -> (n,)``."""
        nearest: Numbers = self._distances(X).argmin(1)
        return nearest

    def transform(self, X: ArrayLike | Tensor) -> NDArray[Any]:
        """Distances to the centres, as ``method`` has them: ``(n, d) -> (n, k)``."""
        return self._distances(X).astype(self.cluster_centers_.dtype)

    def score(self, X: ArrayLike | Tensor, y: object = None) -> float:  # noqa: ARG002
        """Minus the inertia of the points."""
        return -self._inertia(self._distances(X))

    def _distances(self, X: ArrayLike | Tensor) -> Array:
        check_is_fitted(self)
        z = admit_codes(self, X, like=self._reach.z)
        if far := int(self._reach.far_outside(z).sum()):
            message = f"{far} of {len(z)} points lie far outside of the codes: their distances lead where no data tell"
            warnings.warn(message, RuntimeWarning, stacklevel=4)
        return self._reach.measure(torch.from_numpy(self.cluster_centers_).to(z), z)

    def _inertia(self, D: Array) -> float:
        return float((D.min(1) ** self._power).sum())

    def _begin(self, X: ArrayLike | Tensor) -> tuple[Reach, np.random.RandomState]:
        """Check settings and codes, and prepare to measure."""
        for name in ("n_clusters", "n_init", "max_iter"):
            check_whole(**{name: getattr(self, name)})
        check_whole(0 if self.method == "graph" else 1, sample=self.sample)
        check_kind(solver=self.solver, kind=ChainSolver, example="oddity.ChainSolver(segments=64)")
        if self.method not in get_args(Method):
            raise ValueError(f"unknown method {self.method!r}; choose {', '.join(get_args(Method))}")
        z = admit_codes(self, X)
        if len(z) < self.n_clusters:
            raise ValueError(
                f"n_samples = {len(z)} is less than n_clusters = {self.n_clusters}; ask for fewer clusters"
            )
        self._reach = Reach(self.M, z, self.method, self.solver)
        return self._reach, check_random_state(self.random_state)

    def _end(self, centres: Tensor, rng: np.random.RandomState) -> Self:
        """Assign the codes to the centres."""
        reach = self._reach
        self.cluster_centers_ = centres.cpu().numpy()
        self._n_features_out = len(centres)
        reach.gauge(centres, self.sample, rng)
        D = reach.measure(centres)
        self.labels_, self.inertia_, self.error_ = D.argmin(1), self._inertia(D), reach.error
        found = len(np.unique(self.labels_))
        if found < self.n_clusters:
            message = f"only {found} of {self.n_clusters} clusters have points; are there enough different points?"
            warnings.warn(message, ConvergenceWarning, stacklevel=4)
        return self


@doors
class GeodesicKMeans(_Clusterer):
    """k-means by geodesic distance, with Frechet means for centres.

    ``"refined"`` seeds, restarts and iterates on a graph of the codes, and in one and two dimensions of a grid of
    waypoints around them, where a centre is a node of the graph. From the best of the restarts on, a centre is the
    Frechet mean of its cluster: Newton's method follows it along numerical geodesics, while codes are still assigned
    by paths on the graph. More than 256 codes are represented there by 256 of them, each weighted in each cluster by
    the codes of that cluster in its cell (of ordinary k-means in the chart). At the end the codes that the graph's
    error leaves in doubt between two centres have their distances to both solved.

    ``"graph"`` stops before the Frechet means, and solves nothing but the sample that tells the graph's error.
    ``"exact"`` begins on the graph too; from there on every code counts in the means, and its distance to every centre
    is solved, again and again: slow. On spaces with a formula, such as :class:`~oddity.Sphere`, all three are Lloyd's
    algorithm with exact distances.

    On 3,000 codes of a decoder of MNIST digits in two dimensions, with three clusters, letting 256 codes stand for all
    moved a centre by 0.5 % of its cluster's standard deviation. It took 22 s; in ten dimensions, where a geodesic costs
    ten times as much, it takes minutes; ``"graph"`` is the quick way there.

    Parameters
    ----------
    M
        The manifold.
    n_clusters
        Number of clusters, k.
    method
        ``"refined"``, ``"exact"`` or ``"graph"``.
    n_init
        Restarts from other seeds, of which the one of least inertia is kept.
    max_iter
        Iterations of each restart, and again of the refinement.
    tol
        The centres are at rest when Newton's method promises to lower the variance of each cluster, at fixed
        assignments, by less than this share.
    sample
        Codes whose distance to their centre is solved to know the graph's error; none are with zero, which ``"graph"``
        alone allows.
    solver
        Settings of the geodesics.
    random_state
        For the seeds and samples: None, an integer or a ``numpy.random.RandomState``.

    Attributes
    ----------
    cluster_centers_ : ndarray
        ``(k, d)``.
    labels_ : ndarray
        ``(n,)``, the nearest centre of each code.
    inertia_ : float
        Sum of the squared distances of the codes to their nearest centres, each distance as it was used: solved with
        ``"exact"``, of codes in doubt and in spaces with a formula, otherwise the length of a path on the graph, which
        is too long by about the share ``error_``.
    error_ : float
        Median relative error of the graph's distances from codes to their nearest centres, over the sample; zero
        where the graph was not used, NaN without a sample.
    n_iter_ : int
        Iterations of the restart that was kept, and of its refinement.
    n_relocated_ : int
        How often, in those, a cluster lost all its codes and its centre was moved to the code farthest from its own.
    n_features_in_ : int
        d.

    Raises
    ------
    ValueError
        On fitting, if the codes are unusable (not finite, not two-dimensional, fewer than ``n_clusters``, outside the
        chart, of another dtype than the decoder) or a setting is.

    Warns
    -----
    RuntimeWarning
        Counting the geodesics that did not converge: their codes do not count in the means, and in an assignment the
        shorter of the curve found and the path on the graph stands for the geodesic. Afterwards counting the points far
        outside of the codes, whose way to the nearest is five times as long as any code's to its nearest other. They
        are joined to the graph by straight lines, and have finite distances all the same.
    ConvergenceWarning
        If ``max_iter`` did not suffice, or clusters stay empty since there are too few different codes.

    Notes
    -----
    Codes may be NumPy arrays or tensors; results are NumPy arrays in their dtype. Seeds are drawn by greedy k-means++:
    Arthur, Vassilvitskii, "k-means++: the advantages of careful seeding", SODA 2007.

    Examples
    --------
    >>> import oddity
    >>> z = torch.tensor([[0.0, 0.1], [0.0, -0.1], [2.0, 0.1], [2.0, -0.1]])
    >>> kmeans = GeodesicKMeans(oddity.Sphere(2), n_clusters=2, random_state=0).fit(z)
    >>> bool(kmeans.labels_[0] == kmeans.labels_[1] != kmeans.labels_[2] == kmeans.labels_[3])
    True
    """

    _power = 2

    def __init__(
        self,
        M: Manifold,
        n_clusters: int = 8,
        *,
        method: Method = "refined",
        n_init: int = 10,
        max_iter: int = 300,
        tol: float = 1e-4,
        sample: int = 64,
        solver: ChainSolver | None = None,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.M = M
        self.n_clusters = n_clusters
        self.method = method
        self.n_init = n_init
        self.max_iter = max_iter
        self.tol = tol
        self.sample = sample
        self.solver = solver
        self.random_state = random_state

    def fit(self, X: ArrayLike | Tensor, y: object = None) -> Self:  # noqa: ARG002
        """Find the clusters of the codes X, ``(n, d)``."""
        if not self.tol >= 0:
            raise ValueError(f"tol is {self.tol!r}; give a share, at least 0")
        reach, rng = self._begin(X)
        cells = _cells(reach, rng)
        squares = reach.squares(cells[0])
        seeds = (_seeds(reach.from_codes, len(reach.z), self.n_clusters, 2, rng) for _ in range(self.n_init))
        if squares is None:
            run = min((self._lloyd(_Means(reach, cells, reach.z[s], self.tol)) for s in seeds), key=_Run.inertia)
        else:
            run = min((self._lloyd(_Nodes(reach, cells, s, squares)) for s in seeds), key=_Run.inertia)
            if self.method != "graph":
                run = self._lloyd(_Means(reach, cells, run.centres.mu, self.tol), after=run)
        self.n_iter_, self.n_relocated_ = run.iterations, run.relocated
        if not run.at_rest:
            message = f"the centres are not at rest after {self.max_iter} iterations: raise max_iter or tol"
            warnings.warn(message, ConvergenceWarning, stacklevel=3)
        warn_of_failures(*run.centres.failures(), "their codes do not count in the means")
        return self._end(run.centres.mu, rng)

    def _lloyd(self, centres: _Centres, after: _Run | None = None) -> _Run:
        """Assign and move in turn until the centres rest."""
        run = _Run(centres, *((after.iterations, after.relocated) if after else (0, 0)))
        for _ in range(self.max_iter):
            labels, relocated = _assigned(centres)
            run.iterations, run.relocated = run.iterations + 1, run.relocated + relocated
            if centres.step(labels):
                run.at_rest = True
                break
        return run


@doors
class GeodesicKMedoids(_Clusterer):
    """k-medoids by geodesic distance: the centres are codes, and the sum of distances to them is least.

    Distances between all codes are lengths of paths on a graph of the codes and, in one and two dimensions, of a grid
    of waypoints around them; with ``"exact"``, and on spaces with a formula, they are solved. Seeds are improved by
    swapping a medoid for another code for as long as some swap helps. At the end ``"refined"`` solves the distances
    of codes that the graph's error leaves in doubt between two medoids. Memory is that of the matrix, 4 n^2 bytes
    along the graph.

    Parameters
    ----------
    M
        The manifold.
    n_clusters
        Number of clusters, k.
    method
        ``"refined"``, ``"exact"`` or ``"graph"``.
    n_init
        Restarts from other seeds, of which the one of least inertia is kept.
    max_iter
        Swaps of each restart.
    sample
        Codes whose distance to their centre is solved to know the graph's error; none are with zero, which ``"graph"``
        alone allows.
    solver
        Settings of the geodesics.
    random_state
        For the seeds and samples: None, an integer or a ``numpy.random.RandomState``.

    Attributes
    ----------
    medoid_indices_ : ndarray
        ``(k,)``, which codes are the medoids.
    cluster_centers_ : ndarray
        ``(k, d)``, the medoids.
    labels_ : ndarray
        ``(n,)``, the nearest medoid of each code.
    inertia_ : float
        Sum of the distances, not squared, of the codes to their nearest medoids, each as it was used; see
        :class:`GeodesicKMeans`, as for ``error_``.
    error_ : float
        Median relative error of the graph's distances.
    n_iter_ : int
        Swaps tried in the restart that was kept, the last of which did not help.
    n_features_in_ : int
        d.

    Raises
    ------
    ValueError
        As :class:`GeodesicKMeans`.

    Warns
    -----
    RuntimeWarning
        Counting the geodesics that did not converge; the shortest curve found stands for them. Afterwards counting the
        points far outside of the codes, as :class:`GeodesicKMeans`.
    ConvergenceWarning
        If ``max_iter`` swaps did not suffice, or there are fewer different codes than clusters.

    Notes
    -----
    Schubert, Rousseeuw, "Fast and eager k-medoids clustering", Information Systems 2021: the change of the sum by all
    swaps of one medoid for another code at once (FastPAM1).

    Examples
    --------
    >>> import oddity
    >>> z = torch.tensor([[0.0, 0.1], [0.0, -0.1], [0.0, 0.0], [2.0, 0.1], [2.0, -0.1], [2.0, 0.0]])
    >>> kmedoids = GeodesicKMedoids(oddity.Sphere(2), n_clusters=2, random_state=0).fit(z)
    >>> sorted(kmedoids.medoid_indices_.tolist())
    [2, 5]
    """

    _power = 1

    def __init__(
        self,
        M: Manifold,
        n_clusters: int = 8,
        *,
        method: Method = "refined",
        n_init: int = 3,
        max_iter: int = 300,
        sample: int = 64,
        solver: ChainSolver | None = None,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.M = M
        self.n_clusters = n_clusters
        self.method = method
        self.n_init = n_init
        self.max_iter = max_iter
        self.sample = sample
        self.solver = solver
        self.random_state = random_state

    def fit(self, X: ArrayLike | Tensor, y: object = None) -> Self:  # noqa: ARG002
        """Find the medoids of the codes X, ``(n, d)``."""
        reach, rng = self._begin(X)
        D = reach.matrix()
        seeds = [_seeds(lambda i: D[i], len(D), self.n_clusters, 1, rng) for _ in range(self.n_init)]
        runs = [_swapped(D, s, self.max_iter) for s in seeds]
        medoids, self.n_iter_ = min(runs, key=lambda run: D[run[0]].min(0).sum())
        if self.n_iter_ == self.max_iter:
            warnings.warn(f"{self.max_iter} swaps did not suffice: raise max_iter", ConvergenceWarning, stacklevel=3)
        self.medoid_indices_ = medoids
        return self._end(reach.z[torch.from_numpy(medoids)], rng)


# -- k-means ----------------------------------------------------------------------------------------------------------

Cells: TypeAlias = tuple[Numbers, Numbers]
"""Codes ``(R,)`` that stand for all in the means, and the number ``(n,)`` of the one that stands for each code."""


class _Centres(Protocol):
    """Centres that move to their clusters."""

    reach: Reach
    mu: Tensor  # (k, d)

    def distances(self) -> Array:
        """Distances of the codes to the centres: ``(n, k)``."""
        ...

    def replace(self, c: int, i: int) -> None:
        """Put a centre on a code."""
        ...

    def step(self, labels: Numbers) -> bool:
        """Move towards the means of the clusters; whether they are reached."""
        ...

    def failures(self) -> tuple[int, int]:
        """Geodesics to the centres that did not converge, and how many were solved."""
        ...


@dataclass
class _Run:
    """A restart of k-means."""

    centres: _Centres
    iterations: int = 0
    relocated: int = 0
    at_rest: bool = False

    def inertia(self) -> float:
        return float(np.square(self.centres.distances().min(1)).sum())


def _seeds(distances: Callable[[Numbers], Array], n: int, k: int, power: int, rng: np.random.RandomState) -> Numbers:
    """Draw seeds by greedy k-means++, from the distances of given codes to all, ``(c,) -> (c, n)``."""
    seeds = [int(rng.randint(n))]
    cost = distances(np.array(seeds))[0] ** power
    for _ in range(k - 1):
        trials = rng.uniform(size=2 + int(math.log(k)))
        many = cost if cost.any() else np.ones(n)  # else fewer different codes than clusters
        drawn = np.searchsorted(many.cumsum(), trials * many.sum(), side="right").clip(max=n - 1)
        costs = np.minimum(cost, distances(drawn) ** power)  # (trials, n)
        best = int(costs.sum(1).argmin())
        cost = costs[best]
        seeds.append(int(drawn[best]))
    return np.array(seeds)


def _cells(reach: Reach, rng: np.random.RandomState) -> Cells:
    """Thin the codes by ordinary k-means in the chart; each cell is stood for by the code nearest to its centre."""
    points = reach.z.cpu().numpy()
    count = min(_CELLS, len(np.unique(points, axis=0)))
    if reach.method == "exact" or len(points) <= _CELLS:
        return np.arange(len(points)), np.arange(len(points))
    cells = KMeans(count, n_init=1, random_state=rng).fit(points)
    return pairwise_distances_argmin(cells.cluster_centers_, points), cells.labels_


def _assigned(centres: _Centres) -> tuple[Numbers, int]:
    """Nearest centre of each code, and how many centres without codes were moved to the farthest."""
    D = centres.distances()
    labels, moved = D.argmin(1), 0
    own = D.min(1)
    for c in np.setdiff1d(np.arange(D.shape[1]), labels):
        spare = own * (np.bincount(labels)[labels] > 1)
        i = int(spare.argmax())
        if spare[i] == 0:
            break
        centres.replace(int(c), i)
        labels[i], own[i], moved = c, 0.0, moved + 1
    return labels, moved


def _counts(cells: Cells, labels: Numbers, k: int) -> Array:
    """How many codes of each cell are in each cluster: ``(R, k)``."""
    R = len(cells[0])
    counts = np.bincount(cells[1] * k + labels, minlength=R * k)
    return counts.reshape(R, k).astype(np.float64)


class _Nodes:
    """Centres on nodes of the graph: the best of all nodes, at the price of a product of matrices."""

    def __init__(self, reach: Reach, cells: Cells, seeds: Numbers, squares: NDArray[np.float32]) -> None:
        self.reach, self.cells, self.squares = reach, cells, squares
        self._settle(reach.place[seeds])

    def _settle(self, nodes: Numbers) -> None:
        assert self.reach.roads is not None
        self.nodes, self.mu = nodes, self.reach.roads.codes[torch.from_numpy(nodes)]

    def distances(self) -> Array:
        return self.reach.rough(self.mu)

    def replace(self, c: int, i: int) -> None:
        self._settle(np.where(np.arange(len(self.nodes)) == c, self.reach.place[i], self.nodes))

    def step(self, labels: Numbers) -> bool:
        counts = _counts(self.cells, labels, len(self.nodes))
        best = np.where(counts.any(0), (self.squares.T @ counts).argmin(0), self.nodes)
        rest = bool((best == self.nodes).all())
        self._settle(best)
        return rest

    def failures(self) -> tuple[int, int]:
        return 0, 0


class _Means:
    """Centres that Newton's method leads to the Frechet means of their clusters, along legs that are laid once."""

    def __init__(self, reach: Reach, cells: Cells, mu: Tensor, tol: float) -> None:
        self.reach, self.cells, self.mu = reach, cells, mu
        self.tolerance = max(tol, torch.finfo(mu.dtype).eps ** 0.75)
        self.legs: Legs | None = None
        self.descent: Descent | None = None
        self.counts = np.empty((0, 0))
        self.failed = self.solved = 0

    def distances(self) -> Array:
        if self.reach.formula or self.reach.method != "exact":
            return self.reach.rough(self.mu)
        if self.legs is None:
            self._lay(np.ones((len(self.cells[0]), len(self.mu)), bool))
        assert self.legs is not None
        D = self.reach.rough(self.mu)
        D[self.rep, self.owner] = (2 * self.legs.taylor.value).clamp(min=0).sqrt().double().cpu().numpy()
        return D

    def replace(self, c: int, i: int) -> None:
        self.mu = self.mu.clone()
        self.mu[c] = self.reach.z[i]
        self.legs = None

    def step(self, labels: Numbers) -> bool:
        counts = _counts(self.cells, labels, len(self.mu))
        descent = self.descent if np.array_equal(counts, self.counts) and self.legs is not None else None
        self.counts, self.descent = counts, descent or self._begin(counts)
        if not bool(self.descent.running.any()):
            return True
        self.descent.run(self.descent.tried + _TRIES)
        self.mu, self.legs = self.descent.mu, self.descent.legs
        return False

    def _begin(self, counts: Array) -> Descent:
        """Descend to the means of new clusters."""
        if self.legs is None or bool((counts > 0)[~self.laid].any()):
            self._lay(counts > 0)
        assert self.legs is not None
        owner, weight = (torch.from_numpy(x).to(self.mu.device) for x in (self.owner, counts[self.rep, self.owner]))
        weight = weight.to(self.mu)
        sums = total(torch.ones_like(weight), owner, weight, len(self.mu))
        shares = weight / torch.where(sums > 0, sums, 1.0)[owner]
        return Descent(self.reach.M, self.legs, self.mu, owner, shares, self.tolerance)

    def _lay(self, wanted: NDArray[np.bool_]) -> None:
        """Solve geodesics to the representatives that count, and to those that may soon."""
        reach, reps = self.reach, self.cells[0]
        self.laid = wanted
        if not reach.formula:
            D = reach.rough(self.mu)[reps]
            far = _NEAR * D.min(1, keepdims=True)
            self.laid = wanted | (far >= D)
        rep, owner = self.laid.nonzero()
        a = self.mu[torch.from_numpy(owner)]
        b = _merged(a, reach.z[torch.from_numpy(reps[rep])])
        g = reach.M.geodesic(a, b, init=reach.paths(a, b), solver=reach.solver)
        sound = g.converged
        kept = sound.cpu().numpy()
        self.rep, self.owner = rep[kept], owner[kept]
        self.failed, self.solved = int((wanted[rep, owner] & ~kept).sum()), int(wanted.sum())
        self.legs = legs_along(reach.M, b[sound], g.points[sound], g.length[sound], reach.solver)

    def failures(self) -> tuple[int, int]:
        return self.failed, self.solved


# -- k-medoids --------------------------------------------------------------------------------------------------------


def _swapped(D: Array, medoids: Numbers, max_iter: int) -> tuple[Numbers, int]:
    """Swap medoids for other codes while that lowers the sum of distances: medoids, and swaps tried."""
    for tried in range(1, max_iter + 1):
        change = _changes(D, medoids)
        c, i = np.unravel_index(change.argmin(), change.shape)
        if change[c, i] >= -1e-6 * D[medoids].min(0).sum():
            return medoids, tried
        medoids = np.where(np.arange(len(medoids)) == c, i, medoids)
    return medoids, max_iter


def _changes(D: Array, medoids: Numbers) -> Array:
    """Change of the sum of distances when code i takes the place of medoid c: ``(k, n)``.

    A code goes to i where that is nearer than its medoid. One that loses its medoid goes to i or to its second nearest.
    """
    near = D[medoids]  # (k, n)
    label, n = near.argmin(0), len(D)
    first, second = np.partition(np.concatenate([near, np.full((1, n), np.inf)]), 1, axis=0)[:2]
    lost = np.zeros((len(medoids), n))
    lost[label, np.arange(n)] = 1.0
    size = 1 + _ROWS // n
    blocks = [D[at : at + size] for at in range(0, n, size)]  # candidates i in rows
    parts = [((kept := np.minimum(d, first)) - first).sum(1) + lost @ (np.minimum(d, second) - kept).T for d in blocks]
    return np.concatenate(parts, 1)


# -- how far it is ----------------------------------------------------------------------------------------------------


class Reach:
    """Distances from codes and other points to centres: by a formula, along a graph of the codes, or solved."""

    def __init__(self, M: Manifold, z: Tensor, method: Method, solver: ChainSolver | None) -> None:
        self.M, self.z, self.solver = M, z, solver
        self.formula = has_formula(M)
        self.roads, self.place = None, np.empty(0, np.int64)
        if not self.formula:
            self.roads, self.place, _ = neighbour_graph(M, z, z, None, grid=True, bridge=True)
        self.method: Method = method if self.roads is not None else "exact"  # nor has one point a graph
        self.error = 0.0 if self.method == "exact" else math.nan
        self.margin = 0.0

    def rough(self, centres: Tensor, x: Tensor | None = None) -> Array:
        """Distances of the codes, or of x, to the centres as far as they cost little: ``(n, k)``."""
        if self.roads is None:
            return self._dist(centres, self.z if x is None else x)
        field = self.fields(centres)  # (k, nodes)
        if x is None:
            along: Array = field[:, self.place].T
            return along
        near, gap = self._joints(x, min(_JOINS, len(self.roads.codes)))
        through: Array = (field[:, near] + gap).min(-1).T
        return through

    def measure(self, centres: Tensor, x: Tensor | None = None) -> Array:
        """Distances of the codes, or of x, to the centres, solved where the method asks for it: ``(n, k)``."""
        if self.formula:
            return self._dist(centres, self.z if x is None else x)
        if self.roads is None:
            D = np.full((len(self.z if x is None else x), len(centres)), np.inf)
        else:
            D = self.rough(centres, x)
        if self.method == "graph":
            return D
        bound = (1 + self.margin) * D.min(1, keepdims=True)
        close = bound >= D
        wanted = close & (close.sum(1, keepdims=True) > 1) if self.method == "refined" else np.ones_like(close)
        i, c = wanted.nonzero()
        length, converged = self.solve(centres[c], (self.z if x is None else x)[i])
        warn_of_failures(int((~converged).sum()), len(i), "the shortest curve found stands for the geodesic")
        D[i, c] = np.where(converged, length, np.fmin(length, D[i, c]))
        return D

    def far_outside(self, x: Tensor) -> NDArray[np.bool_]:
        """Whether the way to the nearest code is by far longer than any from a code to its nearest other: ``(n,)``.

        By straight ways to what is nearest in the chart; no point is, where a formula measures everywhere alike.
        """
        if self.roads is None or len(x) == 0:
            return np.zeros(len(x), bool)
        near = torch.cat([torch.cdist(part, self.z).argmin(1) for part in x.split(1 + _ROWS // len(self.z))])
        way = self.roads._straight(x, self.z[near], self.M)
        far: NDArray[np.bool_] = ~(way <= _FAR * self._spacing).cpu().numpy()
        return far

    @cached_property
    def _spacing(self) -> float:
        """The longest straight way from a code to the nearest that is another point."""
        assert self.roads is not None
        z = self.roads.codes[torch.from_numpy(np.unique(self.place))]
        if len(z) == 1:
            return math.inf
        near = torch.cat(
            [torch.cdist(part, z).topk(2, largest=False).indices[:, 1] for part in z.split(1 + _ROWS // len(z))]
        )
        return float(self.roads._straight(z, z[near], self.M).max())

    def gauge(self, centres: Tensor, sample: int, rng: np.random.RandomState) -> None:
        """Learn the graph's error from a random sample of codes and their nearest centres."""
        if self.method == "exact" or self.formula:
            return
        if sample == 0:
            self.error = math.nan
            return
        D = self.rough(centres)
        i = rng.permutation(len(D))[:sample]
        c = D[i].argmin(1)
        length, converged = self.solve(centres[c], self.z[i])
        sound = converged & (length > 0)
        errors = D[i, c][sound] / length[sound] - 1
        if len(errors):
            low, high = np.quantile(errors, [(1 - _SURELY) / 2, (1 + _SURELY) / 2])
            self.error, self.margin = float(np.median(np.abs(errors))), float((1 + high) / (1 + low) - 1)
        elif converged.any():  # every code of the sample is its centre
            self.error = 0.0

    def solve(self, a: Tensor, b: Tensor) -> tuple[Array, NDArray[np.bool_]]:
        """Lengths of geodesics, and whether they converged: ``(N, d), (N, d) -> (N,), (N,)``."""
        blocks = zip(a.split(_PAIRS), _merged(a, b).split(_PAIRS), strict=True)
        found = [self.M.geodesic(a, b, init=self.roads, solver=self.solver) for a, b in blocks]
        lengths, converged = ([getattr(g, name).cpu().numpy() for g in found] for name in ("length", "converged"))
        return np.concatenate([np.empty(0), *lengths]), np.concatenate([np.empty(0, bool), *converged])

    def from_codes(self, i: Numbers) -> Array:
        """Distances from some codes to all: ``(c,) -> (c, n)``."""
        return self.rough(self.z[torch.from_numpy(i)]).T

    def squares(self, i: Numbers) -> NDArray[np.float32] | None:
        """Squared distances from some codes to the nodes of the graph, where there is one: ``(c, nodes)``."""
        return None if self.roads is None else self._between(self.place[i], slice(None)) ** 2

    def matrix(self) -> NDArray[Any]:
        """Distances between all codes: ``(n, n)``."""
        if self.method != "exact":
            return self._between(self.place, self.place)
        if self.formula:
            return self._dist(self.z, self.z)
        D = pairwise_distances(self.M, self.z, method="exact", solver=self.solver)
        warn_of_failures(len(D.failed), D.solved, "the shortest curve found stands for the geodesic")
        return D.values

    def _between(self, sources: Numbers, targets: Numbers | slice) -> NDArray[np.float32]:
        """Lengths of paths between nodes of the graph."""
        assert self.roads is not None
        graph = len(self.roads.codes), self.roads.edges.cpu().numpy(), self.roads.lengths.cpu().numpy()
        blocks = np.array_split(sources, 1 + len(sources) // _PAIRS)
        return np.concatenate([distances_from(*graph, block)[:, targets].astype(np.float32) for block in blocks])

    def paths(self, a: Tensor, b: Tensor) -> Tensor | None:
        """Starts for geodesics along the graph, where there is one: ``(N, d), (N, d) -> (N, s+1, d)``.

        From a point to itself the graph has a loop over its nearest node, and the start is the point.
        """
        if self.roads is None:
            return None
        segments = (self.solver or ChainSolver()).segments
        paths = torch.cat(
            [self.roads.paths(*ends, segments) for ends in zip(a.split(_PAIRS), b.split(_PAIRS), strict=True)]
        )
        return torch.where((a == b).all(-1)[:, None, None], a[:, None], paths)

    def fields(self, centres: Tensor) -> Array:
        """Distances from centres to the nodes of the graph: ``(k, nodes)``."""
        assert self.roads is not None
        near, gap = self._joints(centres, min(self.roads.k, len(self.roads.codes)))
        n, k = len(self.roads.codes), len(centres)
        joints = np.stack([np.repeat(np.arange(k) + n, near.shape[1]), near.ravel()], 1)
        edges = np.concatenate([self.roads.edges.cpu().numpy(), joints])
        lengths = np.concatenate([self.roads.lengths.cpu().numpy(), gap.ravel()])
        field = distances_from(n + k, edges, lengths, np.arange(k) + n)[:, :n]
        return np.where(field < _TINY, 0.0, field)

    def _joints(self, x: Tensor, k: int) -> tuple[Numbers, Array]:
        """Nearest nodes of the graph, and how far they are along the straight line: ``(m, k), (m, k)``."""
        assert self.roads is not None
        nodes = self.roads.codes
        near = torch.cat(
            [torch.cdist(part, nodes).topk(k, largest=False).indices for part in x.split(1 + _ROWS // len(nodes))]
        )
        gap = self.roads._straight(x[:, None].expand(-1, k, -1).flatten(0, 1), nodes[near.flatten()], self.roads.M)
        return near.cpu().numpy(), gap.reshape(near.shape).double().cpu().numpy()

    def _dist(self, centres: Tensor, x: Tensor) -> Array:
        with torch.no_grad():
            parts = [self.M.dist(part[:, None], centres) for part in x.split(1 + _ROWS // len(centres))]
        D: Array = torch.cat(parts).double().cpu().numpy()
        return D


def _merged(a: Tensor, b: Tensor) -> Tensor:
    """Points b, each put on its a where the two are nearer than rounding: ``(N, d), (N, d) -> (N, d)``."""
    rounding = 4 * torch.finfo(a.dtype).eps * torch.maximum(a.abs(), b.abs()).amax(-1)
    return torch.where(((b - a).abs().amax(-1) <= rounding)[:, None], a, b)
