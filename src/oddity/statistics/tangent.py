"""Principal components in a curved space, found in the tangent space at the mean."""

from __future__ import annotations

import numbers
import warnings
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.extmath import svd_flip
from sklearn.utils.validation import check_array, check_is_fitted
from torch import Tensor

from oddity.geometry.connect import ChainSolver
from oddity.geometry.manifold import Manifold
from oddity.geometry.roadmap import Roadmap
from oddity.numerics.ambient import doors
from oddity.statistics.means import admit_codes, frechet_mean, warn_of_failures

__all__ = ["TangentPCA"]


@doors
class TangentPCA(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Principal geodesic analysis: principal components of the logarithms at the Frechet mean.

    Parameters
    ----------
    M
        The manifold.
    n_components
        Number of components, at most d and the number of codes; None for as many as that.
    init
        Where geodesics begin: None for straight lines, or a :class:`~oddity.Roadmap`.
    solver
        Settings of the geodesics.

    Attributes
    ----------
    mean_ : ndarray
        ``(d,)``, the Frechet mean.
    components_ : ndarray
        ``(n_components, d)``, tangent vectors at the mean, orthonormal under M, the direction of most variance first.
    explained_variance_ : ndarray
        ``(n_components,)``, variance along each, in squared Riemannian length, with n - 1 in the denominator.
    explained_variance_ratio_ : ndarray
        ``(n_components,)``, its share of the variance in all directions; zero where all codes are equal.
    n_components_ : int
        Number of components.
    n_features_in_ : int
        d.

    Raises
    ------
    ValueError
        On fitting, if the codes are unusable (not finite, not two-dimensional, fewer than two, outside the chart, of
        another dtype than the decoder), ``n_components`` is too large, or the metric at the mean is singular.
    RuntimeError
        If no geodesic from the mean converged, or a point that is transformed has no tangent vector or a tangent
        vector no point.

    Warns
    -----
    RuntimeWarning
        Counting the geodesics that did not converge: on fitting their codes do not count, on transforming the best
        curve found stands for them.
    ConvergenceWarning
        If the mean did not converge, or is that of a part of the codes alone.

    Notes
    -----
    Fletcher, Lu, Pizer, Joshi, "Principal geodesic analysis for the study of nonlinear statistics of shape", IEEE
    Transactions on Medical Imaging 2004, in its linearised form. Codes may be NumPy arrays or tensors; results are
    NumPy arrays in their dtype.

    Examples
    --------
    Along a great circle of the sphere one component explains everything:

    >>> import oddity
    >>> arc = torch.stack([torch.linspace(-0.5, 0.5, 5), torch.zeros(5)], 1)
    >>> pca = TangentPCA(oddity.Sphere(2)).fit(arc)
    >>> pca.explained_variance_ratio_.round(3).tolist()
    [1.0, 0.0]
    >>> bool(np.allclose(pca.inverse_transform(pca.transform(arc)), arc, atol=1e-6))
    True
    """

    def __init__(
        self,
        M: Manifold,
        n_components: int | None = None,
        *,
        init: Roadmap | None = None,
        solver: ChainSolver | None = None,
    ) -> None:
        self.M = M
        self.n_components = n_components
        self.init = init
        self.solver = solver

    @torch.no_grad()
    def fit(self, X: ArrayLike | Tensor, y: object = None) -> Self:  # noqa: ARG002
        """Find the mean of the codes X, ``(n, d)``, and the components."""
        z = admit_codes(self, X, at_least=2)
        count = self._count(z)
        mean = frechet_mean(self.M, z, init=self.init, solver=self.solver)
        if bool(mean.failed.all()):
            mean.require()
        if not mean.converged:
            warnings.warn(f"the mean did not converge: {mean.why}", ConvergenceWarning, stacklevel=3)
        L, info = torch.linalg.cholesky_ex(self.M.metric(mean.point))
        if info:
            raise ValueError("the metric at the mean is singular; add a ridge, e.g. M + 1e-3 * Euclidean()")
        flat = (mean.log[~mean.failed] @ L).double().cpu().numpy()  # (n, d)   in an orthonormal frame
        padded = np.concatenate([flat, np.zeros((z.shape[1], z.shape[1]))])  # for all axes even of few codes
        _, s, axes = np.linalg.svd(padded, full_matrices=False)
        _, axes = svd_flip(None, axes, u_based_decision=False)
        variance = s**2 / max(len(flat) - 1, 1)
        components = torch.linalg.solve_triangular(L, torch.from_numpy(axes[:count]).to(L), upper=False, left=False)
        self._mean, self._components = mean.point, components
        self.mean_, self.components_ = mean.point.cpu().numpy(), components.cpu().numpy()
        self.explained_variance_ = variance[:count].astype(self.mean_.dtype)
        self.explained_variance_ratio_ = self.explained_variance_ / (variance.sum() or 1.0)
        self.n_components_ = self._n_features_out = count
        return self

    def _count(self, z: Tensor) -> int:
        most = min(z.shape)
        count = most if self.n_components is None else self.n_components
        if not isinstance(count, numbers.Integral) or not 1 <= count <= most:
            raise ValueError(f"n_components is {count!r}; {len(z)} codes in {z.shape[1]} dimensions allow 1 to {most}")
        return int(count)

    @torch.no_grad()
    def transform(self, X: ArrayLike | Tensor) -> NDArray[Any]:
        """Coordinates of the logarithms along the components: ``(n, d) -> (n, n_components)``."""
        check_is_fitted(self)
        mean, components = self._mean, self._components
        z = admit_codes(self, X, like=mean)
        v = self.M.log(mean, z, init=self.init, solver=self.solver)
        failed = ~v.isfinite().all(-1)
        if bool(failed.any()):
            g = self.M.geodesic(mean, z[failed], init=self.init, solver=self.solver)
            if not bool(g.points.isfinite().all()):
                raise RuntimeError(f"{len(g.why)} of {len(z)} points have no tangent vector; the first: {g.why[0]}")
            v[failed] = g.velocity(0.0)
            warn_of_failures(len(g.why), len(z), "the best curve found stands for the geodesic")
        coordinates: NDArray[Any] = (v @ self.M.metric(mean) @ components.T).cpu().numpy()
        return coordinates

    @torch.no_grad()
    def inverse_transform(self, X: ArrayLike | Tensor) -> NDArray[Any]:
        """Points with given coordinates: ``(n, n_components) -> (n, d)``."""
        check_is_fitted(self)
        array = X.detach().cpu().numpy() if isinstance(X, Tensor) else X
        coordinates = torch.tensor(check_array(array, dtype=[np.float64, np.float32]), device="cpu").to(self._mean)
        if coordinates.shape[1] != self.n_components_:
            raise ValueError(f"X has {coordinates.shape[1]} columns, but there are {self.n_components_} components")
        v = coordinates @ self._components
        points = self.M.exp(self._mean, v)
        if bool((lost := ~points.isfinite().all(-1)).any()):
            why = self.M.shoot(self._mean, v[lost]).why
            raise RuntimeError(f"{len(why)} of {len(v)} tangent vectors lead to no point; the first: {why[0]}")
        ends: NDArray[Any] = points.cpu().numpy()
        return ends
