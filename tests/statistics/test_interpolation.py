"""Interpolation and analogy: flat space, equal steps, the sphere in R^3, and failures."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import oddity
from oddity import ChainSolver, Conformal, Euclidean, Pullback, Sphere
from oddity.statistics.interpolation import Interpolation, analogy, interpolate

from ..geometry.cases import decoder, embedded_sphere, points


class Model:
    """A fixed decoder, and an encoder that takes the first two columns."""

    def __init__(self, D: int = 6, dtype: torch.dtype = torch.float64) -> None:
        self.decoder = decoder(2, D).to(dtype)

    def encode(self, x: Tensor) -> Tensor:
        return 2 * x[..., :2]


def data(*shape: int) -> Tensor:
    return torch.rand(*shape, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 0.5


# -- interpolation ----------------------------------------------------------------------------------------------------


def test_in_flat_space_it_is_linear() -> None:
    vae, (x0, x1) = Model(), data(2, 3)
    found = interpolate(vae, Euclidean(), x0, x1, frames=5)
    t = torch.linspace(0, 1, 5, dtype=torch.float64)[:, None]
    torch.testing.assert_close(found.codes, torch.lerp(2 * x0[:, None, :2], 2 * x1[:, None, :2], t))
    torch.testing.assert_close(found.images, vae.decoder.mean(found.codes))
    assert not found.images.requires_grad
    assert repr(found) == f"Interpolation(5 frames along {found.geodesic})"


def test_frames_are_at_equal_riemannian_steps() -> None:
    vae, (x0, x1) = Model(), data(2, 3)
    M = oddity.expected_metric(vae.decoder)
    found = interpolate(vae, M, x0, x1, frames=6)
    assert found.geodesic.converged.all()
    steps = M.dist(found.codes[:, :-1], found.codes[:, 1:]).detach()
    torch.testing.assert_close(steps, (found.geodesic.length / 5)[:, None].expand(3, 5), rtol=5e-3, atol=0)
    torch.testing.assert_close(found.codes[:, [0, -1]], torch.stack([vae.encode(x0), vae.encode(x1)], 1))


def test_the_geodesic_of_the_mean_is_even_and_the_line_is_not() -> None:
    """Under the metric that the mean pulls back, equal steps are equal changes of the picture."""
    vae, (x0, x1) = Model(), data(2, 3)
    M = Pullback(vae.decoder.mean)
    curved, straight = (interpolate(vae, m, 2 * x0, 2 * x1, frames=40) for m in (M, Euclidean()))
    assert (curved.unevenness < 0.03).all()
    assert (straight.unevenness > 0.1).all()
    torch.testing.assert_close(curved.steps.sum(-1), curved.geodesic.length, rtol=2e-3, atol=0)


def test_start_and_solver_are_handed_on() -> None:
    vae, x = Model(), data(40)
    M = oddity.expected_metric(vae.decoder)
    roads = oddity.Roadmap(M, vae.encode(x))
    found = interpolate(vae, M, x[0], x[1], 3, init=roads, solver=ChainSolver(segments=8, max_segments=8))
    assert found.geodesic.points.shape == (17, 2)  # twice the solver's segments
    assert found.geodesic.start in ("line", "roadmap")


@pytest.mark.parametrize("lead", [(), (1,), (2, 3)])
def test_shapes(lead: tuple[int, ...]) -> None:
    class Pictures(nn.Module):
        def mean(self, z: Tensor) -> Tensor:
            return torch.einsum("ni,c->nci", z, torch.arange(1.0, 4.0, dtype=z.dtype))[..., None]

    vae = Model()
    vae.decoder = Pictures()
    x0, x1 = data(2, *lead)
    found = interpolate(vae, Euclidean(), x0, x1, frames=4)
    assert found.images.shape == (*lead, 4, 3, 2, 1)
    assert found.codes.shape == (*lead, 4, 2)
    assert found.steps.shape == (*lead, 3)
    assert found.unevenness.shape == lead
    assert found.autocorrelation.shape == (*lead, 4, 4)
    size = 14**0.5 * (found.codes[..., 1, :] - found.codes[..., 0, :]).norm(dim=-1)
    torch.testing.assert_close(found.steps[..., 0], size)
    torch.testing.assert_close(found.unevenness, torch.zeros(lead, dtype=torch.float64))


def test_autocorrelation_is_pearson_s() -> None:
    vae, (x0, x1) = Model(), data(2, 3)
    found = interpolate(vae, Euclidean(), x0, x1)
    for images, correlation in zip(found.images, found.autocorrelation, strict=True):
        np.testing.assert_allclose(correlation.numpy(), np.corrcoef(images.numpy()), atol=1e-12)


def test_frames_without_contrast_or_change() -> None:
    g = Euclidean().geodesic(torch.zeros(2), torch.tensor([3.0, 0.0]))

    class Fading:
        def mean(self, z: Tensor) -> Tensor:
            return z[:, :1] * torch.tensor([0.0, 1.0, 2.0]) + 1

    found = Interpolation.along(Fading(), g, 4)
    torch.testing.assert_close(found.autocorrelation, torch.tensor([[1.0, 0, 0, 0]] + [[0, 1.0, 1, 1]] * 3))
    still = Interpolation.along(Fading(), Euclidean().geodesic(torch.ones(2), torch.ones(2)))
    assert still.steps.tolist() == [0] * 8
    assert float(still.unevenness) == 0


def test_a_geodesic_that_fails_is_told() -> None:
    vae, (x0, x1) = Model(), data(2, 3)
    M = oddity.expected_metric(vae.decoder)
    found = interpolate(vae, M, x0, x1, solver=ChainSolver(max_iterations=1))
    assert not found.geodesic.converged.all()
    assert found.images.isfinite().all()


def test_misuse_is_refused() -> None:
    vae, x = Model(), data(2)
    M = oddity.expected_metric(vae.decoder)
    for frames in (1, 2.5):
        with pytest.raises(ValueError, match=f"frames={frames}: it must be a whole number, and at least 2"):
            interpolate(vae, M, x[0], x[1], frames)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"has no encode\(x\)"):
        interpolate(vae.decoder, M, x[0], x[1])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"Tanh has no mean\(z\)"):
        Interpolation.along(nn.Tanh(), M.geodesic(2 * x[0, :2], x[1, :2]))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="a holds nan"):
        interpolate(vae, M, torch.full((6,), torch.nan).double(), x[1])


# -- analogy ----------------------------------------------------------------------------------------------------------


def test_in_flat_space_an_analogy_is_a_parallelogram() -> None:
    a, b, c = points(3, torch.float64)[:3]
    found = analogy(Euclidean(), a, b, c)
    assert found.converged
    assert found.why == ""
    torch.testing.assert_close(found.points, c + b - a)


def on_the_sphere(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """The same in R^3: transport from a to c is the rotation that takes a to c and leaves their normal."""
    A, B, C = (embedded_sphere(x) for x in (a, b, c))
    angle = (A * B).sum(-1, keepdim=True).acos()
    v = B - (A * B).sum(-1, keepdim=True) * A
    v = angle * v / v.norm(dim=-1, keepdim=True)
    v = v - (C * v).sum(-1, keepdim=True) / (1 + (A * C).sum(-1, keepdim=True)) * (A + C)
    size = v.norm(dim=-1, keepdim=True)
    return size.cos() * C + size.sin() * v / size


@pytest.mark.parametrize("M", [Sphere(2), pytest.param(Pullback(embedded_sphere), marks=pytest.mark.slow)], ids=str)
def test_analogy_on_the_sphere(M: oddity.Manifold) -> None:
    a, b, c = 0.5 * torch.randn(3, 5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = analogy(M, a, b, c, solver=ChainSolver(segments=64))
    assert found.converged.all()
    torch.testing.assert_close(embedded_sphere(found.points), on_the_sphere(a, b, c), rtol=0, atol=1e-5)
    torch.testing.assert_close(Sphere(2).dist(c, found.points), Sphere(2).dist(a, b), rtol=0, atol=1e-5)


def test_analogies_that_say_nothing_new() -> None:
    M = oddity.expected_metric(decoder().double())
    a, b, c = points(2, torch.float64)[:3]
    torch.testing.assert_close(analogy(M, a, a, c).points, c)
    torch.testing.assert_close(analogy(M, a, b, a).points, b, rtol=0, atol=1e-4)


def test_shapes_of_analogies() -> None:
    z = points(2, torch.float64).requires_grad_()
    found = analogy(Sphere(2), z[0], z[:3], z[:2, None])
    assert found.points.shape == (2, 3, 2)
    assert found.converged.shape == (2, 3)
    assert found.why == [[""] * 3] * 2
    assert not found.points.requires_grad
    assert repr(found) == "Analogy(6 items, 6 converged)"
    roads = oddity.Roadmap(Sphere(2), torch.randn(30, 2, dtype=torch.float64))
    torch.testing.assert_close(analogy(Sphere(2), z[0], z[:3], z[:2, None], roads=roads).points, found.points)


def test_an_analogy_that_fails_is_told_and_its_neighbours_are_untouched() -> None:
    M = Sphere(2)
    a, b, c = 0.5 * torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    good = analogy(M, a, b, c)
    a[1] = a[2] = torch.tensor([1.0, 0.0])
    b[1] = c[2] = -a[1]  # the antipode
    found = analogy(M, a, b, c)
    assert found.converged.tolist() == [True, False, False, True]
    assert found.why[1] == "no geodesic from a to b converged"
    assert found.why[2].startswith("the geodesic from a to c: the ends are antipodal")
    torch.testing.assert_close(found.points[[0, 3]], good.points[[0, 3]])
    assert torch.equal(found.points[[1, 2]], c[[1, 2]])


def test_a_shot_out_of_the_chart_is_told() -> None:
    M = Conformal(lambda z: torch.where(z[..., 0] > 1, torch.nan, 1.0))
    found = analogy(M, torch.zeros(2), torch.tensor([0.8, 0.0]), torch.tensor([0.5, 0.3]))
    assert not found.converged
    assert found.why.startswith("the geodesic that leaves c: ")
    assert found.points.tolist() == torch.tensor([0.5, 0.3]).tolist()


def test_analogies_refuse_misuse() -> None:
    z = torch.zeros(2)
    with pytest.raises(ValueError, match="c holds nan"):
        analogy(Sphere(2), z, z, torch.full((2,), torch.nan))
    with pytest.raises(ValueError, match=r"do not broadcast: a \(2,\), b \(2, 2\), c \(3, 2\)"):
        analogy(Sphere(2), z, torch.zeros(2, 2), torch.zeros(3, 2))
    with pytest.raises(ValueError, match="bring them together"):
        analogy(Sphere(2), z, z, z.double())
