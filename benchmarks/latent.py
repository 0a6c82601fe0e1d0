"""What statistics in a curved latent space cost.

``python -m benchmarks.latent [clusters] [land] [walk]``. On the library's model of digits of MNIST, d = 2: k-means of
3,000 codes, a mixture of two LANDs on 1,000, and 64 Brownian walkers of 1,000 steps.
Written to ``benchmarks/results/latent.json``.
"""

import json
import resource
import sys
import time
import warnings
from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from torch import Tensor

import oddity
from benchmarks.demo import RESULTS, machine
from oddity.app.datasets import open_dataset

FILE = RESULTS / "latent.json"


@cache
def codes_of(classes: tuple[int, ...], per_class: int) -> tuple[oddity.Manifold, Tensor]:
    """The expected metric of a model of some digits, and its codes."""
    data = open_dataset("mnist")
    assert data.y is not None
    rows = np.concatenate([np.flatnonzero(data.y == label)[:per_class] for label in classes])
    X = torch.from_numpy(data.X[rows])
    vae = oddity.fit_vae(X)
    return oddity.expected_metric(vae.decoder), vae.encode(X)


def clusters() -> dict[str, object]:
    """k-means, k = 3, as the command fits it."""
    M, codes = codes_of((0, 1, 2), 1000)
    return timed(lambda: oddity.GeodesicKMeans(M, 3, random_state=0).fit(codes))


def land() -> dict[str, object]:
    """Two LANDs by exact normalisation."""
    M, codes = codes_of((0, 1), 500)
    model = oddity.LAND(M, 2, random_state=0)
    found = timed(lambda: model.fit(codes))
    found["relative errors of the normalisers"] = (model.normalizer_errors_ / model.normalizers_).tolist()
    return found


def walk() -> dict[str, object]:
    """Brownian motion from codes."""
    M, codes = codes_of((0, 1), 500)
    generator = torch.Generator().manual_seed(0)
    return timed(lambda: oddity.brownian_motion(M, codes[:64], 1000, 1e-3, generator=generator))


def timed(task: Callable[[], object]) -> dict[str, object]:
    """Seconds, and the warnings on the way."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        begin = time.perf_counter()
        task()
        seconds = time.perf_counter() - begin
    return {"seconds": round(seconds, 1), "warnings": [str(warning.message) for warning in said]}


PARTS = {"clusters": clusters, "land": land, "walk": walk}


def main() -> None:
    torch.set_num_threads(2)
    found = json.loads(FILE.read_text()) if FILE.exists() else {}
    for name in sys.argv[1:] or PARTS:
        found[name] = PARTS[name]()
        found |= {"peak memory, GiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, "machine": machine()}
        FILE.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
