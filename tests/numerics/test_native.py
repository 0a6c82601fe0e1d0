"""Compiled loops: shared among threads without a trace in the numbers, and nothing lost on the way."""

import logging
import os
import pickle
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import pytest
import torch

from oddity.numerics import descent, native
from oddity.numerics.native import Kernel, Part, serves


@Kernel
def scaled_squares(x, y, scale):  # type: ignore[no-untyped-def]
    for i in range(len(x)):
        for j in range(x.shape[1]):
            y[i] += scale * x[i, j] * x[i, j]


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def numbers(count: int) -> torch.Tensor:
    return torch.randn(count, 50, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("count", [0, 1, 2, 5, 101])
def test_threads_leave_no_trace(count: int, threads) -> None:
    x, found = numbers(count), []
    for number in (1, 2, 3):
        threads(number)
        y = torch.zeros(count)
        scaled_squares(x, out=(y,), shared=(3.0,), seconds=1.0)
        found.append(y)
    torch.testing.assert_close(found[0], 3 * x.square().sum(1))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_inputs_of_any_layout_are_read_and_results_of_another_are_refused() -> None:
    x, y = numbers(50).mT, torch.zeros(50)
    scaled_squares(x, out=(y,), shared=(1.0,))
    torch.testing.assert_close(y, x.square().sum(1))
    with pytest.raises(AssertionError, match="lost in a copy"):
        scaled_squares(x, out=(torch.zeros(50, 2)[:, 0],), shared=(1.0,))


def below_zero(x, y):  # type: ignore[no-untyped-def]
    for i in range(len(x)):
        if x[i] < 0:
            raise ValueError("below zero")
        y[i] = x[i]


def beyond_its_end(x, y):  # type: ignore[no-untyped-def]
    for i in range(len(x)):
        if x[i] < 0:
            raise IndexError("beyond its end")
        y[i] = x[i]


@pytest.mark.parametrize(("picky", "error"), [(below_zero, ValueError), (beyond_its_end, IndexError)])
@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("place", [0, 7])
def test_an_error_in_a_thread_is_not_swallowed(picky, error, number: int, place: int, threads) -> None:
    threads(number)
    x = torch.ones(10)
    x[place] = -1
    with pytest.raises(error, match=picky.__name__.replace("_", " ")):
        Kernel(picky)(x, out=(torch.empty(10),), seconds=1.0)


def test_after_an_error_the_rest_is_left(threads) -> None:
    threads(1)
    x, y = torch.ones(10), torch.zeros(10)
    x[4] = -1
    with pytest.raises(ValueError, match="below zero"):
        Kernel(below_zero)(x, out=(y,), seconds=1.0)  # so dear that each item is a piece of its own
    assert y.tolist() == [1] * 4 + [0] * 6


FACTOR = 2.0


@Part
def times_factor(x):  # type: ignore[no-untyped-def]
    return FACTOR * x


def multiplied(x, y):  # type: ignore[no-untyped-def]
    for i in range(len(x)):
        y[i] = times_factor(x[i])


def test_code_is_kept_while_all_that_it_is_made_of_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numba looks at the kernel's own file alone; constants and parts are frozen into its code."""
    y = torch.empty(2)
    Kernel(multiplied)(torch.ones(2), out=(y,))
    assert y.tolist() == [2, 2]
    Kernel(multiplied, times_factor=Part(lambda x: -x))(torch.ones(2), out=(y,))
    assert y.tolist() == [-1, -1]
    mark = native._mark(Kernel(multiplied))
    assert mark == native._mark(Kernel(multiplied))
    marks = {native._mark(Kernel(multiplied, times_factor=Part(f))) for f in (lambda x: abs(x), lambda x: float(x))}
    with monkeypatch.context() as patch:
        patch.setitem(globals(), "FACTOR", 3.0)
        marks.add(native._mark(Kernel(multiplied)))
    assert len(marks | {mark}) == 4, "another name, another constant: another mark"


def test_code_is_found_again_by_another_process() -> None:
    show = "from oddity.numerics import descent as d, native as n; print(n._mark(d._solved_under_layers))"
    found = subprocess.run([sys.executable, "-c", show], capture_output=True, text=True, check=True).stdout
    assert found.strip() == native._mark(descent._solved_under_layers)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that code is kept in."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "code"))
    return tmp_path / "code"


def tripled(x, y):  # type: ignore[no-untyped-def]
    for i in range(len(x)):
        y[i] = 3 * x[i]


def hits(f) -> int:  # type: ignore[no-untyped-def]
    """Let a kernel of f work, as it would in a new process, and tell whether its code was found."""
    kernel, y = Kernel(f), torch.empty(3)
    kernel(torch.arange(3.0), out=(y,))
    assert y.tolist() == [0, 3, 6]
    return sum(kernel._compiled.stats.cache_hits.values())  # type: ignore[attr-defined]


def flipped(code: Path) -> None:
    """Change a single byte of the loop itself: machine code that still unpickles."""
    content = bytearray(code.read_bytes())
    content[content.index(b"\x7fELF") + 64] ^= 1
    code.write_bytes(content)


def replaced_by(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def damage(code: Path) -> None:
        code.unlink()
        make(code)

    return damage


DAMAGES: dict[str, Callable[[Path], object]] = {
    "half": lambda code: code.write_bytes(code.read_bytes()[: code.stat().st_size // 2]),
    "nothing": lambda code: code.write_bytes(b""),
    "noise": lambda code: code.write_bytes(random.Random(0).randbytes(5000)),
    "a pickle of something else": lambda code: code.write_bytes(pickle.dumps({"code": None})),
    "a byte": flipped,
    "more": lambda code: code.write_bytes(code.read_bytes() + b"x"),
    "a link to nowhere": replaced_by(lambda code: code.symlink_to(code.with_name("gone"))),
    "a link to itself": replaced_by(lambda code: code.symlink_to(code)),
    "no file": Path.unlink,
    "no folder": lambda code: shutil.rmtree(code.parent),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_code_is_compiled_and_kept_again(damage: Callable[[Path], object], folder: Path, caplog) -> None:
    caplog.set_level(logging.INFO, "oddity")
    assert not hits(tripled)
    (code,) = folder.glob("*/*.code")
    assert hits(tripled)
    assert not caplog.records
    damage(code)
    assert not hits(tripled)
    assert len(caplog.records) <= 1, "one sentence at most"
    assert hits(tripled)
    assert len(list(code.parent.iterdir())) == 1, "nothing else is left behind"


def test_code_of_other_arguments_is_not_believed(folder: Path) -> None:
    kernel = Kernel(tripled)
    for dtype in (torch.float32, torch.float64):
        kernel(torch.zeros(1, dtype=dtype), out=(torch.zeros(1, dtype=dtype),))
    one, other = folder.glob("*/*.code")
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)
    assert not hits(tripled)


def folder_in_its_place(code: Path) -> None:
    code.unlink()
    code.mkdir()


def file_for_a_folder(code: Path) -> None:
    shutil.rmtree(code.parent)
    code.parent.write_text("")


def unreadable(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path, *_: object) -> None:
        raise PermissionError(f"no rights to {path}")

    monkeypatch.setattr(Path, "read_bytes", refused)
    monkeypatch.setattr(Path, "write_bytes", refused)


@pytest.mark.parametrize("obstacle", [folder_in_its_place, file_for_a_folder, unreadable])
def test_where_code_can_be_neither_read_nor_kept_it_is_compiled(obstacle, folder: Path, monkeypatch) -> None:
    hits(tripled)
    (code,) = folder.glob("*/*.code")
    kernel = Kernel(tripled)
    _ = kernel._compiled  # it has seen a sound folder
    obstacle(monkeypatch if obstacle is unreadable else code)
    y = torch.empty(3)
    kernel(torch.arange(3.0), out=(y,))
    assert y.tolist() == [0, 3, 6]
    assert not kernel._compiled.stats.cache_hits  # type: ignore[attr-defined]


def test_without_a_folder_for_its_code_a_kernel_is_compiled_all_the_same(folder: Path) -> None:
    known: dict[str, Any] = {}
    exec("def copied(x, y):\n    for i in range(len(x)):\n        y[i] = x[i]\n", known)  # in no file
    y = torch.empty(3)
    Kernel(known["copied"])(torch.arange(3.0), out=(y,))
    assert y.tolist() == [0, 1, 2]
    assert not folder.exists()


@Part
def mixed(x):  # type: ignore[no-untyped-def]
    total = x.dtype.type(0)
    for i in range(len(x)):
        for j in range(len(x)):
            total += x[i] * x[j] / (1 + x[i] * x[i])
    return total


def all_mixed(x, y):  # type: ignore[no-untyped-def]
    for i in range(len(x)):
        y[i] = mixed(x[i]) + mixed(x[i, :3])


def test_code_of_a_kernel_calls_none_that_others_may_define(folder: Path) -> None:
    """Of functions of one name a process takes the one it meets first, and copies are optimised, so rounded, apart."""
    kernel = Kernel(all_mixed)
    kernel(torch.ones(2, 50), out=(torch.empty(2),))
    (overload,) = kernel._compiled.overloads.values()  # type: ignore[attr-defined]
    shared = {f.name for f in overload.library.get_defined_functions() if f.linkage.name not in ("internal", "private")}
    assert shared
    assert all("all_mixed" in name for name in shared)


DISTANCES = """
import copy, sys, torch, oddity
torch.manual_seed(0)
net = torch.nn.Sequential(torch.nn.Linear(2, 32), torch.nn.Tanh(), torch.nn.Linear(32, 20)).eval()
z = torch.randn(100, 2)
M = oddity.expected_metric(net.requires_grad_(False))
if sys.argv[2:]:  # another order of loops, and of their dtypes
    oddity.expected_metric(copy.deepcopy(net).double()).geodesic(z[:2].double(), z[2:4].double())
    M.geodesic(z[:2], z[2:4])
torch.save([torch.from_numpy(oddity.pairwise_distances(M, z).values) for _ in range(2)], sys.argv[1])
"""


@pytest.mark.slow
def test_the_first_run_has_the_bits_of_all_later_ones(tmp_path: Path) -> None:
    """Two that compile at once, one that compiles in another order and by other threads, and one that reads."""

    def start(name: str, code: str, threads: int, *order: str) -> subprocess.Popen[bytes]:
        told = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / code), "OMP_NUM_THREADS": str(threads)}
        return subprocess.Popen([sys.executable, "-c", DISTANCES, str(tmp_path / name), *order], env=told)

    at_once = start("a", "one", 1), start("b", "one", 2)
    assert [run.wait() for run in at_once] == [0, 0]
    later = start("c", "one", 1), start("d", "other", 2, "reversed")
    assert [run.wait() for run in later] == [0, 0]
    first, *others = [D for name in "abcd" for D in torch.load(tmp_path / name)]
    assert all(torch.equal(first, D) for D in others)


def test_what_asks_for_a_derivative_or_lies_elsewhere_is_not_served() -> None:
    assert not serves(torch.zeros(1))
    with torch.no_grad():
        assert serves(torch.zeros(1), torch.zeros(1, dtype=torch.float64))
        assert not serves(torch.zeros(1), torch.zeros(1, dtype=torch.float16))
        assert not serves(torch.zeros(1, device="meta"))
