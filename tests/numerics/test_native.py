"""Compiled loops: shared among threads without a trace in the numbers, and nothing lost on the way."""

import subprocess
import sys

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


def test_without_a_folder_for_its_code_a_kernel_is_compiled_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def copied(x, y):  # type: ignore[no-untyped-def]
        for i in range(len(x)):
            y[i] = x[i]

    compile_ = numba.njit

    def without_a_folder(*, cache: bool = False, **settings: object):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return compile_(**settings)

    monkeypatch.setattr(numba, "njit", without_a_folder)
    y = torch.empty(3)
    Kernel(copied)(torch.arange(3.0), out=(y,))
    assert y.tolist() == [0, 1, 2]


def test_what_asks_for_a_derivative_or_lies_elsewhere_is_not_served() -> None:
    assert not serves(torch.zeros(1))
    with torch.no_grad():
        assert serves(torch.zeros(1), torch.zeros(1, dtype=torch.float64))
        assert not serves(torch.zeros(1), torch.zeros(1, dtype=torch.float16))
        assert not serves(torch.zeros(1, device="meta"))
