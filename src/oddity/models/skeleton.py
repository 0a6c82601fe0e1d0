"""Where the data are in latent space: some of the codes, and straight ways between those whose images are neighbours.

A decoder may put neighbours far apart and strangers side by side, so who is whose neighbour is asked among decoded
codes. The ways are what noise has to leave open, and the gaps between them are where it has to rise.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra, minimum_spanning_tree
from scipy.spatial.distance import cdist

from oddity.numerics.graph import knn_edges

__all__ = ["Bumps", "Shortcuts", "Skeleton", "bumps_along", "shortcuts", "skeleton"]

Numbers = NDArray[np.float64]

_NEIGHBOURS = 10  # of a code, among the codes and among their images: what edges are chosen from
_TORN = 4.0  # an edge beside the tree, so many times longer than the tree's edges there, leads to other data
_ALONE = 4.0  # one of the tree is, times the logarithm of the number of nodes: random places have no such gaps
_LEAST = 1e-2  # of the median: no edge counts as shorter
_ROUNDS = 5  # of averages with the neighbours along the tree
_APART = 12.0  # of the tree's typical edges: images so far apart along the skeleton are strangers
_AROUND = 3.0  # times as far in latent space along the skeleton as straight: there is a gap between
_ASKED = 300  # codes at which the cost of a shortcut is asked
_UPDATES = 100  # of the bumps' weights
_ON_AN_EDGE = 100  # bumps at most: what would take more is no way between neighbours
_LOOSE = 1.5  # reaches from one bump to the next, at most: the ripple of their sum is a thousandth
_ROWS = 1 << 24  # numbers in one block of distances


class Skeleton(NamedTuple):
    """Nodes, the edges between them, and how far apart neighbours are."""

    nodes: Numbers  # (n, d)
    edges: NDArray[np.int64]  # (E, 2)
    lengths: Numbers  # (E,)   of their decoded chords
    spacing: Numbers  # (n,)   in latent space
    typical: float  # decoded length of an edge of the tree, at the median


class Bumps(NamedTuple):
    """A sum of Gaussian bumps ``sum_k w_k exp(-lambda_k |z - c_k|^2)`` that is about one along a skeleton."""

    centres: Numbers  # (K, d)
    bandwidths: Numbers  # (K,)   lambda
    weights: Numbers  # (K,)


def skeleton(nodes: Numbers, images: Numbers) -> Skeleton:
    """Find the skeleton of different codes ``(n, d)`` and their images ``(n, D)``.

    Two nodes are joined when no third has an image nearer to both than they are to each other (the relative
    neighbourhood graph: the minimal spanning tree, and what closes its loops), unless the step is out of proportion.

    References
    ----------
    Toussaint, "The relative neighbourhood graph of a finite planar set", 1980.

    Examples
    --------
    Two ends of a line that lie side by side in latent space, and far apart in the data, are not joined:

    >>> t = np.linspace(0, 1, 7)[:, None]
    >>> hairpin = np.hstack([np.cos(3 * t), 0.1 * np.sin(3 * t)])
    >>> skeleton(hairpin, t).edges.tolist()
    [[0, 1], [1, 2], [2, 3], [3, 4], [4, 5], [5, 6]]
    """
    n, k = len(nodes), min(_NEIGHBOURS, len(nodes) - 1)
    if n < 2:
        return Skeleton(nodes, np.empty((0, 2), np.int64), np.empty(0), np.ones(n), 1.0)
    candidates = np.unique(np.concatenate([knn_edges(nodes, k), knn_edges(images, k)]), axis=0)
    apart = cdist(images, images)
    i, j = candidates.T
    length = _positive(apart[i, j])
    tree = minimum_spanning_tree(csr_array((length, candidates.T), shape=(n, n))).tocoo()
    typical = float(np.median(tree.data))
    stems, heights = np.sort(np.stack([tree.row, tree.col], 1), 1), tree.data
    level = _smoothed(n, stems, heights)
    usual = np.maximum(np.minimum(level[stems[:, 0]], level[stems[:, 1]]), typical)
    sound = heights <= _ALONE * (1 + math.log(n)) * usual
    stems, heights = stems[sound], heights[sound]
    longest = np.zeros(n)
    for end in stems.T:
        np.maximum.at(longest, end, heights)
    near = length <= _TORN * np.minimum(longest[i], longest[j])
    near[near] = _are_relative_neighbours(apart, candidates[near], length[near])
    edges = np.unique(np.concatenate([stems, candidates[near]]), axis=0)
    return Skeleton(nodes, edges, apart[edges[:, 0], edges[:, 1]], _spacing(nodes, stems), typical)


def _positive(lengths: Numbers) -> Numbers:
    """Lengths of edges; a graph takes zero for no edge."""
    return np.maximum(lengths, np.finfo(float).tiny)


def _are_relative_neighbours(apart: Numbers, edges: NDArray[np.int64], length: Numbers) -> NDArray[np.bool_]:
    found = []
    block = max(1, _ROWS // len(apart))
    for first in range(0, len(edges), block):
        i, j = edges[first : first + block].T
        farther = np.maximum(apart[i], apart[j])  # (block, n)
        found.append(~(farther < (1 - 1e-6) * length[first : first + block, None]).any(1))
    return np.concatenate(found) if found else np.empty(0, bool)


def _spacing(nodes: Numbers, stems: NDArray[np.int64]) -> Numbers:
    """Length in latent space of the tree's edges at each node, evened out along the tree."""
    step = np.linalg.norm(nodes[stems[:, 0]] - nodes[stems[:, 1]], axis=1)
    return _smoothed(len(nodes), stems, step)


