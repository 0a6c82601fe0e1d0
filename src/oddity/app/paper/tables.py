"""What was found beside what the paper reports, as a Markdown table."""

from collections.abc import Callable, Iterator
from typing import Any

from oddity.app.paper.circle import NAMES
from oddity.app.paper.circle import PAPER as CIRCLE
from oddity.app.paper.clustering import PAPER as CLUSTERING
from oddity.app.paper.lab import Record, by_model, paired
from oddity.app.paper.likelihood import PAPER as LIKELIHOOD

Row = tuple[str, ...]


def table(found: Record) -> str:
    """Lay out the records of all experiments that there are, one line for each figure.

    Where the runs of a repetition share a model, a second p is of the means of each model.

    Examples
    --------
    >>> print(table({"surface": {"geodesic": 3.0, "line": 3.5}}))
    | experiment | figure | paper | ours | Euclidean or baseline |
    |---|---|---|---|---|
    | surface | length between two points | picture | 3.00 | 3.50 |
    <BLANKLINE>
    """
    rows: list[Row] = []
    for name, record in found.items():
        if name in _ROWS:
            rows += _ROWS[name](record)
        elif name in _ROWS_OF_MODELS:
            rows += _ROWS_OF_MODELS[name](record, found["settings"][name]["repetitions"])
    lines = [("experiment", "figure", "paper", "ours", "Euclidean or baseline"), ("---",) * 5, *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines).replace("| --- " * 5 + "|", "|---" * 5 + "|")


def _surface(found: Record) -> Iterator[Row]:
    yield "surface", "length between two points", "picture", f"{found['geodesic']:.2f}", f"{found['line']:.2f}"


def _variance(found: Record) -> Iterator[Row]:
    for where in next(iter(found.values())):
        yield "variance", f"standard deviation {where}", "picture", *(f"{f[where]['std']:.2f}" for f in found.values())


def _clustering(found: Record, repetitions: int) -> Iterator[Row]:
    for digits, f in found.items():
        paper = CLUSTERING.get(digits)
        theirs = "" if paper is None else "{} ± {}; Euclidean {} ± {}".format(*paper["riemannian"], *paper["euclidean"])
        title = f"F-measure, digits {', '.join(digits)}, % (ahead by {f['paired']['ahead_by']:.1f}, {_p(f['paired'])}"
        title += f", over models {_p(_models(f['riemannian'], f['euclidean'], repetitions))})"
        yield "clustering", title, theirs, _mean(f["riemannian"], 2), _mean(f["euclidean"], 2)


def _interpolation(found: Record, repetitions: int) -> Iterator[Row]:
    for title, f in (
        ("unevenness of frames between 0 and 1", found),
        ("way from frame to frame between 0 and 1", found["way"]),
    ):
        test = f"{_p(found['paired' if f is found else 'paired_way'])}, over models "
        title = f"{title} ({test}{_p(_models(f['line'], f['geodesic'], repetitions))})"
        line = f"{_mean(f['line'], 2)}; at equal Riemannian steps {_mean(f['paced_line'], 2)}"
        yield "interpolation", title, "picture", _mean(f["geodesic"], 2), line


def _density(found: Record) -> Iterator[Row]:
    for title, land, gmm, test in (
        ("held-out log density, LAND and Gaussian mixture", "land", "gmm", "paired"),
        ("purity of the components", "land_purity", "gmm_purity", "paired_purity"),
    ):
        ours, theirs = (f"{sum(found[name]) / len(found[name]):.3f}" for name in (land, gmm))
        yield "density", f"{title} ({_p(found[test])})", "picture", ours, theirs
    yield (
        "density",
        "held-out codes that no geodesic reached, which count for neither",
        "",
        str(sum(found["left_out"])),
        "",
    )


def _walk(found: Record) -> Iterator[Row]:
    for title, f in (
        (f"share of steps in the data's support, T = {found['time']:g}", found),
        ("moved", found["moved"]),
    ):
        title = "root mean square way, in widths of the data" if title == "moved" else title
        yield "walk", title, "picture", _mean(f["riemannian"], 3), _mean(f["euclidean"], 3)


def _likelihood(found: Record) -> Iterator[Row]:
    title = f"test log p(x), digits 0 and 1, RBF and σ-network (ahead by {found['rbf'] - found['sigma_network']:.1f})"
    theirs = f"{LIKELIHOOD['rbf']}; σ-network {LIKELIHOOD['sigma_network']}"
    yield "log-likelihood", title, theirs, f"{found['rbf']:.2f}", f"{found['sigma_network']:.2f}"


def _circle(found: Record) -> Iterator[Row]:
    for name, f in found.items():
        correlation, hausdorff = CIRCLE[name]
        yield "circle", f"correlation, {NAMES[name]}", f"{correlation}", _mean(f["correlation"], 4), ""
        yield "circle", f"Hausdorff distance, {NAMES[name]}", f"{hausdorff or ''}", _mean(f["hausdorff"], 3), ""


def _mean(f: Record, digits: int) -> str:
    return f"{f['mean']:.{digits}f} ± {f['sd']:.{digits}f}"


def _models(ours: Record, theirs: Record, repetitions: int) -> Record:
    """Paired t test over the means of each model."""
    return paired(*(by_model(f["runs"], repetitions) for f in (ours, theirs)))


def _p(test: dict[str, Any]) -> str:
    return "no test" if test["p"] is None else f"p = {test['p']:.1g}"


_ROWS: dict[str, Callable[[Record], Iterator[Row]]] = {
    "surface": _surface,
    "variance": _variance,
    "density": _density,
    "walk": _walk,
    "log_likelihood": _likelihood,
    "circle": _circle,
}
_ROWS_OF_MODELS: dict[str, Callable[[Record, int], Iterator[Row]]] = {  # several runs share a model
    "clustering": _clustering,
    "interpolation": _interpolation,
}
