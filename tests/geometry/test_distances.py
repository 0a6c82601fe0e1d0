"""All pairs against closed forms and single geodesics, stopped and resumed, in other processes, and refused."""

import errno
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import cloudpickle
import joblib
import numpy as np
import pytest
import torch
from scipy.sparse import csr_array
from scipy.sparse.csgraph import floyd_warshall
from sklearn.cluster import DBSCAN
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

import oddity
from oddity import Euclidean, Hyperbolic, Manifold, Pullback, Sphere, TensorField, pairwise_distances
from oddity._files import reserve
from oddity.geometry import distances
from oddity.numerics.graph import components, distances_from
from tests import disks

from .cases import decoder, embedded_sphere


def points(n: int = 30, d: int = 2, scale: float = 0.5, seed: int = 0) -> Tensor:
    return scale * torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def few_waypoints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distances, "_WAYPOINTS", 100)


# -- against what is known --------------------------------------------------------------------------------------------


def test_the_default_is_close_on_the_sphere_and_says_how_close() -> None:
    z = points(60)
    true = Sphere(2).dist(z[:, None], z[None]).numpy()
    D = pairwise_distances(Pullback(embedded_sphere), z)
    off = (D.values - true)[np.triu_indices(60, 1)] / true[np.triu_indices(60, 1)]
    assert D.solved == len(D.errors) == 64
    assert (off > -1e-3).all()  # a path is never shorter, up to quadrature
    assert np.median(np.abs(off)) < 0.005
    assert D.error == pytest.approx(np.median(np.abs(off)), rel=0.5)


def test_exact_is_exact() -> None:
    z = points(9)
    D = pairwise_distances(Pullback(embedded_sphere), z, method="exact", block=7)
    assert D.solved == D.pairs == 36
    assert D.error == 0
    np.testing.assert_allclose(D, Sphere(2).dist(z[:, None], z[None]), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("M", [Sphere(2), Hyperbolic(2), Euclidean(2)], ids=str)
def test_a_formula_is_used_where_there_is_one(M: Manifold) -> None:
    z = points(50, scale=0.2)
    D = pairwise_distances(M, z)
    assert D.solved == D.pairs
    np.testing.assert_allclose(D, M.dist(z[:, None], z[None]), rtol=1e-9, atol=1e-12)


def test_the_graph_measures_shortest_paths_over_the_points_alone() -> None:
    z = points(40)
    D = pairwise_distances(Euclidean(), z, method="graph", k=4, bridge=True)
    roads = oddity.Roadmap(Euclidean(), z, k=4)
    graph = csr_array((roads.lengths.numpy(), roads.edges.numpy().T), shape=(40, 40))
    np.testing.assert_allclose(D, floyd_warshall(graph, directed=False))
    assert D.solved == 0
    assert math.isnan(D.error)


def test_two_sets_of_points() -> None:
    M, a, b = Pullback(embedded_sphere), points(20), points(7, seed=1)
    D = pairwise_distances(M, a, b, nearest=1)
    assert D.shape == (20, 7)
    assert D.pairs == 140
    true = Sphere(2).dist(a[:, None], b[None]).numpy()
    np.testing.assert_allclose(D, true, rtol=0.05)
    np.testing.assert_allclose(D.values.min(1), true.min(1), rtol=1e-6)


def test_in_three_dimensions_there_are_no_waypoints() -> None:
    z = points(300, 3)
    bent = Pullback(lambda x: torch.cat([x, x.sin()], 1))
    D = pairwise_distances(bent, z, sample=32)
    assert 0 < D.error < 0.03


# -- laws -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["refined", "graph", "exact"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_symmetric_with_a_zero_diagonal_in_the_dtype_of_the_points(
    method: str, dtype: torch.dtype, few_waypoints: None
) -> None:
    z = points(12).to(dtype)
    z[5] = z[3]  # two points in one place
    values = pairwise_distances(oddity.expected_metric(decoder().to(dtype)), z, method=method, sample=5).values
    assert (values == values.T).all()
    assert (np.diagonal(values) == 0).all()
    assert values[3, 5] == 0
    assert (values + np.eye(12) + (np.indices((12, 12)).sum(0) == 8) > 0).all()
    assert values.dtype == str(dtype)[6:]


