"""Hard metrics with known distances, and what the solver says about them: ``python -m tests.geometry.hard``.

A problem is a value: a metric, pairs of points, and their distances from :mod:`tests.geometry.judge`, which no line of
the solver has touched. A report counts the curves that were certified and are not what they claim to be.
"""

import argparse
import copy
import dataclasses
import functools
import itertools
import json
import math
import pathlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

import oddity
from oddity import Conformal, Manifold, Pullback

from . import judge
from .cases import embedded_sphere

F64 = torch.float64
DTYPES = {"float32": torch.float32, "float64": torch.float64}
Truth = Callable[[np.ndarray, np.ndarray], float]
Ways = Callable[[np.ndarray, np.ndarray], list[np.ndarray]]


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """A metric, pairs of points and their distances.

    ``truth`` is told the points as the dtype rounds them; where it is None, the judge searches, along ``ways`` from one
    point to the other, too. ``unique`` is false where a geodesic may end in a longer
    valley, which is no fault; ``smooth`` is true where every curve has to converge: no feature is narrower than a
    hundredth of the curve.
    """

    name: str
    manifold: Callable[[torch.dtype], Manifold]
    secants: judge.Secants
    a: Tensor
    b: Tensor
    truth: Truth | None
    codes: Tensor | None = None
    unique: bool = True
    smooth: bool = False
    ways: Ways = lambda x, y: [judge.bowed(x, y, by) for by in (0.4, -0.4)]
    nodes: int = 256  # on which the judge begins, enough to see the narrowest feature

    @property
    def starts(self) -> list[str]:
        return ["line"] if self.codes is None else ["line", "roadmap"]

    def distance(self, x: np.ndarray, y: np.ndarray) -> float:
        if self.truth is not None:
            return float(self.truth(x, y))
        starts = [np.stack([x, y]), judge.lattice(self.secants).path(x, y), *self.ways(x, y)]
        return judge.shortest(self.secants, starts, self.nodes)


PROBLEMS: dict[str, Callable[[], Problem]] = {}


def _problem(make: Callable[..., Problem], name: str, *args: object) -> None:
    PROBLEMS[name] = functools.cache(lambda: dataclasses.replace(make(*args), name=name))


def _mapped(f: Callable[[Tensor], Tensor], a: Tensor, b: Tensor, truth: Truth | None, **more: object) -> Problem:
    """The metric that f pulls back."""

    def secants(c: Tensor) -> Tensor:
        return f(c.flatten(0, -2)).unflatten(0, c.shape[:-1]).diff(dim=-2)

    def manifold(dtype: torch.dtype) -> Manifold:
        return Pullback(copy.deepcopy(f).to(dtype) if isinstance(f, nn.Module) else f)

    return Problem("", **{"manifold": manifold, **more}, secants=secants, a=a, b=b, truth=truth)


def _conformal(scale: Callable[[Tensor], Tensor], a: Tensor, b: Tensor, truth: Truth | None, **more: object) -> Problem:
    def secants(c: Tensor) -> Tensor:
        return scale((c[..., 1:, :] + c[..., :-1, :]) / 2)[..., None] * c.diff(dim=-2)

    return Problem("", lambda _: Conformal(scale, dim=2), secants, a, b, truth, **more)


def _flat(phi: Callable[[Tensor], Tensor]) -> Truth:
    """Distances of a flat metric pulled back by a map of the plane onto a convex set."""

    def truth(x: np.ndarray, y: np.ndarray) -> float:
        u, v = phi(torch.from_numpy(np.stack([x, y])))
        return float((u - v).norm())

    return truth


class OwnPush(Manifold):
    """A metric that says nothing but its push."""

    def __init__(self, base: Manifold) -> None:
        self.base = base

    def push(self, z: Tensor, v: Tensor) -> Tensor:
        return self.base.push(z, v)


def _uniform(count: int, low: float, high: float, seed: int, d: int = 2) -> Tensor:
    return low + (high - low) * torch.rand(count, d, dtype=F64, generator=torch.Generator().manual_seed(seed))


