"""What a user gives is asked by rows and held to its shape; what is final cannot be changed from outside."""

import pytest
import torch
from torch import Tensor, nn

import oddity
from oddity import Conformal, Euclidean, Hyperbolic, Manifold, Pullback, Sphere, TensorField
from oddity.geometry import families, fisher, manifold, tabulated
from oddity.testing import LAWS, check_manifold

from .cases import mlp, points


class Wavy(Manifold):
    """By rows: what it would give for grids and chains is of another shape, or another number."""

    def push(self, z: Tensor, v: Tensor) -> Tensor:
        return torch.stack([v[:, 0], (2 + z[:, 0].sin()) * v[:, 1], z[:, 1] * v[:, 0]], 1)


class Companions(Wavy):
    def secant(self, a: Tensor, b: Tensor) -> Tensor:
        assert a.ndim == 2
        return super().secant(a, b)

    def secants(self, c: Tensor) -> Tensor:
        assert c.ndim == 3
        return super().secants(c)

    def frame(self, z: Tensor) -> Tensor:
        zero, one = torch.zeros_like(z[:, 0]), torch.ones_like(z[:, 0])
        columns = torch.stack([one, zero, z[:, 1]], 1), torch.stack([zero, 2 + z[:, 0].sin(), zero], 1)
        return torch.stack(columns, 2)

    def force(self, z: Tensor, v: Tensor) -> Tensor:
        assert z.shape == v.shape == (len(z), 2)
        return super().force(z, v)

    def linear_curvature(self, z: Tensor, u: Tensor, v: Tensor) -> Tensor:
        assert u.shape == v.shape == (len(z), 2)
        return super().linear_curvature(z, u, v)


def bump(x: Tensor) -> Tensor:
    return 1 + x.square().sum(1)


def matrices(z: Tensor) -> Tensor:
    return torch.stack([2 + z[:, :1].sin(), 0 * z[:, :1], 0 * z[:, :1], 3 - z[:, 1:].cos()], 1).reshape(len(z), 2, 2)


def by_rows(dtype: torch.dtype) -> dict[str, Manifold]:
    net = mlp(2, 6).to(dtype)
    return {
        "scale": Conformal(bump),
        "scale of one column": Conformal(
            nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1), nn.Softplus()).to(dtype)
        ),
        "field": TensorField(matrices),
        "cost of the ambient space": Pullback(net, Conformal(bump)),
        "field of the ambient space": Pullback(lambda z: z.sin(), TensorField(matrices)),
        "own push": Wavy(),
        "own companions": Companions(),
        "push of the ambient space": Pullback(lambda z: z.sin() + z, Wavy()),
        "in a sum": 2 * Wavy() + Conformal(bump),
    }


QUICK = ["scale of one column", "own companions"]


@pytest.mark.parametrize(
    "name", [pytest.param(x, marks=() if x in QUICK else pytest.mark.slow) for x in by_rows(torch.float64)]
)
def test_functions_written_for_rows_keep_every_law(name: str) -> None:
    check_manifold(by_rows(torch.float64)[name], points(2, torch.float64))
    check_manifold(by_rows(torch.float32)[name], points(2, torch.float32), list(LAWS)[:12])


def test_a_leading_axis_means_nothing() -> None:
    a = points(2, torch.float64)
    first, last = Conformal(bump), Conformal(lambda x: 1 + x.square().sum(-1))
    for f in (
        lambda M: M.metric(a[:, None]),
        lambda M: M.acceleration(a[0], a),
        lambda M: M.geodesic(a[0], a[1]).points,
        lambda M: M.shoot(a[0], a[1]).points,
        lambda M: M.scalar_curvature(a),
        lambda M: M.transport(a, a[0]),
    ):
        torch.testing.assert_close(f(first), f(last), rtol=1e-12, atol=1e-12)


class Own(Manifold):
    def __init__(self, name: str, value: object) -> None:
        self.name, self.value = name, value

    def push(self, z: Tensor, v: Tensor) -> Tensor:
        return self.value(z) if self.name == "push" else v  # type: ignore[operator]

    def secant(self, a: Tensor, b: Tensor) -> Tensor:
        return self.value(a) if self.name == "secant" else super().secant(a, b)  # type: ignore[operator]

    def frame(self, z: Tensor) -> Tensor:
        return self.value(z) if self.name == "frame" else super().frame(z)  # type: ignore[operator]

    def force(self, z: Tensor, v: Tensor) -> Tensor:
        return self.value(z) if self.name == "force" else super().force(z, v)  # type: ignore[operator]


def sized(*sizes: int):
    return lambda z: z.new_ones(len(z) if n == 0 else n for n in sizes)


