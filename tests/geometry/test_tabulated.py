"""Metrics in tables: close to what they stand for, and never in the result."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import oddity
from oddity.geometry import connect
from oddity.geometry.roadmap import among
from oddity.geometry.tabulated import Tabulated
from oddity.testing import LAWS, check_manifold


def surface(z: Tensor) -> Tensor:
    return torch.cat([z, torch.sin(2 * z[:, :1]) * z[:, 1:], 0.5 * z.square()], 1)


def hole(z: Tensor) -> Tensor:
    return torch.where(z.norm(dim=-1, keepdim=True) > 0.2, surface(z), torch.nan)


@pytest.fixture
def codes() -> Tensor:
    return torch.randn(300, 2, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_table_of_the_plane_stands_for_a_decoder(codes: Tensor, dtype: torch.dtype) -> None:
    z = codes.to(dtype)
    M = oddity.Pullback(surface) + 0.5 * oddity.Pullback(lambda z: z.exp())
    table = M.sketch(z)
    assert isinstance(table, Tabulated)
    G, there = M.metric(z), table.metric(z)
    assert there.dtype == dtype
    assert ((there - G).flatten(1).norm(dim=1) / G.flatten(1).norm(dim=1)).quantile(0.9) < 1e-3


def test_a_table_is_a_manifold(codes: Tensor) -> None:
    z = codes[:6].double()
    table = oddity.Pullback(surface).sketch(codes.double())
    assert isinstance(table, Tabulated)
    own = "the chain model is the derivative of the energy"  # of parabolas: tests/numerics/test_elements.py
    check_manifold(table, z, [law for law in LAWS if law != own])


@pytest.mark.parametrize(
    ("M", "most"),
    [
        (oddity.Pullback(surface), 100),  # may not be looked at so often
        (oddity.Pullback(hole), 1 << 16),  # no number in places
        (oddity.Pullback(lambda z: z[:, :1]), 1 << 16),  # singular
        (oddity.Pullback(lambda z: torch.cat([z, (300 * z).sin()], 1)), 1 << 16),  # too fine for any table
        (oddity.Sphere(2), 1 << 16),  # a formula is no dearer than a table
    ],
    ids=["few", "hole", "singular", "fine", "formula"],
)
def test_no_table_where_it_would_not_do(M: oddity.Manifold, most: int, codes: Tensor) -> None:
    assert not isinstance(M.sketch(codes, most=most), Tabulated)


def test_no_table_for_codes_in_one_place() -> None:
    assert not isinstance(oddity.Pullback(surface).sketch(torch.ones(10, 2)), Tabulated)


def test_codes_on_a_line_have_one(codes: Tensor) -> None:
    assert isinstance(oddity.Pullback(surface).sketch(codes * torch.tensor([1.0, 0.0])), Tabulated)


def test_a_table_of_another_metric_misleads_no_result(codes: Tensor) -> None:
    """The worst sketch there is: smooth, confident, and wrong."""
    M = oddity.Pullback(surface) + oddity.Pullback(lambda z: 2 * torch.exp(-4 * z.square().sum(-1, keepdim=True)))
    roads = oddity.Roadmap(M, codes)
    a, b = codes[:24], codes[24:48]
    right = M.geodesic(a, b, init=roads)
    wrong = oddity.Pullback(lambda z: torch.cat([3 * z[:, :1], 0.5 * z[:, 1:], z.sin()], 1)).sketch(among(codes))
    assert isinstance(wrong, Tabulated)
    roads.sketch = wrong
    misled = M.geodesic(a, b, init=roads)
    assert right.converged.all()
    assert misled.converged.all()
    excess = misled.length / right.length - 1
    assert excess.abs().quantile(0.9) < 1e-4  # a longer valley is a geodesic too
    assert excess.min() > -1e-4
    torch.testing.assert_close(misled.length, M.length(misled.points), rtol=1e-3, atol=0)


def test_curves_beyond_the_table_are_found_all_the_same(codes: Tensor) -> None:
    M = oddity.Pullback(surface)
    roads = oddity.Roadmap(M, codes)
    far = torch.tensor([[30.0, 1.0]]), torch.tensor([[31.0, -1.0]])
    g = M.geodesic(*far, init=roads).require()
    torch.testing.assert_close(g.length, M.geodesic(*far).length, rtol=1e-3, atol=0)


def test_companions_do_not_matter_to_the_last_bit(codes: Tensor) -> None:
    M = oddity.Pullback(surface) + oddity.Pullback(lambda z: 2 * torch.exp(-4 * z.square().sum(-1, keepdim=True)))
    roads = oddity.Roadmap(M, codes)
    assert isinstance(roads.sketch, Tabulated)
    a, b = codes[:19], codes[19:38]
    assert torch.equal(roads.paths(a, b, 64)[7], roads.paths(a[7:8], b[7:8], 64)[0])
    together = M.geodesic(a, b, init=roads)
    lost = b.clone()
    lost[4] = 1e30
    with_a_bad_one = M.geodesic(a, lost, init=roads)
    others = [i for i in range(19) if i != 4]
    assert not with_a_bad_one.converged[4]
    assert torch.equal(with_a_bad_one.length[others], together.length[others])
    for i in (0, 7, 18):
        assert torch.equal(M.geodesic(a[i], b[i], init=roads).length, together.length[i])


def test_a_metric_of_large_numbers_has_a_table(codes: Tensor) -> None:
    table = oddity.Pullback(lambda z: 1e10 * surface(z)).sketch(codes)
    assert isinstance(table, Tabulated)
    assert table.metric(codes).isfinite().all()


def test_a_pair_that_the_table_leads_astray_is_raced_without_it(codes: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever becomes of the table's winners, the pair ends as well as it would have without."""
    M = oddity.Pullback(surface)
    roads = oddity.Roadmap(M, codes)
    a, b = codes[:6], codes[6:12]
    right = M.geodesic(a, b, init=roads).require()
    scouted = connect._Race._scouted

    def astray(race: connect._Race, starts: Tensor, table: Tabulated) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for entrants, points, widths in scouted(race, starts, table):
            points[:, 1:-1] = torch.nan
            yield entrants, points, widths

    monkeypatch.setattr(connect._Race, "_scouted", astray)
    found = M.geodesic(a, b, init=roads).require()
    torch.testing.assert_close(found.length, right.length, rtol=1e-4, atol=0)
    assert torch.equal(found.points[:, 0], a)
    assert torch.equal(found.points[:, -1], b)
