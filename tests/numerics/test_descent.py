"""Chains solved by compiled loops are those that PyTorch finds, step by step, whatever their companions and threads."""

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import oddity
from oddity.geometry import manifold, tabulated
from oddity.geometry.manifold import Manifold
from oddity.numerics import descent, layered, native
from oddity.numerics.chain import ChainProblem, ChainSolution, solve_chain
from oddity.numerics.descent import Guided, solve
from oddity.numerics.native import Kernel
from oddity.numerics.stages import ACTIVATIONS, largest_exponent

DTYPES = torch.float32, torch.float64


def network(d: int, *widths: int | nn.Module, seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    """Linear layers of these widths, activations between them."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for width in widths:
        if isinstance(width, nn.Module):
            layers.append(width)
        else:
            layers.append(nn.Linear(d, width))
            d = width
    return nn.Sequential(*layers).to(dtype).eval().requires_grad_(False)


def deviation(d: int, outputs: int, dtype: torch.dtype = torch.float64) -> oddity.Pullback:
    """The standard deviation of a network of bumps."""
    g = torch.Generator().manual_seed(3)
    bumps = oddity.RBFPrecision(torch.randn(9, d, generator=g), torch.rand(9, generator=g) + 0.3, outputs, zeta=0.2)
    bumps.weight.data.copy_(torch.rand(outputs, 9, generator=g))
    bumps = bumps.to(dtype).eval().requires_grad_(False)
    return oddity.Pullback(bumps.std, expansion=bumps.expand_std)


def distance(d: int, outputs: int, dtype: torch.dtype = torch.float64) -> oddity.Pullback:
    """The standard deviation of a network that knows the distance from its bumps."""
    g = torch.Generator().manual_seed(3)
    centres, rate, mixture = (
        torch.randn(9, d, generator=g),
        torch.rand(9, generator=g) / 4 + 0.1,
        torch.rand(9, generator=g),
    )
    scale = oddity.DistanceScale(centres, rate, mixture, outputs, growth=9.0, last=1e4, zeta=0.02)
    scale.weight.data.copy_(torch.rand(outputs, 1, generator=g))
    scale = scale.to(dtype).eval().requires_grad_(False)
    return oddity.Pullback(scale.std, expansion=scale.expand_std)


def chains(d: int, n: int, dtype: torch.dtype = torch.float64, count: int = 5) -> tuple[Tensor, Tensor]:
    """Bent chains, with uneven widths."""
    g = torch.Generator().manual_seed(1)
    ends = torch.randn(2, count, 1, d, generator=g)
    t = torch.linspace(0, 1, n + 1)[:, None]
    bow = torch.randn(count, 1, d, generator=g) * t * (1 - t)
    widths = torch.rand(count, n, generator=g) + 0.5
    return (ends[0] + t * (ends[1] - ends[0]) + bow).to(dtype), (widths / widths.sum(1, keepdim=True)).to(dtype)


def table(dtype: torch.dtype = torch.float64) -> oddity.Manifold:
    M = oddity.Pullback(network(2, 20, nn.Tanh(), 30, seed=5)) + deviation(2, 30)
    z = torch.randn(200, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found = M.sketch(z)
    assert type(found).__name__ == "Tabulated"
    return found


PROBLEMS: dict[str, tuple[int, ChainProblem]] = {
    "one stage": (3, oddity.Pullback(network(3, 7))),
    "tanh": (2, oddity.Pullback(network(2, 20, nn.Tanh(), 33))),
    "sigmoid at the end": (3, oddity.Pullback(network(3, 20, nn.Tanh(), 5, nn.Sigmoid()))),
    "softplus": (1, oddity.Pullback(network(1, 8, nn.Softplus(2.0), 17, nn.Softplus(), 4))),
    "rows of layers": (
        5,
        oddity.Pullback(network(5, 6, 8, nn.Identity(), nn.Tanh(), 7, nn.Sigmoid(), 9, nn.Softplus())),
    ),
    "bumps": (4, deviation(4, 12)),
    "distance": (3, distance(3, 21)),
    "sum": (3, 2.5 * oddity.Pullback(network(3, 20, nn.Tanh(), 40)) + (deviation(3, 12) + deviation(3, 5)) / 2),
    "table": (2, table()),
}
M10 = oddity.Pullback(network(10, 24, nn.Tanh(), 60)) + deviation(10, 60)
PROBLEMS["sketch"] = (10, M10.sketch(torch.randn(300, 10, generator=torch.Generator().manual_seed(0)).double()))
PROBLEMS["guided by layers"] = (10, Guided(M10, PROBLEMS["sketch"][1]))
PROBLEMS["guided by a table"] = (
    2,
    Guided(oddity.Pullback(network(2, 20, nn.Tanh(), 30, seed=5)), PROBLEMS["table"][1]),
)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is solved in PyTorch after all is an error."""

    def refused(*_: object, **__: object) -> ChainSolution:
        raise AssertionError("not compiled")

    monkeypatch.setattr(descent, "solve_chain", refused)


def both(problem: ChainProblem, c: Tensor, widths: Tensor | None, **settings: object) -> tuple[ChainSolution, ...]:
    with torch.no_grad():
        return tuple(f(problem, c, widths, **settings) for f in (solve, solve_chain))


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("n", [2, 4, 16])
def test_compiled_or_not_the_steps_are_the_same(name: str, n: int) -> None:
    d, problem = PROBLEMS[name]
    c, widths = chains(d, n)
    for exact, damping in ((False, 0.0), (True, 0.3)):
        a, b = both(problem, c, widths, exact=exact, damping=damping, max_iterations=40, tolerance=1e-9)
        torch.testing.assert_close(a.points, b.points, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(a.energy, b.energy, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(a.decrement, b.decrement, rtol=1e-2, atol=1e-12)
        assert a.iterations.tolist() == b.iterations.tolist()
        assert a.stationary.tolist() == b.stationary.tolist()
        assert [why.partition(":")[0] for why in a.why] == [why.partition(":")[0] for why in b.why]


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("name", ["sum", "table", "guided by layers", "guided by a table"])
def test_companions_and_threads_leave_no_trace(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_WORTH_A_THREAD", 1e-12)  # all that there are are used
    d, problem = PROBLEMS[name]
    c, widths = chains(d, 8, count=9)
    before = torch.get_num_threads()
    try:
        found = []
        for threads, picked in itertools.product((1, 2, 3), (slice(None), slice(4, 5), slice(2, 7))):
            torch.set_num_threads(threads)
            with torch.no_grad():
                found.append((picked, solve(problem, c[picked], widths[picked])))
    finally:
        torch.set_num_threads(before)
    for picked, some in found:
        assert torch.equal(some.points, found[0][1].points[picked])
        assert torch.equal(some.decrement, found[0][1].decrement[picked])
        assert torch.equal(some.iterations, found[0][1].iterations[picked])


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("dtype", DTYPES)
def test_in_either_precision_they_end_where_pytorch_does(dtype: torch.dtype) -> None:
    M = oddity.Pullback(network(3, 20, nn.Tanh(), 40, nn.Sigmoid(), dtype=dtype)) + deviation(3, 30, dtype)
    a, b = both(M, *chains(3, 16, dtype))
    assert bool(a.stationary.all() & b.stationary.all())
    torch.testing.assert_close(a.energy, b.energy, rtol=torch.finfo(dtype).eps ** 0.7, atol=0.0)


@pytest.mark.usefixtures("compiled")
def test_what_cannot_be_solved_gets_the_same_sentence() -> None:
    M = oddity.Pullback(network(3, 20, nn.Tanh(), 40))
    c, widths = chains(3, 8)
    c[0, 3] = torch.nan
    c[1] = 1e200 * c[1]
    spent = torch.tensor([0, 0, 7, 6, 0])
    a, b = both(M, c, widths, max_iterations=7, spent=spent, tolerance=1e-15)
    assert a.why == b.why
    assert a.iterations.tolist() == b.iterations.tolist()
    torch.testing.assert_close(a.energy, b.energy, equal_nan=True)
    torch.testing.assert_close(a.decrement, b.decrement, rtol=1e-2, atol=0.0)
    assert a.points[0].isnan().any()
    net = network(2, 3)
    net[0].weight[:] = 0  # nothing costs anything
    flat = oddity.Pullback(net)
    a, b = both(flat, *chains(2, 8), max_iterations=30)
    assert a.why == b.why
    assert not a.stationary.any()


def test_what_loops_do_not_know_is_solved_in_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(descent, "solve_chain", lambda *a, **k: seen.append(a[0]) or solve_chain(*a, **k))
    images = network(2, 4, nn.Unflatten(1, (1, 2, 2)), nn.ConvTranspose2d(1, 3, 2, 2), nn.Tanh())
    known = oddity.Pullback(network(2, 7))

    class Own(oddity.Manifold):
        push = staticmethod(known.push)

    unknown = [network(2, 7, nn.Tanh(), nn.Sigmoid()), network(2, 7, nn.Softplus(threshold=5.0))]
    c, widths = chains(2, 4)
    with torch.no_grad():
        for M in (
            oddity.Pullback(images),
            oddity.Euclidean(),
            known + oddity.Euclidean(),
            Own(),
            known + Own(),
            2 * Own(),
            *map(oddity.Pullback, unknown),
        ):
            solve(M, c, widths)
            assert seen.pop() is M
        assert descent._programs(oddity.Pullback(network(2, 7, dtype=torch.float32)), c) is None
        assert descent._programs(oddity.Pullback(network(3, 7)), c) is None
        solve(known, c[:0], widths[:0])
        assert seen.pop() is known
        solve(known, c, widths)
        assert not seen
    solve(known, c, widths)  # with derivatives
    assert seen.pop() is known


@pytest.mark.usefixtures("compiled")
def test_chains_of_any_layout_are_solved() -> None:
    M, (c, widths) = oddity.Pullback(network(2, 20, nn.Tanh(), 30)), chains(2, 8)
    a, b = both(M, c.transpose(0, 1).contiguous().transpose(0, 1), widths.mT.contiguous().mT, tolerance=1e-9)
    torch.testing.assert_close(a.points, b.points)


@pytest.mark.parametrize("name", ["sketch", "table"])
def test_lengths_compiled_or_not_are_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    d, M = PROBLEMS[name]
    assert isinstance(M, Manifold)
    c, _ = chains(d, 12)
    with torch.no_grad():
        compiled = M._squares(c, (1, 2, 3))
        for module in (manifold, tabulated):
            monkeypatch.setattr(module, "serves", lambda *_: False)
        known = M._squares(c, (1, 2, 3))
    for a, b, n in zip(compiled, known, (12, 6, 4), strict=True):
        assert a.shape == b.shape == (5, n)
        torch.testing.assert_close(a, b, rtol=1e-9, atol=0.0)
        assert not torch.equal(a, b), "both ways are the same one"


@pytest.mark.usefixtures("compiled")
def test_a_network_that_has_changed_is_seen_as_it_is() -> None:
    net = network(2, 20, nn.Tanh(), 30)
    M, (c, widths) = oddity.Pullback(net), chains(2, 8)
    with torch.no_grad():
        before = solve(M, c, widths).energy
        net[-1].weight.mul_(2)
        torch.testing.assert_close(solve(M, c, widths).energy, 4 * before)


# -- activations -----------------------------------------------------------------------------------------------------


def _applied(x, y, first, second, code, rate):  # type: ignore[no-untyped-def]
    rows = np.empty((3, x.shape[1]), y.dtype)
    for b in range(len(x)):
        for j in range(x.shape[1]):
            y[b, j] = x[b, j]
        _activated(code, y[b], rate, rows)
        _slopes(code, y[b], rate, first[b])
        _curves(code, y[b], rate, first[b], y.dtype.type(1e-19), second[b])


_activated, _slopes, _curves = layered._activated, layered._slopes, layered._curves
applied = Kernel(_applied)
EXACT = {
    "none": lambda x, _: x,
    "tanh": lambda x, _: x.tanh(),
    "sigmoid": lambda x, _: x.sigmoid(),
    "softplus": lambda x, r: nn.functional.softplus(r * x, threshold=30) / r,
    "root": lambda x, _: x.rsqrt(),
    "bump": lambda x, r: (-r * x).exp(),
    "depth": lambda x, _: -x.log(),
    "inverse": lambda x, _: 1 / x,
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_and_their_derivatives_to_the_last_digits(name: str, dtype: torch.dtype) -> None:
    g, eps = torch.Generator().manual_seed(0), torch.finfo(dtype).eps
    x = torch.cat([torch.randn(1, 4000, generator=g), 1e-4 * torch.randn(1, 1000, generator=g)], 1).to(dtype) * 4
    if name in ("root", "bump", "depth", "inverse"):
        x = x.abs() + (0 if name == "bump" else 0.01)
    rate = torch.full_like(x[0], 0.7)
    y, first, second = torch.empty_like(x), torch.empty_like(x), torch.empty_like(x)
    applied(x, out=(y, first, second), shared=(ACTIVATIONS.index(name), rate))
    exact = x.double().requires_grad_()
    value = EXACT[name](exact, 0.7)
    (slope,) = torch.autograd.grad(value.sum(), exact, create_graph=True)
    curve = torch.autograd.grad(slope.sum(), exact)[0] if slope.requires_grad else torch.zeros_like(slope)
    if name == "bump":  # of x = r^2 / 2, with y = e^(-2 rate x) and the exponent rate r^2
        slope, curve = 2 * slope, 4 * curve
    else:
        second = second * first.square()
    for found, known in ((y, value), (first, slope), (second, curve)):
        torch.testing.assert_close(found.double(), known, rtol=20 * eps, atol=8 * eps)


@pytest.mark.parametrize("dtype", DTYPES)
def test_activations_far_out_and_of_no_number(dtype: torch.dtype) -> None:
    x = torch.tensor([[-torch.inf, -1e6, -100.0, 100.0, 1e6, torch.inf, torch.nan]], dtype=dtype)
    rate, end = torch.ones_like(x[0]), largest_exponent(dtype)
    for name in ("tanh", "sigmoid", "softplus"):
        y, first, second = torch.empty_like(x), torch.empty_like(x), torch.empty_like(x)
        applied(x, out=(y, first, second), shared=(ACTIVATIONS.index(name), rate))
        torch.testing.assert_close(y, EXACT[name](x, 1.0), equal_nan=True, atol=1e-37, rtol=1e-6)
        assert bool(y[0, -1].isnan() & first[0, -1].isnan())
        assert bool(second[0, :-1].isfinite().all()), "what is multiplied with it is zero"
    y, first, second = torch.empty(1, 3, dtype=dtype), torch.empty(1, 3, dtype=dtype), torch.empty(1, 3, dtype=dtype)
    x = torch.tensor([[0.0, 2 * end, torch.nan]], dtype=dtype)
    applied(x, out=(y, first, second), shared=(ACTIVATIONS.index("bump"), rate[:3]))
    assert y[0, 0] == 1
    assert bool(first[0, 1] == 0), "held at the largest exponent, it does not fall any more"
    torch.testing.assert_close(y[0, 1].log(), torch.tensor(-end, dtype=dtype), rtol=1e-6, atol=0.0)
    assert bool(y[0, 2].isnan())
