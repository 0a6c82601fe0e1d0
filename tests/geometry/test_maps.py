"""Shooting, exp, log and the gradient of the distance: closed forms, SciPy, rates, and failures."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor, nn

import oddity
from oddity import ChainSolver, Conformal, Euclidean, Hyperbolic, Manifold, Pullback, Sphere
from oddity.testing import check_manifold

from .cases import decoder, embedded_sphere


def pairs(B: int = 6, scale: float = 0.6, d: int = 2) -> tuple[Tensor, Tensor]:
    a, b = scale * torch.randn(2, B, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return a, b


def on_grid(n: int) -> ChainSolver:
    return ChainSolver(segments=n, max_segments=n, resolution=1, tolerance=1e-15)


# -- acceleration and shooting ----------------------------------------------------------------------------------------


def test_acceleration_on_the_sphere_has_a_formula() -> None:
    """For the metric s^2 I: z'' = |v|^2 grad log s - 2 <grad log s, v> v, here with grad log s = -s z."""
    z, v = pairs(d=3)
    s = 2 / (1 + z.square().sum(-1, keepdim=True))
    expected = s * (2 * (z * v).sum(-1, keepdim=True) * v - v.square().sum(-1, keepdim=True) * z)
    for M in (Sphere(3), Pullback(embedded_sphere)):
        torch.testing.assert_close(M.acceleration(z, v), expected)


def test_many_points_are_their_chunks() -> None:
    M, (z, v) = Pullback(embedded_sphere), pairs(1100, 0.5)
    torch.testing.assert_close(M.acceleration(z, v)[-7:], M.acceleration(z[-7:], v[-7:]))
    assert M.acceleration(z[:, None], v[:3]).shape == (1100, 3, 2)
    assert M.acceleration(z[:0], v[:0]).shape == (0, 2)


def test_acceleration_is_differentiable_in_the_decoder() -> None:
    f = decoder().double()
    z, v = pairs(3)
    oddity.expected_metric(f).acceleration(z, v).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in f.mean_net.parameters())


@pytest.mark.parametrize("M", [Sphere(2), Pullback(embedded_sphere), Hyperbolic(2), Sphere(2) + Sphere(2)], ids=str)
def test_shooting_follows_the_closed_form(M: Manifold) -> None:
    closed = M if isinstance(M, Hyperbolic) else Sphere(2)
    z, v = pairs(3, scale=0.3)
    t = torch.tensor([0.0, 0.3, 1.0, 1.2], dtype=torch.float64)
    path = M.shoot(z, v, t)
    assert path.converged.all()
    torch.testing.assert_close(path.points, closed.exp(z[:, None], t[:, None] * v[:, None]), rtol=0, atol=1e-8)
    speed = M.norm(path.points, path.velocity)
    torch.testing.assert_close(speed, speed[:, :1].expand_as(speed), rtol=1e-8, atol=0)
    assert path.speed_change.max() < 1e-8


def test_exp_by_the_equation_agrees_with_the_formula() -> None:
    z, v = pairs(scale=0.3)
    for M in (Sphere(2), Hyperbolic(2)):
        torch.testing.assert_close(Manifold.exp(M, z, v), M.exp(z, v), rtol=0, atol=1e-8)


def test_shooting_agrees_with_scipy() -> None:
    """Conformal metric e^(2 phi) I: the geodesic equation by hand, solved by SciPy."""

    def slope(t: float, y: np.ndarray) -> np.ndarray:
        x, v = y[:2], y[2:]
        grad = np.array([np.cos(x[0]) * np.cos(x[1]), -np.sin(x[0]) * np.sin(x[1])])
        return np.concatenate([v, (v @ v) * grad - 2 * (grad @ v) * v])

    start, t = np.array([-1.0, -0.4, 3.0, 2.0]), np.linspace(0, 1, 9)
    found = solve_ivp(slope, (0, 1), start, method="DOP853", rtol=1e-12, atol=1e-13, t_eval=t).y.T
    M = Conformal(lambda z: (z[..., 0].sin() * z[..., 1].cos()).exp())
    z, v = torch.from_numpy(start).chunk(2)
    path = M.shoot(z, v, torch.from_numpy(t))
    np.testing.assert_allclose(torch.cat([path.points, path.velocity], -1).numpy(), found, atol=1e-8)


def test_a_shot_is_detached_and_its_shapes_broadcast() -> None:
    M, (z, v) = Sphere(2), pairs(3, 0.2)
    z.requires_grad_()
    path = M.shoot(z[:, None], v[:2], torch.tensor([0.5, 1.0]))
    assert path.points.shape == path.velocity.shape == (3, 2, 2, 2)
    assert path.converged.shape == path.steps.shape == (3, 2)
    assert path.why == [["", ""]] * 3
    assert not path.points.requires_grad
    assert M.shoot(z[0], v[0]).points.shape == (2,)
    assert M.shoot(z[0], v[0]).why == ""
    assert M.shoot(z[:1], v[0], 0.5).points.shape == (1, 2)
    assert M.shoot(z[:0], v[:0]).points.shape == (0, 2)
    assert repr(path) == "Trajectory(6 items, 6 converged)"


def test_a_shot_that_fails_is_told_and_its_neighbours_are_untouched() -> None:
    M = Conformal(lambda z: torch.where(z[..., 0] > 1, torch.nan, 1 + z[..., 1] ** 2))
    z, v = pairs(4, 0.2)
    good = M.shoot(z, v)
    assert good.converged.all()
    bad = v.clone()
    bad[2] = torch.tensor([5.0, 0.0])
    path = M.shoot(z, bad, torch.tensor([0.0, 1.0]))
    assert path.converged.tolist() == [True, True, False, True]
    assert path.why[2].startswith("the acceleration is not finite at t = 0.")
    assert torch.equal(path.points[2, 0], z[2])
    assert path.points[2, 1].isnan().all()
    end = M.exp(z, bad)
    assert end.isnan().any(-1).tolist() == [False, False, True, False]
    torch.testing.assert_close(end[[0, 1, 3]], good.points[[0, 1, 3]], rtol=1e-12, atol=0)


def test_a_singular_metric_has_no_geodesic_equation() -> None:
    M = Pullback(lambda z: torch.cat([z[:, :1].sin(), z[:, :1].cos()], 1))  # blind to the second axis
    path = M.shoot(torch.zeros(2), torch.ones(2))
    assert not path.converged
    assert path.why == "the acceleration is not finite at t = 0"
    assert (M + 0.1 * Euclidean()).shoot(torch.zeros(2), torch.ones(2)).converged


def test_a_decoder_with_kinks_is_not_called_converged() -> None:
    """ReLU has no curvature between its kinks, and the equation does not see those."""
    net = nn.Sequential(nn.Linear(2, 1), nn.ReLU())
    net[0].weight.data, net[0].bias.data = torch.tensor([[3.0, 0.0]]), torch.zeros(1)
    M = Pullback(net.eval().requires_grad_(False)) + Euclidean()
    path = M.shoot(torch.tensor([[-0.5, 0.0], [-0.5, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    assert path.converged.tolist() == [False, True]
    assert path.why[0] == "the speed changed by 2.2e+00 of itself: the metric is not smooth along the path"


@pytest.mark.parametrize(
    ("z", "v", "t", "message"),
    [
        ([0.0, torch.nan], [1.0, 0.0], 1.0, r"z holds nan at index \(1,\)"),
        ([0.0, 0.0], [1.0, torch.inf], 1.0, r"v holds inf at index \(1,\)"),
        ([0.0, 0.0], [1.0], 1.0, "points of Sphere|z has 2 coordinates but v has 1"),
        ([[0.0, 0.0]] * 2, [[1.0, 0.0]] * 3, 1.0, r"do not broadcast: z \(2, 2\), v \(3, 2\)"),
        ([0.0, 0.0], [1.0, 0.0], -1.0, "t holds -1; times are finite and not negative: shoot with -v"),
        ([0.0, 0.0], [1.0, 0.0], torch.zeros(2, 2), r"t has shape \(2, 2\)"),
        ([0.0, 0.0], [1.0, 0.0], torch.zeros(0), r"t has shape \(0,\)"),
    ],
)
def test_misuse_is_refused_at_the_door(z, v, t, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Pullback(embedded_sphere).shoot(torch.tensor(z), torch.tensor(v), t)
    with pytest.raises(ValueError, match="bring them together"):
        Sphere(2).exp(torch.zeros(2), torch.zeros(2).double())


# -- log --------------------------------------------------------------------------------------------------------------


def test_log_is_of_fourth_order() -> None:
    M, (a, b) = Pullback(embedded_sphere), pairs()
    exact = Sphere(2).log(a, b)
    errors = [float((M.log(a, b, solver=on_grid(n)) - exact).abs().max()) for n in (8, 16, 32)]
    assert all(x / y > 11 for x, y in pairwise(errors))
    assert errors[-1] < 5e-6


@pytest.mark.parametrize("n", [2, 4, 6])
def test_log_on_few_segments(n: int) -> None:
    M, (a, b) = Pullback(embedded_sphere), pairs(scale=0.1)
    torch.testing.assert_close(M.log(a, b, solver=on_grid(n)), Sphere(2).log(a, b), rtol=1e-3, atol=1e-3)


def test_log_is_of_fourth_order_into_a_curved_space_too() -> None:
    """There the energy is of second order, and two solutions are extrapolated."""
    M, (a, b) = Pullback(lambda z: z + 0 * z, Sphere(2)), pairs()
    exact = Sphere(2).log(a, b)
    errors = [float((M.log(a, b, solver=on_grid(n)) - exact).abs().max()) for n in (8, 16, 32)]
    assert all(x / y > 11 for x, y in pairwise(errors))


def test_exp_undoes_log_on_the_expected_metric() -> None:
    M, (a, b) = oddity.expected_metric(decoder(3).double()), pairs(4, 0.3, 3)
    v = M.log(a, b, solver=ChainSolver(segments=64))
    torch.testing.assert_close(M.exp(a, v), b, rtol=0, atol=2e-5)
    torch.testing.assert_close(M.norm(a, v), M.dist(a, b), rtol=1e-5, atol=0)


def test_log_is_nan_where_the_geodesic_did_not_converge() -> None:
    M, (a, b) = Pullback(embedded_sphere), pairs()
    b[1] = a[1]
    v = M.log(a, b, solver=ChainSolver(max_iterations=1))
    g = M.geodesic(a, b, solver=ChainSolver(max_iterations=1))
    assert not g.converged.all()
    assert torch.equal(v.isnan().any(-1), ~g.converged)
    assert float(v[1].abs().max()) == 0


def test_log_shapes() -> None:
    M, (a, b) = Pullback(embedded_sphere), pairs(3)
    assert M.log(a[0], b[0]).shape == (2,)
    assert M.log(a[:1, None], b).shape == (1, 3, 2)
    assert M.log(a[:0], b[:0]).shape == (0, 2)
    for closed in (Sphere(2), Euclidean()):
        torch.testing.assert_close(closed.log(a, b, init=None, solver=ChainSolver()), closed.log(a, b))


# -- the gradient of the distance -------------------------------------------------------------------------------------


def test_gradient_by_the_ends_is_that_of_the_closed_form() -> None:
    M, ends = Pullback(embedded_sphere), [x.requires_grad_() for x in pairs()]
    exact = torch.autograd.grad(Sphere(2).dist(*ends).sum(), ends)
    found = torch.autograd.grad(M.dist(*ends).sum(), ends)
    for f, e in zip(found, exact, strict=True):
        torch.testing.assert_close(f, e, rtol=0, atol=1e-6)


def test_gradient_by_the_parameters_against_finite_differences() -> None:
    f, (a, b) = decoder().double(), pairs(3)
    M = oddity.expected_metric(f)
    D = M.dist(a, b, solver=on_grid(64))
    assert torch.equal(D.detach(), M.geodesic(a, b, solver=on_grid(64)).length)
    for weight in (f.mean_net[0].weight, f.scale.weight):
        (slope,) = torch.autograd.grad(D.sum(), weight, retain_graph=True)
        direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        h, lengths = 1e-4, []
        with torch.no_grad():
            for sign in (1, -2, 1):
                weight += sign * h * direction
                lengths.append(float(M.dist(a, b, solver=on_grid(64)).sum()))
        expected = (lengths[0] - lengths[1]) / (2 * h)
        assert float((slope * direction).sum()) == pytest.approx(expected, rel=2e-3)


def test_gradient_is_zero_from_a_point_to_itself() -> None:
    M, (a, b) = oddity.expected_metric(decoder().double()), pairs(3)
    b[1] = a[1]
    a.requires_grad_()
    (slope,) = torch.autograd.grad(M.dist(a, b).sum(), a)
    assert float(slope[1].abs().max()) == 0
    assert slope.isfinite().all()
    assert (slope[[0, 2]].abs().amax(-1) > 0).all()


def test_no_graph_unless_asked() -> None:
    frozen, live = decoder().requires_grad_(False), decoder()
    a, b = (x.float() for x in pairs(2))
    assert not oddity.expected_metric(frozen).dist(a, b).requires_grad
    assert oddity.expected_metric(live).dist(a, b).requires_grad
    with torch.no_grad():
        assert not oddity.expected_metric(live).dist(a.requires_grad_(), b).requires_grad
    assert oddity.expected_metric(frozen).dist(a, b).requires_grad


def test_gradient_broadcasts() -> None:
    M, (a, b) = Pullback(embedded_sphere), pairs(3)
    a.requires_grad_()
    M.dist(a[:, None], b).sum().backward()
    assert a.grad is not None
    assert a.grad.shape == (3, 2)


# -- the laws see what they should ------------------------------------------------------------------------------------


class Round(Manifold):
    """The sphere again, by hand: what is derived from it overrides a companion of its push."""

    push = staticmethod(Pullback(embedded_sphere).push)


class Reversed(Round):
    def force(self, z: Tensor, v: Tensor) -> Tensor:
        return -super().force(z, v)


class Misprinted(Round):
    """The geodesic equation as it was first printed: without (d/dz dL/dv) v."""

    def force(self, z: Tensor, v: Tensor) -> Tensor:
        with torch.enable_grad():
            x = z.detach().requires_grad_()
            return torch.autograd.grad(self.push(x, v).square().sum() / 2, x)[0]


class HalfTheCurvature(Round):
    def linear_curvature(self, z: Tensor, u: Tensor, v: Tensor) -> Tensor:
        return super().linear_curvature(z, u, v) / 2


class Shifted(Round):
    def frame(self, z: Tensor) -> Tensor:
        return super().frame(z + 0.1)


class WrongSecant(Round):
    def secant(self, a: Tensor, b: Tensor) -> Tensor:
        return self.push(a, b - a)


class WrongGradient(Round):
    def dist(self, a: Tensor, b: Tensor, **kw) -> Tensor:
        D = super().dist(a, b, **kw)
        return 2 * D.detach() - D


@pytest.mark.parametrize(
    ("kind", "law"),
    [
        (Reversed, "acceleration is that of the metric"),
        (Misprinted, "acceleration is that of the metric"),
        (Reversed, "exp undoes log"),
        (HalfTheCurvature, "fused companions agree with their defaults"),
        (Shifted, "frame is the push of the basis"),
        (WrongSecant, "lengths by secants are of second order"),
        (WrongGradient, "the gradient of the distance is its slope"),
    ],
)
def test_the_laws_find_an_override_that_changes_the_meaning(kind: type[Round], law: str) -> None:
    z, _ = pairs(4, 0.35)
    with pytest.raises(AssertionError, match=law):
        check_manifold(kind(), z, [law])
    check_manifold(Round(), z, [law])


# -- derivatives that are not known, verdicts without a place ---------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("which", [0, 1])
def test_dist_is_differentiable_once(dtype: torch.dtype, which: int) -> None:
    ends = [x.to(dtype) for x in pairs()]
    ends[which].requires_grad_()
    (slope,) = torch.autograd.grad(Pullback(embedded_sphere).dist(*ends).sum(), ends[which], create_graph=True)
    with pytest.raises(RuntimeError, match="dist is differentiable once"):
        torch.autograd.grad(slope.sum(), ends[which])


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("method", ["exp", "log"])
def test_numerical_maps_raise_when_they_are_asked_for_a_gradient(method: str, which: int) -> None:
    ends = list(pairs(scale=0.1))
    ends[which].requires_grad_()
    value = getattr(Pullback(embedded_sphere), method)(*ends)
    torch.testing.assert_close(value.detach(), getattr(Sphere(2), method)(*ends).detach(), rtol=1e-3, atol=1e-4)
    with pytest.raises(RuntimeError, match=f"{method} found numerically has no derivative"):
        value.sum().backward()


@pytest.mark.parametrize("M", ["sum", "rbf"])
def test_gradient_of_the_distance_is_the_momentum(M: str) -> None:
    """Against differences of distances on a fine grid; a gradient is a unit covector."""
    torch.manual_seed(0)
    z = torch.randn(12, 2, dtype=torch.float64)
    net = torch.nn.Sequential(torch.nn.Linear(2, 16), torch.nn.Tanh(), torch.nn.Linear(16, 30)).double().eval()
    rbf = oddity.RBFPrecision.from_codes(z, 30)
    with torch.no_grad():
        rbf.weight.copy_(20 + 100 * torch.rand(rbf.weight.shape).double())
    decoder = oddity.GaussianDecoder(net, rbf).double().eval().requires_grad_(False)
    metric = oddity.expected_metric(decoder) if M == "rbf" else Pullback(net) + 0.5 * Sphere(2)
    a, b, fine = z[:6], z[6:].clone().requires_grad_(), ChainSolver(segments=128, tolerance=1e-14)
    (slope,) = torch.autograd.grad(metric.dist(a, b).sum(), b)
    b, step, init = b.detach(), 1e-5, metric.geodesic(a, b.detach(), solver=fine).points
    for i, e in enumerate(torch.eye(2, dtype=torch.float64) * step):
        shift = torch.linspace(0, 1, init.shape[1], dtype=torch.float64)[:, None] * e
        ahead, behind = (metric.geodesic(a, b + s * e, init=init + s * shift, solver=fine).length for s in (1, -1))
        torch.testing.assert_close(slope[:, i], (ahead - behind) / (2 * step), rtol=1e-4, atol=1e-4)


def test_dist_warns_with_the_number_of_pairs_that_did_not_converge() -> None:
    few = ChainSolver(max_iterations=1, resolution=1e-9)
    with pytest.warns(
        oddity.ConvergenceWarning, match=r"3 of 3 geodesics did not converge.*M.geodesic\(a, b\)"
    ) as said:
        Pullback(embedded_sphere).dist(*(x[:3] for x in pairs()), solver=few)
    assert said[0].filename == __file__


@pytest.mark.parametrize("scale", [1e-6, 1e-4, 1e-3, 1e-2])
def test_near_pairs_have_their_distance_in_single_precision(scale: float) -> None:
    torch.manual_seed(1)
    net = torch.nn.Sequential(torch.nn.Linear(2, 32), torch.nn.Tanh(), torch.nn.Linear(32, 20)).eval()
    z, u = torch.randn(2, 20, 2)
    ends = z, z + scale * u
    g = Pullback(net).geodesic(*ends).require()
    v = Pullback(net).log(*ends)
    true = Pullback(net.double()).geodesic(*(x.double() for x in ends)).require()
    assert ((g.length - true.length).abs() <= g.length_error + 1e-6 * true.length).all()
    torch.testing.assert_close(v, ends[1] - ends[0], rtol=0.02, atol=0.02 * scale)
