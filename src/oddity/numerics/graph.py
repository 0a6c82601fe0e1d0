"""Neighbour graphs and shortest paths on them: global starts for curves that are then refined locally."""

from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components, dijkstra
from sklearn.neighbors import NearestNeighbors

__all__ = ["Routes", "bridge", "components", "distances_from", "knn_edges", "shortest_paths"]

Points = NDArray[np.floating]
Edges = NDArray[np.int64]

# One job: a search takes less time than it takes joblib's processes, which a caller may have asked for, to hear of it
_NEAREST = partial(NearestNeighbors, n_jobs=1)


def knn_edges(points: Points, k: int) -> Edges:
    """Edges of the symmetrised k-nearest-neighbour graph, each once: ``(n, d) -> (E, 2)``, first < second.

    Examples
    --------
    >>> knn_edges(np.array([[0.0], [1.0], [5.0]]), k=1).tolist()
    [[0, 1], [1, 2]]
    """
    n = len(points)
    if n < 2:
        return np.empty((0, 2), np.int64)
    neighbours = _NEAREST(n_neighbors=min(k, n - 1)).fit(points).kneighbors(return_distance=False)
    pairs = np.stack([np.repeat(np.arange(n), neighbours.shape[1]), neighbours.ravel()], 1)
    return np.unique(np.sort(pairs, 1), axis=0).astype(np.int64)


def components(n: int, edges: Edges) -> Edges:
    """Number of the connected part that each node belongs to: ``(n,)``, counted from the first node's.

    Examples
    --------
    >>> components(4, np.array([[0, 1], [2, 3]])).tolist()
    [0, 0, 1, 1]
    """
    label: Edges = connected_components(_adjacency(n, edges, np.ones(len(edges))), directed=False)[1]
    return label


def bridge(points: Points, edges: Edges) -> Edges:
    """Return the extra edges that connect the graph: for each smaller part, its shortest way out, until one is left.

    Examples
    --------
    >>> bridge(np.array([[0.0], [1.0], [5.0], [6.0]]), np.array([[0, 1], [2, 3]])).tolist()
    [[1, 2]]
    """
    found: list[tuple[int, int]] = []
    while True:
        every = np.concatenate([edges, np.array(found, np.int64).reshape(-1, 2)])
        parts, label = connected_components(_adjacency(len(points), every, np.ones(len(every))), directed=False)
        if parts <= 1:
            return np.array(found, np.int64).reshape(-1, 2)
        inside = label == np.bincount(label).argmin()
        inner, outer = np.flatnonzero(inside), np.flatnonzero(~inside)
        distance, nearest = _NEAREST(n_neighbors=1).fit(points[outer]).kneighbors(points[inner])
        best = int(distance[:, 0].argmin())
        found.append((int(min(inner[best], outer[nearest[best, 0]])), int(max(inner[best], outer[nearest[best, 0]]))))


def shortest_paths(
    n: int, edges: Edges, lengths: Points, sources: Edges, targets: Edges, *, block: int = 256
) -> NDArray[np.int64]:
    """Shortest paths between pairs of nodes of a directed graph.

    Parameters
    ----------
    n
        Number of nodes.
    edges, lengths
        ``(E, 2)`` directed edges and their positive lengths ``(E,)``.
    sources, targets
        ``(B,)``, the ends of each path.
    block
        Sources searched at a time, which bounds the memory to about 12 n block bytes.

    Returns
    -------
    ndarray
        ``(B, P)`` node numbers from source to target, filled up with the target. A row of -1 where there is none.

    Examples
    --------
    >>> line = np.array([[0, 1], [1, 2], [0, 2]])
    >>> shortest_paths(3, line, np.array([1.0, 1.0, 5.0]), np.array([0, 2]), np.array([2, 0])).tolist()
    [[0, 1, 2], [-1, -1, -1]]
    """
    graph = _adjacency(n, edges, lengths)
    blocks: list[NDArray[np.int64]] = []
    for at in range(0, len(sources), block):
        begin, end = sources[at : at + block], targets[at : at + block]
        unique, row = np.unique(begin, return_inverse=True)
        _, predecessor = dijkstra(graph, indices=unique, return_predecessors=True)
        blocks.append(_backtrack(predecessor, begin, end, row))
    longest = max((b.shape[1] for b in blocks), default=0)
    padded = [np.pad(b, ((0, 0), (0, longest - b.shape[1])), mode="edge") for b in blocks]
    return np.concatenate(padded) if padded else np.empty((0, 0), np.int64)