def _pairs(seed: int, d: int = 2, size: float = 1.0) -> tuple[Tensor, Tensor]:
    return _uniform(6, -size, size, seed, d), _uniform(6, -size, size, seed + 100, d)


def _facing(seed: int) -> tuple[Tensor, Tensor]:
    """Pairs on either side of the line x = 0."""
    a, b = _pairs(seed)
    a[:, 0], b[:, 0] = -1 + a[:, 0].abs() / 5, 1 - b[:, 0].abs() / 5
    a[0], b[0] = torch.tensor([-1.0, 0.03]), torch.tensor([1.0, -0.02])  # what is regular meets the nodes of a grid
    return a, b


# -- walls ------------------------------------------------------------------------------------------------------------


def wall(width: float) -> Problem:
    """A wall across the way, which costs 2.5 to cross at right angles."""

    def profile(x: np.ndarray) -> np.ndarray:
        return 1 + 2.5 / (width * math.sqrt(2 * math.pi)) * np.exp(-((x / width) ** 2) / 2)

    def scale(z: Tensor) -> Tensor:
        return 1 + 2.5 / (width * math.sqrt(2 * math.pi)) * torch.exp(-((z[..., 0] / width) ** 2) / 2)

    def truth(x: np.ndarray, y: np.ndarray) -> float:
        places = [s * width for s in range(-12, 13)]
        return judge.through_slabs(profile, profile, x[0], y[0], y[1] - x[1], places)

    return _conformal(scale, *_facing(1), truth, codes=_uniform(200, -1.1, 1.1, 7), smooth=width >= 0.03)


def gap(width: float, opening: float, lined: bool = False) -> Problem:
    """The same wall with a gap at y = 0.5; with codes lining the gap too."""

    def scale(z: Tensor) -> Tensor:
        x, y = z[..., 0], z[..., 1]
        height = 2.5 / (width * math.sqrt(2 * math.pi)) * torch.exp(-((x / width) ** 2) / 2)
        return 1 + height * (1 - torch.exp(-(((y - 0.5) / opening) ** 2) / 2))

    a, b = _facing(2)
    codes = _uniform(200, -1.1, 1.1, 7)
    if lined:
        way = torch.linspace(-0.2, 0.2, 100, dtype=F64)
        codes = torch.cat([codes, torch.stack([way, torch.full_like(way, 0.5)], 1)])
    door = np.array([[-3 * width, 0.5], [0, 0.5], [3 * width, 0.5]])
    more = {"ways": lambda x, y: [np.concatenate([x[None], door, y[None]])], "nodes": 256 if width > 5e-3 else 2048}
    return _conformal(scale, a, b, None, codes=codes, unique=False, smooth=min(width, opening) >= 0.03, **more)


def maze(width: float) -> Problem:
    """Four walls with gaps at opposite ends."""
    walls = ((-0.6, 0.8), (-0.2, -0.8), (0.2, 0.8), (0.6, -0.8))

    def scale(z: Tensor) -> Tensor:
        x, y, total = z[..., 0], z[..., 1], 1.0
        for at, door in walls:
            ridge = torch.exp(-(((x - at) / width) ** 2) / 2) * (1 - torch.exp(-(((y - door) / 0.15) ** 2) / 2))
            total = total + 0.8 / (width * math.sqrt(2 * math.pi)) * ridge
        return total

    codes, more = _uniform(300, -1.1, 1.1, 8), {"ways": lambda x, y: [], "nodes": 512}
    return _conformal(scale, *_facing(3), None, codes=codes, unique=False, **more)


for _w in (1e-1, 3e-2, 1e-2, 3e-3, 1e-3):
    _problem(wall, f"wall {_w:g}", _w)
for _w, _o in ((1e-1, 1e-1), (1e-2, 1e-1), (1e-3, 1e-1), (1e-2, 2e-2)):
    _problem(gap, f"wall {_w:g} gap {_o:g}", _w, _o)
_problem(gap, "wall 0.1 lined gap 0.004", 1e-1, 4e-3, True)
_problem(gap, "wall 0.01 lined gap 0.002", 1e-2, 2e-3, True)
for _w in (5e-2, 1e-2):
    _problem(maze, f"maze {_w:g}", _w)


