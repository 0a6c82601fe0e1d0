"""Stability over seeds: models that differ by their codes alone, exact coefficients, failures, a real training."""

import joblib
import numpy as np
import pytest
import torch
from scipy.stats import ttest_rel
from torch import Tensor

import oddity
from oddity import ChainSolver, Pullback
from oddity.statistics.stability import Stability, stability


def data(n: int = 60) -> Tensor:
    return torch.randn(n, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Warped:
    """The paraboloid over the data, in a chart of the seed's own: x = A sinh(z)."""

    def __init__(self, seed: int) -> None:
        self.A = torch.randn(2, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        self.A += 2 * torch.eye(2, dtype=torch.float64)
        self.decoder = self

    def encode(self, x: Tensor) -> Tensor:
        return torch.linalg.solve(self.A, x.mT).mT.asinh()

    def mean(self, z: Tensor) -> Tensor:
        x = z.sinh() @ self.A.mT
        return torch.cat([x, x.square().sum(-1, keepdim=True) / 4], -1)

    def std(self, z: Tensor) -> Tensor:
        return torch.zeros_like(z)


def fit_warped(X: Tensor, seed: int) -> Warped:
    return Warped(seed)


class Scaled(Warped):
    """Flat space, with codes that the seed scales."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.scale = 1.0 + seed

    def encode(self, x: Tensor) -> Tensor:
        return self.scale * x

    def mean(self, z: Tensor) -> Tensor:
        return z / self.scale


def test_distances_on_one_surface_do_not_depend_on_its_chart() -> None:
    found = stability(fit_warped, data(), seeds=range(4), pairs=12)
    assert found.measured.all()
    assert found.failed == 0
    assert found.why == {}
    assert (found.cv_geodesic < 1e-6).all()
    assert (found.cv_euclidean > 0.01).all()
    expected = ttest_rel(found.cv_geodesic, found.cv_euclidean, alternative="less")
    assert (found.t, found.p) == (expected.statistic, expected.pvalue)
    assert found.t < -5
    assert found.p < 1e-4


def test_coefficients_of_variation_are_exact() -> None:
    X, seeds = data(), (0, 2, 5)
    found = stability(lambda X, seed: Scaled(seed), X, seeds=seeds, pairs=[[0, 1], [4, 2]])
    scales = np.array([1.0, 3.0, 6.0])
    distance = np.array([float((X[0] - X[1]).norm()), float((X[4] - X[2]).norm())])
    np.testing.assert_allclose(found.euclidean, scales[:, None] * distance)
    np.testing.assert_allclose(found.geodesic, np.ones((3, 1)) * distance, rtol=1e-6)
    np.testing.assert_allclose(found.cv_euclidean, [scales.std(ddof=1) / scales.mean()] * 2)
    np.testing.assert_allclose(found.cv_geodesic, 0, atol=1e-6)
    assert found.seeds == seeds
    assert found.pairs.tolist() == [[0, 1], [4, 2]]


def test_the_worse_measure_has_a_large_p() -> None:
    """Geodesics of a metric that the seed scales vary; straight lines under an encoder that it does not, do not."""

    class Loud(Scaled):
        def encode(self, x: Tensor) -> Tensor:
            return x + 0.01 * self.scale * x.square()

        def mean(self, z: Tensor) -> Tensor:
            return self.scale * (z + 0.3 * z.sin())

    found = stability(lambda X, seed: Loud(seed), data(), seeds=range(3), pairs=10)
    assert found.t > 3
    assert found.p > 0.99


def hand_made(converged: list[list[bool]]) -> Stability:
    geodesic = np.array([[1.0, 2.0, 3.0], [1.5, 2.0, 4.0], [2.0, 9.0, 5.0]])
    euclidean = np.array([[1.0, 4.0, 3.0], [3.0, 1.0, 9.0], [5.0, 2.0, 1.0]])
    pairs = np.array([[0, 1], [1, 2], [0, 2]])
    return Stability((0, 1, 2), pairs, geodesic, euclidean, np.array(converged), {})


def test_a_failed_geodesic_is_left_out_with_its_straight_line() -> None:
    every, some = hand_made([[True] * 3] * 3), hand_made([[True] * 3, [True] * 3, [True, False, True]])
    assert (every.failed, some.failed) == (0, 1)
    assert some.measured.all()
    cv = lambda *x: np.std(x, ddof=1) / np.mean(x)  # noqa: E731
    np.testing.assert_allclose(every.cv_geodesic, [cv(1, 1.5, 2), cv(2, 2, 9), cv(3, 4, 5)])
    np.testing.assert_allclose(some.cv_geodesic, [cv(1, 1.5, 2), 0, cv(3, 4, 5)])
    np.testing.assert_allclose(some.cv_euclidean, [cv(1, 3, 5), cv(4, 1), cv(3, 9, 1)])


def test_a_pair_that_one_seed_measured_does_not_count() -> None:
    found = hand_made([[True, True, True], [True, False, True], [True, False, True]])
    assert found.measured.tolist() == [True, False, True]
    assert len(found.cv_geodesic) == len(found.cv_euclidean) == 2
    assert np.isfinite(found.p)
    assert "2 of 3 pairs measured, 2 geodesics failed" in repr(found)


def test_too_few_pairs_are_no_test() -> None:
    found = hand_made([[True, True, True], [True, False, False], [False, False, False]])
    with pytest.raises(RuntimeError, match="of 3 pairs 1 were measured by two seeds, 5 geodesics failed"):
        _ = found.p
    assert repr(found).endswith("1 of 3 pairs measured, 5 geodesics failed, no t test)")


def test_a_fit_that_ignores_its_seed_is_no_test() -> None:
    found = stability(lambda X, seed: Warped(0), data(), seeds=range(2), pairs=4)
    assert np.abs(found.cv_euclidean).max() == 0
    with pytest.raises(RuntimeError, match="does fit use its seed"):
        _ = found.t


def test_geodesics_that_fail_are_counted_with_their_reasons() -> None:
    settings = ChainSolver(max_iterations=1)
    found = stability(fit_warped, data(), seeds=range(2), pairs=6, solver=settings)
    assert found.failed == len(found.why) == int((~found.converged).sum()) > 0
    for (seed, pair), reason in found.why.items():
        assert not found.converged[seed, pair]
        assert reason
    assert all(np.isfinite(x).all() for x in (found.cv_geodesic, found.cv_euclidean))


def test_pairs_of_equal_rows_are_left_out() -> None:
    X = data()
    X[1] = X[0]
    found = stability(lambda X, seed: Scaled(seed), X, seeds=range(2), pairs=[[0, 1], [2, 3], [4, 5]])
    assert found.measured.tolist() == [False, True, True]
    assert np.isfinite(found.cv_euclidean).all()


def test_drawn_pairs_are_different_and_repeatable() -> None:
    fit = lambda X, seed: Scaled(seed)  # noqa: E731
    X = data(6)
    found = stability(fit, X, seeds=range(2), pairs=15)
    assert (found.pairs[:, 0] < found.pairs[:, 1]).all()
    assert len(np.unique(found.pairs, axis=0)) == 15
    assert found.pairs.min() == 0
    assert found.pairs.max() == 5
    again = stability(fit, X, seeds=range(2), pairs=15)
    np.testing.assert_array_equal(again.pairs, found.pairs)
    other = stability(fit, X, seeds=range(2), pairs=15, generator=torch.Generator().manual_seed(5))
    assert (other.pairs != found.pairs).any()


def test_metric_and_progress() -> None:
    """Under half the metric every distance shrinks by the square root of two."""
    calls: list[tuple[str, int, int]] = []
    whole = stability(fit_warped, data(), seeds=range(3), pairs=4, progress=lambda *x: calls.append(x))
    half = stability(fit_warped, data(), seeds=range(3), pairs=4, metric=lambda f: 0.5 * Pullback(f.mean))
    assert calls == [("seeds", 1, 3), ("seeds", 2, 3), ("seeds", 3, 3)]
    np.testing.assert_allclose(half.geodesic, whole.geodesic / 2**0.5)
    np.testing.assert_array_equal(half.euclidean, whole.euclidean)


@pytest.mark.slow
def test_two_processes_give_the_same() -> None:
    alone = stability(fit_warped, data(), seeds=range(3), pairs=4)
    with joblib.parallel_config(n_jobs=2):
        together = stability(fit_warped, data(), seeds=range(3), pairs=4)
    np.testing.assert_allclose(alone.geodesic, together.geodesic)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fit": 3}, "fit is a int"),
        ({"fit": lambda X, seed: torch.nn.Tanh()}, r"fit returned Tanh for seed 0; a model has encode\(x\)"),
        ({"X": torch.full((5, 2), torch.nan).double()}, r"seed 0 encodes \(5, 2\) to \(5, 2\), not finite"),
        ({"X": torch.zeros(5)}, r"X has shape \(5,\)"),
        ({"seeds": [3]}, r"seeds are \[3\]; give at least two"),
        ({"seeds": [3, 3]}, r"seeds are \[3, 3\]; give at least two, all different"),
        ({"pairs": 0}, "pairs is 0, but 60 rows form 1770 pairs"),
        ({"pairs": 1771}, "pairs is 1771"),
        ({"pairs": [[0, 60]]}, "pairs name row 60, but X has 60 rows"),
        ({"pairs": [[0, -1]]}, "pairs name row -1"),
        ({"pairs": [[0, 1], [7, 7]]}, "pair 1 joins a row with itself"),
        ({"pairs": [[0.0, 1.0]]}, "dtype float64"),
        ({"pairs": [0, 1]}, r"pairs have shape \(2,\)"),
    ],
)
def test_misuse_is_refused(change: dict, message: str) -> None:
    options = {"fit": lambda X, seed: Scaled(seed), "X": data(), "seeds": range(2), "pairs": 3, **change}
    with pytest.raises(ValueError, match=message):
        stability(options.pop("fit"), options.pop("X"), **options)


def test_trained_models_are_measured() -> None:
    """Digits of 64 pixels, NumPy in, VAEs out: whichever distances vary less, the numbers are those of the models."""
    X, _ = oddity.datasets.load("digits", classes=[0, 1, 2], per_class=30)
    models = {}

    def fit(X: np.ndarray, seed: int) -> oddity.VAE:
        assert isinstance(X, np.ndarray)
        models[seed] = oddity.fit_vae(X, epochs=5, variance_epochs=5, n_centres=8, seed=seed)
        return models[seed]

    found = stability(fit, X, seeds=(3, 7), pairs=5)
    assert list(models) == [3, 7]
    assert found.failed == len(found.why)
    assert 0 < found.p < 1
    for row, seed in enumerate(models):
        z = models[seed].encode(torch.as_tensor(X))
        a, b = (z[found.pairs[:, i]] for i in (0, 1))
        np.testing.assert_allclose(found.euclidean[row], (b - a).norm(dim=-1).numpy(), rtol=1e-6)
        M = oddity.expected_metric(models[seed].decoder)
        g = M.geodesic(a, b, init=oddity.Roadmap(M, z))
        np.testing.assert_allclose(found.geodesic[row], g.length.numpy(), rtol=1e-6)
