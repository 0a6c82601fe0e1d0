"""What surrounds a call, autocast, inference mode, threads, changes no answer: every public door in every state."""

import contextlib
import copy
import functools
import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from joblib import Parallel, delayed, parallel_config
from torch import Tensor, nn
from torch.autograd import forward_ad

import oddity
from oddity.numerics.ambient import door

PLACE: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}  # whatever the defaults are


class World(NamedTuple):
    """What the doors are given."""

    net: nn.Module
    z: Tensor  # (24, 2)
    x: Tensor  # (24, 4)
    v: Tensor  # (24, 2)
    M: oddity.Manifold  # by forward derivatives
    closed: oddity.Manifold


def world() -> World:
    """A small world, made where we are: in inference mode its tensors and weights are of that kind."""
    with torch.device("cpu"), warnings.catch_warnings():
        rng = torch.Generator().manual_seed(0)
        net = nn.Sequential(nn.Linear(2, 8, **PLACE), nn.Tanh(), nn.Linear(8, 4, **PLACE)).eval()
        with torch.no_grad():
            for p in net.parameters():
                p.copy_(0.4 * torch.randn(p.shape, generator=rng, **PLACE))
        z, v = (torch.randn(24, 2, generator=rng, **PLACE) * 0.7 for _ in range(2))
        with torch.no_grad():
            x = net(z) + 0.1 * torch.randn(24, 4, generator=rng, **PLACE)
    M = oddity.expected_metric(lambda z: net(z))
    return World(net, z, x, v, M, oddity.expected_metric(net))


def rng() -> torch.Generator:
    return torch.Generator("cpu").manual_seed(0)


def pair(w: World) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    return lambda z: (w.net(z), 0.1 + z.square().sum(1, keepdim=True))


def geodesic(w: World) -> list[Tensor]:
    g = w.M.geodesic(w.z[:2], w.z[2:4])
    return [g.points, g.length, g(0.3), g.velocity(0.3), g.equation_residual]


def by_roadmap(w: World) -> list[Tensor]:
    roads = oddity.Roadmap(w.closed, w.z, k=4)
    return [roads.lengths, w.closed.geodesic(w.z[0], w.z[9], init=roads).points, w.closed.dist(w.z[0], w.z[9])]


def uncertain(w: World) -> list[Tensor]:
    u = oddity.add_uncertainty(w.net, w.z, w.x, n_centres=4, epochs=3)
    return [u.mean(w.z), u.std(w.z), oddity.expected_metric(u).metric(w.z), u.scale.std_jacobian(w.z)]


def by_distance(w: World) -> list[Tensor]:
    u = oddity.add_uncertainty(w.net, w.z, w.x)
    M = oddity.expected_metric(u)
    return [u.std(w.z), M.metric(w.z), u.scale.depth(w.z), M.geodesic(w.z[0], w.z[1]).points]


@functools.cache
def vae() -> oddity.VAE:
    return oddity.fit_vae(world().x, latent_dim=2, hidden=(8,), n_centres=4, epochs=2, variance_epochs=2)


def of_a_vae(w: World) -> list[Tensor]:
    model = vae()
    z = model.encode(w.x)
    drawn = [model.elbo(w.x, rng()), model.sample(3, generator=rng()), model.log_likelihood(w.x, 10, rng())]
    return [z, *model.posterior(w.x), model(w.x), *model.decoder(z), *drawn]


def trained(w: World) -> list[Tensor]:
    model = oddity.fit_vae(w.x, latent_dim=2, hidden=(8,), n_centres=4, epochs=2, variance_epochs=2)
    return [model.encode(w.x), *model.decoder(w.z), oddity.expected_metric(model.decoder).metric(w.z)]


def members(w: World) -> list[Tensor]:
    several = [w.net, lambda z: w.net(2 * z)]
    return [oddity.ensemble_metric(several).metric(w.z), oddity.independent_members_energy(several, w.z)]


def kmeans(w: World) -> list[Any]:
    found = oddity.GeodesicKMeans(w.closed, n_clusters=2, method="graph", n_init=1, random_state=0).fit(w.z)
    return [found.labels_, found.cluster_centers_, found.predict(w.z[:4]), found.transform(w.z[:4])]


def kmedoids(w: World) -> list[Any]:
    found = oddity.GeodesicKMedoids(w.closed, n_clusters=2, method="graph", random_state=0).fit(w.z)
    return [found.labels_, found.cluster_centers_]


def tangent(w: World) -> list[Any]:
    found = oddity.TangentPCA(w.closed, n_components=1).fit(w.z[:6])
    return [found.mean_, found.components_, found.transform(w.z[:3])]