def test_what_is_needed_is_solved(few_waypoints: None) -> None:
    M, z = Pullback(embedded_sphere), points(40)
    true = Sphere(2).dist(z[:, None], z[None]).numpy()
    np.fill_diagonal(true, np.inf)
    for wanted, kw in ((true <= np.sort(true, 1)[:, [2]], {"nearest": 3}), (true < 0.6, {"within": 0.6})):
        D = pairwise_distances(M, z, sample=16, **kw)
        assert wanted.sum() / 2 < D.solved < D.pairs
        np.testing.assert_allclose(D.values[wanted], true[wanted], rtol=1e-6)
        assert 0 < len(D.errors) < 16  # the others of the sample were needed themselves


def test_the_sample_is_drawn_by_the_generator(few_waypoints: None) -> None:
    M, z = Pullback(embedded_sphere), points(15)
    draw = [pairwise_distances(M, z, sample=4, generator=torch.Generator().manual_seed(s)).values for s in (1, 1, 2)]
    assert (draw[0] == draw[1]).all()
    assert (draw[0] != draw[2]).any()
    before = torch.get_rng_state()
    pairwise_distances(M, z, sample=4)
    assert torch.equal(before, torch.get_rng_state())


def test_scikit_learn_takes_it() -> None:
    z = torch.cat([points(10, scale=0.05), 1 + points(10, scale=0.05)])
    D = pairwise_distances(Sphere(2), z)
    assert DBSCAN(eps=0.5, min_samples=2, metric="precomputed").fit(D).labels_.tolist() == [0] * 10 + [1] * 10
    near = NearestNeighbors(n_neighbors=1, metric="precomputed").fit(D).kneighbors(return_distance=False)
    assert near.shape == (20, 1)
    assert torch.from_numpy(D.values).shape == (20, 20)


@pytest.mark.parametrize("n", [0, 1])
@pytest.mark.parametrize("method", ["refined", "graph", "exact"])
def test_no_pairs(n: int, method: str) -> None:
    D = pairwise_distances(Pullback(embedded_sphere), points(n), method=method)
    assert D.values.tolist() == [[0.0]] * n
    assert D.pairs == D.solved == D.error == 0
    assert pairwise_distances(Pullback(embedded_sphere), points(n), points(0), method=method).shape == (n, 0)


def test_points_in_one_place() -> None:
    for d in (2, 4):
        D = pairwise_distances(Pullback(lambda z: z.sin()), torch.ones(3, d), sample=2)
        assert D.values.tolist() == [[0.0] * 3] * 3


def test_waypoints_stay_in_the_chart() -> None:
    z = torch.tensor([[0.97, 0.0], [-0.97, 0.0], [0.0, 0.97], [0.0, -0.97]], dtype=torch.float64)
    M = 2.0 * Hyperbolic(2)  # its distances are numerical, its chart still the ball
    D = pairwise_distances(M, z, sample=0)
    np.testing.assert_allclose(D, 2**0.5 * Hyperbolic(2).dist(z[:, None], z[None]), rtol=0.03, atol=1e-12)


# -- on disk ----------------------------------------------------------------------------------------------------------


def killer(after: int) -> Callable[[str, int, int], None]:
    calls: list[str] = []

    def progress(stage: str, done: int, blocks: int) -> None:
        calls.append(stage)
        if len(calls) == after:
            raise KeyboardInterrupt

    return progress


