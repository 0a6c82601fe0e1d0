"""Ensembles: the mean metric of the members, and the energy that draws members anew."""

import weakref

import pytest
import torch
from torch import Tensor, nn

import oddity
from oddity.numerics.autodiff import Differential

from .cases import decoder, mlp, points
from .likelihoods import likelihood

Z = points(2, torch.float64)
MEMBERS = [mlp(2, 6, seed).double().requires_grad_(False) for seed in range(4)]


def test_is_the_pullback_of_all_outputs_together() -> None:
    M = oddity.ensemble_metric(MEMBERS)
    together = oddity.Pullback(lambda z: torch.cat([f(z) for f in MEMBERS], 1) / 2)
    torch.testing.assert_close(M.metric(Z), together.metric(Z), rtol=1e-12, atol=0)
    a, b = M.geodesic(Z[:2], Z[2:]).require(), together.geodesic(Z[:2], Z[2:]).require()
    torch.testing.assert_close(a.length, b.length, rtol=1e-6, atol=0)
    oddity.testing.check_manifold(M, Z, ["the chain model is the derivative of the energy", "a batch is its rows"])


def test_exceeds_the_mean_decoder_by_the_variance_of_the_jacobians() -> None:
    frames = torch.stack([oddity.Pullback(f).frame(Z) for f in MEMBERS])
    off = frames - frames.mean(0)
    mean = oddity.Pullback(lambda z: torch.stack([f(z) for f in MEMBERS]).mean(0)).metric(Z)
    torch.testing.assert_close(oddity.ensemble_metric(MEMBERS).metric(Z), mean + (off.mT @ off).mean(0))


def test_takes_decoders_with_uncertainty_manifolds_and_module_lists() -> None:
    two, counts = decoder().double(), oddity.fisher_metric(likelihood("Poisson").double())
    mixed = oddity.ensemble_metric([two, counts])
    expected = (oddity.expected_metric(two).metric(Z) + counts.metric(Z)) / 2
    torch.testing.assert_close(mixed.metric(Z), expected)
    assert oddity.ensemble_metric(nn.ModuleList(MEMBERS)).metric(Z).shape == (4, 2, 2)


def test_independent_members_energy_is_the_mean_over_all_pairs() -> None:
    c = torch.stack([Z, 2 * Z, Z.flip(0)], 1)  # (4, 3, 2)
    here, there = ([f(x.flatten(0, 1)) for f in MEMBERS] for x in (c[:, :-1], c[:, 1:]))
    pairs = [(y - x).square().sum(-1) for x in here for y in there]
    expected = torch.stack(pairs).mean(0).reshape(4, 2).sum(1)
    torch.testing.assert_close(oddity.independent_members_energy(MEMBERS, c), expected)


def test_independent_members_energy_grows_with_the_grid_and_that_of_the_metric_does_not() -> None:
    line = [Z[:1] + torch.linspace(0, 1, n + 1).double()[:, None] * (Z[1:2] - Z[:1]) for n in (512, 1024)]
    drawn_anew = [float(oddity.independent_members_energy(MEMBERS, c)) for c in line]
    assert drawn_anew[1] / drawn_anew[0] == pytest.approx(4, rel=0.01)
    drawn_once = [float(oddity.ensemble_metric(MEMBERS).energy(c)) for c in line]
    assert drawn_once[1] / drawn_once[0] == pytest.approx(1, rel=1e-3)


def test_bad_ensembles_are_refused() -> None:
    for bad in ([], MEMBERS[0]):
        with pytest.raises(ValueError, match="a list of at least one decoder"):
            oddity.ensemble_metric(bad)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="training mode"):
        oddity.ensemble_metric([nn.Sequential(mlp(2, 6), nn.Dropout()).train()])
    with pytest.raises(ValueError, match=r"different size: \[6, 5\]"):
        oddity.independent_members_energy([MEMBERS[0], mlp(2, 5).double()], Z)
    with pytest.raises(ValueError, match="a curve has shape"):
        oddity.independent_members_energy(MEMBERS, Z[0])


def test_the_frames_of_one_member_at_a_time_are_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five members take no more memory than one: the numbers of all frames that live at once."""
    alive, most = 0, 0

    plain = Differential.value_and_frame

    def watched(self: Differential, z: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal alive, most
        value, J = plain(self, z)
        alive += J.numel()
        most = max(most, alive)
        weakref.finalize(J, gone, J.numel())
        return value, J

    def gone(count: int) -> None:
        nonlocal alive
        alive -= count

    monkeypatch.setattr(Differential, "value_and_frame", watched)
    monkeypatch.setattr("oddity.geometry.pullback._NUMBERS_IN_MEMORY", 8 * 2 * 30)  # eight points
    maps = [torch.randn(2, 30, generator=torch.Generator().manual_seed(i), dtype=torch.float64) for i in range(5)]
    z = torch.randn(50, 2, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    M = oddity.ensemble_metric([oddity.Pullback(lambda z, W=W: (z @ W).sin()) for W in maps])
    G = M.metric(z)
    torch.testing.assert_close(G, M.frame(z).mT @ M.frame(z))
    alive = most = 0
    for method in (M.metric, M.log_volume, lambda z: M.acceleration(z, z)):
        method(z)
    assert 0 < most <= 8 * 2 * 30