def uncertainty(w: World) -> list[Tensor]:
    f, z, v = pair(w), w.z[:3], w.v[:3]
    return [oddity.metric_variance(f, z), oddity.expected_norm(f, z, v), oddity.squared_speed_variance(f, z, v),
            *oddity.length_uncertainty(f, w.z[:5])]  # fmt: skip


def walk(w: World) -> list[Tensor]:
    support = oddity.DataSupport(w.z)
    return [oddity.brownian_motion(w.M, w.z[:2], steps=3, dt=1e-3, generator=rng()).points, support(w.z)]


def pictures(w: World) -> list[Tensor]:
    g = w.closed.geodesic(w.z[0], w.z[1])
    return [oddity.Interpolation.along(vae().decoder, g, frames=3).images]


def likelihood(w: World) -> list[Tensor]:
    F = oddity.fisher_metric(lambda z: torch.distributions.Bernoulli(logits=w.net(z)))
    blend = oddity.EntropyBlend(lambda z: torch.distributions.Bernoulli(logits=w.net(z)), w.z, n_centres=4)
    return [F.metric(w.z), oddity.fisher_metric(pair(w)).metric(w.z), blend.weight(w.z), blend(w.z).mean]


DOORS: dict[str, Callable[[World], Any]] = {
    "metric": lambda w: w.M.metric(w.z),
    "closed metric": lambda w: w.closed.metric(w.z),
    "pair": lambda w: oddity.expected_metric(pair(w)).metric(w.z),
    "inner": lambda w: w.M.inner(w.z, w.v, w.z),
    "norm": lambda w: w.M.norm(w.z, w.v),
    "log_volume": lambda w: w.M.log_volume(w.z),
    "sample_tangent": lambda w: w.M.sample_tangent(w.z, generator=rng()),
    "acceleration": lambda w: w.M.acceleration(w.z, w.v),
    "sectional_curvature": lambda w: w.M.sectional_curvature(w.z, w.v, w.z),
    "scalar_curvature": lambda w: w.M.scalar_curvature(w.z),
    "push": lambda w: [w.M.push(w.z, w.v), w.M.frame(w.z), w.M.force(w.z, w.v), w.M.linear_curvature(w.z, w.v, w.z)],
    "secant": lambda w: [w.M.secant(w.z, w.v), w.M.secants(w.z)],
    "energy": lambda w: w.M.energy(w.z),
    "length": lambda w: w.M.length(w.z),
    "transport": lambda w: w.M.transport(w.z[:5], w.v[0]),
    "sketch": lambda w: w.closed.sketch(w.z).metric(w.z),
    "geodesic": geodesic,
    "closed geodesic": lambda w: w.closed.geodesic(w.z[0], w.z[1]).points,
    "dist": lambda w: w.M.dist(w.z[0], w.z[1]),
    "roadmap": by_roadmap,
    "shoot": lambda w: w.M.shoot(w.z[:2], 0.1 * w.v[:2]).points,
    "exp": lambda w: w.closed.exp(w.z[:2], 0.1 * w.v[:2]),
    "log": lambda w: w.closed.log(w.z[:2], w.z[2:4]),
    "algebra": lambda w: (w.M + 0.1 * oddity.Euclidean()).metric(w.z),
    "sphere": lambda w: [
        oddity.Sphere(2).dist(w.z, w.v),
        oddity.Sphere(2).exp(w.z, w.v),
        oddity.Sphere(2).log(w.z, w.v),
    ],
    "field": lambda w: oddity.TensorField(lambda z: w.M.metric(z)).metric(w.z),
    "conformal": lambda w: oddity.Conformal(lambda z: 1 + (z @ w.z[:2]).square().sum(-1)).acceleration(w.z, w.v),
    "likelihood": likelihood,
    "members": members,
    "uncertainty": uncertainty,
    "distances": lambda w: oddity.pairwise_distances(w.closed, w.z, method="graph", k=6).values,
    "exact distances": lambda w: oddity.pairwise_distances(w.closed, w.z[:2]).values,
    "mean": lambda w: oddity.frechet_mean(w.closed, w.z[:5]).point,
    "walk": walk,
    "kmeans": kmeans,
    "kmedoids": kmedoids,
    "tangent": tangent,
    "density": lambda w: oddity.LAND(w.closed, n_components=1, max_iter=1, random_state=0).fit(w.z).means_,
    "pictures": pictures,
    "vae": of_a_vae,
    "training": trained,
    "add_uncertainty": uncertain,
    "distance": by_distance,
}


@contextlib.contextmanager
def default_dtype() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


STATES: dict[str, Callable[[], contextlib.AbstractContextManager[Any]]] = {
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "inference mode": torch.inference_mode,
    "no grad": torch.no_grad,
    "default dtype": default_dtype,
    "default device": lambda: torch.device("meta"),
    "deterministic": deterministic,
    "anomaly": lambda: torch.autograd.set_detect_anomaly(True),
}