# -- flat metrics in disguise -----------------------------------------------------------------------------------------


def _arc(slope: judge.Profile, at: tuple[float, ...] = ()) -> judge.Profile:
    """Length along a graph with a given slope, from 0."""

    def arc(x: float) -> float:
        u, w = judge._panels(judge.between(0, x, at))
        return math.copysign(float((np.sqrt(1 + slope(u) ** 2) * w).sum()), x)

    return arc


def _unrolled(arc: Callable[[float], float], axis: np.ndarray) -> Truth:
    """Distances on a surface of translation: the arc along the axis, and what is across it."""

    def truth(x: np.ndarray, y: np.ndarray) -> float:
        across = (y - x) - axis * ((y - x) @ axis)
        return math.hypot(arc(y @ axis) - arc(x @ axis), float(np.linalg.norm(across)))

    return truth


def sines(k: float, tilted: bool) -> Problem:
    """A corrugated sheet."""
    axis = torch.tensor([0.8, 0.6] if tilted else [1.0, 0.0], dtype=F64)

    def f(z: Tensor) -> Tensor:
        return torch.cat([z, 0.1 * torch.sin(k * (z @ axis.to(z)))[..., None]], -1)

    crests = tuple(np.arange(-int(2 * k / math.pi) - 1, int(2 * k / math.pi) + 2) * math.pi / (2 * k))
    truth = _unrolled(_arc(lambda x: 0.1 * k * np.cos(k * x), crests), axis.numpy())
    return _mapped(f, *_facing(4), truth, codes=_uniform(200, -1.1, 1.1, 9), smooth=k <= 20)


def spiral(turns: float, stretch: float = 1.0, own: bool = False) -> Problem:
    """The plane turned by an angle that grows with the radius, then stretched: straight lines are spirals."""

    def phi(z: Tensor) -> Tensor:
        x, y = z[..., 0], z[..., 1]
        angle = turns * z.square().sum(-1)
        c, s = angle.cos(), angle.sin()
        return torch.stack([c * x - s * y, stretch * (s * x + c * y)], -1)

    back = _uniform(12, -1, 1, 5)
    back[:, 1] /= stretch  # ends on the cheap arms
    angle = -turns * back.square().sum(-1)
    c, s = angle.cos(), angle.sin()
    ends = torch.stack([c * back[:, 0] - s * back[:, 1], s * back[:, 0] + c * back[:, 1]], 1)
    p = _mapped(phi, ends[:6], ends[6:], _flat(phi), codes=_uniform(300, -1.2, 1.2, 10), smooth=stretch <= 10)
    return dataclasses.replace(p, manifold=lambda _: OwnPush(Pullback(phi))) if own else p


def bend(stretch: float, d: int = 2) -> Problem:
    """Going along a sine costs little, across it ``stretch`` times as much: condition stretch^2, turning."""

    def phi(z: Tensor) -> Tensor:
        return torch.cat([z[..., :1], stretch * (z[..., 1:] - 0.3 * torch.sin(3 * z[..., :1]))], -1)

    a, b = _pairs(6, d)
    a, b = (torch.cat([x[:, :1], 0.3 * torch.sin(3 * x[:, :1]) + x[:, 1:] / stretch], 1) for x in (a, b))
    codes = _uniform(300, -1.1, 1.1, 11) if d == 2 else None
    return _mapped(phi, a, b, _flat(phi), codes=codes, smooth=stretch <= 10)


for _k, _tilted in ((5, True), (20, True), (50, True), (200, False), (200, True)):
    _problem(sines, f"sines {_k}" + " tilted" * _tilted, float(_k), _tilted)
_problem(spiral, "spiral 4", 4.0)
_problem(spiral, "spiral 8", 8.0)
_problem(spiral, "spiral 4 own push", 4.0, 1.0, True)
_problem(spiral, "spiral 2 condition 1e4", 2.0, 1e2)
_problem(spiral, "spiral 2 condition 1e8", 2.0, 1e4)
_problem(bend, "bend condition 1e2", 1e1)
_problem(bend, "bend condition 1e4", 1e2)
_problem(bend, "bend condition 1e8", 1e4)
_problem(bend, "bend condition 1e4 in 5", 1e2, 5)


