"""Compiled loops: shared among threads without a trace in the numbers, and nothing lost on the way."""

import numba
import pytest
import torch

from oddity.numerics.native import Kernel, serves


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


def test_an_error_in_a_thread_is_not_swallowed(threads) -> None:
    def picky(x, y):  # type: ignore[no-untyped-def]
        for i in range(len(x)):
            if x[i] < 0:
                raise ValueError("below zero")
            y[i] = x[i]

    threads(2)
    x = torch.ones(10)
    x[7] = -1
    with pytest.raises(ValueError, match="below zero"):
        Kernel(picky)(x, out=(torch.empty(10),), seconds=1.0)


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
