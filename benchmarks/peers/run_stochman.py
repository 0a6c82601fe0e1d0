"""stochman's cubic splines and Adam: at its defaults (``--setting default``), or with more of everything (``long``)."""

import numpy as np
import stochman
import torch
from common import POINTS, read_job, run_plan
from plain import PlainDecoder
from stochman.geodesic import geodesic_minimizing_energy
from stochman.manifold import EmbeddedManifold

LONG = {"max_iter": 600, "eval_grid": 64}
LONG_NODES = 20


class Expected(EmbeddedManifold):
    """The surface (mean, std): its curve energy is that of the expected metric."""

    def __init__(self, decoder: PlainDecoder) -> None:
        self.decoder = decoder

    def embed(self, points: torch.Tensor, jacobian: bool = False) -> torch.Tensor:
        assert not jacobian
        return self.decoder(points)


def main() -> None:
    job = read_job("--setting")
    torch.set_num_threads(job.threads)
    M = Expected(PlainDecoder(job.problem))

    def solve(a: np.ndarray, b: np.ndarray) -> object:
        p, q = torch.as_tensor(a), torch.as_tensor(b)
        if job.options.setting != "long":
            return M.connecting_geodesic(p, q)
        curve = stochman.CubicSpline(p, q, num_nodes=LONG_NODES)
        return curve, geodesic_minimizing_energy(curve, M, **LONG)

    def warm(batch: int) -> object:
        geodesic_minimizing_energy(_straight(job.problem, batch), M, max_iter=2)
        return solve

    versions = {"versions": {"stochman": stochman.__version__, "torch": torch.__version__}}
    run_plan(job, warm, _hand_over, lambda: versions)


def _straight(problem: dict, batch: int) -> stochman.CubicSpline:
    return stochman.CubicSpline(torch.as_tensor(problem["a"][:batch]), torch.as_tensor(problem["b"][:batch]))


def _hand_over(found: object) -> tuple[np.ndarray, np.ndarray]:
    """Its own spline, evaluated densely; its one flag holds for the whole batch."""
    curve, success = found
    with torch.no_grad():
        points = curve(torch.linspace(0, 1, POINTS)).reshape(len(curve), POINTS, -1).numpy()
    return points, np.full(len(points), int(success))


if __name__ == "__main__":
    main()
