"""A decoder of the user's own: every form and kind of network has its metric, and what has none says what to change."""

import copy
import dataclasses
import functools
import subprocess
import sys
import warnings
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Bernoulli, Independent, MultivariateNormal, Normal

import oddity
from oddity.numerics.autodiff import Differential

from .cases import decoder


def some_points(n: int = 4, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(n, 3, dtype=dtype, generator=torch.Generator().manual_seed(1))


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.cell, self.head = kind(1, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, z: Tensor) -> Tensor:
        return self.head(self.cell(z[..., None])[0])


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(3, 32)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation="gelu")

    def forward(self, z: Tensor) -> Tensor:
        return self.layer(self.up(z).unflatten(1, (4, 8)))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.attention = nn.Linear(3, 32), nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, z: Tensor) -> Tensor:
        q = self.up(z).unflatten(1, (4, 8))
        return self.attention(q, q, q, need_weights=False)[0]


def images(norm: nn.Module) -> nn.Module:
    return nn.Sequential(
        nn.Linear(3, 64),
        nn.Unflatten(1, (4, 4, 4)),
        norm,
        nn.Softplus(),
        nn.Upsample(scale_factor=2, mode="bilinear"),
        nn.Conv2d(4, 4, 3, padding=1),
        nn.SiLU(),
        nn.ConvTranspose2d(4, 3, 4, 2, 1),
        nn.Sigmoid(),
    )


NETWORKS = {
    "dense": lambda: nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 5)),
    "GRU": lambda: Recurrent(nn.GRU),
    "LSTM": lambda: Recurrent(nn.LSTM),
    "attention": Attention,
    "transformer": Transformer,
    "BatchNorm": lambda: images(nn.BatchNorm2d(4)),
    "GroupNorm": lambda: images(nn.GroupNorm(2, 4)),
    "InstanceNorm": lambda: images(nn.InstanceNorm2d(4)),
    "LayerNorm": lambda: nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 5)),
    "weight norm": lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 8)), nn.Tanh()),
    "pixel shuffle": lambda: nn.Sequential(nn.Linear(3, 64), nn.Unflatten(1, (16, 2, 2)), nn.PixelShuffle(2), nn.ELU()),
}


