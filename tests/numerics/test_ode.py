"""The integrator on springs and pendulums, against SciPy, by its order, and in the ways that it can fail."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from oddity.numerics.ode import _between, _step, integrate


def pendulum(z: Tensor, v: Tensor) -> Tensor:
    """Two pendulums with friction, coupled by a spring."""
    return -z.sin() - 0.1 * v + 0.3 * (z.flip(-1) - z)


def starts(B: int = 4) -> tuple[Tensor, Tensor]:
    z, v = torch.randn(2, B, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return z, v * torch.tensor([0.1, 1, 3, 10], dtype=torch.float64)[:B, None]


def by_scipy(z: Tensor, v: Tensor, times: Tensor) -> Tensor:
    """``(T, 2d)`` for one start."""

    def slope(t: float, y: np.ndarray) -> np.ndarray:
        z, v = y[:2], y[2:]
        return np.concatenate([v, -np.sin(z) - 0.1 * v + 0.3 * (z[::-1] - z)])

    start, t = torch.cat([z, v]).numpy(), times.numpy()
    found = solve_ivp(slope, (0, t[-1]), start, method="DOP853", rtol=1e-13, atol=1e-13, t_eval=t)
    return torch.from_numpy(found.y.T.copy())


def test_agrees_with_scipy_at_every_time() -> None:
    (z, v), times = starts(), torch.linspace(0, 5, 23, dtype=torch.float64)
    flow = integrate(pendulum, z, v, times)
    assert flow.ok.all()
    assert flow.why == [""] * 4
    expected = torch.stack([by_scipy(z[i], v[i], times) for i in range(4)])
    torch.testing.assert_close(flow.points, expected[..., :2], rtol=0, atol=1e-8)
    torch.testing.assert_close(flow.velocity, expected[..., 2:], rtol=0, atol=1e-8)


def spring(y: Tensor) -> Tensor:
    return torch.cat([y[:, 1:], -y[:, :1]], -1)


def fixed_steps(n: int) -> Tensor:
    """The spring from (1, 0) over the time 2 in n equal steps."""
    y, h = torch.tensor([[1.0, 0.0]], dtype=torch.float64), torch.tensor([2 / n], dtype=torch.float64)
    for _ in range(n):
        y = y + _step(spring, y, spring(y), h)[0]
    return y


def test_the_method_is_of_fifth_order() -> None:
    exact = torch.tensor([[np.cos(2), -np.sin(2)]])
    errors = [float((fixed_steps(n) - exact).norm()) for n in (4, 8, 16, 32)]
    assert all(28 < a / b < 36 for a, b in pairwise(errors))


def test_values_between_steps_are_of_the_same_order() -> None:
    """In one step of half the size the error of z and of z' falls by 2^6 and 2^5 at least."""
    y = torch.tensor([[0.6, 0.8]], dtype=torch.float64)
    errors = []
    for size in (0.2, 0.1, 0.05):
        h = torch.tensor([size], dtype=torch.float64)
        step, slope, _ = _step(spring, y, spring(y), h)
        t = 0.37 * size
        exact = torch.tensor([[0.6 * np.cos(t) + 0.8 * np.sin(t), -0.6 * np.sin(t) + 0.8 * np.cos(t)]])
        errors.append((_between(y, step, spring(y), slope, h, 0.37 * h) - exact).abs()[0])
    assert all(a[0] / b[0] > 50 and a[1] / b[1] > 25 for a, b in pairwise(errors))


def test_the_error_follows_the_tolerance() -> None:
    (z, v), times = starts(), torch.tensor([5.0], dtype=torch.float64)
    exact = torch.stack([by_scipy(z[i], v[i], times)[:, :2] for i in range(4)])
    tolerances = (1e-4, 1e-6, 1e-8, 1e-10)
    flows = [integrate(pendulum, z, v, times, tolerance=tol) for tol in tolerances]
    errors = [float((flow.points - exact).abs().max()) for flow in flows]
    assert all(error < 1e3 * tol for error, tol in zip(errors, tolerances, strict=True))
    assert all(a > 20 * b for a, b in pairwise(errors))