def numbers(answer: Any) -> list[np.ndarray]:
    answers = answer if isinstance(answer, list) else [answer]
    assert not any(isinstance(x, Tensor) and x.is_inference() for x in answers), "not to be used outside"
    return [x.detach().numpy() if isinstance(x, Tensor) else np.asarray(x) for x in answers]


def asked(name: str, w: World) -> list[np.ndarray]:
    """Points that are made where they are asked about."""
    return numbers(DOORS[name](w._replace(z=w.z * 1, x=w.x * 1, v=w.v * 1)))


@functools.cache
def plain(name: str, recorded: bool) -> list[np.ndarray]:
    with torch.set_grad_enabled(recorded):
        return asked(name, world())


def same(found: Iterable[np.ndarray], expected: Iterable[np.ndarray], rtol: float = 0.0) -> None:
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol)


AT_A_POINT = list(DOORS)[: list(DOORS).index("sketch")]
SLOW = {"exact distances", "tangent", "uncertainty", "density", "kmeans", "kmedoids"}
USUAL = {"autocast", "inference mode"}
NETWORKS = {"vae", "training", "pictures"}  # are made on the default device, as in PyTorch


def asked_for(name: str, state: str) -> bool:
    if name in AT_A_POINT or state in USUAL:
        return True
    if state == "default dtype":
        return name not in ("density", "training")  # a network's first weights follow the default, as in PyTorch
    return name != "density" and (state != "default device" or name not in NETWORKS)


CASES = [
    pytest.param(name, state, marks=[pytest.mark.slow] * (name in SLOW or not (state in USUAL or name in AT_A_POINT)))
    for name in DOORS
    for state in STATES
    if asked_for(name, state)
]


@pytest.mark.filterwarnings("ignore:Anomaly Detection:UserWarning")
@pytest.mark.filterwarnings("ignore:the likelihood still rises", "ignore:.* rays did not converge")
@pytest.mark.parametrize(("name", "state"), CASES)
def test_no_state_changes_a_bit(name: str, state: str) -> None:
    w = world()
    with STATES[state]():
        found = asked(name, w)
        recorded = torch.is_grad_enabled()
    same(found, plain(name, recorded))


@pytest.mark.filterwarnings("ignore:the likelihood still rises", "ignore:.* rays did not converge")
@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in DOORS])
def test_networks_made_in_inference_mode_serve(name: str) -> None:
    with torch.inference_mode():
        w = world()
        found = asked(name, w)
    same(found, plain(name, False), rtol=1e-4)
    same(asked(name, w), plain(name, True), rtol=1e-4)


def test_every_public_function_and_method_is_a_door() -> None:
    """Whatever is added later, too."""
    marked = door(lambda: None).__code__
    plain = {"ChainSolver", "LengthUncertainty"}  # which hold what they are given, and do nothing
    for name in set(oddity.__all__) - plain - {"__version__", "datasets", "solvers", "testing"}:
        x = getattr(oddity, name)
        own = (
            {name: x}
            if inspect.isfunction(x)
            else {f"{name}.{part}": f for part, f in vars(x).items() if part[0] != "_"}
        )
        for part, f in own.items():
            f = getattr(f, "fget", getattr(f, "func", getattr(f, "__func__", f)))
            assert not inspect.isfunction(f) or f.__code__ is marked, part


class Own(oddity.Manifold):
    def push(self, z: Tensor, v: Tensor) -> Tensor:
        return v @ torch.ones(2, 2, **PLACE) * (1 + 2**-10)