def test_a_killed_run_goes_on_and_ends_in_the_same_matrix(tmp_path: Path, few_waypoints: None) -> None:
    M, z, out = Pullback(embedded_sphere), points(12), tmp_path / "D.npy"
    kw = {"nearest": 2, "sample": 12, "block": 5}
    seen: list[tuple[str, int, int]] = []
    whole = pairwise_distances(M, z, **kw, progress=lambda *call: seen.append(call))
    assert {"graph", "sample", "refinement"} == {stage for stage, _, _ in seen}
    assert [call for call in seen if call[0] == "sample"] == [("sample", done, 3) for done in (1, 2, 3)]
    for _ in range(len(seen) - 1):  # one more block each time
        with pytest.raises(KeyboardInterrupt):
            pairwise_distances(M, z, **kw, out=out, progress=killer(1))
        assert not out.exists()
    D = pairwise_distances(M, z, **kw, out=out)
    assert isinstance(D.values, np.memmap)
    assert (np.load(out) == whole.values).all()
    assert (D.errors == whole.errors).all()
    assert (D.solved, D.pairs) == (whole.solved, whole.pairs)
    assert [path.name for path in tmp_path.iterdir()] == ["D.npy"]


def test_a_line_cut_short_is_done_again(tmp_path: Path, few_waypoints: None) -> None:
    M, z, out = Pullback(embedded_sphere), points(10), tmp_path / "D.npy"
    whole = pairwise_distances(M, z, sample=6, block=3)
    with pytest.raises(KeyboardInterrupt):
        pairwise_distances(M, z, sample=6, block=3, out=out, progress=killer(5))
    journal = tmp_path / "D.npy.journal"
    journal.write_bytes(journal.read_bytes()[:-7])
    D = pairwise_distances(M, z, sample=6, block=3, out=out)
    assert (D.values == whole.values).all()
    assert (D.errors == whole.errors).all()


def test_other_peoples_files_are_left_alone(tmp_path: Path, few_waypoints: None) -> None:
    M, z, out = Pullback(embedded_sphere), points(10), tmp_path / "D.npy"
    with pytest.raises(KeyboardInterrupt):
        pairwise_distances(M, z, sample=4, block=3, out=out, progress=killer(2))
    for change in ((M, z + 1, 4), (2.0 * M, z, 4), (M, z, 5)):
        with pytest.raises(ValueError, match="holds the beginning of another computation"):
            pairwise_distances(*change[:2], sample=change[2], block=3, out=out)
    np.save(out, np.zeros((3, 3)))
    with pytest.raises(FileExistsError, match="exists already"):
        pairwise_distances(M, z, out=out)
    with pytest.raises(ValueError, match=r"does not end in \.npy"):
        pairwise_distances(M, z, out=tmp_path / "D.csv")


DAMAGE: dict[str, Callable[[Path, Path], object]] = {
    "a letter of the journal": lambda journal, _: edit(journal, b'"graph"', b'"gruph"'),
    "a line lost": lambda journal, _: journal.write_bytes(b"".join(journal.read_bytes().splitlines(True)[1:])),
    "a line twice": lambda journal, _: journal.write_bytes(journal.read_bytes() + lines(journal)[-1]),
    "no text": lambda journal, _: edit(journal, b"{", b"\xff"),
    "deep brackets": lambda journal, _: journal.write_bytes(b"[" * 50_000 + b"\n"),
    "the matrix cut": lambda _, part: part.write_bytes(part.read_bytes()[:-8]),
    "the matrix longer": lambda _, part: part.write_bytes(part.read_bytes() + b"12345678"),
    "the head of the matrix": lambda _, part: edit(part, b"NUMPY", b"DUMPY"),
    "a matrix of another shape": lambda _, part: edit(part, b"(10, 10)", b"(5, 20) "),
    "a matrix of another type": lambda _, part: edit(part, b"<f8", b"<i8"),
}


def lines(journal: Path) -> list[bytes]:
    return journal.read_bytes().splitlines(keepends=True)


