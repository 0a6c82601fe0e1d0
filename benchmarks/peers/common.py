"""What every solver's script shares: its arguments, the clock, and the files that it leaves.

A script solves the pairs of one problem at several batch sizes and writes ``BATCH.npz`` after each, so that what a
time limit cuts short keeps the sizes that were done.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

POINTS = 1025  # on each curve that is handed over; the nodes of 32, 64 or 128 segments are among them
_CHEAP = 5.0  # seconds; what is faster is repeated
_REPEATS = 5


@dataclass
class Job:
    """One solver on one problem."""

    problem: Mapping[str, np.ndarray]
    folder: Path
    out: Path
    plan: list[tuple[int, int]]  # (batch, pairs)
    threads: int
    budget: float
    options: argparse.Namespace


def read_job(*extra: str) -> Job:
    """Read the command line, and stay on as many processors as the job has threads."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="where problem.npz is")
    parser.add_argument("out", type=Path)
    parser.add_argument("--plan", nargs="+", default=["1:4"], help="BATCH:PAIRS ...")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--budget", type=float, default=60.0, help="seconds for each batch size, where it can be cut")
    parser.add_argument("--once", action="store_true", help="run nothing twice")
    for name in extra:
        parser.add_argument(name)
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])
    options.out.mkdir(parents=True, exist_ok=True)
    plan = [(int(batch), int(pairs)) for batch, pairs in (item.split(":") for item in options.plan)]
    problem = dict(np.load(options.folder / "problem.npz"))
    return Job(problem, options.folder, options.out, plan, options.threads, options.budget, options)


Solve = Callable[[np.ndarray, np.ndarray], object]
"""From end points a, b, each (B, d), to a solver's own curves."""


def run_plan(
    job: Job,
    solver: Callable[[int], Solve],
    hand_over: Callable[[object], tuple[np.ndarray, np.ndarray]],
    about: Callable[[], dict[str, object]],
) -> None:
    """Time each batch size of the plan and write what came out.

    Parameters
    ----------
    job
        What is to be done.
    solver
        Gives the function to be timed for a batch size, warm.
    hand_over
        Turns what the solver returned to points (B, T, d) and flags (B,), not timed; a flag is 1, 0, or -1 where the
        solver does not say.
    about
        Facts to be stored beside: versions, the time that was spent on getting warm.
    """
    for batch, pairs in job.plan:
        solve = solver(batch)
        found, seconds = _timed(job, solve, batch, pairs)
        points, flags = (np.concatenate(parts) for parts in zip(*map(hand_over, found), strict=True))
        facts = json.dumps(about() | {"repeats": len(seconds)})
        np.savez(
            job.out / f"{batch}.npz",
            points=points.astype(np.float32),
            flags=flags,
            seconds=np.median(seconds) / len(points),
            about=facts,
        )


def _timed(job: Job, solve: Solve, batch: int, pairs: int) -> tuple[list[object], list[float]]:
    """Solve chunk after chunk while the budget lasts; repeat what was cheap."""
    a, b = job.problem["a"], job.problem["b"]
    chunks = [slice(i, i + batch) for i in range(0, pairs, batch)]
    begin, found = time.perf_counter(), []
    for chunk in chunks:
        found.append(solve(a[chunk], b[chunk]))
        if time.perf_counter() - begin > job.budget:
            break
    seconds = [time.perf_counter() - begin]
    while not job.options.once and sum(seconds) < _CHEAP and len(seconds) < _REPEATS:
        begin = time.perf_counter()
        for chunk, _ in zip(chunks, found, strict=False):
            solve(a[chunk], b[chunk])
        seconds.append(time.perf_counter() - begin)
    return found, seconds