# -- surfaces ---------------------------------------------------------------------------------------------------------


def torus() -> Problem:
    """The universal cover of a torus of radii 2 and 1, by its angles."""

    def f(z: Tensor) -> Tensor:
        u, v = z[..., 0], z[..., 1]
        r = 2 + v.cos()
        return torch.stack([r * u.cos(), r * u.sin(), v.sin()], -1)

    return _mapped(f, *_pairs(12, size=1.3), None, codes=_uniform(300, -2, 2, 13), unique=False, smooth=True)


def egg_crate(height: float, k: float) -> Problem:
    def f(z: Tensor) -> Tensor:
        return torch.cat([z, height * (torch.cos(k * z[..., :1]) * torch.cos(k * z[..., 1:]))], -1)

    return _mapped(f, *_pairs(14), None, codes=_uniform(300, -1.2, 1.2, 15), unique=False, smooth=True)


MAJOR, FLATTENING = 6378.137, 1 / 298.257223563  # WGS84, in kilometres


def _on_earth(z: Tensor) -> Tensor:
    """The unit sphere's points ``(*, 3)``, stretched to the ellipsoid: latitudes are reduced ones."""
    return MAJOR * torch.cat([z[..., :2], (1 - FLATTENING) * z[..., 2:]], -1)


def over_the_pole() -> Problem:
    """The ellipsoid in a chart around a pole, and pairs over that pole."""

    def truth(x: np.ndarray, y: np.ndarray) -> float:
        lat = [np.array([math.asin((z @ z - 1) / (z @ z + 1))]) for z in (x, y)]
        lon = math.atan2(x[0] * y[1] - x[1] * y[0], float(x @ y))
        return float(judge.vincenty(*lat, np.array([lon]), MAJOR, FLATTENING)[0])

    a = _uniform(60, -0.8, 0.8, 16)
    b = -a * _uniform(60, 0.2, 1.0, 17)
    return _mapped(lambda z: _on_earth(embedded_sphere(z)), a, b, truth, unique=False, smooth=True)


def past_the_pole() -> Problem:
    """The ellipsoid by latitude and longitude, in which ways near the pole turn suddenly."""

    def f(z: Tensor) -> Tensor:
        lat, lon = z[..., :1], z[..., 1:]
        return _on_earth(torch.cat([lat.cos() * lon.cos(), lat.cos() * lon.sin(), lat.sin()], -1))

    def truth(x: np.ndarray, y: np.ndarray) -> float:
        return float(judge.vincenty(x[:1], y[:1], y[1:] - x[1:], MAJOR, FLATTENING)[0])

    lat, lon = _uniform(60, 0.3, 1.4, 29), _uniform(60, 0.5, 3.0, 30)
    a = torch.stack([lat[:, 0], -lon[:, 0] / 2], 1)
    b = torch.stack([lat[:, 1], lon[:, 0] / 2], 1)
    return _mapped(f, a, b, truth, unique=False)


def sphere(data: float, code: float) -> Problem:
    """The unit sphere in other units of data and of codes."""

    def f(z: Tensor) -> Tensor:
        return data * embedded_sphere(z / code)

    def truth(x: np.ndarray, y: np.ndarray) -> float:
        u, v = embedded_sphere(torch.from_numpy(np.stack([x, y])) / code)
        return 2 * data * math.asin(float((u - v).norm()) / 2)

    a, b = _pairs(18, size=0.8)
    return _mapped(f, code * a, code * b, truth, codes=code * _uniform(200, -1, 1, 19), smooth=True)