def edit(file: Path, old: bytes, new: bytes) -> None:
    assert old in file.read_bytes()
    file.write_bytes(file.read_bytes().replace(old, new, 1))


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_beginning_is_refused_and_left(damage: Callable[[Path, Path], object], tmp_path: Path) -> None:
    M, z, out = Pullback(embedded_sphere), points(10), tmp_path / "D.npy"
    with pytest.raises(KeyboardInterrupt):
        pairwise_distances(M, z, method="graph", block=3, out=out, progress=killer(3))
    files = tmp_path / "D.npy.journal", tmp_path / "D.npy.part"
    damage(*files)
    before = [file.read_bytes() for file in files]
    with pytest.raises(ValueError, match=r"is damaged: remove .*D\.npy\.part and .*D\.npy\.journal, and begin again"):
        pairwise_distances(M, z, method="graph", block=3, out=out)
    assert [file.read_bytes() for file in files] == before


def test_a_matrix_without_its_journal_is_someone_else_s(tmp_path: Path) -> None:
    (tmp_path / "D.npy.part").write_text("years of work")
    with pytest.raises(FileExistsError, match="exists without its journal"):
        pairwise_distances(Sphere(2), points(3), out=tmp_path / "D.npy")
    assert (tmp_path / "D.npy.part").read_text() == "years of work"


@pytest.mark.parametrize("full", [disks.limited, disks.small, disks.refusing])
def test_a_disk_without_room_is_an_error_before_the_work(full: disks.Full, tmp_path: Path) -> None:
    with full(tmp_path, 1 << 14) as place:
        with pytest.raises(OSError, match=r"File too large|No space left"):
            pairwise_distances(Sphere(2), points(90), method="graph", out=place / "D.npy")
        assert list(place.iterdir()) == []


def test_room_is_reserved_where_the_system_cannot_reserve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", unknown)
    M, z, out = Sphere(2), points(40), tmp_path / "D.npy"
    pairwise_distances(M, z, out=out)
    assert (np.load(out) == pairwise_distances(M, z).values).all()
    file = tmp_path / "kept"
    file.write_bytes(b"kept")
    reserve(file, 9000)
    assert file.read_bytes() == b"kept".ljust(9000, b"\0")
    assert file.stat().st_blocks * 512 >= 9000


def test_a_file_is_computed_by_one_process_at_a_time(tmp_path: Path) -> None:
    M, z, out = Sphere(2), points(6), tmp_path / "D.npy"
    met: list[str] = []

    def second(*_: object) -> None:
        with pytest.raises(BlockingIOError, match="being computed by another process: wait for it") as refusal:
            pairwise_distances(M, z, out=out)
        met.append(str(refusal.value))

    D = pairwise_distances(M, z, out=out, block=1, progress=second)
    assert met
    assert (np.load(out) == D.values).all()
    assert [path.name for path in tmp_path.iterdir()] == ["D.npy"]


