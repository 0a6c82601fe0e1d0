"""What the table does not show of our solver: where its time goes, its latency, its symmetry, and all pairs.

``python -m benchmarks.details FOLDER OUT.json`` for the problem in a folder of :mod:`benchmarks.problems`.
"""

import argparse
import contextlib
import json
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

import oddity
from oddity.numerics import descent, elements, layered, tiles
from oddity.numerics.autodiff import Differential
from oddity.numerics.bicubic import evaluated
from oddity.numerics.native import Kernel, Part


def main() -> None:
    args = arguments()
    torch.set_num_threads(args.threads)
    M, roads, a, b = loaded(args.folder, args.quick)
    figures = share_of_engine(M, roads, a, b) | latency(M, roads, a[: len(a) // 4], b[: len(b) // 4])
    figures |= symmetry(M, roads, a[:64], b[:64])
    args.out.write_text(json.dumps(figures))
    figures |= all_pairs(M, roads.codes[: 40 if args.quick else 1000], 10 if args.quick else 100)
    args.out.write_text(json.dumps(figures))
    figures["share_outside_decoder_passes_percent_by_dimension"] = {
        folder.name: share_of_engine(*loaded(folder, args.quick))["share_outside_decoder_passes_percent"]
        for folder in sorted(args.folder.parent.glob("d*"))
    }
    args.out.write_text(json.dumps(figures))


def loaded(folder: Path, quick: bool) -> tuple[oddity.Manifold, oddity.Roadmap, torch.Tensor, torch.Tensor]:
    """Metric, roadmap and pairs of a problem."""
    saved, numbers = oddity.load_model(folder / "model"), np.load(folder / "problem.npz")
    a, b = (torch.as_tensor(numbers[end][: 8 if quick else 256]) for end in "ab")
    M = oddity.expected_metric(saved.vae.decoder)
    return M, oddity.Roadmap(M, saved.codes), a, b


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true")
    return parser.parse_args()


# -- where the time goes ---------------------------------------------------------------------------------------------


class Clock:
    """Time spent inside of some functions, those that they call counted once."""

    def __init__(self) -> None:
        self.seconds, self.depth, self.begin = 0.0, 0, 0.0

    def timed(self, f: Callable) -> Callable:
        def run(*args: object, **kwargs: object) -> object:
            with self.running():
                return self._watching_bend(f(*args, **kwargs))

        return run

    def _watching_bend(self, result: object) -> object:
        """An expansion derives once more when it is asked for its bend."""
        return result._replace(bend=self.timed(result.bend)) if hasattr(result, "bend") else result

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        self.depth += 1
        if self.depth == 1:
            self.begin = time.perf_counter()
        try:
            yield
        finally:
            self.depth -= 1
            if self.depth == 0:
                self.seconds += time.perf_counter() - self.begin


def pulling_of(clock: Clock) -> property:
    """The transposed derivative in closed form, both ways of it timed."""
    known = Differential.pulling.fget

    def pulling(self: Differential) -> object:
        form = known(self)
        if form is None:
            return None

        def run(z: torch.Tensor) -> object:
            with clock.running():
                value, pull_back = form(z)
            return value, clock.timed(pull_back)

        return run

    return property(pulling)


@contextlib.contextmanager
def watched(owner: object, names: list[str]) -> Iterator[Clock]:
    """Time some functions of a class or a module, from outside."""
    clock, before = Clock(), {name: getattr(owner, name) for name in names}
    for name, f in before.items():
        setattr(owner, name, pulling_of(clock) if name == "pulling" else clock.timed(f))
    try:
        yield clock
    finally:
        for name, f in before.items():
            setattr(owner, name, f)


PASSES = ["__call__", "expand", "tangents", "push", "pull", "curvature", "second", "value_and_frame", "pulling"]


def share_of_engine(M: oddity.Manifold, roads: oddity.Roadmap, a: torch.Tensor, b: torch.Tensor) -> dict[str, object]:
    """Share of the time outside of forward and derivative passes of the decoder and its sketch, in one batch.

    Calls from Python are timed. Inside of compiled loops no clock is read: if the passes are made twice there, to the
    same end, all takes so much longer.
    """
    usual = [getattr(module, name) for module, name in KERNELS]
    totals: dict[bool, list[float]] = {False: [], True: []}
    from_python, begun = [], time.perf_counter()
    try:
        while len(from_python) < REPEATS or (time.perf_counter() - begun < ENOUGH and len(from_python) < MANY):
            for doubled in (False, True):
                for (module, name), known in zip(KERNELS, usual, strict=True):
                    setattr(module, name, KERNELS[module, name] if doubled else known)
                if not totals[doubled]:
                    M.geodesic(a[:4], b[:4], init=roads)  # compiles
                with watched(Differential, [name for name in PASSES if hasattr(Differential, name)]) as clock:
                    begin = time.perf_counter()
                    M.geodesic(a, b, init=roads)
                    totals[doubled].append(time.perf_counter() - begin)
                from_python += [] if doubled else [clock.seconds]
    finally:
        for (module, name), known in zip(KERNELS, usual, strict=True):
            setattr(module, name, known)
    total = min(totals[False])  # what disturbs a run makes it longer, never shorter
    in_passes = min(from_python) + min(totals[True]) - total
    return {
        "share_batch": len(a),
        "share_total_seconds": round(total, 3),
        "share_in_decoder_passes_seconds": round(in_passes, 3),
        "share_outside_decoder_passes_percent": round(100 * (1 - in_passes / total), 1),
    }


REPEATS, MANY, ENOUGH = 3, 25, 60.0  # runs of each kind, at least and at most, and seconds


def _run_twice(program, z, y, rows):
    _run(program, z, y, rows)
    _run(program, z, y, rows)


def _framed_twice(program, begin, final, z, y, frames, here, total, away, slope):
    _framed(program, begin, final, z, y, frames, here, total, away, slope)
    _framed(program, begin, final, z, y, frames, here, total, away, slope)


def _bent_twice(program, begin, final, y, work, whole, here, total, bend):
    before, weights = bend.copy(), work[4][0].copy()
    _bent(program, begin, final, y, work, whole, here, total, bend)
    bend[:] = before
    work[4][0][:] = weights
    _bent(program, begin, final, y, work, whole, here, total, bend)


def _pulled_twice(program, final, c, values, first, rows, gradient):
    nodes, some = slice(first - 1, first - 1 + tiles.ROWS), rows[: tiles.ROWS]
    before, weights = gradient[nodes].copy(), some.copy()
    _pulled(program, final, c, values, first, rows, gradient)
    gradient[nodes] = before
    some[:] = weights
    _pulled(program, final, c, values, first, rows, gradient)


def _evaluated_twice(points, values, rows, weights, low, steps, last):
    evaluated(points, values, rows, weights, low, steps, last)
    evaluated(points, values, rows, weights, low, steps, last)


_run, _framed, _bent, _pulled = layered._run, layered._framed, layered._bent, layered._pulled
_values = Part(layered.energy_in_layers.f, _run=Part(_run_twice))
_one = Part(layered._derived.f, _framed=Part(_framed_twice), _bent=Part(_bent_twice))
_own = {"energy_in_layers": _values, "slope_of": Part(layered.slope_of.f, _pulled=Part(_pulled_twice))}
_sketch = {"energy_of": _values, "derive": Part(layered.derive_in_layers.f, _derived=_one)}
_table = {"energy_of": Part(elements.energy_in_table.f, evaluated=Part(_evaluated_twice))}
KERNELS = {  # that make passes, and in their places those that make each pass twice
    (descent, "_solved_under_layers"): Kernel(descent._solved, **_own | _sketch),
    (descent, "_solved_in_table"): Kernel(descent._solved, **descent._solved_in_table.parts | _own | _table),
    (layered, "_squared"): Kernel(layered._squared.f, _run=Part(_run_twice)),
    (elements, "_squared"): Kernel(elements._squared.f, evaluated=Part(_evaluated_twice)),
}


# -- one pair, both ways, all pairs ----------------------------------------------------------------------------------


def latency(
    M: oddity.Manifold, roads: oddity.Roadmap, a: torch.Tensor, b: torch.Tensor, repeats: int = 5
) -> dict[str, object]:
    """Milliseconds of a single pair, warm: each of some pairs several times, one after another."""

    def one(i: int, init: object) -> float:
        begin = time.perf_counter()
        M.geodesic(a[i], b[i], init=init)
        return 1e3 * (time.perf_counter() - begin)

    figures: dict[str, object] = {}
    for name, init in (("line", None), ("roadmap", roads)):
        one(0, init)
        medians = [statistics.median(one(i, init) for _ in range(repeats)) for i in range(min(16, len(a)))]
        figures[f"single_pair_ms_from_{name}_median"] = round(statistics.median(medians), 1)
        figures[f"single_pair_ms_from_{name}_worst"] = round(max(medians), 1)
    return figures


def symmetry(M: oddity.Manifold, roads: oddity.Roadmap, a: torch.Tensor, b: torch.Tensor) -> dict[str, object]:
    """Largest relative difference of dist(a, b) and dist(b, a), and whether dist(a, a) is zero."""
    with torch.no_grad():
        there, back = M.dist(a, b, init=roads), M.dist(b, a, init=roads)
        nothing = M.dist(a, a, init=roads)
    error = ((there - back).abs() / there).sort().values
    return {
        "symmetry_error_median": float(error[len(error) // 2]),
        "symmetry_error_max": float(error[-1]),
        "symmetry_pairs_over_1e-6": int((error > 1e-6).sum()),
        "symmetry_pairs": len(a),
        "distance_to_itself_max": float(nothing.max()),
    }


def all_pairs(M: oddity.Manifold, codes: torch.Tensor, sample: int) -> dict[str, object]:
    """The whole matrix by the default method, against exact geodesics of a sample of pairs."""
    if not hasattr(oddity, "pairwise_distances"):
        return {}
    before = _peak_mib()
    begin = time.perf_counter()
    found = oddity.pairwise_distances(M, codes)
    seconds = time.perf_counter() - begin
    peak = _peak_mib()
    D = torch.as_tensor(np.array(found))
    rng = np.random.default_rng(1)
    i, j = np.array([rng.choice(len(codes), 2, replace=False) for _ in range(sample)]).T
    exact = M.geodesic(codes[i], codes[j], init=oddity.Roadmap(M, codes)).length
    error = (D[i, j] / exact - 1).abs()
    return {
        "all_pairs_codes": len(codes),
        "all_pairs_method": repr(found),
        "all_pairs_seconds": round(seconds, 2),
        "all_pairs_peak_mib": round(peak),
        "all_pairs_mib_before": round(before),
        "all_pairs_median_error_percent": round(100 * float(error.median()), 3),
        "all_pairs_max_error_percent": round(100 * float(error.max()), 3),
        "all_pairs_sample": sample,
    }


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