def _smoothed(n: int, stems: NDArray[np.int64], step: Numbers) -> Numbers:
    """The median length of a tree's edges at each node, and as a geometric mean along the tree."""
    typical = float(np.median(step[step > 0])) if (step > 0).any() else 1.0
    ends, steps = np.concatenate([stems[:, 0], stems[:, 1]]), np.concatenate([step, step])
    order = np.lexsort((steps, ends))
    ends, steps = ends[order], steps[order]
    first, last = np.searchsorted(ends, np.arange(n)), np.searchsorted(ends, np.arange(n), side="right")
    median = np.full(n, typical)
    some = last > first
    median[some] = steps[(first[some] + last[some] - 1) // 2]  # the smaller of two
    level = np.log(median.clip(typical * _LEAST))
    both = np.concatenate([stems, stems[:, ::-1]])
    joined = csr_array((np.ones(len(both)), both.T), shape=(n, n))
    for _ in range(_ROUNDS):
        level = (level + joined @ level) / (1 + joined @ np.ones(n))
    found: Numbers = np.exp(level)
    return found


def bumps_along(bones: Skeleton, reach: float, most: int) -> Bumps:
    """Bumps on the nodes and along the edges, little more than a reach apart, with weights that make their sum even.

    ``reach`` is the standard deviation of a bump over the spacing of the nodes there; it grows where the bumps would
    be more than ``most``. The sum is about one along the edges, and one or more at nine in ten of the nodes.
    """
    apart = 1.0  # reaches from one bump to the next
    while True:
        centres, spacing, between = _along(bones, apart * reach)
        if len(centres) <= max(most, len(bones.nodes)):
            break
        apart, reach = (1.25 * apart, reach) if apart < _LOOSE else (apart, 1.25 * reach)
    rate = 0.5 / (reach * spacing) ** 2
    places = np.concatenate([centres, between])
    values = np.exp(-rate * cdist(places, centres, "sqeuclidean")).astype(np.float32)
    weights = np.full(len(centres), 1 / max(1.0, float(values.sum(1).mean())), np.float32)
    mass = values.sum(0)
    for _ in range(_UPDATES):  # the likelihood of a mixture: no step lowers it, and none makes a weight negative
        weights = weights * (values.T @ (1 / (values @ weights))) / mass
    weights = weights / np.quantile(values[: len(bones.nodes)] @ weights, 0.1)
    kept = weights > 1e-6 * weights.max()
    return Bumps(centres[kept], rate[kept], weights[kept].astype(np.float64))


def _along(bones: Skeleton, piece: float) -> tuple[Numbers, Numbers, Numbers]:
    """Points on edges, so many spacings apart at most, after the nodes; the spacing there; and points between them."""
    nodes, (i, j) = bones.nodes, bones.edges.T
    length = np.linalg.norm(nodes[i] - nodes[j], axis=1)
    count = np.ceil(length / (piece * np.minimum(bones.spacing[i], bones.spacing[j])))
    short = count <= _ON_AN_EDGE
    i, j, count = i[short], j[short], np.maximum(1, count[short]).astype(int)
    edge = np.repeat(np.arange(len(count)), count)
    place = np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count)  # 0 to count - 1 on each edge

    def at(share: Numbers, edge: NDArray[np.int64]) -> tuple[Numbers, Numbers]:
        a, b, s = i[edge], j[edge], share[:, None]
        level = (1 - share) * np.log(bones.spacing[a]) + share * np.log(bones.spacing[b])
        return nodes[a] + s * (nodes[b] - nodes[a]), np.exp(level)

    inner = place > 0
    points, spacing = at(place[inner] / count[edge][inner], edge[inner])
    between, _ = at((place + 0.5) / count[edge], edge)
    return np.concatenate([nodes, points]), np.concatenate([bones.spacing, spacing]), between


class Shortcuts(NamedTuple):
    """Straight lines across gaps, from a code to the nearest one that is far along the skeleton."""

    lines: Numbers  # (B, m, d)
    around: Numbers  # (B,)   decoded length of the way along the skeleton


def shortcuts(bones: Skeleton) -> Shortcuts:
    """The shortcuts that noise has to make dearer than the way around."""
    n, d = bones.nodes.shape
    asked = np.unique(np.linspace(0, n - 1, min(n, _ASKED)).astype(int))
    steps = np.linalg.norm(np.diff(bones.nodes[bones.edges], axis=1)[:, 0], axis=1)
    around, latent = (
        dijkstra(csr_array((_positive(by), bones.edges.T), shape=(n, n)), directed=False, indices=asked)
        for by in (bones.lengths, steps)
    )
    straight = cdist(bones.nodes[asked], bones.nodes)
    strange = np.isfinite(around) & (around > _APART * bones.typical) & (latent > _AROUND * straight)
    distance = np.where(strange, straight, math.inf)
    other, some = distance.argmin(1), strange.any(1)
    a, b = bones.nodes[asked[some]], bones.nodes[other[some]]
    share = np.linspace(0, 1, 33)[:, None]
    lines = a[:, None] + share * (b - a)[:, None]
    return Shortcuts(lines.reshape(-1, len(share), d), around[np.flatnonzero(some), other[some]])
