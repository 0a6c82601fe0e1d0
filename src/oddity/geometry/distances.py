"""Distances between all pairs: a global approximation, exact solutions where they are wanted, an honest rest.

A geodesic costs a tenth of a second, and half a million of them a day. The shortest paths on a graph cost next to
nothing, and their error is a matter of the graph: along ten nearest codes a path zigzags and comes out a tenth too
long, along sixty neighbours among codes and a grid of waypoints it is half a per cent.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from joblib import Parallel, delayed
from numpy.typing import NDArray
from torch import Tensor

from oddity._files import check_readable, held, reserve
from oddity.geometry.connect import ChainSolver
from oddity.geometry.manifold import Manifold, in_chart
from oddity.geometry.roadmap import Roadmap
from oddity.numerics.ambient import door, doors
from oddity.numerics.graph import components, distances_from, knn_edges

__all__ = ["Distances", "neighbour_graph", "pairwise_distances"]

Method: TypeAlias = Literal["refined", "exact", "graph"]
Progress: TypeAlias = Callable[[str, int, int], None]
Numbers: TypeAlias = NDArray[np.int64]

_METHODS = ("refined", "exact", "graph")
_WAYPOINTS = (
    1600  # points of the grid; from 1024 to 2304 the median error fell from 0.54 to 0.44 %, at 1.6 times the edges
)
_GRID_DIM = 2  # in three dimensions 1600 waypoints are too sparse to beat long edges between the codes
_NEIGHBOURS = 64, 256  # with waypoints, and over the points alone, where only long edges avoid the zigzag
_STEPS = 8  # segments of an edge
_PADDING = 0.05  # of the codes' box on each side: geodesics bulge
_SURELY = 0.95  # quantile of the graph's errors that a search for the nearest allows for
_FORMULA_BLOCK = 128  # times as many pairs in a block where geodesics have a formula


@doors
@dataclass(frozen=True, eq=False, repr=False)
class Distances:
    """A matrix of distances, and how far to believe it.

    NumPy and scikit-learn take it for the matrix itself: ``DBSCAN(metric="precomputed").fit(D)``.

    Attributes
    ----------
    values : ndarray
        ``(n, m)``, in the dtype of the points; a memory map where a file was given.
    pairs : int
        Pairs of different points, each counted once.
    solved : int
        Those of them whose geodesic was solved; the others are lengths of paths on the graph.
    failed : ndarray
        ``(F, 2)``, rows and columns of the solved pairs that did not converge. Their values stand as the solver
        left them.
    why : list of str
        The reason of each.
    errors : ndarray
        ``(S,)``, relative errors of the graph, approximation over exact less one, over a random sample of the
        pairs that were not solved for any other reason. Empty where there was no sample.

    Examples
    --------
    >>> import oddity
    >>> oddity.pairwise_distances(oddity.Sphere(2), torch.eye(2)).values.round(4)
    array([[0.    , 1.5708],
           [1.5708, 0.    ]], dtype=float32)
    """

    values: NDArray[Any]
    pairs: int
    solved: int
    failed: Numbers
    why: list[str]
    errors: NDArray[np.float64]

    @property
    def error(self) -> float:
        """Median relative error of the pairs that were not solved: 0 where all were, NaN where there was no sample."""
        if self.solved == self.pairs:
            return 0.0
        return float(np.median(np.abs(self.errors))) if len(self.errors) else math.nan

    @property
    def shape(self) -> tuple[int, ...]:
        """``(n, m)``."""
        return self.values.shape

    def __len__(self) -> int:
        return len(self.values)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        values = np.asarray(self.values, dtype=dtype)
        return values.copy() if copy else values

    def require(self) -> Distances:
        """Return self, or raise if any solved pair did not converge.

        Raises
        ------
        RuntimeError
            Naming how many failed, and the reason of the first.
        """
        if len(self.failed) == 0:
            return self
        i, j = self.failed[0]
        raise RuntimeError(
            f"{len(self.failed)} of {self.solved} geodesics did not converge; that from {i} to {j}: {self.why[0]}"
        )

    def __repr__(self) -> str:
        n, m = self.shape
        rest = "" if self.solved == self.pairs else f", graph error {100 * self.error:.2g} %"
        return f"Distances({n} x {m}, {self.solved} of {self.pairs} pairs solved, {len(self.failed)} failed{rest})"


@door
def pairwise_distances(
    M: Manifold,
    z: Tensor,
    z2: Tensor | None = None,
    *,
    method: Method = "refined",
    nearest: int = 0,
    within: float = 0.0,
    sample: int = 64,
    k: int | None = None,
    bridge: bool = False,
    solver: ChainSolver | None = None,
    block: int = 32,
    out: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    generator: torch.Generator | None = None,
) -> Distances:
    """Geodesic distances between all pairs of points.

    ``"refined"`` measures shortest paths on a graph of the points and, in one and two dimensions, of a grid of
    waypoints around them. Then it solves the pairs that are asked for: the ``nearest`` of each point and those
    ``within`` a distance. A random sample of the rest is solved too, and says how far the rest is off.
    ``"exact"`` solves every pair, each from the straight line and from its path on the same graph. ``"graph"``
    measures shortest paths over the points alone and solves nothing. On spaces with a formula, such as
    :class:`~oddity.Sphere`, ``"refined"`` is ``"exact"``.

    The work runs through joblib: ``joblib.parallel_config(n_jobs=2)`` gives it two processes,
    ``joblib.parallel_config(backend="dask")`` a cluster.

    Parameters
    ----------
    M
        The manifold.
    z, z2
        ``(n, d)`` and ``(m, d)``; without z2 the distances are those within z.
    method
        ``"refined"``, ``"exact"`` or ``"graph"``.
    nearest
        Solve, for each point of z, the pairs with this many nearest points. Those that the graph's error could
        hide among them are solved as well.
    within
        Solve the pairs that are closer than this.
    sample
        Random pairs to solve, from which the error of the others is estimated.
    k
        Neighbours of each point in the graph; default 64, and 256 in more than two dimensions.
    bridge
        Join separate parts of the graph by their shortest gaps, whose Riemannian lengths then say what the
        crossing costs.
    solver
        Settings of the geodesics.
    block
        Pairs solved, or rows filled, at a time; memory beside the matrix grows with it.
    out
        A new ``.npy`` file to hold the matrix as a memory map. While the work goes on, it stands in
        ``out.part``, its whole room on the disk taken at the start, with a journal in ``out.journal``; the same call
        goes on from there after an interruption, and ends in the same matrix.
    progress
        Called as ``progress(stage, done, blocks)`` after each block.
    generator
        For the sample; by default one of its own, the same for each call.

    Returns
    -------
    Distances
        With the error and the failures. The matrix within z is symmetric with an exactly zero diagonal. A
        geodesic that does not converge keeps its value and is counted.

    Raises
    ------
    ValueError
        If the points or settings are unusable, the graph falls apart into parts (named, with their sizes) and
        ``bridge`` is False, or ``out`` holds the beginning of another computation, or a damaged one.
    FileExistsError
        If ``out`` exists.
    BlockingIOError
        If another process is at work on ``out``.
    OSError
        If the disk has no room for the matrix; nothing is then left of it.

    Notes
    -----
    Up to quadrature, a path on the graph is never shorter than the geodesic. On a trained decoder of MNIST digits
    (784 outputs, 1,000 codes) the median error was 0.5 % in two dimensions, 2 % in three and 8 % in ten, where
    a thousand codes leave most ways unlined.

    Tenenbaum, de Silva, Langford, "A Global Geometric Framework for Nonlinear
    Dimensionality Reduction", Science 2000; Chen et al., "Fast Approximate Geodesics for Deep Generative
    Models", ICANN 2019.

    Examples
    --------
    >>> import oddity
    >>> paraboloid = oddity.Pullback(lambda z: torch.cat([z, z.square().sum(-1, keepdim=True)], -1))
    >>> z = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    >>> D = pairwise_distances(paraboloid, z, sample=8)
    >>> D.shape, D.solved, D.error < 0.01
    ((40, 40), 8, True)
    """
    same = z2 is None
    _admit(M, z, z if z2 is None else z2)
    z = z.detach()
    z2 = z if z2 is None else z2.detach()
    _admit_settings(method, nearest, within, sample, k, block, len(z2) - same)
    if has_formula := type(M).geodesic is not Manifold.geodesic:
        block *= _FORMULA_BLOCK
        method = "exact" if method == "refined" else method
    target = _target(out)
    pairs = _Pairs(len(z), len(z2), same)
    settings = f"{method} {nearest} {within} {sample} {k} {bridge} {solver} {block}"
    computation = _fingerprint(M, z, z2, same, settings)
    with _Ledger.opened((len(z), len(z2)), str(z.dtype)[6:], target, computation) as ledger:
        graph = _Graph.absent()
        if len(pairs) and not (has_formula and method == "exact"):
            graph = neighbour_graph(M, z, z2, k, grid=method != "graph", bridge=bridge or method == "exact")
        work = _Work(M, z, z2, pairs, graph, solver, block, ledger, progress)
        if method == "exact":
            work.solve("geodesics", len(pairs), lambda at: np.arange(at.start, at.stop))
        else:
            work.measure()
            if method == "refined":
                work.refine(nearest, within, sample, _seed(generator))
        return ledger.close(len(pairs))


def _seed(generator: torch.Generator | None) -> int:
    if generator is None:
        return 0
    return int(torch.randint(2**31, (), generator=generator, device=generator.device))


# -- at the door ------------------------------------------------------------------------------------------------------


def _admit(M: Manifold, z: Tensor, z2: Tensor) -> None:
    for name, points in (("z", z), ("z2", z2)):
        M.admit(points, name)
        if points.ndim != 2:
            raise ValueError(f"{name} has shape {tuple(points.shape)}; give points in rows, (n, d)")
    if z.dtype != z2.dtype or z.device != z2.device:
        raise ValueError(f"z is {z.dtype} on {z.device} but z2 is {z2.dtype} on {z2.device}; bring them together")
    if z.shape[1] != z2.shape[1]:
        raise ValueError(f"z has {z.shape[1]} coordinates but z2 has {z2.shape[1]}")


def _admit_settings(
    method: str, nearest: int, within: float, sample: int, k: int | None, block: int, others: int
) -> None:
    if method not in _METHODS:
        raise ValueError(f"unknown method {method!r}; choose {', '.join(_METHODS)}")
    if method != "refined" and (nearest or within):
        raise ValueError(f"nearest and within are for the method 'refined'; {method!r} has no use for them")
    if not 0 <= nearest <= max(others, 0):
        raise ValueError(f"nearest is {nearest}, but each point has {max(others, 0)} others")
    if not 0 <= within < math.inf:
        raise ValueError(f"within is {within}; give a distance, or 0 for none")
    if sample < 0 or block < 1 or (k is not None and k < 1):
        raise ValueError(f"sample must be at least 0, block and k at least 1, got {sample}, {block} and {k}")


def _fingerprint(M: Manifold, z: Tensor, z2: Tensor, same: bool, settings: str) -> str:
    """Tell computations apart, by their points, settings and the metric at some of the points."""
    digest = hashlib.sha256(f"{M} {same} {settings} {z.dtype} {tuple(z.shape)}".encode())
    for points in (z, z2):
        digest.update(points.cpu().numpy().tobytes())
    with torch.no_grad():
        metric = M.metric(z[:: max(1, len(z) // 8)]).flatten().tolist()
    digest.update(" ".join(f"{g:.3g}" for g in metric).encode())  # not its last digits: they vary with the threads
    return digest.hexdigest()


def _target(out: str | os.PathLike[str] | None) -> Path | None:
    """Refuse a file that cannot take the matrix, before the work."""
    if out is None:
        return None
    path = Path(out)
    if path.suffix != ".npy":
        raise ValueError(f"{path} does not end in .npy, the format of the matrix")
    if os.path.lexists(path):
        raise FileExistsError(f"{path} exists already: name another file, or remove it")
    return path


# -- the graph --------------------------------------------------------------------------------------------------------


class _Graph(NamedTuple):
    """A roadmap, and which of its nodes are the points."""

    roads: Roadmap | None  # none where there are no two nodes, or no need of one
    rows: Numbers  # (n,)
    columns: Numbers  # (m,)

    @classmethod
    def absent(cls) -> _Graph:
        """Stand for no graph."""
        return cls(None, np.empty(0, np.int64), np.empty(0, np.int64))


def neighbour_graph(M: Manifold, z: Tensor, z2: Tensor, k: int | None, *, grid: bool, bridge: bool) -> _Graph:
    """Graph of the points, with a grid of waypoints around them where that can fill the space."""
    points = z if z2 is z else torch.cat([z, z2])
    waypoints = _waypoints(M, points) if grid else points[:0]
    nodes, place = _distinct(torch.cat([points, waypoints]))
    rows, columns = place[: len(z)], place[len(points) - len(z2) : len(points)]
    most = len(nodes) - 1
    if most == 0:
        return _Graph(None, rows, columns)
    if k is not None and k > most:
        raise ValueError(f"k is {k}, but a node of the graph has {most} others")
    k = k or min(_NEIGHBOURS[z.shape[1] > _GRID_DIM], most)
    if not bridge:
        _require_one_part(nodes, k, place[: len(points)], len(z))
    return _Graph(Roadmap(M, nodes, k=k, steps=_STEPS), rows, columns)


def _waypoints(M: Manifold, points: Tensor) -> Tensor:
    """Points of a grid over the box of the given points, those in the chart: ``(n, d) -> (W, d)``."""
    d = points.shape[1]
    if d > _GRID_DIM:
        return points[:0]
    low, high = points.aminmax(dim=0)
    margin = _PADDING * (high - low)
    side = round(_WAYPOINTS ** (1 / d))
    share = torch.linspace(0, 1, side, dtype=points.dtype, device=points.device)
    grid = torch.stack(torch.meshgrid(*[share] * d, indexing="ij"), -1).reshape(-1, d)
    grid = low - margin + grid * (high - low + 2 * margin)
    grid = grid[in_chart(M, grid)]
    with torch.no_grad():
        return grid[M.metric(grid).isfinite().all(-1).all(-1)]


def _distinct(points: Tensor) -> tuple[Tensor, Numbers]:
    """Return the different points in order of appearance, and where each point went."""
    _, first, inverse = np.unique(points.cpu().numpy(), axis=0, return_index=True, return_inverse=True)
    order = first.argsort()
    return points[torch.from_numpy(np.sort(first)).to(points.device)], order.argsort()[inverse.reshape(-1)]


def _require_one_part(nodes: Tensor, k: int, place: Numbers, n: int) -> None:
    part = components(len(nodes), knn_edges(nodes.cpu().numpy(), k))[place]
    names, first, sizes = np.unique(part, return_index=True, return_counts=True)
    if len(names) == 1:
        return
    largest = sizes.argsort()[::-1]
    listed = [f"{sizes[p]} with {_name(first[p], n)}" for p in largest[:5]] + ["..."] * (len(names) > 5)
    raise ValueError(
        f"the graph of {k} neighbours falls apart into {len(names)} parts: of the {len(place)} points, "
        f"{', '.join(listed)}; raise k, or join the parts by their shortest gaps with bridge=True"
    )


def _name(index: int, n: int) -> str:
    return f"z[{index}]" if index < n else f"z2[{index - n}]"


# -- the work ---------------------------------------------------------------------------------------------------------


class _Pairs:
    """Numbers for the pairs of n points with m, row by row; of n points among themselves, those above the diagonal."""

    def __init__(self, n: int, m: int, same: bool) -> None:
        self.n, self.m, self.same = n, m, same
        self._row_ends = np.cumsum(m - 1 - np.arange(n) if same else np.full(n, m))

    def __len__(self) -> int:
        return int(self._row_ends[-1]) if self.n else 0

    def places(self, numbers: Numbers) -> tuple[Numbers, Numbers]:
        """Rows and columns of the numbered pairs."""
        row = np.searchsorted(self._row_ends, numbers, side="right")
        return row, numbers - self._row_ends[row] + self.m

    def numbers(self, i: Numbers, j: Numbers) -> Numbers:
        """Numbers of the pairs at rows i and columns j."""
        if self.same:
            i, j = np.minimum(i, j), np.maximum(i, j)
        return self._row_ends[i] + j - self.m


@dataclass
class _Work:
    """What every stage of one call shares."""

    M: Manifold
    z: Tensor
    z2: Tensor
    pairs: _Pairs
    graph: _Graph
    solver: ChainSolver | None
    block: int
    ledger: _Ledger
    progress: Progress | None

    def measure(self) -> None:
        """Fill the matrix with the lengths of shortest paths."""
        graph, roads = self.graph, self.graph.roads
        if roads is None:
            return
        shared = len(roads.codes), roads.edges.cpu().numpy(), roads.lengths.cpu().numpy()
        blocks = _blocks(len(self.z), self.block)
        for at, field in self._run("graph", blocks, lambda at: delayed(_paths)(*shared, graph.rows[at], graph.columns)):
            self._write_rows(at, field)
            self.ledger.add("graph")

    def _write_rows(self, at: slice, field: NDArray[np.float64]) -> None:
        values = self.ledger.values
        if not self.pairs.same:
            values[at] = field
            return
        upper = np.triu(field[:, at], 1)  # each sum taken in one direction only: symmetric to the last bit
        values[at, at] = upper + upper.T
        values[at, at.stop :] = field[:, at.stop :]
        values[at.stop :, at] = field[:, at.stop :].T

    def refine(self, nearest: int, within: float, sample: int, seed: int) -> None:
        """Solve a random sample, then the pairs that the caller needs."""
        drawn = self.ledger.recall("drawn", lambda: self._draw(sample, seed))
        numbers = np.array(drawn["numbers"], np.int64)
        self.solve("sample", len(numbers), lambda at: numbers[at])
        errors = self._errors(numbers, np.array(drawn["paths"]))
        margin = float(np.quantile(np.abs(errors[~np.isnan(errors)]), _SURELY)) if not np.isnan(errors).all() else 0.0
        wanted = self.ledger.recall("wanted", lambda: {"numbers": self._wanted(nearest, within, margin).tolist()})
        rest = np.setdiff1d(np.array(wanted["numbers"], np.int64), numbers)
        self.solve("refinement", len(rest), lambda at: rest[at])
        self.ledger.errors = errors[~np.isin(numbers, wanted["numbers"]) & ~np.isnan(errors)]

    def _draw(self, sample: int, seed: int) -> dict[str, Any]:
        """Random pairs, and what the graph says of them."""
        count = len(self.pairs)
        numbers = np.sort(np.random.default_rng(seed).choice(count, min(sample, count), replace=False))
        return {"numbers": numbers.tolist(), "paths": self.ledger.values[self.pairs.places(numbers)].tolist()}

    def _errors(self, numbers: Numbers, paths: NDArray[np.float64]) -> NDArray[np.float64]:
        """Relative errors of the graph's paths by the solved lengths; NaN where a solution is no measure."""
        places = self.pairs.places(numbers)
        length = self.ledger.values[places].astype(np.float64)
        failed = {(i, j) for i, j, _ in self.ledger.failures()}
        sound = (length > 0) & np.array([place not in failed for place in zip(*places, strict=True)], bool)
        return paths / np.where(sound, length, np.nan) - 1

    def _wanted(self, nearest: int, within: float, margin: float) -> Numbers:
        """Pairs that the caller needs, or would need if the graph's error hid them."""
        if not nearest and not within:
            return np.empty(0, np.int64)
        found = [self._wanted_of(at, nearest, within, margin) for at in _blocks(len(self.z), self.block)]
        return np.unique(np.concatenate(found))

    def _wanted_of(self, at: slice, nearest: int, within: float, margin: float) -> Numbers:
        row = np.arange(at.start, at.stop)[:, None]
        itself = self.pairs.same & (row == np.arange(len(self.z2)))
        values = np.where(itself, np.inf, self.ledger.values[at])
        bound = np.full(len(row), within)
        if nearest:
            bound = np.maximum(bound, np.partition(values, nearest - 1, axis=1)[:, nearest - 1])
        i, j = np.nonzero(values <= (1 + margin) * bound[:, None])
        return self.pairs.numbers(i + at.start, j)

    def solve(self, stage: str, count: int, numbers: Callable[[slice], Numbers]) -> None:
        """Solve some pairs, counted from 0 to count, and write them into the matrix."""
        if count and self.graph.roads:
            _ = self.graph.roads._net  # found here once, and not by each worker again
        roads = None if self.graph.roads is None else self.graph.roads.unfolded()

        def job(at: slice) -> Any:
            i, j = (torch.from_numpy(index).to(self.z.device) for index in self.pairs.places(numbers(at)))
            return delayed(_geodesics)(self.M, roads, self.z[i], self.z2[j], self.solver)

        for at, (length, converged, why) in self._run(stage, _blocks(count, self.block), job):
            i, j = self.pairs.places(numbers(at))
            self.ledger.values[i, j] = length
            if self.pairs.same:
                self.ledger.values[j, i] = length
            failed = [[int(i[p]), int(j[p]), why[p]] for p in np.flatnonzero(~converged)]
            self.ledger.add(stage, solved=len(length), failed=failed)

    def _run(self, stage: str, blocks: list[slice], job: Callable[[slice], Any]) -> Iterator[tuple[slice, Any]]:
        """Run a job for each block that is not on record, in parallel; yield blocks and results in order."""
        done = self.ledger.count(stage)
        results = Parallel(return_as="generator")(job(at) for at in blocks[done:])
        with closing(results):
            for number, (at, result) in enumerate(zip(blocks[done:], results, strict=True), done + 1):
                yield at, result
                if self.progress is not None:
                    self.progress(stage, number, len(blocks))


