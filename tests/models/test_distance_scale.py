"""Noise by the distance from the data: derivatives, bounds, corridors whose truth is known, and data of every kind."""

import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from torch import Tensor, nn

import oddity
from oddity.models import skeleton as bones
from oddity.models.distance_scale import DistanceScale
from oddity.numerics.autodiff import Differential


def scale(d: int, K: int = 7, D: int = 5, dtype: torch.dtype = torch.float64, **given: float) -> DistanceScale:
    g = torch.Generator().manual_seed(d)
    centres, rate, mixture = (
        torch.randn(K, d, generator=g),
        torch.rand(K, generator=g) + 0.3,
        torch.rand(K, generator=g),
    )
    made = DistanceScale(centres, rate + 0.3, mixture, D, **{"growth": 30.0, "last": 1e5, "zeta": 0.02, **given})
    made.weight.data.copy_(3 * torch.rand(D, 1, generator=g) + 0.5)
    return made.to(dtype).eval().requires_grad_(False)


@pytest.mark.parametrize("d", [1, 2, 5])
def test_closed_derivatives_are_those_of_automatic_differentiation(d: int) -> None:
    net, g = scale(d), torch.Generator().manual_seed(0)
    z = 2 * torch.randn(9, d, generator=g, dtype=torch.float64)
    w, p, q = (torch.randn(*shape, generator=g, dtype=torch.float64) for shape in ((9, 5), (2, 9, d), (2, 9, d)))
    known, found = Differential(net.std, mode="jvp").expand(z), net.expand_std(z)
    torch.testing.assert_close(found.value, net.std(z))
    torch.testing.assert_close(found.frame, known.frame)
    torch.testing.assert_close(found.bend(w), known.bend(w))
    assert found.second is not None
    along = [
        torch.func.jvp(lambda y, v=v: torch.func.jvp(net.std, (y,), (v,))[1], (z,), (u,))[1]
        for u, v in zip(p, q, strict=True)
    ]
    torch.testing.assert_close(found.second(p, q), torch.stack(along))
    value, pulled = net.expand_std.pulling(z)
    torch.testing.assert_close(value, net.std(z))
    torch.testing.assert_close(pulled(w), torch.einsum("ino,no->ni", found.frame, w))
    part = net.expand_std.outputs(torch.tensor([3, 0]))
    torch.testing.assert_close(part.values(z), net.std(z)[:, [3, 0]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_grows_up_to_its_bound(dtype: torch.dtype) -> None:
    one = torch.ones(1, dtype=dtype)
    net = DistanceScale(torch.zeros(1, 2, dtype=dtype), one, one, 3, growth=100.0, zeta=0.01)
    r = torch.cat([torch.linspace(0, 12, 500), torch.tensor([1e3, 1e6])]).to(dtype)
    std = net.std(torch.stack([r, 0 * r], 1)).detach()
    assert bool((std.diff(dim=0) >= -1e-6).all())
    torch.testing.assert_close(std[-1], torch.full((3,), 10.0, dtype=dtype), rtol=1e-3, atol=0.0)
    assert bool((std <= 10 * (1 + 1e-6)).all())
    assert float(std[0, 0]) == pytest.approx(1, rel=0.03)
    z = torch.stack([r, 0 * r], 1)
    v, slope = net.activations(z).detach(), net.std_jacobian(z).detach()
    for numbers in (v, slope):
        tiny = torch.finfo(dtype).tiny
        assert bool(((numbers == 0) | (numbers.abs() >= tiny)).all()), "subnormal numbers are slow"


def test_single_precision_holds_against_double_everywhere() -> None:
    single, double = scale(2, dtype=torch.float32), scale(2)
    z = torch.randn(2000, 2, generator=torch.Generator().manual_seed(1)) * torch.logspace(-2, 2, 2000)[:, None]
    torch.testing.assert_close(single.std(z).double(), double.std(z.double()), rtol=2e-5, atol=0.0)


def test_the_wall_is_what_a_way_out_costs() -> None:
    one = torch.ones(1, dtype=torch.float64)
    net = DistanceScale(torch.zeros(1, 1, dtype=torch.float64), one, one, 50, growth=100.0, zeta=0.01)
    net.requires_grad_(False)
    wall, M = net.wall(), oddity.Pullback(net.std, expansion=net.expand_std)
    out = torch.linspace(0, 40, 20001, dtype=torch.float64)[:, None]
    assert float(M.length(out)) == pytest.approx(wall.crossing_cost, rel=1e-3)
    metric = M.metric(out)[:, 0, 0].detach()
    assert float(metric.max()) == pytest.approx(wall.height, rel=1e-3)
    assert float(out[metric.argmax()]) == pytest.approx(wall.radius, rel=0.02)


def test_the_wall_around_data_is_where_a_ray_meets_it() -> None:
    z, decoder = gaussian(300, 2).double(), nn.Linear(2, 6).double().eval().requires_grad_(False)
    net = oddity.add_uncertainty(decoder, z, decoder(z) + 0.1 * gaussian(300, 6).double()).scale
    wall, M = net.wall(), oddity.Pullback(net.std, expansion=net.expand_std)
    away = net.centres - net.centres.mean(0)
    start = int(away.norm(dim=1).argmax())
    ray = (
        net.centres[start]
        + torch.linspace(0, 30, 60001, dtype=torch.float64)[:, None] * away[start] / away[start].norm()
    )
    assert float(M.length(ray)) == pytest.approx(wall.crossing_cost, rel=0.01)
    speed = M.norm(ray, (away[start] / away[start].norm()).expand(len(ray), -1))
    assert float(speed.max().square()) == pytest.approx(wall.height, rel=0.02)


# -- corridors --------------------------------------------------------------------------------------------------------


def spiral(n: int = 240, turns: float = 2.0) -> tuple[Tensor, Tensor]:
    """A line that winds twice around itself, and its parameter, the length of the way."""
    t = torch.linspace(0.35, 1, n, dtype=torch.float64) * 2 * math.pi * turns
    z = torch.stack([t * t.cos(), t * t.sin()], 1) / 3
    way = torch.cat([torch.zeros(1, dtype=torch.float64), z.diff(dim=0).norm(dim=1).cumsum(0)])
    return z, way


class Unrolled(nn.Module):
    """A decoder that is true along the spiral only, where it knows the place; elsewhere it cuts across."""

    def forward(self, z: Tensor) -> Tensor:
        return torch.cat([z, 0.2 * z.sin()], 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_geodesics_keep_to_a_winding_line(dtype: torch.dtype) -> None:
    z, way = spiral()
    z, decoder = z.to(dtype), Unrolled().eval()
    x = decoder(z) + 0.01 * torch.randn(len(z), 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    u = oddity.add_uncertainty(decoder, z, x)
    M = oddity.expected_metric(u)
    i, j = torch.tensor([10, 60, 120]), torch.tensor([110, 170, 225])
    g = M.geodesic(z[i], z[j], init=oddity.Roadmap(M, z)).require()
    off = torch.cdist(g.points.flatten(0, 1), z).amin(1).max()
    spacing = z.diff(dim=0).norm(dim=1).max()
    assert float(off) < 2.5 * float(spacing), "the gap between windings is seven times the spacing"
    along = torch.stack([M.length(z[int(a) : int(b) + 1]) for a, b in zip(i, j, strict=True)])
    assert bool((g.length <= 1.02 * along).all())
    assert bool((g.length >= 0.9 * (way[j] - way[i])).all())
    straight = oddity.expected_metric(decoder).geodesic(z[i], z[j])
    assert float(torch.cdist(straight.points.flatten(0, 1), z).amin(1).max()) > 3 * float(spacing), "which others cross"


def test_noise_is_even_along_the_data_and_calibrated() -> None:
    z, _ = spiral()
    decoder = Unrolled().eval()
    g = torch.Generator().manual_seed(0)
    x = decoder(z) + 0.05 * torch.randn(len(z), 4, generator=g, dtype=torch.float64)
    u = oddity.add_uncertainty(decoder, z, x, min_std=1e-3)
    middle = (z[1:] + z[:-1]) / 2
    std = u.std(torch.cat([z, middle]))
    assert float(std.max() / std.min()) < 1.6  # of four outputs, each with its own estimate from 240 rows
    assert float((std.amax(0) / std.amin(0)).max()) < 1.25, "most of it at the two ends"
    held_out = decoder(middle) + 0.05 * torch.randn(len(middle), 4, generator=g, dtype=torch.float64)
    within = ((held_out - u.mean(middle)).abs() < u.std(middle)).double().mean()
    assert 0.6 < float(within) < 0.76  # 0.683 of a normal distribution


# -- data of every kind -----------------------------------------------------------------------------------------------


def gaussian(n: int, d: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(n + d))


SHAPES = {
    "all equal": torch.ones(20, 2),
    "two rows": torch.tensor([[0.0, 0.0], [1.0, 0.0]]),
    "five rows": gaussian(5, 2),
    "duplicates": gaussian(20, 2).repeat(5, 1),
    "two islands": torch.cat([gaussian(60, 2), gaussian(60, 2) + 40]),
    "one outlier": torch.cat([gaussian(100, 2), torch.tensor([[300.0, 0.0]])]),
    "one dimension": gaussian(100, 1),
    "a plain cloud": gaussian(400, 2),
    "ten dimensions": gaussian(400, 10),
    "fifty dimensions": gaussian(200, 50),
    "far from zero": gaussian(100, 2) + 1000,
    "small": 1e-4 * gaussian(100, 2),
}


@pytest.mark.parametrize("name", SHAPES)
def test_there_is_no_wall_across_the_data(name: str) -> None:
    z = SHAPES[name]
    decoder = nn.Linear(z.shape[1], 6).eval().requires_grad_(False)
    with torch.no_grad():
        decoder.weight.copy_(torch.randn(6, z.shape[1], generator=torch.Generator().manual_seed(3)))
    x = decoder(z) + 0.1 * torch.randn(len(z), 6, generator=torch.Generator().manual_seed(1))
    u = oddity.add_uncertainty(decoder, z, x, min_std=0.01)
    assert isinstance(u.scale, DistanceScale)
    assert bool((u.scale.depth(z) < 1).float().mean() > 0.9)
    assert float(u.std(z).median()) < 0.2
    assert u.std_off_data > 4 * u.std_on_data or name in ("all equal", "two rows")
    assert bool(oddity.expected_metric(u).metric(z[:3]).isfinite().all())


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("n", [100, 300, 2000])
def test_random_places_along_a_line_have_no_walls_between(n: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    z = torch.rand(n, 1, generator=g)
    decoder = nn.Linear(1, 20).eval().requires_grad_(False)
    u = oddity.add_uncertainty(decoder, z, decoder(z) + 0.02 * torch.randn(n, 20, generator=g))
    t = torch.linspace(float(z.quantile(0.02)), float(z.quantile(0.98)), 5000)[:, None]
    known, found = (oddity.expected_metric(x).length(t) for x in (decoder, u))
    assert float(found) < 1.1 * float(known)


@pytest.mark.parametrize("gap", [2.0, 5.0, 10.0, 20.0, 30.0])
def test_torn_strands_spoil_nothing(gap: float) -> None:
    t = torch.linspace(0, 1, 400)[:, None]
    z = torch.cat([t, gap * (t > 0.5)], 1)

    def decoder(z: Tensor) -> Tensor:
        return z[:, :1].expand(-1, 5)

    u = oddity.add_uncertainty(decoder, z, decoder(z) + 0.02 * gaussian(400, 5))
    assert bool((u.scale.depth(z).abs() < 1).float().mean() > 0.97)
    assert u.std_on_data < 0.035
    off = z[50] + torch.tensor([0.0, -0.1])  # 40 spacings beside the strand
    assert float(u.std(off).mean()) > 5 * u.std_on_data


def test_a_small_island_is_inside_too() -> None:
    z = torch.cat([gaussian(9990, 2), 0.3 * gaussian(10, 2) + 15])
    decoder = nn.Linear(2, 3).eval().requires_grad_(False)
    u = oddity.add_uncertainty(decoder, z, decoder(z) + 0.1 * gaussian(10000, 3))
    depth = u.scale.depth(z)
    assert float(depth[-10:].median()) < 1
    assert float(depth.quantile(0.97)) < 2


def test_a_point_alone_and_in_company() -> None:
    net = scale(2, dtype=torch.float32)
    z = torch.randn(50, 2, generator=torch.Generator().manual_seed(2))
    assert torch.equal(torch.cat([net.std(one) for one in z.split(1)]), net.std(z))
    assert torch.equal(net.expand_std(z).value, net.std(z))
    slope = torch.func.vmap(torch.func.jacfwd(net.std))(z)
    torch.testing.assert_close(slope, net.std_jacobian(z), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("n", [300, 2000])  # all of the codes in the skeleton, or some
def test_held_out_codes_are_inside(n: int) -> None:
    z, decoder = gaussian(2 * n, 2), Unrolled().eval()
    u = oddity.add_uncertainty(decoder, z[:n], decoder(z[:n]) + 0.05 * gaussian(n, 4))
    assert bool((u.scale.depth(z[n:]) < 1).float().mean() > 0.85)


def test_the_skeleton_is_the_relative_neighbourhood_graph() -> None:
    rng = np.random.default_rng(0)
    nodes = rng.normal(size=(80, 2))
    images = np.hstack([nodes, 0.3 * nodes[:, :1] ** 2])
    apart = cdist(images, images)
    wanted = {
        (i, j)
        for i in range(80)
        for j in range(i + 1, 80)
        if not any(max(apart[i, k], apart[j, k]) < apart[i, j] for k in range(80) if k not in (i, j))
    }
    found = {tuple(edge) for edge in bones.skeleton(nodes, images).edges.tolist()}
    assert found <= wanted
    assert len(found) > 0.95 * len(wanted), "but for steps out of proportion"


def test_numbers_ask_for_the_network_of_the_paper() -> None:
    z, decoder = gaussian(60, 2), Unrolled().eval()
    for given in ({"n_centres": 8}, {"a": 1.5}, {"n_centres": 8, "a": 1.5}):
        assert isinstance(oddity.add_uncertainty(decoder, z, decoder(z), **given).scale, oddity.RBFPrecision)


def test_misuse() -> None:
    one = torch.ones(1)
    with pytest.raises(ValueError, match="mixture of shape"):
        DistanceScale(torch.zeros(1, 2), one, torch.ones(2), 3)
    with pytest.raises(ValueError, match="mixture holds 0"):
        DistanceScale(torch.zeros(1, 2), one, torch.zeros(1), 3)
    with pytest.raises(ValueError, match="growth=-1"):
        DistanceScale(torch.zeros(1, 2), one, one, 3, growth=-1.0)
    with pytest.raises(ValueError, match="finite codes"):
        DistanceScale.from_codes(torch.full((3, 2), torch.nan), nn.Identity(), 0.1)
    with pytest.raises(ValueError, match="residual=0"):
        DistanceScale.from_codes(torch.zeros(3, 2), nn.Identity(), 0.0)