WRONG = {
    "scale, one number": Conformal(lambda z: 1 + z.square().sum()),
    "scale, the other axis": Conformal(lambda z: 1 + z.square().sum(0)),
    "scale, of each coordinate": Conformal(lambda z: 1 + z.square()),
    "scale, no tensor": Conformal(lambda z: 2.0),
    "scale, of one point": Conformal(lambda z: 1 / z[0]),
    "field, one matrix": TensorField(lambda z: torch.eye(2, dtype=z.dtype)),
    "field, a diagonal": TensorField(lambda z: 1 + z.square()),
    "ambient scale": Pullback(lambda z: z.sin(), Conformal(lambda z: 1 + z.square().sum(0))),
    "ambient field": Pullback(lambda z: z.sin(), TensorField(lambda z: torch.eye(2, dtype=z.dtype))),
    "push, no rows": Own("push", lambda z: z.sum(1)),
    "push, its sum": Own("push", lambda z: z.sum(0)),
    "push, of one point": Own("push", lambda z: z[0]),
    "frame, transposed": Own("frame", lambda z: z.new_ones(len(z), 2, 3)),
    "push, in a sum": Euclidean() + Own("push", lambda z: z.sum(1)),
}


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("case", WRONG)
def test_another_shape_is_refused_for_any_number_of_points(case: str, count: int) -> None:
    z = torch.ones(count, 2) + torch.arange(count)[:, None]
    with pytest.raises(ValueError, match=r"gives .*; it must give \(N,.*each row by itself"):
        WRONG[case].metric(z)


@pytest.mark.parametrize(
    ("M", "act"),
    [
        (Own("secant", lambda z: z.sum(1)), lambda M, z: M.length(z)),
        (Own("force", lambda z: z.sum(1)), lambda M, z: M.acceleration(z, z)),
        (Own("force", lambda z: torch.cat([z, z], 1)), lambda M, z: M.acceleration(z, z)),
        (Own("secant", lambda z: z.sum(1)), lambda M, z: M.geodesic(z[0], z[1])),
    ],
)
def test_companions_of_another_shape_are_refused(M: Manifold, act) -> None:
    with pytest.raises(ValueError, match=r"Own\.(secant|force) gives .*each row by itself"):
        act(M, torch.ones(3, 2).cumsum(0))


def test_a_negative_scale_is_refused_and_nan_inside() -> None:
    M, z = Conformal(lambda z: z[:, 0]), torch.tensor([[1.0, 0.0], [-2.0, 0.0]])
    with pytest.raises(ValueError, match=r"scale is -2 at z\[\(1,\)\]; give a positive one, its exp\(\)"):
        M.metric(z)
    assert M.push(z, z)[:, 0].isnan().tolist() == [False, True]
    assert Pullback(lambda z: z, M).metric(z).isnan().any(-1).any(-1).tolist() == [False, True]
    assert M.metric(torch.zeros(2)).abs().max() == 0  # singular, as other metrics may be


def test_a_space_beyond_its_rim_has_no_metric() -> None:
    """A decoder into the ball that leaves it: the formula would go on, with the metric of nothing."""
    M = Pullback(lambda z: 2 * z, Hyperbolic(2))
    assert M.metric(torch.tensor([[0.1, 0.0], [0.6, 0.0]])).isnan().any(-1).any(-1).tolist() == [False, True]


FINAL = [
    Pullback, Sphere, Hyperbolic, Euclidean, Conformal, TensorField, manifold.Sum, manifold.Scaled, fisher.FisherMetric,
    tabulated.Tabulated, *(getattr(families, name) for name in families.__all__ if name.endswith("Space")),
]  # fmt: skip


def test_every_concrete_manifold_is_final() -> None:
    def below(kind: type) -> set[type]:
        return {kind}.union(*map(below, kind.__subclasses__()))

    ours = {k for k in below(Manifold) if k.__module__.startswith("oddity.") and not k.__name__.startswith("_")}
    assert ours - {Manifold} == set(FINAL)


@pytest.mark.parametrize("kind", FINAL)
def test_a_final_class_has_no_subclass(kind: type) -> None:
    with pytest.raises(TypeError, match=rf"{kind.__name__} is final.*derive Weighted from oddity\.Manifold"):
        type("Weighted", (kind,), {})


@pytest.mark.parametrize("name", ["metric", "norm", "inner", "length", "acceleration", "__add__"])
def test_what_is_derived_cannot_be_overridden(name: str) -> None:
    with pytest.raises(TypeError, match=f"Weighted.{name} would contradict the metric"):
        type("Weighted", (Manifold,), {"push": lambda self, z, v: v, name: lambda self, *x: x[0]})


def test_a_push_from_a_class_beside_or_by_name_is_asked_by_rows_too() -> None:
    class Beside:
        def push(self, z: Tensor, v: Tensor) -> Tensor:
            return bump(z)[:, None] * v

    class Mixed(Beside, Manifold):
        pass

    z = points(2, torch.float64)
    torch.testing.assert_close(Mixed().metric(z[None]), Conformal(bump).metric(z[None]))
    torch.testing.assert_close(Mixed().push(v=z[0], z=z[:, None]), Conformal(bump).push(z[:, None], z[0]))


def test_a_metric_changed_by_hand_holds_the_other_one() -> None:
    """What deriving from a final class was meant for."""

    class Weighted(Manifold):
        def __init__(self, base: Manifold) -> None:
            self.base = base

        def push(self, z: Tensor, v: Tensor) -> Tensor:
            return 2 * self.base.push(z, v)

    M = Pullback(mlp(2, 6).double())
    z = points(2, torch.float64)
    torch.testing.assert_close(Weighted(M).metric(z), (4 * M).metric(z))
    torch.testing.assert_close(Weighted(M).dist(z[0], z[1]), (4 * M).dist(z[0], z[1]), rtol=1e-5, atol=0)
    assert repr(oddity.Sphere(2)) == "Sphere(2)"