class Routes:
    """All shortest paths of an undirected graph of n nodes, found once: 12 n^2 bytes.

    Parameters
    ----------
    n
        Number of nodes.
    edges, lengths
        ``(E, 2)``, each once, and their positive lengths ``(E,)``.

    Examples
    --------
    >>> routes = Routes(3, np.array([[0, 1], [1, 2]]), np.array([1.0, 2.0]))
    >>> routes.between(np.array([[0, 1]]), np.array([[0.5, 2.0]]), np.array([[2]]), np.array([[0.1]])).tolist()
    [[0, 1, 2]]
    """

    def __init__(self, n: int, edges: Edges, lengths: Points) -> None:
        graph = _adjacency(n, edges, lengths)
        self.lengths, self.before = dijkstra(graph, directed=False, return_predecessors=True)

    def between(self, out: Edges, leave: Points, into: Edges, enter: Points, *, block: int = 1024) -> NDArray[np.int64]:
        """Nodes of the shortest way from one place to another, ``-> (B, P)``, filled up with the last; -1 for none.

        Parameters
        ----------
        out, leave
            ``(B, k)``, the nodes that the first place is joined to, and the lengths of these joins.
        into, enter
            ``(B, l)``, the same of the second place.
        block
            Pairs at a time, which bounds the memory to about 24 k l block bytes.
        """
        begin, end = np.empty(len(out), np.int64), np.empty(len(out), np.int64)
        for at in range(0, len(out), block):
            some = slice(at, at + block)
            o, i = out[some], into[some]
            way = leave[some, :, None] + self.lengths[o[:, :, None], i[:, None]] + enter[some, None]  # (b, k, l)
            best, pair = way.reshape(len(way), -1).argmin(1), np.arange(len(way))
            none = ~np.isfinite(way.min((1, 2)))
            begin[some], end[some] = (
                np.where(none, -1, x) for x in (o[pair, best // i.shape[1]], i[pair, best % i.shape[1]])
            )
        return _backtrack(self.before, begin, end, begin)


def distances_from(n: int, edges: Edges, lengths: Points, sources: Edges) -> NDArray[np.float64]:
    """Lengths of the shortest paths from some nodes to all on an undirected graph: ``(S, n)``.

    Parameters
    ----------
    n
        Number of nodes.
    edges, lengths
        ``(E, 2)``, each once, and their lengths ``(E,)``.
    sources
        ``(S,)``.

    Returns
    -------
    ndarray
        ``(S, n)`` float64, infinite where there is no path. Memory is 8 n S bytes.

    Examples
    --------
    >>> distances_from(3, np.array([[0, 1], [1, 2]]), np.array([1.0, 2.0]), np.array([2, 0])).tolist()
    [[3.0, 2.0, 0.0], [0.0, 1.0, 3.0]]
    """
    # a sparse graph cannot hold an edge of length zero
    positive = np.maximum(lengths.astype(np.float64), np.finfo(np.float64).tiny)
    field: NDArray[np.float64] = dijkstra(_adjacency(n, edges, positive), directed=False, indices=sources)
    return field


def _backtrack(predecessor: NDArray[np.int32], begin: Edges, end: Edges, row: Edges) -> NDArray[np.int64]:
    """Follow the predecessors of all pairs at once, each in its row: ``(B, P)``, padded with the target."""
    steps = [end.astype(np.int64)]
    while not (done := (steps[-1] == begin) | (steps[-1] < 0)).all():
        steps.append(np.where(done, steps[-1], predecessor[row, np.maximum(steps[-1], 0)]))
    path = np.stack(steps[::-1], 1)  # begins with copies of the source where it is not the longest
    spare = np.maximum((path == begin[:, None]).sum(1) - 1, 0)
    index = np.minimum(np.arange(path.shape[1]) + spare[:, None], path.shape[1] - 1)
    return np.where(steps[-1][:, None] < 0, -1, np.take_along_axis(path, index, 1))


def _adjacency(n: int, edges: Edges, lengths: Points) -> csr_array:
    return csr_array((lengths, (edges[:, 0], edges[:, 1])), shape=(n, n))
