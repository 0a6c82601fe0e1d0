"""Every derivative mode gives the same derivative; the doors say what is wrong."""

import pytest
import torch
from torch import Tensor, nn

from oddity.numerics.autodiff import BEND_MODES, MODES, Differential


def net() -> nn.Module:
    g = torch.Generator().manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 5)).double()
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape, generator=g, dtype=torch.float64))
    return module.eval()


class Attention(nn.Module):
    """Fused attention has no forward derivative on CPU."""

    def forward(self, z: Tensor) -> Tensor:
        q = z[:, None, :, None]
        return nn.functional.scaled_dot_product_attention(q, q, q).flatten(1)


class Opaque(nn.Module):
    """A network whose layers cannot be seen from outside."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, z: Tensor) -> Tensor:
        return self.inner(z)


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.cell = kind(1, 4, batch_first=True).double()

    def forward(self, z: Tensor) -> Tensor:
        return self.cell(z[..., None])[0].flatten(1)


def finite_differences(f: Differential, z: Tensor, h: float = 1e-6) -> Tensor:
    columns = [(f(z + h * e) - f(z - h * e)) / (2 * h) for e in torch.eye(z.shape[1], dtype=z.dtype)]
    return torch.stack(columns, -1)


def some_points(n: int = 4) -> Tensor:
    return torch.randn(n, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("mode", list(MODES))
def test_all_modes_agree(mode: str) -> None:
    z, f = some_points(), net()
    torch.testing.assert_close(Differential(f, mode=mode).frame(z), Differential(f, mode="jacrev").frame(z))
    v = torch.ones_like(z)
    torch.testing.assert_close(
        Differential(f, mode=mode).push(z, v), (Differential(f, mode="jacrev").frame(z) @ v[..., None])[..., 0]
    )


@pytest.mark.parametrize(
    "module", [lambda: Opaque(net()), Attention, lambda: Recurrent(nn.GRU), lambda: Recurrent(nn.LSTM)]
)
def test_a_working_mode_is_found_and_reported(module) -> None:
    f = Differential(module().eval())
    z = some_points()
    with torch.no_grad():
        torch.testing.assert_close(f.frame(z), finite_differences(f, z), rtol=1e-6, atol=1e-8)
    assert f.mode in MODES


@pytest.mark.parametrize("wrapped", [False, True], ids=["closed form", "autodiff"])
def test_curvature_is_the_hessian(wrapped: bool) -> None:
    z, f = some_points(), Differential(Opaque(net()).eval() if wrapped else net())
    assert (f.mode == "closed form") is not wrapped
    w = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    expected = torch.stack(
        [torch.autograd.functional.hessian(lambda x, i=i: (w[i] * f(x)).sum(), z[i]) for i in range(4)]
    )
    torch.testing.assert_close(f.curvature(z, w), expected)


@pytest.mark.parametrize(
    "module", [lambda: Opaque(net()), Attention, lambda: Recurrent(nn.GRU), lambda: Recurrent(nn.LSTM)]
)
def test_every_network_has_a_bend(module) -> None:
    f, z = Differential(module().eval()), some_points()
    w = torch.randn(f(z).shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    h = 1e-5
    with torch.no_grad():
        bend = f.curvature(z, w)
        pulls = [(f.pull(z + h * e, w) - f.pull(z - h * e, w)) / (2 * h) for e in torch.eye(3, dtype=z.dtype)]
    torch.testing.assert_close(bend, torch.stack(pulls, -1), rtol=1e-5, atol=1e-7)
    assert f.bend_mode in set(BEND_MODES) - {"none"}


@pytest.mark.parametrize("mode", sorted(set(BEND_MODES) - {"none"}))
def test_all_bend_modes_agree(mode: str) -> None:
    f, z = Differential(Opaque(net()).eval()), some_points()
    w = torch.ones(4, 5, dtype=torch.float64)
    expected = f.curvature(z, w)
    f.bend_mode = mode
    torch.testing.assert_close(f.curvature(z, w), expected)


SMOOTH = [nn.Tanh(), nn.Sigmoid(), nn.Softplus(beta=2.0), nn.Identity()]


@pytest.mark.parametrize("activation", SMOOTH, ids=str)
def test_dense_networks_have_a_closed_form_equal_to_autodiff(activation: nn.Module) -> None:
    g = torch.Generator().manual_seed(0)
    dense = nn.Sequential(nn.Linear(3, 6), activation, nn.Linear(6, 4), nn.Identity(), nn.Linear(4, 7), activation)
    dense = dense.double().eval()
    with torch.no_grad():
        for p in dense.parameters():
            p.copy_(torch.randn(p.shape, generator=g, dtype=torch.float64))
    z, w = some_points(), torch.randn(4, 7, dtype=torch.float64, generator=g)
    closed, automatic = Differential(dense), Differential(dense, mode="jvp")
    assert closed.mode == "closed form"
    for a, b in zip(closed.value_and_frame(z), automatic.value_and_frame(z), strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(closed.curvature(z, w), automatic.curvature(z, w))
    torch.testing.assert_close(closed.push(z, z), automatic.push(z, z))


def test_two_activations_in_a_row_keep_their_own_frames() -> None:
    dense = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Sigmoid(), nn.Linear(6, 5), nn.Softplus(), nn.Tanh())
    dense = dense.double().eval()
    z, w = some_points(), torch.ones(4, 5, dtype=torch.float64)
    with torch.no_grad():
        closed = Differential(dense).curvature(z, w)
    torch.testing.assert_close(closed, Differential(dense, mode="jvp").curvature(z, w))


class Skipping(nn.Sequential):
    """Looks dense, and is not."""

    def forward(self, z: Tensor) -> Tensor:
        return z + super().forward(z)


def test_a_network_that_only_looks_dense_is_differentiated_automatically() -> None:
    skipping = Skipping(nn.Linear(3, 3), nn.Tanh()).double().eval()
    hooked = nn.Sequential(nn.Linear(3, 3), nn.Tanh()).double().eval()
    hooked[0].register_forward_hook(lambda _module, _args, out: 2 * out)
    for f in map(Differential, (skipping, hooked)):
        f.check(some_points())
        with torch.no_grad():
            torch.testing.assert_close(
                f.frame(some_points()), finite_differences(f, some_points()), rtol=1e-6, atol=1e-8
            )
        assert f.mode != "closed form"


def test_a_wrong_closed_form_is_found_out() -> None:
    right = Differential(net())._expansion
    f = Differential(lambda z: 2 * net()(z), expansion=right)
    with pytest.raises(ValueError, match=r"closed-form expansion of .* disagrees with it"):
        f.check(some_points())


def test_rough_activations_have_no_closed_form() -> None:
    assert Differential(nn.Sequential(nn.Linear(3, 4), nn.ReLU()).eval()).mode is None
    assert Differential(nn.Sequential(nn.Tanh(), nn.Linear(3, 4)).eval()).mode is None


def test_image_outputs_are_flattened() -> None:
    f = Differential(lambda z: z[:, :, None] * z[:, None, :])
    assert f(some_points()).shape == (4, 9)
    assert f.frame(some_points()[None]).shape == (1, 4, 9, 3)


def test_an_empty_batch_gives_an_empty_result() -> None:
    assert Differential(net()).frame(some_points()[:0]).shape == (0, 5, 3)


def detached(z: Tensor) -> Tensor:
    return torch.from_numpy(z.detach().numpy() ** 2)


@pytest.mark.parametrize(
    ("f", "z", "message"),
    [
        (net(), torch.zeros(2, 3), r"points are torch.float32 but the weights .* torch.float64; convert one"),
        (net(), torch.zeros(2, 4, dtype=torch.float64), r"cannot map points of shape \(n, 4\)"),
        (lambda z: z.sum(), torch.zeros(2, 3), r"mapped 2 points to shape \(\); it must keep the rows"),
        (lambda z: z[:1], torch.zeros(2, 3), r"mapped 2 points to shape \(1, 3\)"),
        (lambda z: z.numpy(), torch.zeros(2, 3), "returned ndarray; it must return one tensor"),
    ],
)
def test_the_door(f, z: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Differential(f).check(z)


def test_training_mode_is_refused_at_once_and_later() -> None:
    module = nn.Sequential(net(), nn.Dropout()).train()
    with pytest.raises(ValueError, match=r"Dropout, a part of Sequential, is in training mode.*call \.eval\(\)"):
        Differential(module)
    f = Differential(module.eval())
    f.check(some_points())
    module.train()
    with pytest.raises(ValueError, match="training mode"):
        f.check(some_points())


def test_unknown_mode_and_no_function() -> None:
    with pytest.raises(ValueError, match="unknown derivative mode 'magic'"):
        Differential(net(), mode="magic")
    with pytest.raises(ValueError, match="expected a function"):
        Differential(3)  # type: ignore[arg-type]