@pytest.mark.parametrize("kind", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
@pytest.mark.parametrize("name", ["D.npy.journal", "D.npy.part", "D.npy"])
def test_what_is_no_file_is_not_read(kind: Callable[[Path], None], name: str, tmp_path: Path) -> None:
    M, z, out = Pullback(embedded_sphere), points(10), tmp_path / "D.npy"
    with pytest.raises(KeyboardInterrupt):
        pairwise_distances(M, z, method="graph", block=3, out=out, progress=killer(1))
    (tmp_path / name).unlink(missing_ok=True)
    kind(tmp_path / name)
    with pytest.raises((ValueError, FileExistsError), match=r"name a file, which ends|exists already"):
        pairwise_distances(M, z, method="graph", block=3, out=out)


def test_a_computation_that_fails_at_once_leaves_nothing(tmp_path: Path) -> None:
    z = torch.tensor([[0.0, 0.0], [1.0, 0.0], [9.0, 0.0]])
    with pytest.raises(ValueError, match="has no finite length"):
        pairwise_distances(Pullback(cliff), z, method="graph", out=tmp_path / "D.npy")
    assert list(tmp_path.iterdir()) == []


def test_an_empty_matrix_has_a_file_too(tmp_path: Path) -> None:
    out = tmp_path / "D.npy"
    pairwise_distances(Pullback(embedded_sphere), points(0), out=out)
    assert np.load(out).shape == (0, 0)


# -- elsewhere --------------------------------------------------------------------------------------------------------


def bumpy(amount: float) -> Manifold:
    """A manifold of closures, which only cloudpickle can send away, used once so that its caches are full."""
    M = oddity.expected_metric(decoder().double()) + TensorField(lambda z: torch.diag_embed(amount + z.square()), dim=2)
    M.geodesic(points(1)[0], points(1)[0] + 0.1)
    return M


def test_a_used_manifold_can_be_sent_away() -> None:
    M, z = bumpy(1.0), points(6)
    sent = cloudpickle.loads(cloudpickle.dumps((M, oddity.Roadmap(M, z))))
    assert torch.equal(
        sent[0].geodesic(z[:3], z[3:], init=sent[1]).length, M.geodesic(z[:3], z[3:], init=sent[1]).length
    )


@pytest.mark.slow
def test_in_two_processes_stopped_and_resumed(few_waypoints: None, tmp_path: Path) -> None:
    M, z, out = bumpy(1.0), points(10), tmp_path / "D.npy"
    kw = {"nearest": 1, "sample": 4, "block": 2}
    alone = pairwise_distances(M, z, **kw)
    with joblib.parallel_config(backend="loky", n_jobs=2):
        with pytest.raises(KeyboardInterrupt):
            pairwise_distances(M, z, **kw, out=out, progress=killer(7))
        together = pairwise_distances(M, z, **kw, out=out)
    np.testing.assert_allclose(together, alone, rtol=1e-9)
    assert together.solved == alone.solved


@pytest.fixture
def cluster() -> Iterator[None]:
    distributed = pytest.importorskip("distributed", reason="needs the extra 'distributed'")
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as workers,
        distributed.Client(workers),
    ):
        yield


@pytest.mark.slow
def test_on_a_dask_cluster(cluster: None, few_waypoints: None, tmp_path: Path) -> None:
    M, z = bumpy(1.0), points(10)
    alone = pairwise_distances(M, z, nearest=1, sample=4, block=4)
    with joblib.parallel_config(backend="dask"):
        together = pairwise_distances(M, z, nearest=1, sample=4, block=4, out=tmp_path / "D.npy")
    np.testing.assert_allclose(together, alone, rtol=1e-9)
    assert together.solved == alone.solved


# -- failures ---------------------------------------------------------------------------------------------------------


def cliff(z: Tensor) -> Tensor:
    return torch.cat([z, torch.where(z[:, :1] > 5, torch.nan, z[:, 1:].sin())], 1)


def test_a_geodesic_that_fails_is_counted_and_kept(few_waypoints: None, tmp_path: Path) -> None:
    M, z = Pullback(embedded_sphere), points(8)
    hasty = oddity.ChainSolver(segments=4, max_segments=4, resolution=1e-9)
    D = pairwise_distances(M, z, method="exact", solver=hasty, out=tmp_path / "D.npy")
    assert len(D.failed) == len(D.why) == 28
    assert all("do not resolve" in why for why in D.why)
    np.testing.assert_allclose(D, Sphere(2).dist(z[:, None], z[None]), rtol=0.02, atol=1e-12)
    with pytest.raises(RuntimeError, match="28 of 28 geodesics did not converge; that from 0 to 1: 4 segments"):
        D.require()
    assert math.isnan(pairwise_distances(M, z, sample=5, solver=hasty).error)  # no sound sample, no estimate
    good = pairwise_distances(M, z, sample=5)
    assert good.require() is good


def test_antipodes_are_counted() -> None:
    z = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 0.5]])
    D = pairwise_distances(Sphere(2), z)
    assert D.failed.tolist() == [[0, 1]]
    assert "antipodal" in D.why[0]
    assert repr(D) == "Distances(3 x 3, 3 of 3 pairs solved, 1 failed)"


