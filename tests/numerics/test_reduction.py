"""A function stood in for by some of its outputs, against the function itself."""

import pytest
import torch

from oddity.models.rbf import RBFPrecision
from oddity.numerics import reduction
from oddity.numerics.expansion import ClosedForm, gram, layered_expansion
from oddity.numerics.reduction import reduced


def dense() -> ClosedForm:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(2, 16), torch.nn.Tanh(), torch.nn.Linear(16, 300), torch.nn.Sigmoid())
    form = layered_expansion(net.double())
    assert form is not None
    return form


def rbf() -> ClosedForm:
    g = torch.Generator().manual_seed(0)
    network = RBFPrecision(torch.randn(8, 2, generator=g, dtype=torch.float64), torch.ones(8).double(), 300)
    with torch.no_grad():
        network.weight.copy_(torch.rand(300, 8, generator=g))
    return network.expand_std


def metric(f: ClosedForm, z: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        frame = f(z).frame
        return gram(frame, frame)


@pytest.mark.parametrize("form", [dense, rbf])
def test_the_metric_of_a_stand_in_is_close_also_between_the_samples(form) -> None:
    f, g = form(), torch.Generator().manual_seed(1)
    z, elsewhere = torch.randn(2, 200, 2, generator=g, dtype=torch.float64)
    errors = []
    for tolerance in (1e-1, 3e-3):
        small = reduced(f, z, torch.linalg.cholesky(metric(f, z)), tolerance)
        assert small is not None
        assert len(small.scale) < 100
        L = torch.linalg.cholesky(metric(f, elsewhere))
        off = torch.linalg.solve_triangular(L, metric(small, elsewhere), upper=False)
        off = torch.linalg.solve_triangular(L, off.mT, upper=False)
        errors.append(float((torch.linalg.eigvalsh(off) - 1).abs().amax(-1).median()))
    assert errors[0] < 0.3
    assert errors[1] < 0.01


@pytest.mark.parametrize("form", [dense, rbf])
def test_a_stand_in_is_a_closed_form_like_any(form) -> None:
    f, z = form(), torch.randn(20, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    small = reduced(f, z, torch.linalg.cholesky(metric(f, z)), 1e-2)
    assert small is not None
    x = z.clone().requires_grad_()
    value = small.values(x)
    torch.testing.assert_close(small(z).value, value)
    w = torch.randn(value.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    (slope,) = torch.autograd.grad((w * value).sum(), x, create_graph=True)
    torch.testing.assert_close((small(z).frame * w).sum(-1).mT, slope)
    bend = torch.stack([torch.autograd.grad(slope[:, i].sum(), x, retain_graph=True)[0] for i in range(2)], 1)
    torch.testing.assert_close(small(z).bend(w), bend)


def test_outputs_that_are_all_needed_are_all_kept() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(3, 3))
    f = layered_expansion(net)
    assert f is not None
    assert reduced(f, torch.zeros(4, 3), torch.eye(3).expand(4, 3, 3), 1e-6) is None


def test_a_part_that_says_next_to_nothing_keeps_an_output_all_the_same() -> None:
    f, z = rbf(), torch.randn(50, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    large = 1e3 * torch.eye(2, dtype=torch.float64).expand(50, 2, 2)
    small = reduced(f, z, large, 0.1)  # a millionth of a sum
    assert small is not None
    off = metric(small, z) - metric(f, z)
    assert off.norm() < 0.1 * metric(f, z).norm()
    constant = torch.nn.Sequential(torch.nn.Linear(2, 40)).double()
    torch.nn.init.zeros_(constant[0].weight)
    still = layered_expansion(constant)
    assert still is not None
    nothing = reduced(still, z, large, 0.1)
    assert nothing is not None
    assert nothing(z).frame.shape == (2, 50, 1)
    assert not nothing(z).frame.any()


def test_of_very_many_outputs_some_are_open_to_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reduction, "_MOST", 120)
    f, z = dense(), torch.randn(100, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    small = reduced(f, z, torch.linalg.cholesky(metric(f, z)), 0.1)
    assert small is not None
    assert (metric(small, z) - metric(f, z)).norm() < 0.15 * metric(f, z).norm()


def test_a_stand_in_that_is_not_close_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reduction, "_MOST", 6)  # of 300 outputs that are open to choice, six
    f, z = dense(), torch.randn(100, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert reduced(f, z, torch.linalg.cholesky(metric(f, z)), 1e-3) is None
