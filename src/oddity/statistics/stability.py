"""How far distances depend on the seed of training: geodesics beside straight lines between the codes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from joblib import Parallel, delayed
from numpy.typing import ArrayLike, NDArray
from scipy.stats import ttest_rel
from torch import Tensor

from oddity.geometry.connect import ChainSolver
from oddity.geometry.manifold import Manifold
from oddity.geometry.pullback import StochasticDecoder, expected_metric
from oddity.geometry.roadmap import Roadmap
from oddity.numerics.ambient import door, doors

__all__ = ["Stability", "stability"]

Progress: TypeAlias = Callable[[str, int, int], None]
Numbers: TypeAlias = NDArray[np.float64]


class Autoencoder(Protocol):
    """What is asked of a fitted model: ``encode(x)`` and a decoder."""

    @property
    def decoder(self) -> StochasticDecoder:
        """The way back to data."""
        ...

    def encode(self, x: Tensor) -> Tensor:
        """Codes of data, ``(n, D) -> (n, d)``."""
        ...


@doors
@dataclass(frozen=True, eq=False, repr=False)
class Stability:
    """Distances between the same pairs of data in models of several seeds.

    A geodesic that did not converge is left out together with the straight line beside it, and so is a pair whose two
    codes coincide. A pair counts as measured where at least two seeds are left.

    Attributes
    ----------
    seeds : tuple of int
        S seeds.
    pairs : ndarray
        ``(P, 2)``, rows of the data.
    geodesic, euclidean : ndarray
        ``(S, P)``, lengths of the geodesics, and of the straight lines in the latent space. Those of geodesics that did
        not converge stand as the solver left them.
    converged : ndarray
        ``(S, P)`` bool.
    why : dict
        The reason, by (seed, pair number), of each geodesic that did not converge.
    """

    seeds: tuple[int, ...]
    pairs: NDArray[np.int64]
    geodesic: Numbers
    euclidean: Numbers
    converged: NDArray[np.bool_]
    why: dict[tuple[int, int], str]

    @property
    def failed(self) -> int:
        """Geodesics that did not converge, over all seeds."""
        return int((~self.converged).sum())

    @cached_property
    def measured(self) -> NDArray[np.bool_]:
        """Pairs that at least two seeds measured: ``(P,)`` bool."""
        return self._valid.sum(0) >= 2  # type: ignore[no-any-return]

    @property
    def cv_geodesic(self) -> Numbers:
        """Coefficient of variation over the seeds of each measured pair's geodesic distance: ``(measured.sum(),)``."""
        return self._cv(self.geodesic)

    @property
    def cv_euclidean(self) -> Numbers:
        """The same of its Euclidean distance."""
        return self._cv(self.euclidean)

    @property
    def t(self) -> float:
        """Paired t statistic of geodesic less Euclidean coefficients of variation; negative where geodesics vary less.

        Raises
        ------
        RuntimeError
            If fewer than two pairs were measured, or the coefficients of all of them differ by the same.
        """
        return self._test[0]

    @property
    def p(self) -> float:
        """One-sided p value of the paired t test, against the hypothesis that geodesics vary as much or more."""
        return self._test[1]

    @cached_property
    def _test(self) -> tuple[float, float]:
        difference = self.cv_geodesic - self.cv_euclidean
        if len(difference) < 2 or np.ptp(difference) <= 1e-12:
            raise RuntimeError(
                f"no t test: of {len(self.pairs)} pairs {len(difference)} were measured by two seeds, "
                f"{self.failed} geodesics failed, and a test needs two pairs that differ; does fit use its seed?"
            )
        found = ttest_rel(self.cv_geodesic, self.cv_euclidean, alternative="less")
        return float(found.statistic), float(found.pvalue)

    @cached_property
    def _valid(self) -> NDArray[np.bool_]:
        return self.converged & (self.geodesic > 0) & (self.euclidean > 0)

    def _cv(self, distances: Numbers) -> Numbers:
        values = np.ma.masked_array(distances, ~self._valid)[:, self.measured]
        return np.asarray(values.std(0, ddof=1) / values.mean(0))

    def __repr__(self) -> str:
        about = f"{len(self.seeds)} seeds, {int(self.measured.sum())} of {len(self.pairs)} pairs measured"
        try:
            verdict = f"t = {self.t:.4g}, p = {self.p:.2g}"
        except RuntimeError:
            return f"Stability({about}, {self.failed} geodesics failed, no t test)"
        geodesic, euclidean = self.cv_geodesic.mean(), self.cv_euclidean.mean()
        return (
            f"Stability({about}, {self.failed} geodesics failed, mean coefficient of variation "
            f"{geodesic:.3g} geodesic, {euclidean:.3g} Euclidean, {verdict})"
        )


