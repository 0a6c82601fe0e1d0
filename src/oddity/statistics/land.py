"""The locally adaptive normal distribution: a normal law of tangent vectors, carried onto the manifold."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import cached_property
from typing import Any, Literal, NamedTuple, Self, TypeAlias, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.stats import chi2, qmc
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from oddity.geometry.connect import ChainSolver
from oddity.geometry.jacobi import exponential_spread
from oddity.geometry.manifold import Manifold
from oddity.geometry.roadmap import Roadmap, among
from oddity.models.checks import check_kind, check_whole
from oddity.numerics.ambient import doors
from oddity.statistics.clustering import GeodesicKMeans, Reach
from oddity.statistics.legs import Legs, Taylor, covariant_hessian, has_formula, legs_along
from oddity.statistics.means import admit_codes, warn_of_failures

__all__ = ["LAND"]

Measure: TypeAlias = Literal["riemannian", "magnification"]
Start: TypeAlias = Literal["kmeans", "geodesic"]
Progress: TypeAlias = Callable[[int, float], None]
Array: TypeAlias = NDArray[Any]

_SCRAMBLES = 4  # independent randomisations of the directions, whose scatter is the standard error
_FEWEST = 32  # rays
_STEPS = 48  # radii on each ray
_RAY = 1e-4  # tolerance of a ray
_BEYOND = 1e-4  # mass of the normal law that rays leave out in flat space, and of a ray that is not tested for its cut
_OUTSIDE = 2e-3  # mass in the last tenth of the rays, above which they are made longer
_LONGEST = 30.0  # standard deviations
_NOISE = 0.03, 0.01  # scatter of a normaliser between two halves of a lattice, and its standard error at the end,
_MOST = 8  # above which rays are added, up to so many times as many
_NEGLIGIBLE = math.log(1e-4)  # a component that cannot have this share of a point is not measured there
_CAUTION = 0.95  # in what is learnt of the graph's error
_DRIFT = 2.0  # by how much more than its mean a logarithm may change
_SHORTER = 0.99  # a ray is past its cut where the distance is shorter by this factor
_PAIRS = 512  # geodesics at a time
_ITERATIONS = 200  # of expectation-maximisation between two moves
_NODES = 9  # of the path of a mean
_SHORTEST = 0.02  # step of a mean, in standard deviations, below which none is tried
_WIDTHS = 0.25, 2.0  # between which a variance may change before the rays are shot anew
_LEAST = 0.05  # second moment of a model, as a share of its flat one, below which steps are cautious
_SINGULAR = 1e-12  # ratio of the smallest variance to the largest
_HALVINGS = 8  # of a step that would lose likelihood
_ROOM = 1.5  # how much more mass a ray may have than any of the fan
_DRAWS = 100  # rounds of rejection
_TINY = 1e-300
_FOLDED = (
    "at {} geodesics fold at once, as they do where the metric is all but singular; leave out points far from the "
    "others, begin elsewhere with means_init, or add a ridge to M"
)


@doors
class LAND(DensityMixin, BaseEstimator):  # type: ignore[misc]
    r"""Mixture of locally adaptive normal distributions on a manifold, fitted by maximum likelihood.

    A component has the density p(x) = exp(-|log_mu(x)|^2 / 2) / C with respect to the Riemannian measure dM, where
    the norm is that of the inverse of its covariance, |v|^2 = v' Sigma^-1 v. In flat space it is the normal
    distribution, and the mixture that of :class:`sklearn.mixture.GaussianMixture`.

    Logarithms and covariances are in chart coordinates: log_mu(x) is the initial velocity of the geodesic from mu to
    x, and ``covariances_[k]`` is a contravariant tensor at ``means_[k]``, to be drawn as an ellipse in the chart.
    Orthonormal coordinates R v with R'R = G(mu) would say the same, with R Sigma R' for Sigma, but they need a choice
    of R at each point.

    Parameters
    ----------
    M
        The manifold.
    n_components
        Number of components, K.
    measure
        What the normaliser C integrates over. ``"riemannian"``: the volume that the exponential map makes of the
        tangent space, with its Jacobian determinant, so that p integrates to one over the manifold.
        ``"magnification"``: sqrt(det G) at exp_mu(v) alone, as in the code of the authors, whose p does not.
    n_samples
        Geodesics shot from each mean to find C at the end, in quasi-random directions and their opposites: a power of
        two, at least 32, and up to eight times as many as long as the standard error of C exceeds a hundredth. Each
        serves at 48 radii. The iterations make do with half as many, in directions drawn once, so that the likelihood
        is a smooth function of the parameters.
    max_iter
        Moves of the means. Between two of them, weights, covariances and shifts of the means are fitted to the same
        geodesics.
    tol
        The fit has converged when the mean log-likelihood rises by less.
    n_init
        Restarts from other seeds, of which the one of highest likelihood is kept.
    init_params
        Where the components begin: ``"kmeans"`` in the chart, or ``"geodesic"``, by :class:`~oddity.GeodesicKMeans`.
    means_init
        ``(K, d)``, first means in place of those.
    reg_covar
        Variance that is added in every direction, as a squared Riemannian length.
    roadmap
        Start geodesics also from the paths of a :class:`~oddity.Roadmap`, and keep the shorter.
    solver
        Settings of the geodesics.
    random_state
        For the directions and the seeds: None, an integer or a ``numpy.random.RandomState``.
    progress
        Called as ``progress(iteration, lower_bound)`` after each move.

    Attributes
    ----------
    weights_, means_, covariances_ : ndarray
        ``(K,)``, ``(K, d)``, ``(K, d, d)``.
    normalizers_, normalizer_errors_ : ndarray
        ``(K,)``, C of each component and its standard error, from the scatter over independent randomisations of the
        directions. The error of the radial quadrature, fourth order in the step, and of the geodesics comes on top.
    cut_locus_ : ndarray
        ``(K,)``, the share of the integral over the tangent space that lies past the cut locus, where a ray is no
        longer the shortest way. It belongs to points that count already, and is left out of C.
    lower_bound_ : float
        Mean log-likelihood of the training points with respect to dz, over those that count.
    converged_ : bool
    n_iter_ : int
        Moves tried in the restart that was kept.
    n_features_in_ : int
        d.

    Raises
    ------
    ValueError
        On fitting, if the points are unusable (not finite, fewer than components, all equal, outside the chart), a
        setting is out of its range, a covariance degenerates although ``reg_covar`` is zero, or geodesics from every
        first mean fold at once, as far outside of the support of the data.

    Warns
    -----
    RuntimeWarning
        Counting the geodesics to points that did not converge, which get no weight; the points that no component
        reaches, which do not count; and the rays that did not converge, with their share of the normal law.
    ConvergenceWarning
        If ``max_iter`` did not suffice, or a component has lost its points. One whose geodesics fold at once has no
        density and gets none: its normaliser is infinite and its weight zero.

    Notes
    -----
    Arvanitidis, Hansen, Hauberg, "A Locally Adaptive Normal Distribution", NeurIPS 2016. In polar coordinates of the
    tangent space one geodesic gives a whole ray of the integrand, and its Jacobi fields the determinant; a change of
    the covariance weighs the rays anew. C is the flat normaliser times a ratio of two sums over the same vectors, so
    that it is exact in flat space. Rays end at their first conjugate point, and at the end of the fit at the cut
    locus, found by bisection with geodesics. A ray that leaves the chart ends there; one whose speed changed is left
    out of both sums.

    A mean moves along the paper's direction, E_data[log] - E_model[log], as far as its length is at most one standard
    deviation and the likelihood does not fall; its covariance is transported parallelly. The direction is the exact
    gradient where covariances are isotropic or the space is flat, and approximates it otherwise.

    Points may be NumPy arrays or tensors; results are NumPy arrays. A component is not measured at a point where it
    cannot have a millionth of the density, judged by the paths of a graph over the training points.

    Examples
    --------
    >>> import oddity
    >>> z = 0.3 * torch.randn(200, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    >>> land = oddity.LAND(oddity.Sphere(2), random_state=0).fit(z)
    >>> land.predict_proba(z[:1]).tolist()
    [[1.0]]
    >>> bool(abs(land.means_).max() < 0.1)
    True
    """

    def __init__(
        self,
        M: Manifold,
        n_components: int = 1,
        *,
        measure: Measure = "riemannian",
        n_samples: int = 64,
        max_iter: int = 100,
        tol: float = 1e-3,
        n_init: int = 1,
        init_params: Start = "kmeans",
        means_init: ArrayLike | Tensor | None = None,
        reg_covar: float = 1e-6,
        roadmap: Roadmap | None = None,
        solver: ChainSolver | None = None,
        random_state: int | np.random.RandomState | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.M = M
        self.n_components = n_components
        self.measure = measure
        self.n_samples = n_samples
        self.max_iter = max_iter
        self.tol = tol
        self.n_init = n_init
        self.init_params = init_params
        self.means_init = means_init
        self.reg_covar = reg_covar
        self.roadmap = roadmap
        self.solver = solver
        self.random_state = random_state
        self.progress = progress

    def fit(self, X: ArrayLike | Tensor, y: object = None) -> Self:  # noqa: ARG002
        """Fit the mixture to the points X, ``(n, d)``."""
        self._admit_settings()
        x = admit_codes(self, X, at_least=self.n_components)
        if len(x) == 1:
            raise ValueError("n_samples = 1: no covariance can be learnt from one point")
        if bool((x == x[0]).all()):
            raise ValueError(f"all {len(x)} points of X are equal: no covariance can be learnt from them")
        rng = check_random_state(self.random_state)
        with torch.no_grad():
            land = _Land(self, x, rng)
            runs = [land.run(means) for means in self._starts(x, rng)]
            run = max(runs, key=lambda run: run.state.bound())
            state = land.finish(run.state)
        self._land, self._parts, self._log_weights = land, state.parts, state.log_weights
        self.converged_, self.n_iter_ = run.converged, run.iterations
        self._learn(x, state)
        return self

    def _admit_settings(self) -> None:
        for name, choices in (("measure", Measure), ("init_params", Start)):
            if getattr(self, name) not in get_args(choices):
                raise ValueError(f"unknown {name} {getattr(self, name)!r}; choose {' or '.join(get_args(choices))}")
        for name in ("n_components", "n_samples", "max_iter", "n_init"):
            check_whole(**{name: getattr(self, name)})
        check_kind(roadmap=self.roadmap, kind=Roadmap, example="oddity.Roadmap(M, codes)")
        check_kind(solver=self.solver, kind=ChainSolver, example="oddity.ChainSolver(segments=64)")
        for name in ("tol", "reg_covar"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)!r}; give a number, at least 0")

    def _starts(self, x: Tensor, rng: np.random.RandomState) -> list[Tensor]:
        """First means of each restart, different points of the data where they are not given."""
        K, seeds = self.n_components, rng.randint(2**31, size=self.n_init)
        if self.means_init is not None:
            means = torch.as_tensor(self.means_init, dtype=x.dtype, device=x.device)
            self.M.admit(means, "means_init")
            if means.shape != (K, x.shape[1]):
                raise ValueError(f"means_init has shape {tuple(means.shape)}, but {K} means have {(K, x.shape[1])}")
            return [means]
        points, different = x.double().cpu().numpy(), len(torch.unique(x, dim=0))
        if different < K:
            raise ValueError(f"X holds {different} different points, too few for {K} components")
        if K == 1:
            centres = [points.mean(0, keepdims=True)]
        elif self.init_params == "kmeans":
            centres = [KMeans(K, n_init=1, random_state=s).fit(points).cluster_centers_ for s in seeds]
        else:
            makers = (GeodesicKMeans(self.M, K, method="graph", n_init=1, random_state=s) for s in seeds)
            centres = [maker.fit(x).cluster_centers_ for maker in makers]
        nearest = {tuple(torch.cdist(torch.from_numpy(c).to(x), x).argmin(1).tolist()) for c in centres}
        return [x[list(at)] for at in sorted(nearest)]

    def _learn(self, x: Tensor, state: _State) -> None:
        """Write down what was learnt, and warn of what was left out."""
        self.weights_ = state.log_weights.exp().cpu().numpy()
        self.means_ = torch.stack([part.mean for part in state.parts]).cpu().numpy()
        self.covariances_ = np.stack([(part.root @ part.root.T).cpu().numpy() for part in state.parts])
        self.normalizers_ = np.array([math.exp(part.log_normalizer(part.law)) for part in state.parts])
        self.normalizer_errors_ = self.normalizers_ * [part.fan.relative_error(part.law) for part in state.parts]
        self.cut_locus_ = np.array([part.past_cut for part in state.parts])
        self.lower_bound_ = _mean(self._with_volume(x, state))
        if not self.converged_:
            message = f"the likelihood still rises after {self.max_iter} moves of the means: raise max_iter or tol"
            warnings.warn(message, ConvergenceWarning, stacklevel=4)
        for k, size in enumerate((state.shares().sum(0)).tolist()):
            if size < 1:
                message = f"component {k} has lost its points; fit fewer components, or begin elsewhere"
                if state.parts[k].fan.is_empty:
                    message = f"component {k} has no points: {_FOLDED.format(state.parts[k].mean.tolist())}"
                warnings.warn(message, ConvergenceWarning, stacklevel=4)
        _warn_of_rays(state.parts)
        state.sight.warn("they have no weight", state.evidence)

    def _look(self, X: ArrayLike | Tensor) -> tuple[Tensor, _State]:
        """Points at the door, and the fitted mixture seen from them."""
        check_is_fitted(self)
        x = admit_codes(self, X, like=self._parts[0].mean)
        with torch.no_grad():
            state = self._land.complete(self._parts, self._log_weights, self._land.sight(self._parts, x))
        state.sight.warn("their components do not count there", state.evidence)
        return x, state

    def log_density(self, X: ArrayLike | Tensor) -> Array:
        """Log density with respect to the Riemannian measure dM: ``(n, d) -> (n,)``.

        Minus infinity where no geodesic from a mean converged, with a warning that counts them.
        """
        density: Array = self._look(X)[1].evidence.cpu().numpy()
        return density

    def score_samples(self, X: ArrayLike | Tensor) -> Array:
        """Log density with respect to dz, ``log_density`` plus log sqrt(det G): ``(n, d) -> (n,)``.

        It is to be compared with densities on the chart, such as that of a Gaussian mixture.
        """
        x, state = self._look(X)
        density: Array = self._with_volume(x, state).cpu().numpy()
        return density

    @torch.no_grad()
    def _with_volume(self, x: Tensor, state: _State) -> Tensor:
        evidence = state.evidence
        return torch.where(evidence.isfinite(), evidence + self.M.log_volume(x).double(), -torch.inf)

    def score(self, X: ArrayLike | Tensor, y: object = None) -> float:  # noqa: ARG002
        """Mean log density with respect to dz."""
        return float(np.mean(self.score_samples(X)))

    def bic(self, X: ArrayLike | Tensor) -> float:
        """Bayesian information criterion on X, the lower the better."""
        K, d = self.means_.shape
        parameters = K * (d * (d + 1) // 2 + d + 1) - 1
        scores = self.score_samples(X)
        return float(-2 * scores.sum() + parameters * math.log(len(scores)))

    def predict_proba(self, X: ArrayLike | Tensor) -> Array:
        """Probability of each component given each point: ``(n, d) -> (n, K)``; that of no geodesic the weights."""
        state = self._look(X)[1]
        blind = ~state.evidence.isfinite()
        proba: Array = torch.where(blind[:, None], state.log_weights.exp(), state.shares()).cpu().numpy()
        return proba

    def predict(self, X: ArrayLike | Tensor) -> Array:
        """Component of highest probability: ``(n, d) -> (n,)``."""
        labels: Array = self.predict_proba(X).argmax(1)
        return labels

    def fit_predict(self, X: ArrayLike | Tensor, y: object = None) -> Array:  # noqa: ARG002
        """Fit the mixture to the points, and return the likeliest component of each: ``(n, d) -> (n,)``."""
        return self.fit(X).predict(X)

    def sample(
        self, n_samples: int = 1, random_state: int | np.random.RandomState | None = None
    ) -> tuple[Array, Array]:
        """Independent draws from the mixture, ``(n, d)``, and their components, ``(n,)``, in the order of these.

        By rejection: rays in random directions are kept in proportion to the mass on them, and give a vector each,
        which is kept if it is shorter than the distance to the cut locus.
        """
        check_is_fitted(self)
        check_whole(n_samples=n_samples)
        rng = check_random_state(self.random_state if random_state is None else random_state)
        counts = rng.multinomial(n_samples, self.weights_ / self.weights_.sum())
        with torch.no_grad():
            drawn = [self._land.draw(part, n, rng) for part, n in zip(self._parts, counts, strict=True)]
        return torch.cat(drawn).cpu().numpy(), np.repeat(np.arange(len(counts)), counts)


# -- normal laws of tangent vectors -----------------------------------------------------------------------------------


class _Vectors(NamedTuple):
    """Tangent vectors at a mean, and how they change with it: to first order v - turn step."""

    v: Tensor  # (*, d)
    turn: Tensor  # (*, d, d)   the identity in flat space


class _Law(NamedTuple):
    """A normal law of tangent vectors, its covariance root root', as seen from a mean that it is a step away from."""

    step: Tensor  # (d,)
    root: Tensor  # (d, d)   lower triangular

    def whiten(self, x: _Vectors) -> Tensor:
        """Vectors as seen from the law's own mean, in coordinates in which it is standard normal: ``(*, d)``."""
        return self.whiten_flat(x.v - (x.turn @ self.step[:, None])[..., 0] + self.step)

    def whiten_flat(self, v: Tensor) -> Tensor:
        """The same as if space were flat."""
        rows = (v - self.step).reshape(-1, v.shape[-1])
        u: Tensor = torch.linalg.solve_triangular(self.root, rows.mT, upper=False).mT.reshape(v.shape)
        return u

    def scores(self, x: _Vectors) -> Tensor:
        """Derivative of the log density by the step, both whitened: ``(*, d)``; in flat space whitened vectors."""
        turn: Tensor = torch.linalg.solve_triangular(self.root, x.turn @ self.root, upper=False)
        return (turn.mT @ self.whiten(x)[..., None])[..., 0]

    def log_flat(self) -> float:
        """Log of the flat normaliser, sqrt(det 2 pi Sigma)."""
        return len(self.root) / 2 * math.log(2 * math.pi) + float(self.root.diagonal().log().sum())


class _Fan(NamedTuple):
    """Rays of the tangent space at a mean, and what volume the exponential map makes of it along them."""

    x: _Vectors  # (S, T, d)   radii of each ray, float64
    points: Tensor  # (S, T, d)   where they lead; NaN past the end of a ray
    weight: Tensor  # (S, T)   of the quadrature in flat space; zero on a ray that is not to be trusted
    spread: Tensor  # (S, T)   volume over flat volume; zero where no shortest geodesic comes
    failed: Tensor  # (S,) bool

    @property
    def is_empty(self) -> bool:
        """Whether every ray has a conjugate point before its first radius, so that there is nothing to measure."""
        return not bool((self.weight * self.spread).any())

    def masses(self, law: _Law) -> tuple[Tensor, Tensor]:
        """Mass of the law at each vector, in flat space and as spread: ``(S, T)`` twice."""
        flat, spread = (-0.5 * u.square().sum(-1) for u in (law.whiten_flat(self.x.v), law.whiten(self.x)))
        return self.weight * flat.exp(), self.weight * self.spread * spread.exp()

    def log_ratio(self, law: _Law) -> float:
        """Log of the mean spread under the law."""
        flat, spread = (max(float(x.sum()), _TINY) for x in self.masses(law))
        return math.log(spread / flat)

    def relative_error(self, law: _Law, sets: int = _SCRAMBLES) -> float:
        """Standard error of the mean spread as a share of it, from its scatter over sets of rays."""
        if self.is_empty:
            return math.nan
        flat, spread = (x.reshape(sets, -1).sum(1) for x in self.masses(law))
        ratios = spread / flat.clamp(min=_TINY)
        return float(ratios.std() / ratios.mean().clamp(min=_TINY)) / math.sqrt(sets)

    def moments(self, law: _Law) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and covariance of the scores, and second moment of the whitened vectors, under the law.

        Each is that of flat space and what the spread adds, so that in flat space it is exact.
        """
        u, flat_u = law.whiten(self.x).flatten(0, 1), law.whiten_flat(self.x.v).flatten(0, 1)
        s = law.scores(self.x).flatten(0, 1)
        flat, spread = (x.flatten() / x.sum() for x in self.masses(law))
        mean, flat_mean = spread @ s, flat @ flat_u
        one, flat_second = torch.eye(len(mean), dtype=mean.dtype, device=mean.device), _second(flat, flat_u)
        covariance = one + _second(spread, s - mean) - flat_second
        return mean - flat_mean, covariance, one + _second(spread, u) - flat_second

    def edge(self, law: _Law) -> float:
        """Share of the spread mass in the last tenth of the rays."""
        spread = self.masses(law)[1]
        return float(spread[:, -_STEPS // 10 :].sum()) / max(float(spread.sum()), _TINY)


def _second(weights: Tensor, u: Tensor) -> Tensor:
    return (weights[:, None] * u).mT @ u


class _Part(NamedTuple):
    """A component: its mean, its normal law, and the fan that measures both."""

    mean: Tensor  # (d,)
    root: Tensor  # (d, d)   of the covariance, float64
    log_volume: float  # log sqrt det G at the mean
    frame: Tensor  # (d, d)   R with R'R = G there, float64
    reach: float  # length of the rays, in standard deviations
    rays: int
    fan: _Fan
    past_cut: float = 0.0

    @property
    def law(self) -> _Law:
        """The normal law of the component."""
        return _Law(torch.zeros_like(self.root[0]), self.root)

    def log_normalizer(self, law: _Law) -> float:
        """Log C of a law; infinite where there is nothing to measure it by, so that the component has no density."""
        if self.fan.is_empty:
            return math.inf
        return self.log_volume + law.log_flat() + self.fan.log_ratio(law)

    def widest(self) -> float:
        """Largest standard deviation of all directions, as a Riemannian length."""
        return float(torch.linalg.matrix_norm(self.frame @ self.root, 2))

    def fitted(self, law: _Law, share: Tensor, x: _Vectors, reg: float) -> _Law:
        """A likelier law for vectors with shares; the step never loses likelihood.

        Fisher scoring for the step of the mean; for the covariance, the second moments of data and model in whitened
        coordinates must be equal.
        """
        size = share.sum()
        if size < 1:
            return law
        p = share / size
        mean, information, second = self.fan.moments(law)
        step = _power(information, -1.0, least=_LEAST) @ (p @ law.scores(x) - mean)
        ahead = _Law(law.step + law.root @ step, law.root)
        data = _second(p, ahead.whiten(x)) + reg * self._ridge(law)
        shrink = _power(second, -0.5, least=_LEAST)
        goal = shrink @ data @ shrink
        self._admit_finite(goal)
        _admit_variances(torch.linalg.eigvalsh(goal))
        here = self._gain(law, p, x, reg)
        for s in (0.5**halving for halving in range(_HALVINGS)):
            root = _cholesky(law.root @ _power(goal, s) @ law.root.mT)
            ahead = _Law(law.step + s * law.root @ step, root)
            if self._gain(ahead, p, x, reg) >= here:
                return ahead
        return law

    def _admit_finite(self, goal: Tensor) -> None:
        if not bool(goal.isfinite().all()):
            raise ValueError(f"the moments of a component are not finite: {_FOLDED.format(self.mean.tolist())}")

    def _gain(self, law: _Law, p: Tensor, x: _Vectors, reg: float) -> float:
        """Mean log density of vectors under a law, less what the regularisation takes."""
        squares = float(p @ law.whiten(x).square().sum(-1)) + reg * float(self._ridge(law).trace())
        return -0.5 * squares - self.log_normalizer(law)

    def _ridge(self, law: _Law) -> Tensor:
        """Covariance of one in every Riemannian direction, in whitened coordinates."""
        root: Tensor = torch.linalg.solve_triangular(law.root, torch.linalg.inv(self.frame), upper=False)
        return root @ root.mT

    def within(self, law: _Law, radius: float) -> tuple[_Law, bool]:
        """Nearest law for which the fan is good, not too far off, too wide or too narrow; and whether it was so."""
        far = self.far(law)
        change = torch.linalg.solve_triangular(self.root, law.root, upper=False)
        values, vectors = torch.linalg.eigh(change @ change.mT)
        held = values.clamp(*_WIDTHS)
        if far <= radius and bool((held == values).all()):
            return law, True
        turned = self.root @ vectors
        return _Law(law.step * min(1.0, radius / max(far, _TINY)), _cholesky((turned * held) @ turned.mT)), False

    def far(self, law: _Law) -> float:
        """How far the mean of a law is off, in standard deviations of this component."""
        return float(torch.linalg.vector_norm(self.law.whiten_flat(law.step)))


def _admit_variances(variances: Tensor) -> None:
    if not float(variances[0]) > _SINGULAR * float(variances[-1]):
        raise ValueError("the covariance of a component degenerates; raise reg_covar, or fit fewer components")


def _power(a: Tensor, exponent: float, least: float = 0.0) -> Tensor:
    """Power of a symmetric matrix whose eigenvalues are at least so large."""
    values, vectors = torch.linalg.eigh((a + a.mT) / 2)
    power: Tensor = (vectors * values.clamp(min=least).pow(exponent)) @ vectors.mT
    return power


def _cholesky(a: Tensor) -> Tensor:
    root: Tensor = torch.linalg.cholesky((a + a.mT) / 2)
    return root


# -- logarithms -------------------------------------------------------------------------------------------------------


class _Sight:
    """Logarithms of n points at K means, as far as they were wanted, and old ones that say what to expect."""

    def __init__(self, settings: LAND, means: Tensor, x: Tensor, sketch: Manifold) -> None:
        self.M, self.means, self.x, self.settings, self.sketch = settings.M, means, x, settings, sketch
        self.solver = settings.solver or ChainSolver()
        (n, d), K = x.shape, len(means)
        one = torch.eye(d, dtype=torch.float64, device=x.device)
        self.v = x.new_zeros(n, K, d, dtype=torch.float64)
        self.turn = one.repeat(n, K, 1, 1)
        self.tried = torch.zeros(n, K, dtype=torch.bool, device=x.device)
        self.solved, self.seen = self.tried.clone(), self.tried.clone()  # from this mean; from this or an earlier one
        self.drift = torch.zeros_like(self.v[..., 0])  # by how much |v| may be off since it was seen, by the law's norm
        self.legs: list[tuple[Tensor, Tensor, Legs]] = []  # points, means, and the geodesics between them as last seen

    def column(self, k: int) -> _Vectors:
        """Logarithms at one mean."""
        return _Vectors(self.v[:, k], self.turn[:, k])

    def look(self, wanted: Tensor) -> None:
        """Solve the wanted pairs ``(n, K)``: along old geodesics where there are, and where these fail from scratch."""
        self.tried |= wanted
        old, self.legs = self.legs, []
        for i, k, legs in old:
            again = wanted[i, k] & ~self.solved[i, k]
            if bool(again.any()):
                moved = legs.only(again).moved(self.means[k[again]])
                self._learn(i[again], k[again], moved, moved.sound())
            if not bool(again.all()):
                self.legs.append((i[~again], k[~again], legs.only(~again)))
        if self.sketch is not self.M:  # what a sketch finds need only be corrected
            for i, k in self._open(wanted):
                g = self.sketch.geodesic(self.means[k], self.x[i], init=self.settings.roadmap, solver=self.solver)
                legs = legs_along(self.M, self.x[i], g.points, self.M._lengths(g.points), self.solver)
                self._learn(i, k, legs, legs.sound())
        for i, k in self._open(wanted):
            g = self.M.geodesic(self.means[k], self.x[i], init=self.settings.roadmap, solver=self.solver)
            legs = legs_along(self.M, self.x[i], g.points, g.length, self.solver)
            self._learn(i, k, legs, g.converged | has_formula(self.M))

    def _open(self, wanted: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Points and means of the wanted pairs that are not solved yet, so many at a time."""
        parts = (wanted & ~self.solved).nonzero().split(_PAIRS)
        return [(part[:, 0], part[:, 1]) for part in parts if len(part)]

    def _learn(self, i: Tensor, k: Tensor, legs: Legs, sound: Tensor) -> None:
        v, turn = _logarithm(self.M, self.means[k], legs.taylor)
        sound = sound & v.isfinite().all(-1)
        self.solved[i, k] = self.seen[i, k] = sound
        self.v[i, k] = torch.where(sound[:, None], v, 0.0).double()
        self.drift[i, k] = 0.0
        if self.settings.measure == "riemannian":
            self.turn[i, k] = torch.where(sound[:, None, None], turn, self.turn[i, k]).double()
        self.legs.append((i[sound], k[sound], legs.only(sound)))

    def moved(self, means: Tensor, drift: Tensor) -> _Sight:
        """The same points from means that have moved, by so much in the norm of their laws ``(K,)``: nothing solved."""
        ahead = _Sight(self.settings, means, self.x, self.sketch)
        ahead.v, ahead.seen, ahead.drift = self.v.clone(), self.seen.clone(), self.drift + _DRIFT * drift
        ahead.legs = list(self.legs)
        return ahead

    def warn(self, treatment: str, evidence: Tensor) -> None:
        """Warn of the geodesics that did not converge, and of the points that none reaches."""
        warn_of_failures(int((self.tried & ~self.solved).sum()), int(self.tried.sum()), treatment)
        if blind := int((~evidence.isfinite()).sum()):
            message = f"no geodesic from a mean reaches {blind} of {len(evidence)} points"
            warnings.warn(message, RuntimeWarning, stacklevel=5)


def _logarithm(M: Manifold, a: Tensor, t: Taylor) -> tuple[Tensor, Tensor]:
    """Logarithms at a, by half their squared lengths, and minus their covariant derivative there."""
    v, size = -M._sharp(a, t.slope), 2 * t.value.clamp(min=0)[:, None]
    squares = M.push(a, v).square().sum(-1, keepdim=True)
    v = v * (size / torch.where(squares > 0, squares, 1.0)).sqrt()  # the length is known better
    covariant = covariant_hessian(M, a, t.slope, t.hessian)
    return v, torch.stack([M._sharp(a, column) for column in covariant.unbind(-1)], -1)


class _State(NamedTuple):
    """A mixture, and points seen from its means."""

    parts: list[_Part]
    log_weights: Tensor  # (K,)
    sight: _Sight

    def joint(self, laws: list[_Law] | None = None) -> Tensor:
        """Log of weight times density, with respect to dM: ``(n, K)``; minus infinity where it is not known."""
        laws = laws or [part.law for part in self.parts]
        columns = [
            -0.5 * law.whiten(self.sight.column(k)).square().sum(-1) - part.log_normalizer(law)
            for k, (part, law) in enumerate(zip(self.parts, laws, strict=True))
        ]
        return torch.where(self.sight.solved, torch.stack(columns, 1) + self.log_weights, -torch.inf)

    @property
    def evidence(self) -> Tensor:
        """Log density with respect to dM: ``(n,)``."""
        return self.joint().logsumexp(1)

    def bound(self) -> float:
        """Mean log density of the points that count."""
        return _mean(self.evidence)

    def shares(self) -> Tensor:
        """Probability of each component given each point, zero where none is known: ``(n, K)``."""
        return _shares(self.joint())


def _shares(joint: Tensor) -> Tensor:
    return joint.softmax(1).nan_to_num(0.0)


def _mean(evidence: Tensor) -> float:
    return float(evidence[evidence.isfinite()].mean())


def _gain(before: _State, after: _State) -> float:
    """By how much the mean log density rose, over the points that count in both."""
    old, new = before.evidence, after.evidence
    both = old.isfinite() & new.isfinite()
    return float((new - old)[both].mean()) if bool(both.any()) else -math.inf


# -- the search -------------------------------------------------------------------------------------------------------


class _Run(NamedTuple):
    """A restart."""

    state: _State
    converged: bool
    iterations: int


class _Land:
    """What every part of one fit shares."""

    def __init__(self, settings: LAND, x: Tensor, rng: np.random.RandomState) -> None:
        self.M, self.x, self.settings = settings.M, x, settings
        self.rays, self.seed = 1 << math.ceil(math.log2(max(_FEWEST, settings.n_samples))), int(rng.randint(2**31))
        self.exact = settings.measure == "riemannian"
        alone = has_formula(self.M) or settings.n_components == 1
        self.graph = None if alone else Reach(self.M, x, "graph", settings.solver)

    @cached_property
    def sketch(self) -> Manifold:
        """A cheaper metric, where geodesics are solved first."""
        roadmap = self.settings.roadmap
        return roadmap.sketch if roadmap else self.M.sketch(among(self.x))

    def __getstate__(self) -> dict[str, Any]:
        """State without the sketch: it is large, and a copy makes it anew."""
        return {name: value for name, value in self.__dict__.items() if name != "sketch"}

    def run(self, means: Tensor) -> _Run:
        """Fit a mixture that begins at some means.

        Everything is fitted to the geodesics at hand, within a radius of trust; then the means move, and the step
        counts if the likelihood, measured anew, did not fall. Otherwise a shorter one is tried.
        """
        state, radius = self.start(means), 1.0
        for iteration in range(1, self.settings.max_iter + 1):
            promised, log_weights, laws = self._fitted(state, radius)
            if promised < self.settings.tol:
                return _Run(state, True, iteration - 1)
            ahead = self._moved(state, log_weights, laws)
            gain = -math.inf if ahead is None else _gain(state, ahead)
            far = max(part.far(law) for part, law in zip(state.parts, laws, strict=True))
            if ahead is not None and gain >= 0:
                state, radius = ahead, min(1.0, 2 * radius)
            else:
                radius = min(radius, far) / 4
            if self.settings.progress is not None:
                self.settings.progress(iteration, state.bound())
            if 0 <= gain < self.settings.tol or radius < _SHORTEST:
                return _Run(state, True, iteration)
        return _Run(state, False, self.settings.max_iter)

    def _fitted(self, state: _State, radius: float) -> tuple[float, Tensor, list[_Law]]:
        """Expectation-maximisation of the weights and laws on the geodesics at hand, and the gain that it promises."""
        laws, log_weights, bounds = [part.law for part in state.parts], state.log_weights, []
        for _ in range(_ITERATIONS):
            joint = state._replace(log_weights=log_weights).joint(laws)
            bounds.append(_mean(joint.logsumexp(1)))
            if len(bounds) > 1 and bounds[-1] - bounds[-2] < self.settings.tol / 10:
                break
            shares = _shares(joint)
            log_weights = (shares.sum(0) / shares.sum()).log()
            held = [
                part.within(part.fitted(law, shares[:, k], state.sight.column(k), self.settings.reg_covar), radius)
                for k, (part, law) in enumerate(zip(state.parts, laws, strict=True))
            ]
            laws = [law for law, _ in held]
            if not all(inside for _, inside in held):
                return math.inf, log_weights, laws
        return bounds[-1] - bounds[0], log_weights, laws

    def _moved(self, state: _State, log_weights: Tensor, laws: list[_Law]) -> _State | None:
        """Mixture whose means have moved to those of the laws; None where one cannot."""
        parts = []
        for part, law in zip(state.parts, laws, strict=True):
            t = torch.linspace(0, 1, _NODES, dtype=part.mean.dtype, device=part.mean.device)
            path = self.M.shoot(part.mean, law.step.to(part.mean), t)
            if not bool(path.converged):
                return None
            columns = self.M.transport(path.points, law.root.mT.to(part.mean))[:, -1].double()
            ahead = self.part(path.points[-1], _cholesky(columns.mT @ columns), part)
            if ahead.fan.is_empty and not part.fan.is_empty:
                return None
            parts.append(ahead)
        drift = state.sight.v.new_tensor([part.far(law) for part, law in zip(state.parts, laws, strict=True)])
        sight = state.sight.moved(torch.stack([part.mean for part in parts]), drift)
        return self.complete(parts, log_weights, sight)

    # -- what is seen from the means

    def sight(self, parts: list[_Part], x: Tensor) -> _Sight:
        """Points that are to be seen from the means."""
        return _Sight(self.settings, torch.stack([part.mean for part in parts]), x, self.sketch)

    def start(self, means: Tensor) -> _State:
        """Components at their first means, each with the points that are nearest in the chart."""
        sight = _Sight(self.settings, means, self.x, self.sketch)
        frames = [self._frame(mean) for mean in means]
        own = torch.nn.functional.one_hot(torch.cdist(self.x, means).argmin(1), len(means)).bool()
        sight.look(own)
        own &= sight.solved
        if not bool(own.any()):
            raise RuntimeError(
                "no geodesic from the first means converged; begin elsewhere, or see M.geodesic(...).why"
            )
        self._calibrate(sight)
        roots = [self._first_root(sight.v[own[:, k], k], frame) for k, frame in enumerate(frames)]
        parts = [self.part(mean, root) for mean, root in zip(means, roots, strict=True)]
        if all(part.fan.is_empty for part in parts):
            raise ValueError(f"no component can be measured: {_FOLDED.format(means[0].tolist())}")
        return self.complete(parts, (own.sum(0) / own.sum()).double().log(), sight)

    def _first_root(self, v: Tensor, frame: Tensor) -> Tensor:
        """Root of the second moment of vectors, wide enough to begin with."""
        inverse = torch.linalg.inv(frame)
        scale = float((v @ frame.mT).square().sum(1).mean()) if len(v) else 1.0
        ridge = max(self.settings.reg_covar, 1e-3 * scale, _TINY)
        return _cholesky(v.mT @ v / max(len(v), 1) + ridge * inverse @ inverse.mT)

    def complete(self, parts: list[_Part], log_weights: Tensor, sight: _Sight) -> _State:
        """See each point from every component that can matter there: from the likeliest first, then from the rest."""
        state = _State(parts, log_weights, sight)
        most = self._most(state)
        likeliest = torch.nn.functional.one_hot(most.argmax(1), len(parts)).bool()
        sight.look(likeliest & ~sight.tried.any(1, keepdim=True))
        while bool((wanted := (most > state.joint().amax(1, keepdim=True) + _NEGLIGIBLE) & ~sight.tried).any()):
            sight.look(wanted)
        return state

    def _most(self, state: _State) -> Tensor:
        """Upper bound of the log joint density, by distances along the graph and old logarithms: ``(n, K)``."""
        sight = state.sight
        if self.graph is None:
            return torch.full_like(sight.drift, torch.inf)
        rough = torch.from_numpy(self.graph.rough(sight.means, None if sight.x is self.x else sight.x)).to(sight.v)
        near = self.shrink * rough / rough.new_tensor([part.widest() for part in state.parts])
        old = [torch.linalg.vector_norm(p.law.whiten_flat(sight.v[:, k]), dim=-1) for k, p in enumerate(state.parts)]
        near = torch.where(sight.seen, torch.maximum(near, torch.stack(old, 1) - sight.drift), near)
        peak = near.new_tensor([part.log_normalizer(part.law) for part in state.parts])
        return state.log_weights - peak - 0.5 * near.clamp(min=0).square()

    def _calibrate(self, sight: _Sight) -> None:
        """Learn by how much paths on the graph are longer than geodesics, from the longer half of those solved."""
        if self.graph is None:
            return
        i, k = sight.solved.nonzero(as_tuple=True)
        path = torch.from_numpy(self.graph.rough(sight.means)).to(sight.v)[i, k]
        length = self.M.norm(sight.means[k], sight.v[i, k].to(sight.means)).double()
        long = path >= path.median()
        self.shrink = _CAUTION * min(1.0, float((length[long] / path[long].clamp(min=_TINY)).min()))

    # -- fans

    def part(self, mean: Tensor, root: Tensor, before: _Part | None = None, *, whole: bool = False) -> _Part:
        """A component with a fan of its own: of half the rays in one lattice, or of all of them in several.

        Rays are made longer and more than they were ``before`` where that proves to be necessary.
        """
        log_volume, frame = float(self.M.log_volume(mean[None])), self._frame(mean)
        _admit_variances(torch.linalg.svdvals(frame @ root).flip(0).square())
        reach = before.reach if before else math.sqrt(chi2.isf(_BEYOND, len(mean)))
        rays = max(self.rays // 2, before.rays if before else 0) * (2 if whole else 1)
        sets = _SCRAMBLES if whole else 2
        while True:
            directions = _directions(len(mean), sets, rays, self.seed, apart=whole).to(root)
            fan = self._fan(mean, root, reach, directions, self.exact)
            part = _Part(mean, root, log_volume, frame, reach, rays, fan)
            if fan.edge(part.law) > _OUTSIDE and reach < _LONGEST:
                reach *= 1.4
            elif fan.relative_error(part.law, sets) > _NOISE[whole] and rays < _MOST * self.rays:
                rays *= 2
            else:
                return part

    def _frame(self, mean: Tensor) -> Tensor:
        L, info = torch.linalg.cholesky_ex(self.M.metric(mean).double())
        if int(info):
            raise ValueError(f"the metric at {mean.tolist()} is singular; add a ridge, e.g. M + 1e-3 * Euclidean()")
        root: Tensor = L.mT
        return root

    def _fan(self, mean: Tensor, root: Tensor, reach: float, directions: Tensor, exact: bool) -> _Fan:
        """Shoot rays in some directions of the whitened tangent space; their spread is exact, or the magnification."""
        t = torch.linspace(0, 1, _STEPS + 1, dtype=torch.float64, device=mean.device)
        ends = reach * directions @ root.mT  # (S, d)
        v = t[:, None] * ends[:, None]
        turn = torch.eye(len(mean), dtype=torch.float64, device=mean.device).repeat(*v.shape[:2], 1, 1)
        if exact:
            rays = exponential_spread(self.M, mean, ends.to(mean), _STEPS, tolerance=_RAY)
            points, known, converged = rays.points, rays.determinant.isfinite(), rays.converged
            failed, good = ~converged & rays.regular[:, -1], known & rays.regular
            spread = torch.where(good, rays.determinant.double().clamp(min=0), 0.0)
            turn[good] = torch.linalg.solve(self.M.metric(mean).double(), rays.hessian[good].double())
        else:
            path = self.M.shoot(mean, ends.to(mean), t.to(mean), tolerance=_RAY)
            points, known, converged = path.points, path.points.isfinite().all(-1), path.converged
            failed, spread = ~converged, torch.zeros_like(v[..., 0])
            spread[known] = (self.M.log_volume(points[known]) - self.M.log_volume(mean[None])).double().exp()
        trusted = converged | ~known[:, -1]  # a ray that ended is known up to there
        weight = _simpson(t) * t ** (len(mean) - 1) * trusted[:, None]
        return _Fan(_Vectors(v, turn), points, weight, spread, failed)

    # -- the end

    def finish(self, state: _State) -> _State:
        """Measure the mixture with all rays, up to the cut locus."""
        parts = [self._cut(self.part(part.mean, part.root, part, whole=True)) for part in state.parts]
        return state._replace(parts=parts)

    def _cut(self, part: _Part) -> _Part:
        """Component whose rays end at the cut locus, found by bisection between their radii."""
        fan, spread = part.fan, part.fan.masses(part.law)[1]
        if self.settings.measure == "magnification":
            return part
        radii = torch.arange(_STEPS + 1, device=spread.device)
        last = (spread.flip(1).cumsum(1).flip(1) > _BEYOND * spread.sum(1, keepdim=True)).sum(1)  # radii that matter
        low, high = torch.zeros_like(last), last.clamp(max=_STEPS)
        middle = high
        while bool((open_ := low < high).any()):
            i = open_.nonzero()[:, 0]
            fine = self._is_shortest(part.mean, fan.points[i, middle[i]], fan.x.v[i, middle[i]])
            low[i], high[i] = torch.where(fine, middle[i], low[i]), torch.where(fine, high[i], middle[i] - 1)
            middle = (low + high + 1) // 2
        beyond = (radii > low[:, None]) & (low < last.clamp(max=_STEPS))[:, None]
        past_cut = float(spread[beyond].sum()) / max(float(spread.sum()), _TINY)
        return part._replace(fan=fan._replace(spread=torch.where(beyond, 0.0, fan.spread)), past_cut=past_cut)

    def _is_shortest(self, mean: Tensor, points: Tensor, v: Tensor) -> Tensor:
        """Whether the ways along vectors to their points are the shortest: ``(N,)``; yes where that is not known."""
        known = points.isfinite().all(-1)
        shortest, a = torch.ones_like(known), mean.expand_as(points)[known]
        g = self.sketch.geodesic(a, points[known], init=self.settings.roadmap, solver=self.settings.solver)
        length = g.length if self.sketch is self.M else self.M._lengths(g.points)  # no less than the distance
        shortest[known] = ~g.converged | (length >= _SHORTER * self.M.norm(a, v[known].to(a)))
        return shortest

    def draw(self, part: _Part, count: int, rng: np.random.RandomState) -> Tensor:
        """Independent points of a component, ``(count, d)``."""
        device, d = part.mean.device, len(part.mean)
        generator = torch.Generator(device).manual_seed(int(rng.randint(2**31)))
        masses = part.fan.masses(part.law)[1].sum(1)
        most, usual = _ROOM * float(masses.max()), float(masses.mean())
        found = part.mean.new_zeros(0, d)
        for _ in range(_DRAWS):
            if len(found) >= count:
                return found[:count]
            n = 8 + math.ceil((count - len(found)) * most / usual)
            noise = torch.randn(n, d, generator=generator, dtype=torch.float64, device=device)
            directions = noise / torch.linalg.vector_norm(noise, dim=1, keepdim=True)
            fan = self._fan(part.mean, part.root, part.reach, directions, exact=True)
            mass = fan.masses(part.law)[1]
            u = torch.rand(len(mass), 3, generator=generator, dtype=torch.float64, device=device)
            kept = most * u[:, 0] < mass.sum(1)
            v = _along(fan.x.v[kept], mass[kept], u[kept, 1], u[kept, 2])
            path = self.M.shoot(part.mean, v.to(part.mean), tolerance=_RAY)
            sound = path.converged & self._is_shortest(part.mean, path.points, v)
            found = torch.cat([found, path.points[sound]])
        raise RuntimeError(f"only {len(found)} of {count} draws reached a point: too many rays do not converge")


def _directions(d: int, sets: int, count: int, seed: int, *, apart: bool) -> Tensor:
    """Quasi-random unit vectors, each with its opposite, in sets: ``(count, d)``.

    In the plane they are evenly spaced: for a periodic function nothing is better. Sets that are apart have a
    scramble each, so that they tell the standard error; otherwise they make up one lattice.
    """
    rng, half = np.random.RandomState(seed), count // (2 * sets)
    shifts = rng.uniform(size=sets) if apart else (rng.uniform() + np.arange(sets)) / sets
    if d == 1:
        e = np.ones((sets, half, 1))
    elif d == 2:
        angle = math.pi / half * (np.arange(half) + shifts[:, None])
        e = np.stack([np.cos(angle), np.sin(angle)], -1)
    else:
        scrambles = [
            qmc.MultivariateNormalQMC(np.zeros(d), seed=rng.randint(2**31)) for _ in range(sets if apart else 1)
        ]
        e = np.stack([scramble.random(half * sets // len(scrambles)) for scramble in scrambles]).reshape(sets, half, d)
        e /= np.linalg.norm(e, axis=-1, keepdims=True)
    return torch.from_numpy(np.concatenate([e, -e], 1).reshape(-1, d))


def _simpson(t: Tensor) -> Tensor:
    weight = torch.full_like(t, 2.0)
    weight[1::2] = 4.0
    weight[0] = weight[-1] = 1.0
    return weight


def _along(v: Tensor, mass: Tensor, u: Tensor, w: Tensor) -> Tensor:
    """One vector on each ray, drawn from its mass by two uniform numbers: ``(N, T, d), (N, T) -> (N, d)``.

    The density between two radii is taken to be linear.
    """
    f = mass / _simpson(mass[0])
    cells = (f[:, :-1] + f[:, 1:]).cumsum(1)
    at = torch.searchsorted(cells, u[:, None] * cells[:, -1:]).clamp(max=_STEPS - 1)  # (N, 1)
    left, right = f.gather(1, at)[:, 0], f.gather(1, at + 1)[:, 0]
    root = (left.square() + w * (right.square() - left.square())).clamp(min=0).sqrt()
    share = w * (left + right) / (left + root).clamp(min=_TINY)
    step = v[:, 1] - v[:, 0]
    return v[:, 0] + (at + share[:, None]) * step


def _warn_of_rays(parts: list[_Part]) -> None:
    failed = torch.cat([part.fan.failed for part in parts])
    if bool(failed.any()):
        message = f"{int(failed.sum())} of {len(failed)} rays did not converge: they count as far as they are known"
        warnings.warn(message, RuntimeWarning, stacklevel=5)
