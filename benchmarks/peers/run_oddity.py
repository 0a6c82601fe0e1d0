"""Oddity's own solver: ``M.geodesic(a, b, init=roads)``, warm, the roadmap built beforehand and timed apart.

With ``--start FILE`` it is the untimed reference instead: it goes on from the curves of another solver on a finer grid,
so that "the best length known" is not only what the default settings find.
"""

import time

import numpy as np
import torch
from common import POINTS, read_job, run_plan

import oddity

REFERENCE = oddity.ChainSolver(segments=128)


def main() -> None:
    job = read_job("--start")
    torch.set_num_threads(job.threads)
    saved = oddity.load_model(job.folder / "model")
    M = oddity.expected_metric(saved.vae.decoder)
    begin = time.perf_counter()
    roads = oddity.Roadmap(M, saved.codes)
    about = {"roadmap_seconds": time.perf_counter() - begin, "codes": len(saved.codes)}
    about |= {"versions": {"oddity": oddity.__version__, "torch": torch.__version__}}

    def solve(a: np.ndarray, b: np.ndarray) -> object:
        return M.geodesic(torch.as_tensor(a), torch.as_tensor(b), init=roads)

    def resume(a: np.ndarray, b: np.ndarray) -> object:
        start = torch.as_tensor(np.load(job.options.start)["points"][: len(a), :: (POINTS - 1) // REFERENCE.segments])
        start[:, 0], start[:, -1] = torch.as_tensor(a), torch.as_tensor(b)
        return M.geodesic(torch.as_tensor(a), torch.as_tensor(b), init=start, solver=REFERENCE)

    def warm(batch: int) -> object:
        if job.options.start:
            return resume
        few = min(batch, 4)
        solve(job.problem["a"][-few:], job.problem["b"][-few:])
        return solve

    run_plan(job, warm, _hand_over, lambda: about)


def _hand_over(g: oddity.Geodesic) -> tuple[np.ndarray, np.ndarray]:
    """Its own curve, evaluated densely."""
    return g(torch.linspace(0, 1, POINTS)).numpy(), g.converged.numpy().astype(int)


if __name__ == "__main__":
    main()