def bowl(zeta: float, bandwidth: float) -> Problem:
    """The expected metric of the identity with the noise of one bump: a surface of revolution, flat and then a wall."""
    rbf = oddity.RBFPrecision(torch.zeros(1, 2), torch.tensor([bandwidth]), 1, zeta=zeta)
    rbf = rbf.eval().requires_grad_(False).double()

    @dataclasses.dataclass
    class Decoder:
        std: nn.Module

        def mean(self, z: Tensor) -> Tensor:
            return 1 * z

    def steepness(r: np.ndarray) -> np.ndarray:
        bump = np.exp(-bandwidth * r**2)
        return np.sqrt(1 + (bandwidth * r * bump * (bump + zeta) ** -1.5) ** 2)

    def truth(x: np.ndarray, y: np.ndarray) -> float:
        angle = abs(math.atan2(x[0] * y[1] - x[1] * y[0], float(x @ y)))
        return judge.around_an_axis(steepness, float(np.linalg.norm(x)), float(np.linalg.norm(y)), angle)

    wall = oddity.models.rbf.predict_wall(zeta, 1.0, bandwidth, 1).radius
    turn = torch.tensor([0.3, 2.0, 1.0, 0.2, 1.5, 0.5], dtype=F64)
    r0 = wall * torch.tensor([0.2, 0.3, 0.5, 0.3, 0.8, 1.0], dtype=F64)
    r1 = wall * torch.tensor([0.4, 0.3, 0.4, 1.0, 0.8, 1.1], dtype=F64)
    a, b = torch.stack([r0, 0 * r0], 1), torch.stack([r1 * turn.cos(), r1 * turn.sin()], 1)
    metric = {"manifold": lambda dtype: oddity.expected_metric(Decoder(copy.deepcopy(rbf).to(dtype)))}
    codes = _uniform(200, -wall / 2, wall / 2, 20)
    return _mapped(lambda z: torch.cat([z, rbf(z)], -1), a, b, truth, codes=codes, unique=False, **metric)


def classes(count: int, pairs: int) -> Problem:
    """Sparse class probabilities under Fisher and Rao's metric, by their logits: an orthant of a sphere."""

    def f(z: Tensor) -> Tensor:
        return 2 * torch.softmax(torch.cat([z, torch.zeros_like(z[..., :1])], -1), -1).sqrt()

    def truth(x: np.ndarray, y: np.ndarray) -> float:
        u, v = f(torch.from_numpy(np.stack([x, y])))
        return 4 * math.asin(min(1.0, float((u - v).norm()) / 4))

    logits = 5 * torch.randn(2, pairs, count, generator=torch.Generator().manual_seed(4), dtype=F64)
    a, b = logits[..., :-1] - logits[..., -1:]

    def law(z: Tensor) -> torch.distributions.Distribution:
        return torch.distributions.Categorical(logits=torch.cat([z, torch.zeros_like(z[..., :1])], -1))

    return _mapped(f, a, b, truth, manifold=lambda _: oddity.fisher_metric(law))


_problem(torus, "torus")
_problem(egg_crate, "egg crate 0.3", 0.3, 4.0)
_problem(egg_crate, "egg crate 0.1 k 12", 0.1, 12.0)
_problem(over_the_pole, "ellipsoid over the pole")
_problem(past_the_pole, "ellipsoid past the pole")
for _s in (1e-6, 1e-3, 1.0, 1e3, 1e6):
    _problem(sphere, f"sphere data {_s:g}", _s, 1.0)
for _s in (1e-6, 1e-3, 1e3, 1e6):
    _problem(sphere, f"sphere codes {_s:g}", 1.0, _s)
_problem(bowl, "bowl zeta 0.01", 1e-2, 2.0)
_problem(bowl, "bowl zeta 1e-8", 1e-8, 2.0)
_problem(classes, "sparse classes 10", 10, 6)
_problem(classes, "sparse classes 4", 4, 40)


# -- creases, and regions that cost nothing ---------------------------------------------------------------------------