@door
def stability(
    fit: Callable[[Any, int], Autoencoder],
    X: Tensor | ArrayLike,
    *,
    seeds: Sequence[int] = range(10),
    pairs: int | ArrayLike = 100,
    metric: Callable[[StochasticDecoder], Manifold] = expected_metric,
    solver: ChainSolver | None = None,
    progress: Progress | None = None,
    generator: torch.Generator | None = None,
) -> Stability:
    """Retrain with several seeds, and compare how much geodesic and Euclidean distances vary.

    Codes are not identified by the data: each training may place them elsewhere. Distances along the manifold that
    the decoder spans are. The measure is the coefficient of variation over the seeds of the distance of each pair, and
    the test a paired t test over the pairs.

    Parameters
    ----------
    fit
        ``fit(X, seed)`` returns a model with ``encode(x)`` and ``decoder``, e.g.
        ``lambda X, seed: oddity.fit_vae(X, seed=seed)``.
    X
        ``(n, D)``, handed to ``fit`` as it is and encoded as a tensor: NumPy arrays in torch's default dtype.
    seeds
        At least two, all different.
    pairs
        How many random pairs of rows to measure, or the pairs themselves, ``(P, 2)``; the same in every model.
    metric
        The manifold of a decoder.
    solver
        Settings of the geodesics. Each starts from the straight line and from a :class:`~oddity.Roadmap` over at most
        2,000 of the codes.
    progress
        Called as ``progress("seeds", done, total)`` after each model.
    generator
        For the choice of the pairs; by default one of its own, the same for each call.

    Returns
    -------
    Stability
        With ``cv_geodesic``, ``cv_euclidean``, ``t`` and ``p``, and the geodesics that failed counted.

    Raises
    ------
    ValueError
        If the data, seeds or pairs are unusable, or a model cannot encode them to finite codes ``(n, d)``.

    Notes
    -----
    Syrota, Moreno-Munoz, Hauberg, "Decoder ensembling for learned latent geometries", 2024: 30 seeds and 100 pairs. The
    seeds run through joblib: ``joblib.parallel_config(n_jobs=2)`` trains two models at a time.

    Examples
    --------
    Models that differ by the scale of their codes alone:

    >>> class Model:
    ...     def __init__(self, scale): self.scale, self.decoder = scale, self
    ...     def encode(self, x): return self.scale * x
    ...     def mean(self, z): return z / self.scale
    ...     def std(self, z): return 0 * z
    >>> X = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    >>> found = stability(lambda X, seed: Model(1 + seed), X, seeds=range(3), pairs=8)
    >>> bool((found.cv_geodesic < 1e-5).all()), found.cv_euclidean.round(3).tolist()[:2]
    (True, [0.5, 0.5])
    """
    if not callable(fit):
        raise ValueError(f"fit is a {type(fit).__name__}; give a function fit(X, seed) that returns a model")
    rows = X if isinstance(X, Tensor) else torch.as_tensor(np.asarray(X), dtype=torch.get_default_dtype())
    if rows.ndim < 2:
        raise ValueError(f"X has shape {tuple(rows.shape)}; give data in rows, (n, D)")
    seeds = _admit_seeds(seeds)
    chosen = _drawn(len(rows), pairs, generator) if isinstance(pairs, Integral) else _admit_pairs(len(rows), pairs)
    jobs = (delayed(_measured)(fit, X, rows, seed, chosen, metric, solver) for seed in seeds)
    found = []
    with closing(Parallel(return_as="generator")(jobs)) as results:
        for result in results:
            found.append(result)
            if progress is not None:
                progress("seeds", len(found), len(seeds))
    geodesic, euclidean, converged, why = zip(*found, strict=True)
    named = zip(seeds, why, strict=True)
    failures = {(seed, i): reason for seed, each in named for i, reason in enumerate(each) if reason}
    return Stability(seeds, chosen, np.stack(geodesic), np.stack(euclidean), np.stack(converged), failures)