def test_a_graph_in_parts_names_them_and_offers_a_bridge() -> None:
    z = torch.cat([points(20, 4), 90 + points(7, 4), -90 + points(9, 4)])
    message = r"3 parts: of the 36 points, 20 with z\[0\], 9 with z\[27\], 7 with z\[20\]; raise k, or .* bridge=True"
    flat = Pullback(lambda x: x)
    for method in ("refined", "graph"):
        with pytest.raises(ValueError, match=message):
            pairwise_distances(flat, z, method=method, k=6)
    with pytest.raises(ValueError, match=r"2 parts: of the 27 points, 20 with z\[0\], 7 with z2\[0\]"):
        pairwise_distances(flat, z[:20], z[20:27], k=6)
    joined = pairwise_distances(flat, z, k=6, bridge=True, method="graph").values
    assert np.isfinite(joined).all()
    assert (joined >= Euclidean().dist(z[:, None], z[None]).numpy() * (1 - 1e-9)).all()


def test_nan_in_the_decoder_on_the_way() -> None:
    z = torch.tensor([[0.0, 0.0], [1.0, 0.0], [9.0, 0.0]])
    with pytest.raises(ValueError, match="the edge between codes 0 and 2 has no finite length"):
        pairwise_distances(Pullback(cliff), z, method="graph")


@pytest.mark.parametrize(
    ("z", "z2", "kw", "message"),
    [
        (torch.tensor([[0.0, torch.nan]]), None, {}, r"z holds nan at index \(0, 1\)"),
        (torch.zeros(3), None, {}, r"z has shape \(3,\); give points in rows"),
        (torch.zeros(3, 2), torch.zeros(2, 3), {}, "z has 2 coordinates but z2 has 3"),
        (torch.zeros(3, 2), torch.zeros(2, 2).double(), {}, "z is torch.float32 on cpu but z2 is torch.float64"),
        (torch.zeros(3, 2), torch.tensor([[torch.inf, 0.0]]), {}, "z2 holds inf"),
        (torch.zeros(3, 2), None, {"method": "fast"}, "unknown method 'fast'; choose refined, exact, graph"),
        (torch.zeros(3, 2), None, {"nearest": 3}, "nearest is 3, but each point has 2 others"),
        (torch.zeros(3, 2), torch.zeros(3, 2), {"nearest": 4}, "nearest is 4, but each point has 3 others"),
        (torch.zeros(3, 2), None, {"within": -1.0}, "within is -1.0"),
        (torch.zeros(3, 2), None, {"method": "exact", "nearest": 1}, "'exact' has no use for them"),
        (torch.zeros(3, 2), None, {"sample": -1}, "sample must be at least 0"),
        (torch.zeros(3, 2), None, {"block": 0}, "block and k at least 1"),
        (torch.eye(3), None, {"k": 3}, "k is 3, but a node of the graph has 2 others"),
    ],
)
def test_misuse_is_one_clear_sentence(z: Tensor, z2: Tensor | None, kw: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pairwise_distances(Pullback(lambda x: x.sin()), z, z2, **kw)


# -- the graph's parts ------------------------------------------------------------------------------------------------


def test_distances_on_a_graph() -> None:
    rng = np.random.default_rng(0)
    edges = np.unique(np.sort(rng.integers(0, 20, (40, 2)), 1), axis=0)
    edges = edges[edges[:, 0] < edges[:, 1]]
    lengths = rng.random(len(edges))
    wanted = floyd_warshall(csr_array((lengths, edges.T), shape=(20, 20)), directed=False)
    np.testing.assert_allclose(distances_from(20, edges, lengths, np.arange(20)), wanted)
    part = components(20, edges)
    assert ((part[:, None] == part) == np.isfinite(wanted)).all()
    assert distances_from(2, np.array([[0, 1]]), np.zeros(1), np.array([0]))[0, 1] < 1e-300


def test_workers_get_the_tables_that_were_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = points().float()
    roads = oddity.Roadmap(oddity.expected_metric(decoder()), codes)
    state = cloudpickle.loads(cloudpickle.dumps(roads.unfolded()))
    monkeypatch.setattr(oddity.Roadmap, "_sketched", None)
    again = oddity.Roadmap.folded(state)
    assert torch.equal(again.paths(codes[:3], codes[3:6], 8), roads.paths(codes[:3], codes[3:6], 8))