def relu(hidden: int) -> Problem:
    """A ReLU network of one direction beside the identity: a sheet of paper with folds."""
    generator = torch.Generator().manual_seed(21)
    axis = torch.tensor([0.8, 0.6])
    inner, outer = nn.Linear(2, hidden + 4), nn.Linear(hidden + 4, 3)
    places, heights = torch.rand(2, hidden, generator=generator)
    places = 2 * places - 1
    with torch.no_grad():
        pairs = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])  # x = relu(x) - relu(-x)
        inner.weight.copy_(torch.cat([axis.expand(hidden, 2), pairs]))
        inner.bias.copy_(torch.cat([-places, torch.zeros(4)]))
        outer.weight.zero_()
        outer.bias.zero_()
        outer.weight[0, :hidden] = 2 * heights - 1
        outer.weight[1, hidden : hidden + 2] = torch.tensor([1.0, -1.0])
        outer.weight[2, hidden + 2 :] = torch.tensor([1.0, -1.0])
    net = nn.Sequential(inner, nn.ReLU(), outer).eval().requires_grad_(False).double()
    fold, rise = places.double().numpy(), (2 * heights - 1).double().numpy()
    wide = axis.double().numpy()  # 0.8 and 0.6 as float32 knows them
    size = float(np.linalg.norm(wide))

    def slope(x: np.ndarray) -> np.ndarray:
        return size * ((size * x[..., None] > fold) * rise).sum(-1)

    truth = _unrolled(_arc(slope, tuple(fold / size)), wide / size)
    return _mapped(net, *_facing(22), truth, codes=_uniform(200, -1.1, 1.1, 23))


def valley_floor() -> Problem:
    """Shortest curves are drawn into a crease, run along it, and leave it."""

    def profile(x: np.ndarray) -> np.ndarray:
        return 1 + 5 * np.abs(x)

    def truth(x: np.ndarray, y: np.ndarray) -> float:
        """Down to the crease and up again, or, where the way is short, down to where it turns."""
        over = abs(y[0] - x[0])
        fall = sum(math.acosh(1 + 5 * abs(z[1])) / 5 for z in (x, y))
        assert over > fall, "these ends do not reach the crease"
        legs = (judge._panels(judge.between(0, abs(z[1]), ())) for z in (x, y))
        return over + sum(float((np.sqrt(profile(u) ** 2 - 1) * w).sum()) for u, w in legs)

    a, b = _facing(24)
    a[:, 1], b[:, 1] = a[:, 1] / 2, b[:, 1] / 2
    codes = _uniform(200, -1.1, 1.1, 25)
    return _conformal(lambda z: 1 + 5 * z[..., 1].abs(), a, b, truth, codes=codes)


def dead_band() -> Problem:
    """A map that is constant along x in a band around zero."""

    def f(z: Tensor) -> Tensor:
        x = z[..., :1]
        return torch.cat([torch.relu(x - 0.3) - torch.relu(-x - 0.3), z[..., 1:]], -1)

    return _mapped(f, *_facing(26), _flat(f), codes=_uniform(200, -1.1, 1.1, 27))


def free_disc() -> Problem:
    """Within a disc nothing costs anything; ends so far apart, seen from it, that the way leads through it."""

    def scale(z: Tensor) -> Tensor:
        return torch.relu(z.norm(dim=-1) - 0.3)

    def truth(x: np.ndarray, y: np.ndarray) -> float:
        return sum((float(np.linalg.norm(z)) - 0.3) ** 2 / 2 for z in (x, y))

    angle = torch.linspace(0, 2, 6, dtype=F64)
    a = torch.stack([angle.cos(), angle.sin()], 1)
    b = -0.8 * torch.stack([(angle + 0.4).cos(), (angle + 0.4).sin()], 1)
    return _conformal(scale, a, b, truth, codes=_uniform(200, -1.1, 1.1, 28), unique=False)


_problem(relu, "relu 1", 1)
_problem(relu, "relu 30", 30)
_problem(valley_floor, "valley floor")
_problem(dead_band, "dead band")
_problem(free_disc, "free disc")


