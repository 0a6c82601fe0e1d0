"""finslerax's block Gauss-Newton on 64 segments, compiled by JAX for the CPU, in float32.

Compiled ahead of time, so that no curve pays for it; the time that it took is stored beside.
"""

import os
import time

os.environ["JAX_PLATFORMS"] = "cpu"

from common import read_job, run_plan  # the processors are chosen before JAX starts its threads

job = read_job()

import finslerax  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from finslerax.geometry import EuclideanSpace  # noqa: E402
from finslerax.models import PullbackRiemannian  # noqa: E402
from finslerax.solvers import GaussNewtonGeodesic  # noqa: E402

SEGMENTS = 64


def decoder(problem: dict[str, np.ndarray]):
    """One point z (d,) to mean and standard deviation side by side (2D,)."""
    p = {name: jnp.asarray(value) for name, value in problem.items()}
    depth = sum(name.startswith("W") for name in problem)

    def f(z):
        h = z
        for i in range(depth - 1):
            h = jnp.tanh(p[f"W{i}"] @ h + p[f"b{i}"])
        mean = jax.nn.sigmoid(p[f"W{depth - 1}"] @ h + p[f"b{depth - 1}"])
        exponent = p["bandwidths"] * jnp.square(z - p["centres"]).sum(-1)
        bumps = jnp.exp(-jnp.minimum(exponent, p["largest_exponent"]))
        return jnp.concatenate([mean, jax.lax.rsqrt(p["weight"] @ bumps + p["zeta"])])

    return f


def main() -> None:
    d = job.problem["a"].shape[1]
    f = decoder(job.problem)
    np.testing.assert_allclose(jax.vmap(f)(job.problem["a"]), job.problem["values"], rtol=1e-3, atol=1e-5)
    metric = PullbackRiemannian(EuclideanSpace(d), f)
    compiling = {}

    def one(a, b):
        return GaussNewtonGeodesic().solve(metric, a, b, n_steps=SEGMENTS).xs

    def single(a, b):
        return one(a[0], b[0])[None]

    def compiled(batch: int):
        shape = jax.ShapeDtypeStruct((batch, d), jnp.float32)
        begin = time.perf_counter()
        run = jax.jit(jax.vmap(one) if batch > 1 else single).lower(shape, shape).compile()
        compiling["compile_seconds"] = time.perf_counter() - begin
        return lambda a, b: np.asarray(run(a, b))

    versions = {"versions": {"finslerax": finslerax.__version__, "jax": jax.__version__}}
    run_plan(job, compiled, lambda xs: (xs, np.full(len(xs), -1)), lambda: versions | compiling)


if __name__ == "__main__":
    main()
