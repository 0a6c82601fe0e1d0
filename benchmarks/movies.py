"""Whether geodesics keep to the data, on films whose frames are known.

``python -m benchmarks.movies [--part movies video colour motion] [--noise narrow] [--seeds reporting] [--d 2 3 10]``.
The frames of a film lie on a thin winding line, and their order is known: a geodesic from a frame to a later one should
pass the frames in between. It is judged by the distance of its decoded points from the nearest clean frame, at places
of equal decoded steps, beside the straight line and the data themselves. A noise is a line of ``NOISES``.

Choose by the seeds ``choosing``; the seeds ``reporting`` are for the figures that are told. Results are written one by
one, to ``benchmarks/results/movies.json``, and a second call goes on where the first was stopped (``--anew`` repeats).
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

import oddity
from benchmarks import figures
from benchmarks.demo import RESULTS, machine
from benchmarks.footage import CHOOSING, REPORTING, Film, Motion, Movie, Video

NOISES: dict[str, Callable[[Any, Tensor, Tensor], Any]] = {
    "default": oddity.add_uncertainty,
    "paper": partial(oddity.add_uncertainty, n_centres=64, a=2.0),
    "narrow": partial(oddity.add_uncertainty, n_centres=80, a=1.0),
}
PAIRS, FINE, PLACES = 15, 200, 61
STRETCHES = (4, 8, 16)  # frames from end to end where frames in between are held out
SHOWN, FILMED, PICTURED = 3, 11, 3  # pairs and frames of the figure, and the seed of its movie
FAR = 20  # frames from which on another code is one that should not be cut to


def pairs_of(film: Film, count: int = PAIRS, stretch: int | None = None) -> Tensor:
    """Rows of the training frames at both ends of some stretches of the film, drawn once and for all: ``(B, 2)``."""
    stretch = film.stretch if stretch is None else stretch
    row = {int(number): i for i, number in enumerate(film.numbers)}
    ends = []
    for clip in film.clips:
        for first in clip:
            last = (first + stretch) % len(film.clean) if film.closed else first + stretch
            if first in row and last in row and last in clip:
                ends.append((row[first], row[last]))
    chosen = np.random.default_rng(0).choice(len(ends), min(count, len(ends)), replace=False)
    return torch.tensor([ends[i] for i in chosen])


def neighbours(film: Film) -> Tensor:
    """Rows of the training frames that follow on each other: ``(E, 2)``."""
    clip = {number: i for i, run in enumerate(film.clips) for number in run}
    numbers = film.numbers.tolist()
    follow = [(i, i + 1) for i in range(len(numbers) - 1) if clip[numbers[i]] == clip[numbers[i + 1]]]
    return torch.tensor(follow + ([(len(numbers) - 1, 0)] if film.closed else []))


def quick(M: oddity.Manifold, film: Film) -> dict[str, float]:
    """What tells a metric's worth before any geodesic is solved.

    ``way``: length along the codes over their decoded length, 1 in a perfect corridor; ``gap``: the cost of a straight
    cut to the nearest code more than twenty frames away, over the decoded length of a stretch: above 1 a cut does not
    pay. The median over codes, and for a tenth of them it is below ``low gap``. ``tear``: the longest step from code to
    code over the median, which tells of the film, not of the metric.
    """
    z, numbers = film.codes, film.numbers
    a, b = neighbours(film).unbind(1)
    along = cost(M, z[a], z[b])
    with torch.no_grad():
        decoded = film.decoder(straight(z[a], z[b], 8)).diff(dim=1).norm(dim=-1).sum(1)
    each = decoded.sum() / ((numbers[b] - numbers[a]) % len(film.clean)).sum() * film.stretch
    away = (numbers[:, None] - numbers).abs()
    away = torch.minimum(away, len(film.clean) - away) if film.closed else away
    other = torch.cdist(z, z).masked_fill(away <= FAR, torch.inf).argmin(1)
    cuts = cost(M, z, z[other]) / each
    return {
        "tear": float((z[b] - z[a]).norm(dim=1).max() / (z[b] - z[a]).norm(dim=1).median()),
        "way": float(along.sum() / decoded.sum()),
        "gap": float(cuts.median()),
        "low gap": float(cuts.quantile(0.1)),
    }


def judge(M: oddity.Manifold, film: Film, pairs: Tensor) -> dict[str, Any]:
    """Geodesics, straight lines and the roadmap's paths between pairs of codes, held against the film.

    ``data`` is the distance of decoded codes to the nearest clean frame; ``along``, ``lines``, ``path`` and
    ``geodesics`` those of decoded curves at places of equal decoded steps, ``along`` that of the codes in between,
    joined by straight lines: as near as a curve can be hoped to come. ``ratio`` is (geodesics - data) / (lines - data);
    ``order`` is Spearman's correlation of t and the number of the nearest frame; ``length`` is a geodesic's length over
    that of the clean frames between its ends.
    """
    a, b = film.codes[pairs[:, 0]], film.codes[pairs[:, 1]]
    begin = time.perf_counter()
    roads = oddity.Roadmap(M, film.codes)
    mapped = time.perf_counter() - begin
    M.geodesic(a[:1], b[:1], init=roads)  # so that nobody's loops are compiled on the clock
    begin = time.perf_counter()
    g = M.geodesic(a, b, init=roads)
    seconds = (time.perf_counter() - begin) / len(pairs)
    curves = {
        "along": joined(film, pairs),
        "lines": straight(a, b, FINE),
        "path": roads.paths(a, b, FINE),
        "geodesics": g(torch.linspace(0, 1, FINE + 1)),
    }
    each: dict[str, np.ndarray] = {}
    with torch.no_grad():
        data = float(nearest(film.decoder(film.codes), film)[0].mean())
        for name, curve in curves.items():
            distance, frame = nearest(even(film.decoder(curve), PLACES), film)
            each[name] = distance.mean(1).numpy()
            if name == "geodesics":
                each["order"] = np.array([order(*row, film) for row in zip(frame, film.numbers[pairs], strict=True)])
    each["length"] = (g.length / between(film, film.numbers[pairs])).numpy()
    found = {name: float(values.mean()) for name, values in each.items()}
    return {
        "data": data,
        **found,
        "ratio": (found["geodesics"] - data) / (found["lines"] - data),
        "converged": float(g.converged.float().mean()),
        "seconds": seconds,
        "seconds of the roadmap": mapped,
        "pairs": {name: rounded(values.tolist()) for name, values in each.items()},
        "why": sorted({why for why in g.why if why}),
    }


def held_out(M: oddity.Manifold, film: Film, stretch: int) -> dict[str, float | None]:
    """How near curves come to frames that were not trained on, between training frames that are so many frames apart.

    ``own``: the distance of such a frame from what the decoder makes of its own code; ``error``: the same of training
    frames. ``nearer``: share of pairs whose frames are nearer to the geodesic, among those (``differ``) whose two
    curves are further from each other than the error, on average over places.
    """
    pairs = pairs_of(film, 2 * PAIRS, stretch)
    a, b = film.codes[pairs[:, 0]], film.codes[pairs[:, 1]]
    roads = oddity.Roadmap(M, film.codes)
    g = M.geodesic(a, b, init=roads)
    trained = set(film.numbers.tolist())
    hidden = [
        [number for number in range(first, last) if number not in trained]
        for first, last in film.numbers[pairs].tolist()
    ]
    curves = {"lines": straight(a, b, FINE), "path": roads.paths(a, b, FINE)}
    curves["geodesics"] = g(torch.linspace(0, 1, FINE + 1))
    with torch.no_grad():
        error = float((film.decoder(film.codes) - film.x).norm(dim=1).mean())
        frames = film.clean[sorted({number for row in hidden for number in row})]
        own = float((film.decoder(film.encode(frames)) - frames).norm(dim=1).mean())
        decoded = {name: film.decoder(curve) for name, curve in curves.items()}
    each = {
        name: torch.stack([apart(film.clean[row], curve).mean() for row, curve in zip(hidden, of, strict=True)])
        for name, of in decoded.items()
    }
    places = even(decoded["geodesics"], PLACES)
    differ = torch.stack([apart(*both).mean() for both in zip(places, decoded["lines"], strict=True)]) > error
    nearer = (each["geodesics"] < each["lines"])[differ]
    return {
        "error": error,
        "own": own,
        **{name: float(values.mean()) for name, values in each.items()},
        "differ": int(differ.sum()),
        "nearer": float(nearer.float().mean()) if len(nearer) else None,
        "converged": float(g.converged.float().mean()),
        "count": len(pairs),
    }


def apart(points: Tensor, curve: Tensor) -> Tensor:
    """Distance of each point to the nearest point of a curve: ``(n, D), (T, D) -> (n,)``."""
    return torch.cdist(points, curve, compute_mode="donot_use_mm_for_euclid_dist").amin(1)


def straight(a: Tensor, b: Tensor, n: int) -> Tensor:
    """Straight lines on n segments: ``(B, d) -> (B, n + 1, d)``."""
    return a[:, None] + torch.linspace(0, 1, n + 1)[:, None] * (b - a)[:, None]


def joined(film: Film, pairs: Tensor) -> Tensor:
    """The codes from one row to another of the same film, and straight lines between: ``(B, 2) -> (B, T, d)``."""
    count = int((pairs[0, 1] - pairs[0, 0]) % len(film.codes))
    corners = film.codes[(pairs[:, :1] + torch.arange(count + 1)) % len(film.codes)]
    fine = corners[:, :-1, None] + torch.linspace(0, 1, 9)[:8, None] * corners.diff(dim=1)[:, :, None]
    return torch.cat([fine.flatten(1, 2), corners[:, -1:]], 1)


def cost(M: oddity.Manifold, a: Tensor, b: Tensor) -> Tensor:
    """Riemannian lengths of straight lines."""
    with torch.no_grad():
        return M.length(straight(a, b, 32))


def even(decoded: Tensor, places: int) -> Tensor:
    """Decoded curves at places of equal decoded steps, linear between points: ``(B, T, D) -> (B, places, D)``."""
    way = torch.nn.functional.pad(decoded.diff(dim=1).norm(dim=-1).cumsum(1), (1, 0))
    goal = torch.linspace(0, 1, places) * way[:, -1:]
    side = (torch.searchsorted(way, goal, right=True) - 1).clamp(0, way.shape[1] - 2)
    start, end = way.gather(1, side), way.gather(1, side + 1)
    share = ((goal - start) / torch.where(end > start, end - start, 1.0)).clamp(0, 1)[..., None]
    left, right = (decoded.gather(1, (side + s)[..., None].expand(-1, -1, decoded.shape[-1])) for s in (0, 1))
    return left + share * (right - left)


def nearest(points: Tensor, film: Film) -> tuple[Tensor, Tensor]:
    """Distance to the nearest clean frame, and its number: ``(*, D) -> (*,)`` twice."""
    return torch.cdist(points, film.clean, compute_mode="donot_use_mm_for_euclid_dist").min(-1)


def order(frames: Tensor, ends: Tensor, film: Film) -> float:
    """Correlation in rank of the place on a curve and the nearest frame, counted from the first end of a loop."""
    first, last = ends.tolist()
    if film.closed:
        span = (last - first) % len(film.clean)
        back = (len(film.clean) - span) // 2  # so far back from the first end, and as far on from the last
        frames = (frames - first + back) % len(film.clean) - back
    if len(frames.unique()) == 1:
        return 0.0
    return float(spearmanr(np.arange(len(frames)), frames.numpy()).statistic)


def between(film: Film, ends: Tensor) -> Tensor:
    """Length of the way along the clean frames from one to another: ``(B, 2) -> (B,)``."""
    ways = []
    for first, last in ends.tolist():
        count = (last - first) % len(film.clean) if film.closed else last - first
        frames = film.clean[(first + torch.arange(count + 1)) % len(film.clean)]
        ways.append(frames.diff(dim=0).norm(dim=1).sum())
    return torch.stack(ways)


def rounded(values: Any) -> Any:
    """The same with four digits of each number."""
    if isinstance(values, dict):
        return {name: rounded(value) for name, value in values.items()}
    if isinstance(values, list):
        return [rounded(value) for value in values]
    return float(f"{values:.4g}") if isinstance(values, float) else values


def films(part: str, seeds: Sequence[int], dims: Sequence[int]) -> Iterator[Film]:
    for d in dims:
        if part == "movies":
            yield from (Movie.of(seed, d) for seed in seeds)
        elif part == "motion":
            yield Motion(d)
        else:
            yield Video(part == "colour", d)


def measured(film: Film, noise: str) -> dict[str, Any]:
    """One row of the table."""
    z, x = film.codes, film.x  # trained here, not on the clock
    begin = time.perf_counter()
    M = oddity.expected_metric(NOISES[noise](film.decoder, z, x))
    fitted = time.perf_counter() - begin
    row = {"film": film.name, "d": film.d, "noise": noise, "seconds of the noise": fitted}
    row |= quick(M, film) | judge(M, film, pairs_of(film))
    if len(film.numbers) < len(film.clean):
        row["held out"] = {str(stretch): held_out(M, film, stretch) for stretch in STRETCHES}
    return rounded(row)


def draw(movie: Movie, noise: str, file: Path) -> None:
    """Latent plane and frames of three pairs of a film."""
    M = oddity.expected_metric(NOISES[noise](movie.decoder, movie.codes, movie.x))
    pairs = pairs_of(movie)[:SHOWN]
    a, b = movie.codes[pairs[:, 0]], movie.codes[pairs[:, 1]]
    g = M.geodesic(a, b, init=oddity.Roadmap(M, movie.codes))
    curves = {"geodesic": g(torch.linspace(0, 1, FINE + 1)), "line": straight(a, b, FINE)}
    with torch.no_grad():
        strips = {kind: even(movie.decoder(curve), FILMED) for kind, curve in curves.items()}
    steps = torch.linspace(0, movie.stretch, FILMED).round().long()
    strips["true"] = movie.clean[(pairs[:, :1] + steps) % len(movie.clean)]
    low, high = movie.codes.amin(0), movie.codes.amax(0)
    low, high = low - 0.15 * (high - low), high + 0.15 * (high - low)
    x, y = (torch.linspace(float(low[i]), float(high[i]), 240) for i in range(2))
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)
    figures.movie(
        M.log_volume(grid).numpy(),
        (float(low[0]), float(high[0]), float(low[1]), float(high[1])),
        movie.codes.numpy(),
        [{kind: curve[i].numpy() for kind, curve in curves.items()} for i in range(SHOWN)],
        [{kind: strip[i].unflatten(-1, movie.shape).numpy() for kind, strip in strips.items()} for i in range(SHOWN)],
        file,
        f"a digit {movie.kind}, seed {movie.seed}; noise: {noise}; A, B, C and {movie.stretch} frames on",
    )


COLUMNS = (
    *("data", "along", "lines", "path", "geodesics", "ratio", "order", "length"),
    *("converged", "seconds", "way", "gap", "low gap", "tear"),
)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Plain text: a line for each film, and their mean for each noise and dimension."""
    head = f"{'film':<14}{'noise':<10}" + "".join(f"{name:>10}" for name in COLUMNS)
    lines = [head]
    for noise, d in sorted({(row["noise"], row["d"]) for row in rows}):
        mine = [row for row in rows if (row["noise"], row["d"]) == (noise, d)]
        mean = {
            name: float(np.mean([row[name] for row in mine])) for name in COLUMNS if all(name in row for row in mine)
        }
        lines += [_line(row) for row in [*mine, {"film": f"mean, d = {d}", "noise": noise} | mean]]
    held = [row for row in rows if "held out" in row]
    if held:
        names = ("error", "own", "lines", "path", "geodesics", "differ", "nearer", "converged", "count")
        lines += [
            "",
            "frames held out",
            f"{'film':<14}{'noise':<10}{'stretch':>10}" + "".join(f"{n:>10}" for n in names),
        ]
    for row in held:
        for stretch, found in row["held out"].items():
            numbers = "".join(f"{'-':>10}" if found[name] is None else f"{found[name]:>10.3f}" for name in names)
            lines.append(f"{row['film']:<14}{row['noise']:<10}{stretch:>10}{numbers}")
    return "\n".join(lines)


