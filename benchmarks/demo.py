"""What the demonstration costs and how exact its metric is: ``python -m benchmarks.demo``.

Runs ``oddity demo`` as a whole process, then holds the trained decoder against independent derivatives and Monte
Carlo, and writes ``benchmarks/results/demo.json``. Every figure in the README's first table comes from there.
"""

import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import torch
from torch import Tensor
from torch.func import jacrev, vmap

import oddity

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        figures = run_demo(Path(folder))
        saved = oddity.load_model(Path(folder) / "model")
    figures |= metric_error(saved)
    figures |= noise_off_the_data(saved)
    figures |= {"machine": machine(), "date": str(date.today())}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "demo.json").write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures, indent=2))


def machine() -> dict[str, object]:
    names = [line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def run_demo(folder: Path) -> dict[str, object]:
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-m", "oddity", "demo", "--out", str(folder)], check=True)
    seconds = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    pairs = json.loads((folder / "summary.json").read_text())["geodesics"]
    return {
        "demo_seconds": round(seconds, 1),
        "demo_peak_mib": round(peak),
        "geodesics": len(pairs),
        "geodesics_converged": sum(pair["converged"] for pair in pairs),
        "geodesics_longer_than_their_line": sum(pair["length"] > pair["straight_length"] for pair in pairs),
        "largest_ratio_to_the_line": max(pair["ratio"] for pair in pairs),
        "smallest_ratio_to_the_line": min(pair["ratio"] for pair in pairs),
    }


def metric_error(saved: oddity.SavedModel, points: int = 50, draws: int = 2000) -> dict[str, object]:
    """The expected metric against jacrev in float64, and against Monte Carlo over the noise."""
    decoder = saved.vae.decoder.double()
    assert saved.codes is not None
    z = saved.codes[:: len(saved.codes) // points][:points].double()
    J_mu, J_sigma = (vmap(jacrev(lambda x, f=f: f(x[None])[0]))(z) for f in (decoder.mean, decoder.std))
    expected = J_mu.mT @ J_mu + J_sigma.mT @ J_sigma
    M = oddity.expected_metric(decoder).metric(z)
    error = (torch.linalg.matrix_norm(M - expected) / torch.linalg.matrix_norm(expected)).max()
    sigmas = torch.stack([_sigmas(M[i], J_mu[i], J_sigma[i], draws) for i in range(5)])
    return {
        "metric_relative_error_against_jacrev": float(error),
        "metric_largest_deviation_from_monte_carlo_in_sigmas": float(sigmas.max()),
    }


def _sigmas(M: Tensor, J_mu: Tensor, J_sigma: Tensor, draws: int) -> Tensor:
    """How many standard errors the expected metric lies from the mean over draws of eps."""
    eps = torch.randn(draws, len(J_mu), 1, dtype=M.dtype, generator=torch.Generator().manual_seed(0))
    J = J_mu + eps * J_sigma
    samples = J.mT @ J
    return ((samples.mean(0) - M).abs() / (samples.std(0) / draws**0.5)).max()


def noise_off_the_data(saved: oddity.SavedModel) -> dict[str, object]:
    """Mean standard deviation at the codes and on a circle far outside of them."""
    decoder = saved.vae.decoder.double()
    assert saved.codes is not None
    codes = saved.codes.double()
    angle = torch.linspace(0, 2 * torch.pi, 100, dtype=torch.float64)
    far = codes.mean(0) + 8 * codes.std() * torch.stack([angle.cos(), angle.sin()], -1)
    return {
        "std_at_the_codes": float(decoder.std(codes).mean()),
        "std_far_outside_least": float(decoder.std(far).mean(-1).min()),
        "std_limit": float(decoder.scale.zeta.min() ** -0.5),
    }


if __name__ == "__main__":
    main()
