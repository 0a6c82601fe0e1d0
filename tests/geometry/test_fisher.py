"""Fisher metrics against divergences, against the variance of the score, and against distances known by formula."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import (
    Bernoulli,
    Binomial,
    Categorical,
    Cauchy,
    Distribution,
    Independent,
    Laplace,
    MixtureSameFamily,
    Multinomial,
    NegativeBinomial,
    Normal,
    Poisson,
    Uniform,
    VonMises,
    kl_divergence,
)

import oddity
from oddity.testing import LAWS, check_manifold

from .cases import decoder, points
from .likelihoods import NAMES, likelihood

KINDS = ["Normal", "Bernoulli", "Categorical", "Poisson", "NegativeBinomial", "Dirichlet"]
SLOW = ["Gumbel", "MultivariateNormal", "VonMises"]
LOCAL = [
    "push is linear",
    "frame is the push of the basis",
    "shapes are kept",
    "lengths by secants are of second order",
    "secants follow the push",
    "the chain model is the derivative of the energy",
    "acceleration is that of the metric",
]


def divergence(p: Distribution, q: Distribution) -> Tensor:
    """KL divergence summed over the outputs, ``(N,)``, also of the families that PyTorch has none for."""
    if isinstance(p, NegativeBinomial):
        r, low, high = p.total_count, *(torch.nn.functional.logsigmoid(-x.logits) for x in (p, q))
        each = p.mean * (p.logits + low - q.logits - high) + r * (low - high)
    elif isinstance(p, Multinomial):
        each = p.total_count * (p.probs * (p.logits - q.logits)).sum(-1)
    elif isinstance(p, VonMises):
        each = kl_divergence(*(_on_circle(x) for x in (p, q)))
    else:
        each = kl_divergence(p, q)
    return each.reshape(len(each), -1).sum(1)


def _on_circle(law: VonMises) -> oddity.VonMisesFisher:
    return oddity.VonMisesFisher(torch.stack([law.loc.cos(), law.loc.sin()], -1), law.concentration)


@pytest.mark.parametrize("name", NAMES)
def test_is_the_second_difference_of_the_divergence(name: str) -> None:
    model, z = likelihood(name).double(), points(2, torch.float64)
    v = torch.randn(z.shape, dtype=z.dtype, generator=torch.Generator().manual_seed(4))
    h = 1e-4
    both = sum(divergence(model(z), model(z + s * h * v)) for s in (1, -1))
    torch.testing.assert_close(oddity.fisher_metric(model).inner(z, v, v), both / h**2, rtol=1e-3, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_is_the_variance_of_the_score(name: str) -> None:
    model, z, h = likelihood(name).double(), points(2, torch.float64)[:1], 1e-5
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)  # the laws of PyTorch draw from its global generator
        law = model(z)
        x = law.sample((20_000,))
        step = h * torch.eye(2, dtype=z.dtype)

        def log_density(at: Tensor) -> Tensor:
            return model(at).log_prob(x).reshape(len(x), -1).sum(1)

        score = torch.stack([(log_density(z + e) - log_density(z - e)) / (2 * h) for e in step], -1)  # (S, 2)
    squares = score[:, :, None] * score[:, None]
    error = squares.std(0) / len(squares) ** 0.5
    assert ((squares.mean(0) - oddity.fisher_metric(model).metric(z)[0]).abs() <= 4 * error).all()


@pytest.mark.parametrize("name", [pytest.param(x, marks=pytest.mark.slow if x in SLOW else ()) for x in NAMES])
def test_geodesics_converge(name: str) -> None:
    z, F = points(2, torch.float64), oddity.fisher_metric(likelihood(name).double())
    g, fine = (F.geodesic(z[:2], 2 * z[2:], solver=oddity.ChainSolver(segments=n)).require() for n in (64, 256))
    assert (g.length_error < 5e-3 * g.length).all()
    assert ((g.length - fine.length).abs() <= g.length_error + fine.length_error).all()


@pytest.mark.parametrize("name", ["Normal", "Bernoulli", "Dirichlet", "VonMisesFisher"])
def test_the_local_laws_hold(name: str) -> None:
    check_manifold(oddity.fisher_metric(likelihood(name).double()), points(2, torch.float64)[:3], LOCAL)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_law_holds(name: str) -> None:
    """All of them for a family of each kind; those of a point and a short chain for its relatives."""
    laws = LAWS if name in KINDS else LOCAL
    check_manifold(oddity.fisher_metric(likelihood(name).double()), points(2, torch.float64)[:3], laws)


def test_the_divergence_gives_the_metric_of_a_known_family() -> None:
    """Cauchy laws: (d loc^2 + d scale^2) / (2 scale^2)."""
    M = oddity.fisher_metric(lambda z: Cauchy(z[:, 0], z[:, 1].exp()))
    z = points(2, torch.float64)
    expected = torch.diag_embed(torch.stack([0.5 * torch.exp(-2 * z[:, 1]), torch.full((4,), 0.5).double()], -1))
    torch.testing.assert_close(M.metric(z), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_single_precision_agrees_with_double(name: str) -> None:
    z = points(2, torch.float64)
    fine = oddity.fisher_metric(likelihood(name).double()).metric(z)
    coarse = oddity.fisher_metric(likelihood(name)).metric(z.float())
    assert coarse.dtype == torch.float32
    torch.testing.assert_close(coarse.double(), fine, rtol=1e-4, atol=1e-4)


def distances(law: Callable[[Tensor], Distribution], a: list[float], b: list[float]) -> float:
    ends = torch.tensor([a, b], dtype=torch.float64)
    return float(oddity.fisher_metric(law).geodesic(ends[0], ends[1]).require().length)


def test_distances_known_by_formula() -> None:
    def normal(z: Tensor) -> Distribution:
        return Normal(z[:, :1], z[:, 1:].exp())

    across = 1 + (1 / 2 + (2 - 1) ** 2) / (2 * 2 * 1)
    assert distances(normal, [0, 0], [1, math.log(2)]) == pytest.approx(math.sqrt(2) * math.acosh(across), rel=1e-5)

    def classes(z: Tensor) -> Distribution:
        return Categorical(logits=torch.cat([z, torch.zeros_like(z[:, :1])], 1))

    p, q = (torch.tensor([x, y, 0.0], dtype=torch.float64).softmax(0) for x, y in ((-1, 2), (2, 0)))
    assert distances(classes, [-1, 2], [2, 0]) == pytest.approx(2 * math.acos(float((p * q).sqrt().sum())), rel=1e-6)
    assert distances(lambda z: Poisson(z.exp()), [0], [2]) == pytest.approx(2 * (math.e - 1), rel=1e-6)
    assert distances(lambda z: Bernoulli(logits=z), [-30], [30]) == pytest.approx(math.pi, rel=1e-5)
    r = torch.tensor(3.0, dtype=torch.float64)
    ends = [2 * math.sqrt(3) * math.asinh(math.exp(x / 2)) for x in (-2, 4)]
    assert distances(lambda z: NegativeBinomial(r, logits=z), [-2], [4]) == pytest.approx(ends[1] - ends[0], rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_saturated_logits_keep_their_digits(dtype: torch.dtype) -> None:
    z = torch.tensor([[-50.0], [-20.0], [0.0], [20.0], [50.0]], dtype=dtype)
    expected = torch.exp(-z.abs()) / (1 + torch.exp(-z.abs())) ** 2  # p (1 - p)
    two = oddity.fisher_metric(lambda z: Categorical(logits=torch.cat([z, torch.zeros_like(z)], 1)))
    for M in (oddity.fisher_metric(lambda z: Bernoulli(logits=z)), two):
        torch.testing.assert_close(M.metric(z)[:, 0], expected, rtol=1e-4, atol=0)
        far = torch.full((1, 1), 5000.0, dtype=dtype)
        assert M.metric(torch.cat([far, -far])).abs().max() == 0


def test_a_count_that_never_comes_has_no_metric_and_no_nan() -> None:
    M = oddity.fisher_metric(lambda z: Poisson(z.exp()))
    assert float(M.metric(torch.tensor([-500.0]))) == 0


def test_images_are_flattened_and_independent_changes_nothing() -> None:
    net, z = nn.Linear(2, 16).double(), points(2, torch.float64)
    flat = oddity.fisher_metric(lambda z: Bernoulli(logits=net(z))).metric(z)
    image = oddity.fisher_metric(lambda z: Independent(Bernoulli(logits=net(z).reshape(-1, 1, 4, 4)), 3)).metric(z)
    torch.testing.assert_close(image, flat, rtol=1e-14, atol=0)


def test_a_gaussian_decoder_is_a_normal_law() -> None:
    model, z = decoder().double(), points(2, torch.float64)
    whole = oddity.fisher_metric(model).metric(z)
    torch.testing.assert_close(oddity.fisher_metric(lambda z: (model.mean(z), model.std(z))).metric(z), whole)
    torch.testing.assert_close(oddity.fisher_metric(lambda z: Normal(model.mean(z), model.std(z))).metric(z), whole)


def test_a_pair_is_read_as_the_expected_metric_reads_it() -> None:
    model, z = decoder().double(), points(2, torch.float64)
    expected = oddity.fisher_metric(model).metric(z)
    forms = (
        lambda z: [model.mean(z), model.std(z)],
        lambda z: (model.mean(z)[:, None, :, None], model.std(z)[:, None, :, None]),
    )
    for form in forms:
        torch.testing.assert_close(oddity.fisher_metric(form).metric(z), expected)
    refused(lambda z: (z, -1 - z.square()), r"negative in places, hence no standard deviation; if it is a log-variance")
    refused(lambda z: (z, z, z), "a tuple of Tensor, Tensor, Tensor")
    refused(lambda z: (z, z.repeat(2, 1)), "which are no mean and standard deviation", torch.ones(3, 2))
    refused(lambda z: {"loc": z, "scale": z}, "a dict with loc, scale; choose one")


def test_conditions_by_keyword() -> None:
    net, z = nn.Linear(5, 4).double().eval().requires_grad_(False), points(2, torch.float64)

    def law(z: Tensor, label: Tensor, depth: float = 1.0) -> Distribution:
        return Poisson(depth * torch.cat([z, label], 1).matmul(net.weight.mT).exp())

    label = torch.tensor([[1.0, 0.0, 2.0]], dtype=torch.float64)
    alone = oddity.fisher_metric(lambda z: law(z, label.expand(len(z), 3), 3.0))
    torch.testing.assert_close(oddity.fisher_metric(law, label=label, depth=3.0).metric(z), alone.metric(z))
    torch.testing.assert_close(
        oddity.fisher_metric(oddity.EntropyBlend(law, z, label=label, depth=3.0)).metric(z),
        oddity.fisher_metric(oddity.EntropyBlend(lambda z: law(z, label.expand(len(z), 3), 3.0), z)).metric(z),
    )
    model = decoder().double()
    scaled = oddity.fisher_metric(lambda z, by: (by * model.mean(z), model.std(z)), by=2.0)
    assert (scaled.metric(z) - oddity.fisher_metric(model).metric(z)).norm() > 0.1


def test_what_is_behind_a_mean_and_a_deviation_is_refused() -> None:
    class Parts:
        def __init__(self) -> None:
            self.mean, self.std = (
                nn.Linear(2, 3).eval(),
                nn.Sequential(nn.Linear(2, 3), nn.Softplus(), nn.Dropout()).eval(),
            )

    parts = Parts()
    M = oddity.fisher_metric(parts)
    M.metric(torch.zeros(2))
    parts.std[2].train()
    for call in (lambda: M.metric(torch.zeros(2)), lambda: oddity.fisher_metric(parts)):
        with pytest.raises(ValueError, match="Dropout, a part of Sequential, is in training mode"):
            call()


def test_the_deviation_of_an_image_may_come_flat() -> None:
    class Images:
        def mean(self, z: Tensor) -> Tensor:
            return z.reshape(-1, 1, 2, 1)

        def std(self, z: Tensor) -> Tensor:
            return torch.ones_like(z)

    M = oddity.fisher_metric(Images())
    torch.testing.assert_close(M.metric(torch.zeros(2)), torch.eye(2))


def test_follows_the_decoder_as_it_is_trained_on() -> None:
    model, z = likelihood("Poisson"), points(2, torch.float32)
    M = oddity.fisher_metric(model)
    before = M.metric(z)
    with torch.no_grad():
        next(model.parameters()).mul_(2)
    assert not torch.equal(M.metric(z), before)


def refused(law: Callable[[Tensor], object], message: str, z: Tensor | None = None) -> None:
    with pytest.raises(ValueError, match=message):
        oddity.fisher_metric(law).metric(torch.zeros(3, 2) if z is None else z)  # type: ignore[arg-type]


def test_bad_decoders_are_refused() -> None:
    for metric in (oddity.fisher_metric, oddity.expected_metric):
        with pytest.raises(ValueError, match="Tensor is no decoder: give a module"):
            metric(torch.zeros(2))  # type: ignore[operator]
    with pytest.raises(ValueError, match=r"training mode.*eval"):
        oddity.fisher_metric(nn.Sequential(likelihood("Poisson"), nn.Dropout()).train())
    refused(lambda z: z, r"returned Tensor; a likelihood is a torch.distributions.*Pullback")
    refused(lambda z: Poisson(torch.ones(2, 5)), "mapped 3 points to a Poisson law|mapped 2 points", torch.ones(3, 2))
    refused(lambda z: Poisson(z.exp().sum()), r"it must keep the rows: \(2, \.\.\.\)")
    refused(likelihood("Poisson"), "convert one", torch.zeros(3, 2, dtype=torch.float64))
    refused(likelihood("Poisson"), r"cannot map points of shape \(n, 3\)", torch.zeros(3, 3))


def test_invalid_parameters_are_refused() -> None:
    before = Distribution._validate_args
    refused(lambda z: Poisson(z - 1), "Poisson law whose rate holds -1, against its constraint")
    refused(lambda z: Poisson(z.log()), "Poisson law whose rate holds -inf")
    refused(lambda z: Bernoulli(logits=z / z), "Bernoulli law whose logits holds nan")
    refused(lambda z: Normal(z, z), "Normal law whose scale holds 0, against its constraint")
    third = torch.tensor([[0.0], [0.0], [-3.0]])
    refused(lambda z: Normal(z, 1 + z), "scale holds -2", third)
    assert Distribution._validate_args == before  # PyTorch's own checks are as they were


def test_families_without_a_fisher_metric_are_refused() -> None:
    def mixture(z: Tensor) -> Distribution:
        return MixtureSameFamily(Categorical(logits=z), Normal(z, 1.0))

    refused(mixture, "knows no KL divergence between two MixtureSameFamily laws.*register_kl")
    refused(lambda z: Uniform(z[:, 0] - 1, z[:, 1].exp()), "two Uniform laws is not twice differentiable")
    dispersed = lambda z: NegativeBinomial(z[:, :1].exp(), logits=z[:, 1:])  # noqa: E731
    refused(dispersed, "total_count varies with z.*keep total_count fixed")
    refused(lambda z: Binomial(z[:, :1].exp(), logits=z[:, 1:]), "total_count varies with z")


def test_a_kink_that_derivatives_do_not_see_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The divergence of two Laplace laws is smooth, but its formula has |shift|, whose derivative at zero is zero."""
    monkeypatch.setattr("oddity.geometry.fisher.family_of", lambda law: None)
    refused(lambda z: Laplace(z, 1.0), "two Laplace laws is not twice differentiable")


def test_the_expected_metric_points_to_the_fisher_metric() -> None:
    with pytest.raises(ValueError, match="fisher_metric"):
        oddity.expected_metric(likelihood("Bernoulli")).metric(torch.zeros(1, 2))  # type: ignore[arg-type]


def test_a_solver_that_leaves_the_family_says_so_and_does_not_raise() -> None:
    """Between these ends the straight line crosses laws that do not exist."""
    M = oddity.fisher_metric(lambda z: Poisson(z[:, :1].square() - 1))
    g = M.geodesic(torch.tensor([-2.0]), torch.tensor([2.0]))
    assert not bool(g.converged)
    assert g.why