def test_a_geometry_of_the_users_own_is_behind_doors_too() -> None:
    z = torch.ones(3, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (Own().push(z, z) == 2 * (1 + 2**-10)).all()


def test_a_model_that_is_trained_follows_its_trainer() -> None:
    scale = oddity.SigmaNetwork(2, (8,), 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert scale.net(world().z).dtype == torch.bfloat16
        assert scale(world().z).dtype == torch.bfloat16
        assert scale.eval()(world().z).dtype == torch.float32


def test_doors_leave_the_state_as_it_was() -> None:
    w = world()
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        w.M.metric(w.z)
        with pytest.raises(ValueError, match="holds nan"):
            w.M.metric(w.z * torch.nan)
        assert torch.is_inference_mode_enabled()
        assert torch.is_autocast_enabled("cpu")
    assert torch.is_grad_enabled()


def test_gradients_are_the_callers_choice() -> None:
    w = world()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert w.M.dist(w.z[0], w.z[1]).requires_grad  # the decoder's weights do
    for nothing in (torch.no_grad, torch.inference_mode):
        with nothing():
            assert not w.M.dist(w.z[0], w.z[1]).requires_grad


def test_a_tensor_of_inference_mode_in_a_closure_is_refused() -> None:
    with torch.inference_mode():
        scale = torch.ones(1) * 2
    for f in (lambda z: scale * z, functools.partial(torch.mul, scale), lambda z, s=scale: s * z):
        with pytest.raises(ValueError, match=r"holds a tensor made in inference mode.*x = x\.clone\(\)"):
            oddity.expected_metric(f)


# -- threads ----------------------------------------------------------------------------------------------------------

TOGETHER = [*AT_A_POINT, "geodesic", "dist", "log", "exp", "roadmap", "likelihood", "members"]


class Attention(nn.Module):
    """Its derivatives turn switches of the whole process."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.inner = nn.Linear(2, 32), nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def forward(self, z: Tensor) -> Tensor:
        return self.inner(self.up(z).unflatten(1, (4, 8))).flatten(1)


def test_threads_do_not_disturb_each_other() -> None:
    """Each makes metrics of its own, whose mode is sought meanwhile, and asks those of all."""
    shared = world()
    with torch.no_grad():
        expected = {name: plain(name, True) for name in TOGETHER}

    def work(i: int) -> None:
        for name in TOGETHER[i % 4 :] + TOGETHER[: i % 4]:
            same(asked(name, shared if i % 2 else world()), expected[name])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(8)))


def test_attention_in_threads_is_what_it_is_alone() -> None:
    torch.manual_seed(0)
    net, z = Attention().eval().requires_grad_(False), world().z
    M = oddity.expected_metric(lambda z: net(z))
    expected = [M.metric(z), M.length(z), M.acceleration(z, z)]

    def work(i: int) -> list[Tensor]:
        N = M if i % 2 else oddity.expected_metric(lambda z: net(z))
        return [N.metric(z), N.length(z), N.acceleration(z, z)]

    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(work, range(12)):
            assert all(map(torch.equal, found, expected))
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.slow
def test_distances_in_threads_of_joblib() -> None:
    w = world()
    expected = oddity.pairwise_distances(w.M, w.z[:4]).values
    with parallel_config(backend="threading", n_jobs=4):
        found = oddity.pairwise_distances(w.M, w.z[:4]).values
    np.testing.assert_array_equal(found, expected)


def test_joblib_may_use_threads() -> None:
    w = world()
    found = Parallel(4, backend="threading")(delayed(w.M.metric)(w.z) for _ in range(8))
    assert all(torch.equal(G, w.M.metric(w.z)) for G in found)


def test_half_precision_weights_are_lent_to_one_thread_at_a_time() -> None:
    net, z = world().net.bfloat16(), world().z
    M = oddity.expected_metric(net)
    expected = M.metric(z)
    with ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(G, expected) for G in pool.map(lambda _: M.metric(z), range(16)))
    assert {p.dtype for p in net.parameters()} == {torch.bfloat16}


# -- torch.func -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["metric", "norm", "log_volume", "acceleration", "dist", "exp", "log", "length"])
@pytest.mark.parametrize("transform", ["grad", "jvp", "vmap", "dual"])
def test_transforms_around_a_call_are_followed_or_refused(name: str, transform: str) -> None:
    """The derivative of finite differences, or a sentence; never zeros."""
    w = world()
    M, a, z = oddity.expected_metric(copy.deepcopy(w.net).double()), w.z[0].double(), w.z[3].double()
    curve = torch.linspace(0, 1, 5, dtype=torch.float64)[:, None]
    f: Callable[[Tensor], Tensor] = {
        "metric": M.metric,
        "log_volume": M.log_volume,
        "length": lambda z: M.length(a + curve * (z - a)),
    }.get(name, lambda z: getattr(M, name)(a, z))
    e = torch.tensor([0.6, 0.8], dtype=torch.float64)
    along = ((f(z + 1e-5 * e) - f(z - 1e-5 * e)) / 2e-5).sum()
    if transform == "vmap" or name in ("dist", "exp", "log"):
        with pytest.raises(ValueError, match=r"torch\.func"):
            _transformed(f, z, e, transform)
    else:
        torch.testing.assert_close(_transformed(f, z, e, transform), along, rtol=1e-4, atol=1e-6)


def _transformed(f: Callable[[Tensor], Tensor], z: Tensor, e: Tensor, transform: str) -> Tensor:
    if transform == "grad":
        return torch.func.grad(lambda z: f(z).sum())(z) @ e
    if transform == "jvp":
        return torch.func.jvp(f, (z,), (e,))[1].sum()
    if transform == "vmap":
        return torch.func.vmap(f)(torch.stack([z, e]))
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(f(forward_ad.make_dual(z, e))).tangent.sum()