# -- the report -------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Report:
    """What became of the pairs of a problem; ratios are errors over what is claimed for them, length_error + 1e-6."""

    problem: str
    start: str
    dtype: str
    seconds: float  # of processor time
    pairs: int
    converged: int
    elsewhere: int  # certified, longer than the distance, and true to a longer valley
    ratios: list[float]  # of certified curves: |length - truth|
    own: list[float]  # of certified curves: |length - length of g(t)|
    astray: int  # certified, and longer than the roadmap's own path
    log: float  # the largest share by which |log| differs from the length, where it is given
    why: list[str]

    @property
    def case(self) -> tuple[str, str, str]:
        return self.problem, self.start, self.dtype

    @property
    def true(self) -> int:
        return sum(r <= 1 and mine <= 1 for r, mine in zip(self.ratios, self.own, strict=True))

    @property
    def worst(self) -> float:
        return max(self.ratios, default=0.0)

    @property
    def worst_own(self) -> float:
        return max(self.own, default=0.0)

    def line(self) -> str:
        wrong = sum(not r <= 1 for r in self.ratios)
        own = sum(not r <= 1 for r in self.own)
        counts = f"{self.converged:3d}/{self.pairs:<3d} {wrong:4d} {self.worst:9.3g} {self.elsewhere:5d}"
        rest = f"{own:4d} {self.worst_own:9.3g} {self.astray:4d} {100 * self.log:7.3f}"
        return f"{self.problem:26s} {self.start:8s}{self.dtype:8s}{self.seconds:7.1f} {counts} {rest}"


HEAD = (
    f"{'problem':26s} {'start':8s}{'dtype':8s}{'seconds':>7s} {'conv':>7s} {'bad':>4s} {'worst':>9s} {'other':>5s} "
    f"{'own':>4s} {'worst':>9s} {'long':>4s} {'log %':>7s}"
)


@functools.cache
def truths(name: str, dtype: str) -> list[float]:
    """Distances of the pairs as a dtype rounds them; of the exact pairs where the judge has to search."""
    p = PROBLEMS[name]()
    if p.truth is None and dtype != "float64":
        return truths(name, "float64")
    ends = zip(*(x.to(DTYPES[dtype]).double().numpy() for x in (p.a, p.b)), strict=True)
    return [p.distance(x, y) for x, y in ends]


@functools.cache
def report(name: str, start: str, dtype: str, *, log: bool = True) -> Report:
    p, kind = PROBLEMS[name](), DTYPES[dtype]
    M, a, b = p.manifold(kind), p.a.to(kind), p.b.to(kind)
    roads = oddity.Roadmap(M, p.codes.to(kind)) if start == "roadmap" else None
    began = time.process_time()
    g = M.geodesic(a, b, init=roads)
    seconds = time.process_time() - began
    sure = g.converged.nonzero()[:, 0].tolist()
    curves = dataclasses.replace(g, points=g.points.double())(torch.linspace(0, 1, 20001, dtype=F64)).numpy()
    bound = None if roads is None else [judge.polyline_length(p.secants, x) for x in _fine(roads.paths(a, b, 512))]
    ratios, own, elsewhere, astray = [], [], 0, 0
    for i in sure:
        true, length, error = truths(name, dtype)[i], float(g.length[i]), float(g.length_error[i])
        ratio = abs(length - true) / (error + 1e-6 * true)
        if not ratio <= 1 and length > true and not p.unique:
            other = _valley(p, curves[i])
            near = abs(length - other) / (error + 1e-6 * other)
            if other > true and near < ratio:
                ratio, elsewhere = near, elsewhere + (near <= 1)
        ratios.append(ratio)
        coarse, fine = (judge.polyline_length(p.secants, x) for x in (curves[i][::2], curves[i]))
        own.append(abs((4 * fine - coarse) / 3 - length) / (error + 1e-6 * true))
        astray += bound is not None and length - error > bound[i] * (1 + 1e-6)
    gap = 0.0
    if log and sure:
        v = M.log(a, b, init=roads)[sure]
        size = torch.linalg.vector_norm(M.push(a[sure], v), dim=-1)
        gap = float((size / g.length[sure] - 1).abs().nan_to_num(0).max())  # NaN refuses, and is no lie
    why = sorted(set(g.why) - {""})
    return Report(name, start, dtype, seconds, len(a), len(sure), elsewhere, ratios, own, astray, gap, why)


def _valley(p: Problem, curve: np.ndarray) -> float:
    """Length of the geodesic next to a curve: none where the judge is in doubt, and no excuse for the curve."""
    try:
        return judge.valley(p.secants, curve, p.nodes)
    except AssertionError:
        return math.nan


