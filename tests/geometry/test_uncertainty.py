"""Uncertainty of the metric: Monte Carlo over the noise, closed forms, limits, and misuse."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.func import jacrev, vmap

import oddity
from oddity.geometry.uncertainty import expected_norm, length_uncertainty, metric_variance, squared_speed_variance

from .cases import decoder, points

SIZES = [10, 100, 784]


class RandomDecoder:
    """Two networks with fixed weights; the standard deviation bends about half as much as the mean."""

    def __init__(self, D: int, noise: float = 0.5) -> None:
        generator = torch.Generator().manual_seed(D)
        self.mean, self.std = (nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, D)).double() for _ in "ms")
        with torch.no_grad():
            for net in (self.mean, self.std):
                for p in net.parameters():
                    p.copy_(torch.randn(p.shape, generator=generator))
            self.std[2].weight.mul_(noise)
            self.std[2].bias.add_(50)  # positive, whatever the weights
        for net in (self.mean, self.std):
            net.eval().requires_grad_(False)

    def jacobians(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return tuple(vmap(jacrev(lambda x, f=f: f(x[None])[0]))(z) for f in (self.mean, self.std))  # type: ignore[return-value]


def noise(D: int, count: int = 20_000) -> Tensor:
    return torch.randn(count, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def arc(n: int = 32) -> Tensor:
    t = torch.linspace(-1, 1, n + 1, dtype=torch.float64)
    return torch.stack([t, t.square()], -1)


def variance_agrees(samples: Tensor, expected: Tensor, model: float = 0.0) -> bool:
    """Whether a sample variance is within four standard errors of the expected one, up to a share of model error."""
    centred = samples - samples.mean(0)
    variance = centred.square().mean(0)
    error = (centred.pow(4).mean(0) - variance.square()).div(len(samples)).sqrt()
    return bool(((variance - expected).abs() <= 4 * error + model * variance).all())


def random_lengths(f: RandomDecoder, c: Tensor, eps: Tensor) -> Tensor:
    a, b = f.mean(c).diff(dim=0), f.std(c).diff(dim=0)
    q = a.square().sum(-1) + 2 * eps @ (a * b).mT + eps.square() @ b.square().mT  # (S, n)
    return q.sqrt().sum(-1)


# -- Monte Carlo ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("D", SIZES)
def test_variance_of_metric_and_speed(D: int) -> None:
    f, z, v = RandomDecoder(D), points(2, torch.float64)[:1], torch.tensor([0.3, -1.0], dtype=torch.float64)
    J_mu, J_sigma = (J[0] for J in f.jacobians(z))
    J = J_mu + noise(D, 5000)[..., None] * J_sigma
    metrics = J.mT @ J
    assert variance_agrees(metrics, metric_variance(f, z)[0])
    assert variance_agrees((J @ v).square().sum(-1), squared_speed_variance(f, z, v)[0])
    relative = squared_speed_variance(f, z, v) / oddity.expected_metric(f).norm(z, v) ** 4
    assert 0.05 / D < float(relative) < 10 / D


@pytest.mark.parametrize("D", SIZES)
def test_expected_norm(D: int) -> None:
    f, z, v = RandomDecoder(D), points(2, torch.float64)[:1], torch.tensor([0.3, -1.0], dtype=torch.float64)
    a, b = ((J[0] @ v) for J in f.jacobians(z))
    norms = torch.linalg.vector_norm(a + noise(D) * b, dim=-1)
    found, largest = float(expected_norm(f, z, v)), float(oddity.expected_metric(f).norm(z, v))
    assert abs(float(norms.mean()) - found) < 4 * float(norms.std()) / len(norms) ** 0.5
    V = float(squared_speed_variance(f, z, v))
    assert found < largest
    assert found == pytest.approx(largest * (1 - V / (8 * largest**4)), rel=4 / D**2 + 1e-9)


@pytest.mark.parametrize(("D", "model"), [(10, 0.06), (100, 0.0), (784, 0.0)])
def test_mean_and_error_bar_of_a_length(D: int, model: float) -> None:
    """The mean is exact; the variance is of second order, its error a share of itself that falls with D."""
    f = RandomDecoder(D)
    found = length_uncertainty(f, arc())
    lengths = random_lengths(f, arc(), noise(D))
    assert abs(float(lengths.mean() - found.mean)) < 4 * float(lengths.std()) / len(lengths) ** 0.5
    assert variance_agrees(lengths, found.sd.square(), model)
    assert float(found.mean) < float(found.length)


# -- closed forms and limits ------------------------------------------------------------------------------------------


class Linear:
    """mean = a z and std = b z in one dimension, so that M = (a + b eps)^2."""

    def __init__(self, a: float, b: float) -> None:
        self.a, self.b = a, b

    def mean(self, z: Tensor) -> Tensor:
        return self.a * z

    def std(self, z: Tensor) -> Tensor:
        return self.b * z


@pytest.mark.parametrize(("a", "b"), [(0.0, 1.0), (1.0, 1.0), (3.0, 0.5), (1e-3, 2.0)])
def test_one_output_is_a_folded_normal(a: float, b: float) -> None:
    z = v = torch.ones(1, dtype=torch.float64)
    mean = b * math.sqrt(2 / math.pi) * math.exp(-((a / b) ** 2) / 2) + a * math.erf(a / (b * math.sqrt(2)))
    assert float(expected_norm(Linear(a, b), z, v)) == pytest.approx(mean, rel=1e-6)
    variance = 4 * a**2 * b**2 + 2 * b**4
    assert float(squared_speed_variance(Linear(a, b), z, 2 * v)) == pytest.approx(16 * variance)
    assert float(metric_variance(Linear(a, b), z)) == pytest.approx(variance)


def test_equal_outputs_of_pure_noise_are_chi_distributed() -> None:
    D, z = 7, torch.ones(1, dtype=torch.float64)

    class Noise(Linear):
        def mean(self, z: Tensor) -> Tensor:
            return 0 * z.expand(len(z), D)

        def std(self, z: Tensor) -> Tensor:
            return z.expand(len(z), D)

    mean = math.sqrt(2) * math.gamma((D + 1) / 2) / math.gamma(D / 2)
    assert float(expected_norm(Noise(0, 1), z, 3 * z)) == pytest.approx(3 * mean, rel=1e-6)


def test_a_scaled_line_has_the_scale_s_error() -> None:
    """With b << a every length is a (1 + eps b / a) times that of the line."""
    found = length_uncertainty(Linear(2.0, 1e-3), torch.linspace(0, 3, 7, dtype=torch.float64)[:, None])
    assert float(found.mean) == pytest.approx(6)
    assert float(found.sd) == pytest.approx(3e-3, rel=1e-5)


def test_a_decoder_without_noise_is_certain() -> None:
    f = Linear(2.0, 0.0)
    z = torch.ones(3, 1)
    assert metric_variance(f, z).abs().max() == 0
    assert torch.equal(expected_norm(f, z, z), torch.full((3,), 2.0))
    length, mean, sd = length_uncertainty(f, torch.linspace(0, 1, 5)[:, None])
    assert float(length) == float(mean) == 2
    assert float(sd) == 0


def test_a_curve_of_length_zero_is_certain() -> None:
    c = torch.stack([arc(), torch.zeros_like(arc())])
    found = length_uncertainty(RandomDecoder(10), c)
    assert [float(x[1]) for x in found] == [0, 0, 0]
    assert all(x.isfinite().all() for x in found)
    still = torch.cat([arc()[:5], arc()[4:]])  # a repeated node
    torch.testing.assert_close(length_uncertainty(RandomDecoder(10), still).sd, found.sd[0], rtol=0.05, atol=0)


def test_a_curve_there_and_back_keeps_its_error() -> None:
    """The noise is shared: the way back does not average it away."""
    f = RandomDecoder(20)
    once, twice = (length_uncertainty(f, c) for c in (arc(), torch.cat([arc(), arc().flip(0)[1:]])))
    for x, y in zip(once, twice, strict=True):
        torch.testing.assert_close(2 * x, y)


def test_refinement_of_the_curve_converges() -> None:
    coarse, fine, finest = (length_uncertainty(RandomDecoder(30), arc(n)) for n in (16, 32, 64))
    for a, b, c in zip(coarse, fine, finest, strict=True):
        assert 3.5 < float((a - b) / (b - c)) < 4.5


# -- geodesics, shapes, misuse ----------------------------------------------------------------------------------------


def test_error_bars_of_geodesics() -> None:
    """A geodesic's own length stands for that of its chain, and the shares are the chain's."""
    model = decoder(D=40).double()
    a, b = points(2, torch.float64)[:2], points(2, torch.float64)[2:]
    g = oddity.expected_metric(model).geodesic(a, b)
    found, chain = length_uncertainty(model, g), length_uncertainty(model, g.points)
    assert torch.equal(found.length, g.length)
    torch.testing.assert_close(chain.length, oddity.expected_metric(model).length(g.points))
    torch.testing.assert_close(found.mean / found.length, chain.mean / chain.length)
    torch.testing.assert_close(found.sd / found.length, chain.sd / chain.length)
    assert (found.sd > 0).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_shapes_and_dtypes(dtype: torch.dtype) -> None:
    model = decoder().to(dtype).requires_grad_(False)
    z = points(2, dtype).reshape(2, 1, 2, 2)
    assert metric_variance(model, z).shape == (2, 1, 2, 2, 2)
    assert metric_variance(model, z[0, 0, 0]).shape == (2, 2)
    for of in (squared_speed_variance, expected_norm):
        assert of(model, z, torch.ones(3, 1, 2, dtype=dtype)).shape == (2, 3, 2)
        assert of(model, z, z).dtype == dtype
    c = arc().to(dtype).expand(3, 2, -1, -1)
    found = length_uncertainty(model, c)
    assert all(x.shape == (3, 2) and x.dtype == dtype for x in found)
    single = length_uncertainty(model, c[0, 0])
    for x, y in zip(found, single, strict=True):
        torch.testing.assert_close(x[2, 1], y)
    many = length_uncertainty(model, c[0, :1].expand(100, -1, -1))
    torch.testing.assert_close(many.sd[-1], single.sd)
    variance = metric_variance(model, z)
    torch.testing.assert_close(variance, variance.mT)
    along = torch.tensor([1.0, 0.0], dtype=dtype)
    torch.testing.assert_close(variance[..., 0, 0], squared_speed_variance(model, z, along))


def test_misuse_is_refused() -> None:
    model = decoder()
    with pytest.raises(ValueError, match="Linear gives a mean and no standard deviation; fit one"):
        metric_variance(nn.Linear(2, 3).eval(), torch.zeros(2))
    with pytest.raises(ValueError, match="training mode"):
        metric_variance(nn.Sequential(nn.Linear(2, 3), nn.Dropout()).train(), torch.zeros(2))
    with pytest.raises(ValueError, match="z holds nan"):
        metric_variance(model, torch.tensor([0.0, torch.nan]))
    with pytest.raises(ValueError, match="v holds inf"):
        expected_norm(model, torch.zeros(2), torch.tensor([0.0, torch.inf]))
    with pytest.raises(ValueError, match="at least two nodes"):
        length_uncertainty(model, torch.zeros(1, 2))
    with pytest.raises(ValueError, match="c holds nan"):
        length_uncertainty(model, torch.full((4, 2), torch.nan))


def test_a_mean_and_a_standard_deviation_of_different_widths_are_refused() -> None:
    class Lopsided:
        def mean(self, z: Tensor) -> Tensor:
            return torch.cat([z, z.square(), z.exp()], -1)

        def std(self, z: Tensor) -> Tensor:
            return z.square()

    z = torch.ones(2, 1)
    for use in (
        lambda M: metric_variance(M, z),
        lambda M: squared_speed_variance(M, z, z),
        lambda M: expected_norm(M, z, z),
        lambda M: length_uncertainty(M, torch.linspace(0, 1, 5)[:, None]),
    ):
        with pytest.raises(ValueError, match="the mean has 3 outputs and the standard deviation 1; give each output"):
            use(Lopsided())
