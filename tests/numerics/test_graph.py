"""Neighbour graphs and paths against brute force and networkx-free oracles."""

import itertools

import numpy as np
import pytest
from joblib import parallel_config, register_parallel_backend
from joblib.parallel import ParallelBackendBase
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components, dijkstra
from sklearn.neighbors import NearestNeighbors

from oddity.numerics.graph import Routes, bridge, knn_edges, shortest_paths


def cloud(n: int = 60) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(n, 2))


def test_knn_edges_are_the_nearest() -> None:
    points = cloud()
    distance = np.linalg.norm(points[:, None] - points, axis=-1)
    np.fill_diagonal(distance, np.inf)
    wanted = {tuple(sorted((i, j))) for i in range(60) for j in np.argsort(distance[i])[:4].tolist()}
    assert {tuple(e) for e in knn_edges(points, 4).tolist()} == wanted


class Refusing(ParallelBackendBase):
    """A backend of joblib to which nothing may be sent."""

    supports_sharedmem = True

    def effective_n_jobs(self, n_jobs: int) -> int:
        return n_jobs

    def submit(self, *_: object, **__: object) -> None:
        raise AssertionError("sent away")


def test_searches_are_not_sent_to_the_processes_that_a_caller_asked_for() -> None:
    register_parallel_backend("refusing", Refusing)
    points = cloud()
    alone = knn_edges(points, 4)
    with parallel_config(backend="refusing", n_jobs=2):
        with pytest.raises(AssertionError, match="sent away"):
            NearestNeighbors().fit(points).kneighbors()
        assert (knn_edges(points, 4) == alone).all()
        bridge(points, alone)


def test_bridges_connect_and_are_few() -> None:
    points = np.concatenate([cloud(20) + shift for shift in ([0, 0], [30, 0], [0, 50], [90, 90])])
    edges = knn_edges(points, 3)
    extra = bridge(points, edges)
    every = np.concatenate([edges, extra])
    parts = connected_components(csr_array((np.ones(len(every)), every.T), shape=(80, 80)), directed=False)[0]
    before = connected_components(csr_array((np.ones(len(edges)), edges.T), shape=(80, 80)), directed=False)[0]
    assert parts == 1
    assert len(extra) == before - 1


def test_paths_have_the_shortest_length() -> None:
    points = cloud()
    edges = knn_edges(points, 4)
    edges = np.concatenate([edges, edges[:, ::-1]])
    length = np.linalg.norm(points[edges[:, 0]] - points[edges[:, 1]], axis=1)
    graph = csr_array((length, edges.T), shape=(60, 60))
    rng = np.random.default_rng(1)
    sources, targets = rng.integers(0, 60, (2, 40))
    paths = shortest_paths(60, edges, length, sources, targets, block=7)
    truth = dijkstra(graph)[sources, targets]
    known = {(int(i), int(j)) for i, j in edges}
    for path, source, target, expected in zip(paths, sources, targets, truth, strict=True):
        steps = list(itertools.pairwise(path))
        assert path[0] == source
        assert path[-1] == target
        assert all(i == j or (int(i), int(j)) in known for i, j in steps)
        np.testing.assert_allclose(sum(np.linalg.norm(points[i] - points[j]) for i, j in steps), expected)


def test_routes_are_the_shortest_over_all_joins_that_have_a_length() -> None:
    rng = np.random.default_rng(0)
    edges = np.array(list(itertools.combinations(range(40), 2)))[::7]
    lengths = rng.uniform(1, 2, len(edges))
    whole = dijkstra(csr_array((lengths, edges.T), shape=(40, 40)), directed=False)
    out, into = rng.integers(0, 40, (2, 30, 5))
    leave, enter = rng.uniform(0, 2, (2, 30, 5))
    leave[:, 2], enter[3] = np.inf, np.inf
    found = Routes(40, edges, lengths).between(out, leave, into, enter, block=7)
    assert (found[3] == -1).all()  # no way in
    for b in range(30):
        best = (leave[b, :, None] + whole[out[b][:, None], into[b]] + enter[b]).min()
        if np.isfinite(best):
            way = found[b]
            length = whole[way[:-1], way[1:]].sum()
            ends = leave[b][out[b] == way[0]].min() + enter[b][into[b] == way[-1]].min()
            np.testing.assert_allclose(length + ends, best)
        else:
            assert (found[b] == -1).all()
