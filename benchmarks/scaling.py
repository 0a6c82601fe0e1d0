"""How the time of our solver grows: with segments, latent and data dimension, and batch.

``python -m benchmarks.scaling FOLDER OUT.json``. Random smooth decoders, since a trained one has one d and one D. Each
figure is the time of a curve and the time of one of its iterations, since a harder problem also takes more of those.
"""

import json
import time
from dataclasses import dataclass

import torch
from torch import nn

import oddity
from benchmarks.details import arguments
from oddity.numerics import descent
from oddity.numerics.blocktri import eliminated
from oddity.numerics.native import Kernel, Part


@dataclass(frozen=True)
class Size:
    """A problem's size; each sweep changes one of them."""

    n: int = 32
    d: int = 4
    D: int = 256
    batch: int = 64


SWEEPS = {
    "n": [8, 16, 32, 64, 128, 256],
    "d": [2, 4, 8, 16, 32, 64],
    "D": [16, 64, 256, 1024, 4096],
    "batch": [1, 4, 16, 64, 256, 1024],
}
QUICK = {"n": [8, 16], "d": [2, 4], "D": [16, 64], "batch": [1, 4]}


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    figures: dict[str, list[dict[str, float]]] = {}
    for name, values in (QUICK if args.quick else SWEEPS).items():
        figures[name] = [timed(Size(**{name: value})) | {"size": value} for value in values]
        args.out.write_text(json.dumps(figures))


def timed(size: Size, repeats: int = 5, enough: float = 2.0) -> dict[str, float]:
    """Seconds a curve, a curve and iteration, and a curve and iteration in the block solve alone; the best of some.

    The block solve is what all takes longer if it is made more often.
    """
    M, (a, b) = manifold(size.d, size.D), ends(size)
    solver = oddity.ChainSolver(segments=size.n, max_segments=size.n)
    usual, best, iterations = descent._solved_under_layers, [0.0, 0.0], 1
    try:
        for i, kernel in enumerate((usual, SOLVED_OFTEN)):
            descent._solved_under_layers = kernel
            M.geodesic(a[:1], b[:1], solver=solver)
            runs: list[float] = []
            while not runs or (len(runs) < repeats and sum(runs) < enough):
                begin = time.perf_counter()
                g = M.geodesic(a, b, solver=solver)
                runs.append(time.perf_counter() - begin)
            best[i] = min(runs)
            iterations = int(g.iterations.sum()) + len(a)  # one more model than steps
    finally:
        descent._solved_under_layers = usual
    block = max(0.0, best[1] - best[0]) / (OFTEN * iterations)
    return {"curve": best[0] / size.batch, "iteration": best[0] / iterations, "block": block}


OFTEN = 32


def _eliminated_often(diagonal, unit, upper, skip, rhs, x, damping, definite, raises, work):
    for _ in range(OFTEN):
        eliminated(diagonal, unit, upper, skip, rhs, x, damping.copy(), definite, raises, work)
    eliminated(diagonal, unit, upper, skip, rhs, x, damping, definite, raises, work)


SOLVED_OFTEN = Kernel(descent._solved, eliminated=Part(_eliminated_often))


def manifold(d: int, D: int, width: int = 128) -> oddity.Manifold:
    """A random dense decoder, mildly bent in every dimension."""
    generator = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Linear(d, width), nn.Tanh(), nn.Linear(width, D)).eval().requires_grad_(False)
    for layer in (net[0], net[2]):
        layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) / layer.in_features**0.5)
        layer.bias.copy_(torch.randn(layer.bias.shape, generator=generator))
    return oddity.Pullback(net)


def ends(size: Size) -> tuple[torch.Tensor, torch.Tensor]:
    """Random pairs, not further apart in more dimensions."""
    generator = torch.Generator().manual_seed(1)
    a, b = torch.randn(2, size.batch, size.d, generator=generator) * (2 / size.d**0.5)
    return a, b


if __name__ == "__main__":
    main()