def _blocks(count: int, size: int) -> list[slice]:
    return [slice(at, min(at + size, count)) for at in range(0, count, size)]


def _paths(n: int, edges: Numbers, lengths: NDArray[Any], sources: Numbers, targets: Numbers) -> NDArray[np.float64]:
    """Lengths of shortest paths, in another process perhaps: ``(S, T)``."""
    field: NDArray[np.float64] = distances_from(n, edges, lengths, sources)[:, targets]
    return field


def _geodesics(
    M: Manifold, roads: dict[str, Any] | None, a: Tensor, b: Tensor, solver: ChainSolver | None
) -> tuple[NDArray[Any], NDArray[np.bool_], list[str]]:
    """Lengths and verdicts of a block of pairs, in another process perhaps."""
    g = M.geodesic(a, b, init=None if roads is None else Roadmap.folded(roads), solver=solver)
    return g.length.detach().cpu().numpy(), g.converged.cpu().numpy(), g.why


# -- the ledger -------------------------------------------------------------------------------------------------------


class _Ledger:
    """The matrix, and a record of the blocks that are in it; both on disk where a file was given.

    The journal has a line of JSON for each block, written after the block itself, with a checksum of all lines so far.
    A line that an interruption cut short counts for nothing, and its block is done again. Who has the journal open
    holds both files.
    """

    def __init__(self, out: Path | None) -> None:
        self.out = out
        self.records: list[dict[str, Any]] = []
        self.errors: NDArray[np.float64] = np.empty(0)
        self.values: NDArray[Any]
        self._check = 0  # of the journal

    @classmethod
    @contextmanager
    def opened(cls, shape: tuple[int, int], dtype: str, out: Path | None, computation: str) -> Iterator[_Ledger]:
        """Yield a ledger; a computation that fails before its first block leaves no files."""
        ledger = cls(out)
        if out is None:
            ledger.values = np.zeros(shape, dtype)
            yield ledger
            return
        if ledger._part.exists() and not ledger._journal.exists():
            raise FileExistsError(f"{ledger._part} exists without its journal: name another file, or remove it")
        busy = f"{out} is being computed by another process: wait for it, or name another file"
        with held(ledger._journal, ledger._journal.touch, busy):
            try:
                ledger._open(shape, dtype, computation)
                yield ledger
            except BaseException:
                if [record["stage"] for record in ledger.records] == ["begin"]:
                    ledger._remove()
                raise

    def _open(self, shape: tuple[int, int], dtype: str, computation: str) -> None:
        """Map the matrix of a run that was interrupted, or a new one."""
        check_readable(self._journal)
        lines = [line for line in self._journal.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
        if not lines or not self._part.exists():
            self._begin(shape, dtype, computation)
            return
        records = self._read(lines)
        if records[0].get("computation") != computation:
            raise ValueError(
                f"{self._part} holds the beginning of another computation, of other points, settings or metric: "
                f"name another file, or remove it and {self._journal}"
            )
        self.values = self._mapped(shape, dtype)
        self._journal.write_bytes(b"".join(lines))
        self.records = records

    def _begin(self, shape: tuple[int, int], dtype: str, computation: str) -> None:
        try:
            self._journal.write_bytes(b"")
            self.values = np.lib.format.open_memmap(self._part, mode="w+", dtype=dtype, shape=shape)
            reserve(self._part, self._part.stat().st_size)
            self.add("begin", computation=computation)
        except BaseException:
            self._remove()
            raise

    def _read(self, lines: list[bytes]) -> list[dict[str, Any]]:
        """Records of the journal's lines, each held against its checksum."""
        records = []
        for number, line in enumerate(lines, 1):
            text, _, check = line[:-1].rpartition(b"\t")
            self._check = zlib.crc32(text, self._check)
            if check != b"%08x" % self._check:
                raise self._damaged(f"{self._journal}, line {number},")
            records.append(json.loads(text))
        return records

    def _mapped(self, shape: tuple[int, int], dtype: str) -> NDArray[Any]:
        """The matrix of an interrupted run: mapped to be read first, for NumPy fills up a short file to write to."""
        size = check_readable(self._part)
        try:
            found = np.lib.format.open_memmap(self._part, mode="r")
        except Exception as error:  # whatever a damaged head makes of itself
            raise self._damaged(str(self._part)) from error
        if found.shape != shape or found.dtype != dtype or found.offset + found.nbytes != size:
            raise self._damaged(str(self._part))
        reserve(self._part, size)
        return np.lib.format.open_memmap(self._part, mode="r+")

    def _damaged(self, what: str) -> ValueError:
        return ValueError(f"{what} is damaged: remove {self._part} and {self._journal}, and begin again")

    def _remove(self) -> None:
        """Leave nothing of a computation."""
        for file in (self._part, self._journal):
            file.unlink(missing_ok=True)

    @property
    def _part(self) -> Path:
        assert self.out is not None
        return self.out.with_name(self.out.name + ".part")

    @property
    def _journal(self) -> Path:
        assert self.out is not None
        return self.out.with_name(self.out.name + ".journal")

    def add(self, stage: str, **facts: Any) -> None:
        """Record that a block of a stage is in the matrix."""
        record = {"stage": stage, **facts}
        self.records.append(record)
        if self.out is None:
            return
        if stage != "begin":
            self.values.flush()  # type: ignore[attr-defined]
        text = json.dumps(record).encode()
        check = zlib.crc32(text, self._check)
        with self._journal.open("ab") as journal:
            journal.write(b"%s\t%08x\n" % (text, check))
        self._check = check

    def count(self, stage: str) -> int:
        """Blocks of a stage on record."""
        return sum(record["stage"] == stage for record in self.records)

    def recall(self, stage: str, decide: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return a decision on record, or take it and record it."""
        if not self.count(stage):
            self.add(stage, **decide())
        return next(record for record in self.records if record["stage"] == stage)

    def failures(self) -> list[tuple[int, int, str]]:
        """Row, column and reason of each solved pair that did not converge."""
        return [tuple(failure) for record in self.records for failure in record.get("failed", [])]

    def close(self, pairs: int) -> Distances:
        """Bring the matrix to its final place."""
        if self.out is not None:
            self.values.flush()  # type: ignore[attr-defined]
            del self.values
            self._part.replace(self.out)
            self._journal.unlink()
            self.values = np.load(self.out, mmap_mode="r")
        failures = self.failures()
        return Distances(
            values=self.values,
            pairs=pairs,
            solved=sum(record.get("solved", 0) for record in self.records),
            failed=np.array([failure[:2] for failure in failures], np.int64).reshape(-1, 2),
            why=[failure[2] for failure in failures],
            errors=self.errors,
        )