def _measured(
    fit: Callable[[Any, int], Autoencoder],
    X: Any,
    rows: Tensor,
    seed: int,
    pairs: NDArray[np.int64],
    metric: Callable[[StochasticDecoder], Manifold],
    solver: ChainSolver | None,
) -> tuple[Numbers, Numbers, NDArray[np.bool_], list[str]]:
    """Train one model and measure the pairs in it: geodesic and Euclidean distances, verdicts and reasons."""
    vae = fit(X, seed)
    if not callable(getattr(vae, "encode", None)) or not hasattr(vae, "decoder"):
        raise ValueError(f"fit returned {type(vae).__name__} for seed {seed}; a model has encode(x) and a decoder")
    with torch.no_grad():
        z = vae.encode(rows)
    if z.ndim != 2 or len(z) != len(rows) or not bool(z.isfinite().all()):
        raise ValueError(f"the model of seed {seed} encodes {tuple(rows.shape)} to {tuple(z.shape)}, not finite (n, d)")
    M = metric(vae.decoder)
    a, b = z[pairs[:, 0]], z[pairs[:, 1]]
    g = M.geodesic(a, b, init=Roadmap.thinned(M, z), solver=solver)
    straight = torch.linalg.vector_norm(b - a, dim=-1)
    return g.length.double().cpu().numpy(), straight.double().cpu().numpy(), g.converged.cpu().numpy(), g.why


def _admit_seeds(seeds: Sequence[int]) -> tuple[int, ...]:
    seeds = tuple(seeds)
    if len(set(seeds)) < max(2, len(seeds)):
        raise ValueError(f"seeds are {list(seeds)}; give at least two, all different")
    return seeds


def _admit_pairs(n: int, pairs: ArrayLike) -> NDArray[np.int64]:
    found = np.asarray(pairs)
    if found.ndim != 2 or found.shape[1] != 2 or len(found) == 0 or found.dtype.kind not in "iu":
        raise ValueError(
            f"pairs have shape {found.shape} and dtype {found.dtype}; give their number, or integers (P, 2)"
        )
    if found.min() < 0 or found.max() >= n:
        raise ValueError(f"pairs name row {found.min() if found.min() < 0 else found.max()}, but X has {n} rows")
    if (found[:, 0] == found[:, 1]).any():
        raise ValueError(f"pair {int((found[:, 0] == found[:, 1]).argmax())} joins a row with itself")
    return found.astype(np.int64)


def _drawn(n: int, count: int, generator: torch.Generator | None) -> NDArray[np.int64]:
    """Different pairs of different rows, at random: ``(count, 2)``."""
    total = n * (n - 1) // 2
    if not 1 <= count <= total:
        raise ValueError(f"pairs is {count}, but {n} rows form {total} pairs")
    seed = 0 if generator is None else int(torch.randint(2**31, (), generator=generator, device=generator.device))
    number = np.random.default_rng(seed).choice(total, count, replace=False)
    row = ((1 + np.sqrt(1 + 8 * number)) / 2).astype(np.int64)  # rows of a triangle of pairs, counted from 1
    return np.stack([number - row * (row - 1) // 2, row], 1)
