"""Geodesic solvers side by side: ``python -m benchmarks.geodesics``, or ``make bench`` with the peers' environments.

All solvers get the same trained decoders and the same pairs. Each runs in a process of its own, with a time limit, and
hands over its curves; one function measures their true lengths (:mod:`benchmarks.measure`). Written to
``benchmarks/results``: ``geodesics.json``, ``excess.png`` (excess length against time) and ``scaling.png``.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import numpy as np

from benchmarks.demo import RESULTS, machine
from benchmarks.measure import true_lengths
from benchmarks.problems import WORK, problem

ROOT = Path(__file__).parent.parent
SCRIPTS = Path(__file__).parent / "peers"
DIMS = (2, 10, 30)
PARTS = ("oddity", "details", "scaling", "stochman", "stochman-long", "reference", "finslerax")  # slowest last


@dataclass(frozen=True)
class Solver:
    """One row of the table: a script, the environment it runs in, and how much it is given to do."""

    name: str
    title: str
    script: str
    environment: str
    plan: dict[int, str]  # dimension -> BATCH:PAIRS ...
    options: tuple[str, ...] = ()
    budget: dict[int, float] = field(default_factory=dict)  # seconds for each batch size, by dimension
    timeout: float = 300.0


SOLVERS = [
    Solver(
        "oddity",
        "Oddity",
        "run_oddity.py",
        ".venv",
        dict.fromkeys(DIMS, "1:16 16:64 256:256"),
        timeout=240,
    ),
    Solver(
        "stochman",
        "stochman, defaults",
        "run_stochman.py",
        ".venvs/stochman",
        {2: "1:8 16:32 256:256", 10: "1:8 16:32 256:256", 30: "1:4 16:16 256:256"},
        ("--setting", "default"),
    ),
    Solver(
        "stochman-long",
        "stochman, 600 steps",
        "run_stochman.py",
        ".venvs/stochman",
        {2: "1:2 16:16", 10: "1:2 16:16 256:256", 30: "1:1 16:16"},
        ("--setting", "long"),
        timeout=400,
    ),
    Solver(
        "finslerax",
        "finslerax",
        "run_finslerax.py",
        ".venvs/finslerax",
        {2: "1:8 16:16", 10: "1:4", 30: "1:2"},
        budget={2: 30, 10: 25, 30: 60},
        timeout=420,
    ),
]
"""Sized for two quiet cores: slow peers get fewer pairs and smaller batches, and the table says how many."""

QUICK = "1:1 4:4"


def main() -> None:
    args = _arguments()
    begin = time.perf_counter()
    args.deadline = begin + args.limit
    dims = [2] if args.quick else args.dims
    if not args.only:
        shutil.rmtree(curves(args), ignore_errors=True)
    problems = {d: problem(d, quick=args.quick) for d in dims}
    for part in PARTS:
        if args.only is None or part in args.only:
            run_part(part, problems, args)
            report(problems, args)
    figures = report(problems, args, seconds=time.perf_counter() - begin)
    print(table(figures["rows"]))
    print(json.dumps({k: v for k, v in figures.items() if k not in ("rows", "scaling")}, indent=2))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smoke test: tiny decoder, few pairs")
    parser.add_argument("--no-peers", action="store_true", help="our own solver only")
    parser.add_argument("--only", nargs="+", choices=PARTS, help="run these parts, and keep what the others left")
    parser.add_argument("--dims", nargs="+", type=int, choices=DIMS, default=list(DIMS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--limit", type=float, default=1200.0, help="seconds for the whole run; what is left is left out"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the results")
    return parser.parse_args()


# -- running ---------------------------------------------------------------------------------------------------------


def run_part(part: str, problems: dict[int, Path], args: argparse.Namespace) -> None:
    """Run one solver, or one of the other parts, on every problem that it is for."""
    solver = next((s for s in SOLVERS if s.name == part), None)
    if part in ("details", "scaling"):
        run_extra(part, problems[min(problems)], args)
    elif solver is None:
        for d, folder in problems.items():
            run_reference(d, folder, args)
    elif solver.environment != ".venv" and args.no_peers:
        print(f"{part} is left out", flush=True)
    elif not interpreter(solver).exists():
        print(f"no {solver.environment}: `make bench` builds it; its rows are left out", flush=True)
    else:
        for d, folder in problems.items():
            run(solver, d, folder, args)


def interpreter(solver: Solver) -> Path:
    return Path(sys.executable) if solver.environment == ".venv" else ROOT / solver.environment / "bin" / "python"


def curves(args: argparse.Namespace) -> Path:
    return WORK / ("quick-curves" if args.quick else "curves")


def run(solver: Solver, d: int, folder: Path, args: argparse.Namespace) -> None:
    out = curves(args) / f"d{d}" / solver.name
    shutil.rmtree(out, ignore_errors=True)
    plan = QUICK if args.quick else solver.plan[d]
    command = [interpreter(solver), SCRIPTS / solver.script, folder, out, "--plan", *plan.split(), *solver.options]
    command += ["--budget", solver.budget.get(d, 60.0), *(["--once"] if args.quick else [])]
    _call(f"d = {d:2d}  {solver.title}", command, args, solver.timeout)


def run_reference(d: int, folder: Path, args: argparse.Namespace) -> None:
    """Go on from the longest run of the peers, finer: not timed, and a candidate for the best length known."""
    starts = _by_batch(curves(args) / f"d{d}" / "stochman-long")
    if not starts:
        return
    out = curves(args) / f"d{d}" / "reference"
    shutil.rmtree(out, ignore_errors=True)
    count = len(np.load(starts[-1])["points"])
    command = [sys.executable, SCRIPTS / "run_oddity.py", folder, out, "--start", starts[-1]]
    _call(f"d = {d:2d}  reference", [*command, "--plan", f"{count}:{count}", "--once"], args, 240)


def run_extra(part: str, folder: Path, args: argparse.Namespace) -> None:
    out = curves(args) / f"{part}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.unlink(missing_ok=True)
    command = [sys.executable, "-m", f"benchmarks.{part}", folder, out, *(["--quick"] if args.quick else [])]
    _call(part, command, args, 400)


def _call(title: str, command: list[object], args: argparse.Namespace, timeout: float) -> None:
    """Run one process; a failure or a time-out is said and costs its own figures only."""
    print(f"{title} ...", end=" ", flush=True)
    begin = time.perf_counter()
    timeout = min(timeout, args.deadline - begin)
    if timeout < 1:
        print("left out: no time left, see --limit", flush=True)
        return
    threads = str(args.threads)
    environment = os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    parts = [str(part) for part in (*command, "--threads", threads)]
    try:
        done = subprocess.run(parts, timeout=timeout, cwd=ROOT, env=environment, capture_output=True, text=True)
        said = "" if done.returncode == 0 else f", FAILED: {(done.stderr.strip().splitlines() or ['?'])[-1]}"
    except subprocess.TimeoutExpired:
        said = f", stopped at its time limit of {timeout:.0f} s; the batch sizes that were done are kept"
    print(f"{time.perf_counter() - begin:.1f} s{said}", flush=True)


# -- the report ------------------------------------------------------------------------------------------------------


def report(problems: dict[int, Path], args: argparse.Namespace, seconds: float | None = None) -> dict[str, object]:
    """Write what is there so far."""
    rows = [row for d, folder in problems.items() for row in rows_of(d, folder, curves(args))]
    figures: dict[str, object] = {
        "rows": rows,
        "details": _read(curves(args) / "details.json"),
        "scaling": _read(curves(args) / "scaling.json"),
        "machine": machine(),
        "threads": args.threads,
        "versions": _versions(curves(args)),
        "date": str(date.today()),
        "notes": NOTES,
    }
    if seconds is not None:
        figures["seconds_of_this_run"] = round(seconds)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "geodesics.json").write_text(json.dumps(figures, indent=2) + "\n")
    if seconds is not None:
        from benchmarks import figures as draw

        draw.excess(rows, args.out / "excess.png", _caption(figures))
        if figures["scaling"]:
            draw.scaling(figures["scaling"], args.out / "scaling.png", _caption(figures))
    return figures


NOTES = [
    "seconds: wall-clock seconds a curve, warm; the median of up to five runs where a run is short",
    "excess: of the true length over the best length known of the pair, over all solvers, batches and the reference",
    "reference: Oddity on 128 segments from the curves of stochman's 600 steps; not timed, in no row",
    "true lengths: float64 chords of (mean, std) over 1,025 points of a curve, one function for all",
    "finslerax: compiled ahead of time, which is not in its seconds; a batch by jax.vmap, which gains it little",
    "stochman says for a whole batch at once whether it converged, finslerax does not say",
]


def rows_of(d: int, folder: Path, curves: Path) -> list[dict[str, object]]:
    """One row for each solver and batch size, with lengths held against the best known of each pair."""
    numbers = dict(np.load(folder / "problem.npz"))
    found = [
        (name, int(file.stem), dict(np.load(file)), _lengths(numbers, file))
        for name in [*(s.name for s in SOLVERS), "reference"]
        for file in _by_batch(curves / f"d{d}" / name)
    ]
    best = np.full(len(numbers["a"]), np.inf)
    for *_, lengths in found:
        best[: len(lengths)] = np.fmin(best[: len(lengths)], lengths)
    return [_row(d, *entry, best) for entry in found if entry[0] != "reference"]


def _by_batch(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.npz"), key=lambda file: int(file.stem))


def _lengths(numbers: dict[str, np.ndarray], file: Path) -> np.ndarray:
    """Lengths of a file of curves, measured once and kept beside it."""
    kept = file.with_suffix(".lengths.npy")
    if not kept.exists() or kept.stat().st_mtime < file.stat().st_mtime:
        np.save(kept, true_lengths(numbers, np.load(file)["points"]))
    return np.load(kept)


def _row(
    d: int, name: str, batch: int, found: dict[str, np.ndarray], lengths: np.ndarray, best: np.ndarray
) -> dict[str, object]:
    excess = 100 * (lengths / best[: len(lengths)] - 1)
    flags = found["flags"]
    about = json.loads(str(found["about"]))
    return {
        "d": d,
        "batch": batch,
        "solver": next(s.title for s in SOLVERS if s.name == name),
        "pairs": len(lengths),
        "seconds": float(f"{float(found['seconds']):.4g}"),
        "mean_excess_percent": round(float(excess.mean()), 4),
        "max_excess_percent": round(float(excess.max()), 4),
        "converged": None if (flags < 0).any() else int(flags.sum()),
    } | {key: round(about[key], 2) for key in ("roadmap_seconds", "compile_seconds", "repeats") if key in about}


def _read(file: Path) -> object:
    return json.loads(file.read_text()) if file.exists() else None


def _versions(curves: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for file in sorted(curves.glob("d*/*/*.npz")):
        found |= json.loads(str(np.load(file)["about"])).get("versions", {})
    return found


def _caption(figures: dict[str, object]) -> str:
    about = figures["machine"]
    return f"{about['processor']}, {figures['threads']} thread{'s' * (figures['threads'] > 1)}, {figures['date']}"


def table(rows: list[dict[str, object]]) -> str:
    """The rows as a table in Markdown."""
    head = ["d", "batch", "solver", "pairs", "ms a curve", "mean excess", "max excess", "converged"]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        converged = "not said" if row["converged"] is None else f"{row['converged']} of {row['pairs']}"
        excess = (f"{row[key]:.3f} %" for key in ("mean_excess_percent", "max_excess_percent"))
        start = (str(row[key]) for key in ("d", "batch", "solver", "pairs"))
        lines.append([*start, f"{1e3 * row['seconds']:,.1f}", *excess, converged])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