def build(kind: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    """A network in evaluation mode, its batch statistics those of some points."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = NETWORKS[kind]().to(dtype).train()
        with torch.no_grad():
            net(torch.randn(64, 3, dtype=dtype))
    return net.eval()


def finite_differences(f, z: Tensor, h: float = 1e-5) -> Tensor:
    with torch.no_grad():
        columns = [((f(z + h * e) - f(z - h * e)) / (2 * h)).flatten(1) for e in torch.eye(3, dtype=z.dtype)]
    J = torch.stack(columns, -1)
    return J.mT @ J


@pytest.mark.parametrize("kind", NETWORKS)
def test_every_network_has_a_metric(kind: str) -> None:
    net, z = build(kind), some_points()
    M = oddity.expected_metric(net)
    torch.testing.assert_close(M.metric(z).detach(), finite_differences(net, z), rtol=1e-6, atol=1e-8)
    single = oddity.expected_metric(copy.deepcopy(net).float()).metric(z.float())
    torch.testing.assert_close(single.double().detach(), finite_differences(net, z), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["attention", "LSTM", "GroupNorm"])
def test_its_geodesics_converge(kind: str) -> None:
    net, z = build(kind).requires_grad_(False), some_points()
    g = oddity.expected_metric(net).geodesic(z[0], z[1])
    g.require()
    assert float(g.equation_residual) < 0.05


def test_attention_is_not_differentiated_output_by_output() -> None:
    net = build("transformer")
    M = oddity.expected_metric(net)
    M.metric(some_points())
    assert M.differential.mode == "jvp with math attention"  # type: ignore[attr-defined]
    assert torch.backends.mha.get_fastpath_enabled()  # put back


# -- forms of output ------------------------------------------------------------------------------------------------


def mean_and_std(z: Tensor) -> tuple[Tensor, Tensor]:
    net = build("dense")
    return net(z), net(z).exp()


@dataclasses.dataclass
class Law:
    mean: Tensor
    std: Tensor
    why: str = ""


class Pair(NamedTuple):
    std: Tensor
    mean: Tensor


class Parts:
    def mean(self, z: Tensor) -> Tensor:
        return mean_and_std(z)[0]

    def std(self, z: Tensor) -> Tensor:
        return mean_and_std(z)[1]


FORMS = {
    "pair": mean_and_std,
    "list": lambda z: list(mean_and_std(z)),
    "mapping": lambda z: dict(zip(("mean", "std"), mean_and_std(z), strict=True)) | {"latent": z},
    "dataclass": lambda z: Law(*mean_and_std(z)),
    "named tuple": lambda z: Pair(*reversed(mean_and_std(z))),
    "images": lambda z: tuple(x[:, None, :, None] for x in mean_and_std(z)),
    "Normal": lambda z: Normal(*mean_and_std(z)),
    "Independent": lambda z: Independent(Normal(*mean_and_std(z)), 1),
    "MultivariateNormal": lambda z: MultivariateNormal(
        mean_and_std(z)[0], scale_tril=torch.diag_embed(mean_and_std(z)[1])
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_has_the_metric_of_mean_and_std(form: str) -> None:
    z = some_points()
    expected = oddity.expected_metric(Parts())
    M = oddity.expected_metric(FORMS[form])
    torch.testing.assert_close(M.metric(z), expected.metric(z))
    line = torch.stack([z[0] + t * (z[1] - z[0]) for t in torch.linspace(0, 1, 9)])
    torch.testing.assert_close(M.energy(line), expected.energy(line))


def test_correlated_noise_has_the_mean_metric_over_the_noise() -> None:
    """x = mu + L eps: E (J_mu + dL eps)'(J_mu + dL eps), by the covariance of dL eps along each pair of axes."""

    def correlated(z: Tensor) -> MultivariateNormal:
        mean, std = mean_and_std(z)
        return MultivariateNormal(
            mean, scale_tril=torch.diag_embed(std) + torch.tril(mean[:, :, None] * std[:, None], -1)
        )

    z = some_points()
    J, dL = (
        torch.stack([((f(z + h) - f(z - h)) / 2e-5) for h in 1e-5 * torch.eye(3, dtype=z.dtype)], -1)
        for f in (lambda z: correlated(z).mean, lambda z: correlated(z).scale_tril)
    )
    expected = J.mT @ J + torch.einsum("nabi,nabj->nij", dL, dL)
    torch.testing.assert_close(oddity.expected_metric(correlated).metric(z), expected, rtol=1e-6, atol=1e-8)
    with pytest.raises(ValueError, match="gives correlated noise"):
        oddity.metric_variance(correlated, z)


def test_a_mean_alone_and_a_mapping_of_one_tensor() -> None:
    net, z = build("dense"), some_points()
    alone, mapped = (
        oddity.expected_metric(net),
        oddity.expected_metric(lambda z: {"reconstruction": net(z), "loss": None}),
    )
    torch.testing.assert_close(mapped.metric(z), alone.metric(z))
    torch.testing.assert_close(alone.metric(z), oddity.Pullback(net).metric(z))


def test_a_dense_network_keeps_its_closed_form() -> None:
    net = build("dense")
    for same in (net, torch.compile(net, backend="eager")):
        M = oddity.expected_metric(same)
        assert M.differential.mode == "closed form"  # type: ignore[attr-defined]


def test_a_compiled_part_is_run_uncompiled() -> None:
    net, z = build("GroupNorm"), some_points()
    expected = oddity.expected_metric(net).metric(z)
    whole, function = torch.compile(net, backend="eager"), torch.compile(lambda z: net(z), backend="eager")
    inside = nn.Sequential(nn.Identity(), torch.compile(net, backend="eager")).eval()
    for f in (whole, function, inside):
        torch.testing.assert_close(oddity.expected_metric(f).metric(z), expected, rtol=0, atol=0)


class Conditional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.net = nn.Embedding(4, 2), nn.Linear(5, 6)

    def forward(self, z: Tensor, label: Tensor, library: float = 1.0) -> Tensor:
        return library * self.net(torch.cat([z, self.embed(label)], 1)).tanh()


def test_conditions_by_keyword_or_partial() -> None:
    net, z = Conditional().double().eval(), some_points()
    expected = finite_differences(lambda z: net(z, torch.full((len(z),), 2), 3.0), z)
    by_keyword = oddity.expected_metric(net, label=torch.tensor([2]), library=3.0)
    by_partial = oddity.expected_metric(
        functools.partial(lambda z, y: net(z, y.expand(len(z)), 3.0), y=torch.tensor(2))
    )
    for M in (by_keyword, by_partial):
        torch.testing.assert_close(M.metric(z).detach(), expected, rtol=1e-6, atol=1e-8)
    dropping = nn.Sequential(nn.Dropout(), net)
    with pytest.raises(ValueError, match="Dropout, a part of Sequential, is in training mode"):
        oddity.expected_metric(functools.partial(dropping, label=1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_have_the_geometry_of_their_values(dtype: torch.dtype) -> None:
    half = build("GroupNorm", torch.float32).to(dtype).requires_grad_(False)
    exact, z = copy.deepcopy(half).float(), some_points(dtype=torch.float32)
    M, R = oddity.expected_metric(half), oddity.expected_metric(exact)
    torch.testing.assert_close(M.metric(z), R.metric(z), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        M.geodesic(z[0], z[1]).require().length, R.geodesic(z[0], z[1]).length, rtol=1e-5, atol=0
    )
    assert all(p.dtype == dtype for p in half.parameters())


# -- what is refused ------------------------------------------------------------------------------------------------

NET = build("dense", torch.float32)


@torch.inference_mode()
def in_inference_mode(z: Tensor) -> Tensor:
    return NET(z)


def dropping(*, whole: bool) -> nn.Module:
    net = nn.Sequential(nn.Linear(3, 8), nn.Dropout(), nn.Linear(8, 5)).eval()
    (net if whole else net[1]).train()
    return net


def quantised() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that its own quantisation will move
        return torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(3, 4), nn.Tanh()).eval(), {nn.Linear})


def autoencoder() -> nn.Module:
    return nn.ModuleDict({"encoder": NET, "decoder": NET}).eval()


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = self.decoder = NET

    def forward(self, z: Tensor) -> Tensor:
        return NET(z)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: 3.0, "float is no decoder: give a module"),
        (lambda: Normal(0.0, 1.0), "Normal is no decoder"),
        (lambda: dropping(whole=True), r"Dropout, a part of Sequential, is in training mode.*call \.eval\(\)"),
        (lambda: dropping(whole=False), r"Dropout, a part of Sequential, is in training mode.*call \.eval\(\)"),
        (quantised, "Linear, a part of Sequential, is quantised.*floating-point model"),
        (lambda: Model().eval(), "Model has an encoder too; give the part .* model.decoder"),
    ],
)
def test_refused_at_once(build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        oddity.expected_metric(build())


@pytest.mark.parametrize(
    ("f", "message"),
    [
        (
            lambda z: nn.functional.dropout(NET(z)),
            r"is random: the same points, other values; to end dropout, call \.eval\(\)",
        ),
        (lambda z: Normal(NET(z), 1.0).sample(), "is random.*give its mean in place of samples"),
        (
            lambda z: nn.functional.batch_norm(NET(z), None, None, training=True),
            r"other values in other company.*call \.eval\(\)",
        ),
        (lambda z: NET(z)[:, : 2 + len(z)], r"maps points to shape \(4,\) or \(5,\), by their number"),
        (lambda z: NET(z)[0], "must keep the rows"),
        (lambda z: NET(z).detach(), "has no derivative .*no argmax, detach"),
        (lambda z: (NET(z), NET(z).exp().detach()), "zero for .* outputs, while its values change"),
        (in_inference_mode, "has no derivative"),
        (lambda z: NET(z).argmax(1, keepdim=True), "returned torch.int64, which has no derivative"),
        (lambda z: NET(z).detach().numpy(), "returned ndarray"),
        (lambda z: Bernoulli(logits=NET(z)), r"returned a Bernoulli.*oddity\.fisher_metric\(decoder\)"),
        (lambda z: Independent(Bernoulli(logits=NET(z)), 1), r"returned a Bernoulli.*oddity\.fisher_metric"),
        (lambda z: (NET(z), NET(z)), "negative in places, hence no standard deviation; if it is a log-variance"),
        (lambda z: (NET(z), NET(z), NET(z)), r"a tuple of Tensor, Tensor, Tensor.*lambda z: decoder\(z\)\[0\]"),
        (
            nn.GRU(3, 4, batch_first=True).eval(),
            r"shape \(2, 4\) and \(1, 4\), which are no mean and standard deviation",
        ),
        (lambda z: {"a": NET(z), "b": NET(z)}, r"a dict with a, b; choose one, e.g. lambda z: decoder\(z\)\['a'\]"),
        (lambda z, label: NET(z), "missing 1 required positional argument: 'label'"),
        (lambda z: NET(z.to("meta")), "cannot map points.*device"),
    ],
)
def test_refused_at_the_first_points(f, message: str) -> None:
    M = oddity.expected_metric(f)
    with pytest.raises(ValueError, match=message):
        M.metric(some_points(dtype=torch.float32))


# -- standard deviations ----------------------------------------------------------------------------------------------

ANY = torch.tensor([[0.0, 0.0], [-9.0, 4.0]])


def slope(z: Tensor) -> Tensor:
    """Positive near the origin, negative at the other place, as a log-variance may be."""
    return 3 + z @ torch.tensor([[1.0, 0.4], [-0.5, 0.3]], dtype=z.dtype)


class SlopeOfParts:
    def mean(self, z: Tensor) -> Tensor:
        return z.sin()

    def std(self, z: Tensor) -> Tensor:
        return slope(z)


LOG_VARIANCES = {
    "pair": lambda z: (z.sin(), slope(z)),
    "mapping": lambda z: {"mean": z.sin(), "std": slope(z)},
    "Normal": lambda z: Normal(z.sin(), slope(z), validate_args=False),
    "parts": SlopeOfParts(),
}
CALLS = {
    "metric": lambda M, z: (M.metric(z[0]), M.metric(z[1])),
    "length": lambda M, z: (M.metric(z[0]), M.length(z)),
    "geodesic": lambda M, z: (M.metric(z[0]), M.geodesic(z[0], z[1])),
    "curvature": lambda M, z: (M.metric(z[0]), M.scalar_curvature(z)),
    "acceleration": lambda M, z: (M.metric(z[0]), M.acceleration(z, z)),
    "shoot": lambda M, z: (M.metric(z[0]), M.shoot(z[0], z[1], tolerance=1e-2)),
    "table": lambda M, z: M.sketch(0.01 * torch.randn(300, 2, generator=torch.Generator().manual_seed(0)).to(z) + z[1]),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("form", LOG_VARIANCES)
def test_a_standard_deviation_that_is_negative_anywhere_refuses_the_call_always(form, call, dtype) -> None:
    M = oddity.expected_metric(LOG_VARIANCES[form])
    for _ in range(2):
        with pytest.raises(
            ValueError, match="negative in places, hence no standard deviation; if it is a log-variance"
        ):
            CALLS[call](M, ANY.to(dtype))


def test_a_fisher_metric_refuses_it_too() -> None:
    M = oddity.fisher_metric(LOG_VARIANCES["pair"])
    M.metric(ANY[0])
    with pytest.raises(ValueError, match="negative in places, hence no standard deviation"):
        M.metric(ANY[1])


def test_no_noise_is_noise_of_no_width() -> None:
    z = some_points()
    M = oddity.expected_metric(lambda z: (z.sin(), 0 * z))
    torch.testing.assert_close(M.metric(z), oddity.Pullback(torch.sin).metric(z))


def test_how_a_pair_was_read_is_told() -> None:
    for metric in (oddity.expected_metric, oddity.fisher_metric):
        M = metric(mean_and_std)
        M.metric(some_points())
        assert "read as (mean, std)" in repr(M)
        assert "read as (mean, std)" in repr(2 * M + oddity.Euclidean())
    M = oddity.expected_metric(NET)
    M.metric(some_points(dtype=torch.float32))
    assert "read" not in repr(M)


# -- trying -----------------------------------------------------------------------------------------------------------


class Restless(nn.Module):
    """Its mode decides, hidden behind no layer of PyTorch's; and it counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(3, 5)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, z: Tensor) -> Tensor:
        self.calls += 1
        return nn.functional.dropout(self.net(z), 0.5, self.training)


def random_networks() -> dict[str, nn.Module]:
    return {
        "dropout": nn.Sequential(nn.Linear(3, 8), nn.Dropout(), nn.Linear(8, 5)),
        "batch statistics": nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Linear(8, 5)),
        "own": Restless(),
        "spectral norm": nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(3, 8)), nn.Tanh()),
        "hooks": nn.utils.spectral_norm(nn.Linear(3, 8)),
        "LSTM": RecurrentDropout(),
    }


class RecurrentDropout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTM(3, 4, 2, batch_first=True, dropout=0.3)

    def forward(self, z: Tensor) -> Tensor:
        return self.cell(z[:, None])[0]


class Owner:
    """Everything that a decoder may be hidden behind."""

    def __init__(self, net: nn.Module) -> None:
        self.net, self.several = net, [nn.Identity(), net]

    def decode(self, z: Tensor) -> Tensor:
        return self.net(z)

    def __call__(self, z: Tensor) -> Tensor:
        return self.decode(z)

    @property
    def way(self) -> nn.Module:
        return self.net


def call(f, z: Tensor) -> Tensor:
    return f(z)


WAYS = {
    "module": lambda net: net,
    "closure": lambda net: lambda z: net(z),
    "nested closures": lambda net: lambda z: (lambda y: net(y))(z),
    "comprehension": lambda net: lambda z: [f(z) for f in (net,)].pop(),
    "default": lambda net: lambda z, f=net: f(z),
    "partial": lambda net: functools.partial(call, net),
    "attribute": lambda net: (lambda owner: lambda z: owner.net(z))(Owner(net)),
    "list": lambda net: (lambda owner: lambda z: owner.several[1](z))(Owner(net)),
    "method": lambda net: Owner(net).decode,
    "object": lambda net: Owner(net),
    "property": lambda net: (lambda owner: lambda z: owner.way(z))(Owner(net)),
    "helper": lambda net: (lambda inner: lambda z: call(inner, z))(lambda z: net(z)),
    "wrapped": lambda net: functools.wraps(call)(lambda z: net(z)),
    "dictionary": lambda net: (lambda nets: lambda z: nets["a"](z))({"a": net}),
}
GLOBAL_NET: list[nn.Module] = []


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", random_networks())
def test_training_mode_is_seen_at_once_and_later_and_changes_nothing(kind: str, way: str) -> None:
    net, z = random_networks()[kind].eval(), some_points(dtype=torch.float32)
    f = WAYS[way](net)
    M = oddity.expected_metric(f)
    M.metric(z)
    net.train()
    before, state = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    for ask in (lambda: M.metric(z), lambda: M.dist(z[0], z[1]), lambda: oddity.expected_metric(f).metric(z)):
        with pytest.raises(ValueError, match=r"in training mode.*call \.eval\(\)"):
            ask()
    assert all(torch.equal(before[name], x) for name, x in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    net.eval()
    assert M.metric(z).isfinite().all()


def test_a_global_network_is_seen() -> None:
    GLOBAL_NET[:] = [nn.Sequential(nn.Linear(3, 4), nn.Dropout())]
    with pytest.raises(ValueError, match="Dropout, a part of Sequential, is in training mode"):
        oddity.expected_metric(lambda z: GLOBAL_NET[0](z))


def test_another_network_under_the_same_name_is_tried() -> None:
    net, z = nn.Linear(3, 4), some_points(dtype=torch.float32)
    M = oddity.expected_metric(lambda z: net(z))
    M.metric(z)
    net = nn.Sequential(nn.Linear(3, 4), nn.Dropout())
    with pytest.raises(ValueError, match="Dropout, a part of Sequential, is in training mode"):
        M.metric(z)
    net.eval()
    torch.testing.assert_close(M.metric(z[0]), (net[0].weight.mT @ net[0].weight))


def test_only_what_a_function_uses_is_held_against_it() -> None:
    """The encoder is being trained, the decoder is not."""
    model = nn.ModuleDict({"encoder": nn.Dropout(), "decoder": nn.Linear(3, 4).eval()})
    model.decoder = nn.Linear(3, 4).eval()
    assert oddity.expected_metric(lambda z: model.decoder(z)).metric(torch.zeros(3)).isfinite().all()


@pytest.mark.parametrize("kind", ["dense", "GRU", "LayerNorm", "GroupNorm", "weight norm", "pixel shuffle"])
def test_a_network_without_chance_needs_no_evaluation_mode(kind: str) -> None:
    net, z = build(kind), some_points()
    expected = oddity.expected_metric(net).metric(z)
    for f in (net.train(), lambda z: net(z)):
        torch.testing.assert_close(oddity.expected_metric(f).metric(z), expected)
    no_share = nn.Sequential(net, nn.Dropout(0.0)).train()
    torch.testing.assert_close(oddity.expected_metric(no_share).metric(z), expected)


def test_trying_leaves_buffers_and_random_states() -> None:
    net, z = Restless().eval(), some_points(dtype=torch.float32)
    state = torch.get_rng_state()
    oddity.expected_metric(lambda z: net(z)).differential.check(z)  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="is random"):
        oddity.expected_metric(lambda z: net(z) + torch.randn(5)).metric(z)
    assert float(net.calls) == 0
    assert torch.equal(torch.get_rng_state(), state)


# -- captured networks ------------------------------------------------------------------------------------------------

CAPTURED = {
    "traced": lambda net, z: torch.jit.trace(net, z),
    "scripted": lambda net, z: torch.jit.script(net),
    "exported": lambda net, z: torch.export.export(
        net, (z,), dynamic_shapes=({0: torch.export.Dim("n", min=1)},)
    ).module(),
    "symbolic": lambda net, z: torch.fx.symbolic_trace(net),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit:UserWarning")
@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("way", CAPTURED)
def test_captured_networks_have_the_metric_of_what_they_captured(way: str, hidden: bool) -> None:
    net, z = build("dense", torch.float32).requires_grad_(False), some_points(dtype=torch.float32)
    captured = CAPTURED[way](net, z)
    M, R = oddity.expected_metric((lambda z: captured(z)) if hidden else captured), oddity.expected_metric(net)
    for points in (z, z[0], z[:1]):
        torch.testing.assert_close(M.metric(points), R.metric(points))
    torch.testing.assert_close(M.dist(z[0], z[1]), R.dist(z[0], z[1]), rtol=1e-4, atol=0)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("way", ["traced", "exported"])
def test_what_was_captured_in_training_mode_is_to_be_captured_again(way: str) -> None:
    net, z = nn.Sequential(nn.Linear(3, 4), nn.Dropout()).train(), some_points(dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        captured = CAPTURED[way](net, z)
    with pytest.raises(ValueError, match=r"trace or export it again from its model in evaluation mode"):
        oddity.expected_metric(captured).metric(z)


def test_an_honest_zero_derivative_is_no_offence() -> None:
    z = torch.zeros(2, 3)
    assert (oddity.expected_metric(lambda z: z.square()).metric(z) == 0).all()
    assert (oddity.expected_metric(lambda z: 0 * z + 1).metric(z) == 0).all()


def test_uncertainty_needs_a_standard_deviation() -> None:
    z = some_points(dtype=torch.float32)
    with pytest.raises(ValueError, match="Sequential gives a mean and no standard deviation; fit one"):
        oddity.metric_variance(NET, z)
    pair = lambda z: (decoder(3).mean(z), decoder(3).std(z))  # noqa: E731
    torch.testing.assert_close(oddity.metric_variance(pair, z), oddity.metric_variance(decoder(3), z))


# -- large outputs --------------------------------------------------------------------------------------------------


def test_chunks_give_what_the_whole_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    net, z = build("GroupNorm"), some_points(40)
    w = torch.ones(40, 768, dtype=torch.float64)
    whole, chunked = Differential(net), Differential(net)
    whole.check(z)
    chunked.check(z)
    with torch.no_grad():
        expected = [whole(z), whole.frame(z), whole.pull(z, w), whole.curvature(z, w)]
        monkeypatch.setattr("oddity.numerics.autodiff._NUMBERS_AT_A_TIME", 1)
        assert chunked._rows_at_a_time(1) == 1
        found = [chunked(z), chunked.frame(z), chunked.pull(z, w), chunked.curvature(z, w)]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


LARGE = """
import resource, torch, oddity
from torch import nn
torch.set_num_threads(1)
torch.manual_seed(0)
net = nn.Sequential(
    nn.Linear(32, 64 * 8 * 8), nn.Unflatten(1, (64, 8, 8)),
    nn.ConvTranspose2d(64, 64, 4, 2, 1), nn.GroupNorm(4, 64), nn.SiLU(),
    nn.ConvTranspose2d(64, 32, 4, 2, 1), nn.GroupNorm(4, 32), nn.SiLU(),
    nn.ConvTranspose2d(32, 8, 4, 2, 1), nn.GroupNorm(4, 8), nn.SiLU(),
    nn.Conv2d(8, 3, 3, padding=1), nn.Sigmoid(),
).eval().requires_grad_(False)
M = oddity.expected_metric(net)
z = torch.randn(600, 32)
M.metric(z[:40])
M.length(z)
M.chain_model(z[None, :33], torch.ones(1, 32) / 32, exact=True)
print(M.differential.outputs, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
"""


@pytest.mark.slow
def test_large_images_in_many_dimensions_stay_within_four_gigabytes() -> None:
    run = subprocess.run([sys.executable, "-c", LARGE], capture_output=True, text=True, check=True)
    outputs, gigabytes = run.stdout.split()
    assert int(outputs) == 3 * 64 * 64
    assert float(gigabytes) < 4