def _line(row: dict[str, Any]) -> str:
    return f"{row['film']:<14}{row['noise']:<10}" + "".join(
        f"{row[name]:>10.3f}" if name in row else f"{'-':>10}" for name in COLUMNS
    )


def main() -> None:
    args = _arguments()
    torch.set_num_threads(args.threads)
    kept = json.loads(args.json.read_text()) if args.json.exists() else {"rows": {}}
    seeds = CHOOSING if args.seeds == "choosing" else REPORTING
    for part in args.part:
        shown = []
        for film in films(part, seeds, args.d):
            for noise in args.noise:
                key = f"{part} {film.name} {noise}"
                if args.anew or key not in kept["rows"]:
                    kept["rows"][key] = measured(film, noise) | ({"seeds": args.seeds} if part == "movies" else {})
                    kept |= {"machine": machine(), "date": str(date.today())}
                    args.json.parent.mkdir(parents=True, exist_ok=True)
                    beside = args.json.with_suffix(".part")  # an interruption leaves what was there
                    beside.write_text(json.dumps(kept, indent=1) + "\n")
                    beside.replace(args.json)
                shown.append(kept["rows"][key])
                print(_line(shown[-1]), flush=True)
        print(f"\n{part}\n{table(shown)}\n", flush=True)
    if "movies" in args.part:
        draw(Movie.of(PICTURED), args.noise[0], args.json.with_suffix(".png"))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="+", choices=["movies", "video", "colour", "motion"], default=["movies"])
    parser.add_argument("--noise", nargs="+", choices=list(NOISES), default=["default"])
    parser.add_argument("--seeds", choices=["choosing", "reporting"], default="choosing")
    parser.add_argument("--d", nargs="+", type=int, default=[2])
    parser.add_argument("--json", type=Path, default=RESULTS / "movies.json", help="where results are kept")
    parser.add_argument("--threads", type=int, default=2, help="fewer on a busy machine")
    parser.add_argument("--anew", action="store_true", help="repeat what is there")
    return parser.parse_args()


if __name__ == "__main__":
    main()