def test_single_precision() -> None:
    (z, v), times = starts(), torch.tensor([1.0, 5.0], dtype=torch.float64)
    double, single = integrate(pendulum, z, v, times), integrate(pendulum, z.float(), v.float(), times)
    assert single.points.dtype == torch.float32
    assert single.ok.all()
    assert single.steps.max() < double.steps.min()
    torch.testing.assert_close(single.points.double(), double.points, rtol=0, atol=2e-2)


def test_companions_do_not_matter() -> None:
    (z, v), times = starts(), torch.linspace(0, 3, 5, dtype=torch.float64)
    together = integrate(pendulum, z, v, times)
    apart = [integrate(pendulum, z[i : i + 1], v[i : i + 1], times) for i in range(4)]
    assert together.steps.tolist() == [int(one.steps) for one in apart]
    assert len(set(together.steps.tolist())) > 1
    torch.testing.assert_close(together.points, torch.cat([one.points for one in apart]), rtol=1e-13, atol=1e-13)


def test_finished_items_leave_the_batch() -> None:
    sizes = []

    def counted(z: Tensor, v: Tensor) -> Tensor:
        sizes.append(len(z))
        return pendulum(z, v)

    z, v = starts()
    steps = integrate(counted, z, v, torch.tensor([3.0], dtype=torch.float64)).steps.sort().values
    assert sizes[0] == 4
    assert sizes[-1] == 1
    assert sum(sizes) == 4 + 6 * int(steps.sum())


def test_times_may_come_in_any_order() -> None:
    z, v = starts()
    times = torch.tensor([2.0, 0.0, 1.5], dtype=torch.float64)
    mixed, sorted_ = integrate(pendulum, z, v, times), integrate(pendulum, z, v, times.sort().values)
    assert torch.equal(mixed.points, sorted_.points[:, [2, 0, 1]])
    assert torch.equal(mixed.points[:, 1], z)
    nowhere = integrate(pendulum, z, v, times[1:2])
    assert nowhere.ok.all()
    assert torch.equal(nowhere.velocity[:, 0], v)


def test_rest() -> None:
    zero, one = torch.zeros(1, 2, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    stays = integrate(lambda z, v: -z, zero, zero, one)
    assert stays.ok.all()
    assert float(stays.points.abs().max()) == 0
    starts_moving = integrate(lambda z, v: torch.ones_like(z), zero, zero, one)
    torch.testing.assert_close(starts_moving.points[:, 0], zero + 0.5)


def test_an_empty_batch() -> None:
    flow = integrate(pendulum, torch.zeros(0, 2), torch.zeros(0, 2), torch.tensor([1.0]))
    assert flow.points.shape == (0, 1, 2)
    assert flow.why == []


# -- failures: item 1 fails, its companions are those of a clean batch ------------------------------------------------


@pytest.mark.parametrize(
    ("law", "max_steps", "why"),
    [
        (lambda z, v: torch.where(z > 2, torch.nan, -z), 2000, r"the acceleration is not finite at t = 0\.4"),
        (lambda z, v: torch.where(v > 4, torch.nan, -z), 2000, "the acceleration is not finite at t = 0$"),
        (lambda z, v: v**3 / 5, 2000, r"the step size vanishes at t = 0\.1: the acceleration is not smooth or"),
        (lambda z, v: torch.where(v > 4, 1e6, 1.0) * -z, 50, r"only t = .* was reached in 50 steps: raise max_steps"),
    ],
    ids=["leaves its domain", "starts outside", "blows up", "stiff"],
)
def test_a_failure_stays_with_its_item(law, max_steps: int, why: str) -> None:
    z, v = torch.zeros(3, 1, dtype=torch.float64), torch.tensor([[0.1], [5.0], [0.3]], dtype=torch.float64)
    z += 0.01
    times = torch.tensor([0.05, 1.0], dtype=torch.float64)
    flow = integrate(law, z, v, times, max_steps=max_steps)
    assert flow.ok.tolist() == [True, False, True]
    with pytest.raises(AssertionError, match=why):
        raise AssertionError(flow.why[1])
    assert flow.why[0] == flow.why[2] == ""
    assert flow.points[1, 1].isnan().all()
    assert bool(flow.points[1, 0].isfinite()) == bool(flow.reached[1] >= 0.05)
    clean = integrate(law, z[[0, 2]], v[[0, 2]], times, max_steps=max_steps)
    torch.testing.assert_close(flow.points[[0, 2]], clean.points, rtol=1e-14, atol=0)