def _fine(paths: Tensor) -> list[np.ndarray]:
    """Polylines with sixteen times as many nodes: lengths of the straight sides themselves."""
    c = paths.double()
    t = torch.arange(16, dtype=F64)[:, None] / 16
    inner = (c[:, :-1, None] + t * (c[:, 1:, None] - c[:, :-1, None])).flatten(1, 2)
    return list(torch.cat([inner, c[:, -1:]], 1).numpy())


def warm(dtype: torch.dtype) -> None:
    """Solve something simple, so that no report pays for loops that are compiled."""
    codes = _uniform(50, -1, 1, 0).to(dtype)
    for M in (Pullback(embedded_sphere), Conformal(lambda z: 1 + z.square().sum(-1))):
        for init in (None, oddity.Roadmap(M, codes)):
            M.geodesic(codes[:2], codes[2:4], init=init)


CASES = [(name, start, dtype) for name in PROBLEMS for start in ("line", "roadmap") for dtype in DTYPES]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("only", nargs="*", help="words that the name of a problem has to hold, any of them")
    parser.add_argument("--start", choices=["line", "roadmap"])
    parser.add_argument("--dtype", choices=list(DTYPES))
    parser.add_argument("--limit", type=float, default=600, help="seconds for all cases of a problem, judge included")
    parser.add_argument("--json", type=pathlib.Path, help="where to write all there is to know")
    parser.add_argument(
        "--before", type=pathlib.Path, help="such a file: say where fewer curves are certified and true"
    )
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    names = [name for name in PROBLEMS if not asked.only or any(word in name for word in asked.only)]
    if asked.here:
        _here(asked.only[0], asked.start, asked.dtype)
        return
    rows = []
    print(HEAD, flush=True)
    for name in names:
        options = [x for key in ("start", "dtype") if (value := getattr(asked, key)) for x in (f"--{key}", value)]
        command = [sys.executable, "-m", "tests.geometry.hard", name, "--here", *options]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            clock = threading.Timer(asked.limit, child.kill)
            clock.start()
            for line in child.stdout or ():
                rows.append(Report(**json.loads(line)))
                print(rows[-1].line(), flush=True)
                if asked.json:  # at once: what was measured stays, whatever ends the rest
                    asked.json.write_text(json.dumps([dataclasses.asdict(row) for row in rows], indent=1))
            clock.cancel()
        if child.returncode:
            print(f"{name:26s} ended with {child.returncode}: more than {asked.limit:g} s, or an error", flush=True)
    print(summary(rows))
    for row in json.loads(asked.before.read_text()) if asked.before else []:
        old = Report(**row)
        for new in rows:
            if new.case == old.case and new.true < old.true:
                print(f"{', '.join(new.case)}: {new.true} of {new.pairs} certified and true, before {old.true}")


def _here(name: str, only_start: str | None, only_dtype: str | None) -> None:
    """All cases of a problem in this process, a line of JSON each."""
    torch.set_num_threads(1)
    for start, dtype in itertools.product(PROBLEMS[name]().starts, DTYPES):
        if only_start in (None, start) and only_dtype in (None, dtype):
            warm(DTYPES[dtype])
            print(json.dumps(dataclasses.asdict(report(name, start, dtype))), flush=True)


def summary(rows: list[Report]) -> str:
    ratios = [r for row in rows for r in row.ratios]
    own = [r for row in rows for r in row.own]
    pairs, other = sum(row.pairs for row in rows), sum(row.elsewhere for row in rows)
    smooth = [row for row in rows if PROBLEMS[row.problem]().smooth]
    share = sum(row.converged for row in smooth) / max(1, sum(row.pairs for row in smooth))
    return (
        f"{len(ratios)} of {pairs} certified, {other} of them in another valley; error beyond the claim: "
        f"{sum(not r <= 1 for r in ratios)}, beyond three times: {sum(not r <= 3 for r in ratios)}; own length beyond "
        f"it: {sum(not r <= 1 for r in own)}, {sum(not r <= 3 for r in own)}; longer than the roadmap's path: "
        f"{sum(row.astray for row in rows)}; on smooth features {100 * share:.1f} % converged"
    )


if __name__ == "__main__":
    main()
