"""What the expected metric of a convolutional decoder costs, in passes of the decoder, and in memory.

``python -m benchmarks.convolution``, and with ``--train`` what training one on 10,000 images of Fashion-MNIST takes
(``make .venv/.fashion-mnist`` fetches them; set ``ODDITY_DATA`` as ``make study`` does). Images of 3 x 64 x 64,
D = 12,288, from d = 32 dimensions: a frame has d tangents, so that d + 2 passes are the aim. Processor time on one
thread, the least of some runs that take turns; the weights are random, which costs the same.
"""

import json
import resource
import sys
import time
from collections.abc import Callable

import torch

import oddity
from oddity.app.datasets import load
from oddity.models.conv_rbf import ConvRBFPrecision
from oddity.models.vae import Architecture
from oddity.numerics.autodiff import Differential

IMAGE, LATENT, POINTS, RUNS = (3, 64, 64), 32, 64, 5


def decoder(channels: tuple[int, ...]) -> oddity.GaussianDecoder:
    """A decoder with random weights, its bumps at random codes."""
    plan = Architecture(3 * 64 * 64, LATENT, output="sigmoid", image_shape=IMAGE, channels=channels)
    model = plan.build().decoder
    codes = torch.randn(500, LATENT, generator=torch.Generator().manual_seed(0))
    model.scale = ConvRBFPrecision.from_codes(codes, IMAGE, (16,) * len(channels))
    return model.eval().requires_grad_(False)


def least(tasks: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Processor seconds of each task: the least of some rounds, after one that warms up."""
    best = dict.fromkeys(tasks, float("inf"))
    with torch.no_grad():
        for turn in range(RUNS + 1):
            for name, task in tasks.items():
                begin = time.process_time()
                task()
                if turn:
                    best[name] = min(best[name], time.process_time() - begin)
    return best


def measured(channels: tuple[int, ...]) -> dict[str, float]:
    """Time of a pass for a point in milliseconds, and of the rest in passes."""
    model = decoder(channels)
    z = torch.randn(POINTS, LATENT, generator=torch.Generator().manual_seed(1))
    M, by_autodiff = oddity.expected_metric(model), Differential(model.mean_net, mode="jvp")
    by_autodiff.check(z)
    times = least(
        {
            "pass": lambda: model(z),
            "metric": lambda: M.metric(z),
            "frame of the mean, closed form": lambda: M.parts[0].frame(z),  # type: ignore[attr-defined]
            "frame of the mean, forward mode": lambda: by_autodiff.frame(z),
        }
    )
    one = times.pop("pass")
    return {"ms a pass and point": 1e3 * one / POINTS} | {name: value / one for name, value in times.items()}


def training() -> dict[str, float]:
    """Minutes that ``fit_vae`` takes at its defaults, on two threads, and what the model is worth."""
    torch.set_num_threads(2)
    rows, _ = load("fashion-mnist")
    X = torch.from_numpy(rows[:10_000]).view(-1, 28, 28)
    begin, work = time.perf_counter(), time.process_time()
    vae = oddity.fit_vae(X, architecture="conv")
    figures = {
        "minutes": (time.perf_counter() - begin) / 60,
        "minutes of processor time": (time.process_time() - work) / 60,
    }
    codes = vae.encode(X)
    error = vae.decoder.mean(codes).flatten(1) - X.flatten(1)
    pairs = torch.randperm(len(codes), generator=torch.Generator().manual_seed(0))[:40].view(2, 20)
    geodesics = oddity.expected_metric(vae.decoder).geodesic(*codes[pairs])
    return figures | {
        "variance explained": 1 - float(error.square().mean() / (X - X.mean(0)).square().mean()),
        "geodesics converged, of 20": float(geodesics.converged.sum()),
    }


def main() -> None:
    if "--train" in sys.argv:
        print(json.dumps(training(), indent=2))
        return
    torch.set_num_threads(1)
    figures: dict[str, object] = {str(channels): measured(channels) for channels in [(16, 32), (32, 64)]}
    figures["aim, passes"] = LATENT + 2
    figures["peak memory, GiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
