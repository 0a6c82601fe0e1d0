"""Our solver on the processor and on a CUDA device: ``python -m benchmarks.gpu``. Says so where there is none."""

import json
import statistics
import time
from collections.abc import Callable
from datetime import date

import torch

import oddity
from benchmarks.demo import RESULTS, machine
from benchmarks.problems import problem

DIMS = (2, 10)
BATCHES = (16, 256, 4096)
PROCESSOR_LIMIT = 120.0  # seconds; a batch that would take longer on the processor is left out there


def main() -> None:
    if not torch.cuda.is_available():
        print("no CUDA device here; nothing to compare")
        return
    figures = {"device": torch.cuda.get_device_name(), "machine": machine(), "date": str(date.today()), "rows": []}
    print(f"{figures['device']}; milliseconds a curve\n| d | batch | CPU | CUDA | largest difference of lengths |")
    print("| --- | --- | --- | --- | --- |")
    for d in DIMS:
        for row in compared(d):
            figures["rows"].append(row)
            print("| {d} | {batch} | {cpu_ms} | {cuda_ms} | {difference} |".format(**row), flush=True)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "gpu.json").write_text(json.dumps(figures, indent=2) + "\n")


def compared(d: int) -> list[dict[str, object]]:
    """One row for each batch size: seconds on both, and how far the lengths differ."""
    folder = problem(d) / "model"
    solvers = {device: _solver(oddity.load_model(folder), device) for device in ("cpu", "cuda")}
    rows, left = [], PROCESSOR_LIMIT
    for batch in BATCHES:
        a, b = _pairs(oddity.load_model(folder).codes, batch)
        cuda, seconds = _timed(lambda a=a, b=b: solvers["cuda"](a, b), 5)
        row: dict[str, object] = {"d": d, "batch": batch, "cuda_ms": round(1e3 * seconds / batch, 3)}
        row |= {"cpu_ms": None, "difference": None}
        if rows and rows[-1]["cpu_ms"] is not None:
            left = PROCESSOR_LIMIT - batch * rows[-1]["cpu_ms"] / 1e3
        if left > 0 and (not rows or rows[-1]["cpu_ms"] is not None):
            cpu, seconds = _timed(lambda a=a, b=b: solvers["cpu"](a, b), 1)
            row["cpu_ms"] = round(1e3 * seconds / batch, 3)
            row["difference"] = float(f"{float((cuda.length.cpu() / cpu.length - 1).abs().max()):.2g}")
        rows.append(row)
    return rows


def _solver(saved: oddity.SavedModel, device: str) -> Callable[[torch.Tensor, torch.Tensor], oddity.Geodesic]:
    M = oddity.expected_metric(saved.vae.decoder.to(device))
    roads = oddity.Roadmap(M, saved.codes.to(device))

    def solve(a: torch.Tensor, b: torch.Tensor) -> oddity.Geodesic:
        g = M.geodesic(a.to(device), b.to(device), init=roads)
        if device == "cuda":
            torch.cuda.synchronize()
        return g

    solve(saved.codes[:4], saved.codes[4:8])
    return solve


def _pairs(codes: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    i, j = torch.randint(len(codes), (2, count), generator=torch.Generator().manual_seed(0))
    return codes[i], codes[torch.where(i == j, (j + 1) % len(codes), j)]


def _timed(solve: Callable[[], oddity.Geodesic], repeats: int) -> tuple[oddity.Geodesic, float]:
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        found = solve()
        seconds.append(time.perf_counter() - begin)
    return found, statistics.median(seconds)


if __name__ == "__main__":
    main()
