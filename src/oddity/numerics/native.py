"""Loops compiled to machine code, for work that PyTorch has no batched operation for.

Numba compiles a kernel at its first call for a dtype, in a few seconds, and keeps the code on disk. A kernel works on
one item after another, so that an item's numbers do not depend on its companions; threads share the items, as many as
PyTorch uses. Kernels serve tensors in main memory; elsewhere their twins in PyTorch do.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import torch
from torch import Tensor

from oddity.numerics.autodiff import has_tangent

__all__ = ["Kernel", "serves"]

_WORTH_A_THREAD = 50e-6  # seconds of work below which a second thread costs more than it saves


def serves(*tensors: Tensor) -> bool:
    """Whether kernels can work on tensors: in main memory, single or double precision, no derivative asked for."""
    return not torch.is_grad_enabled() and all(
        x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64) and not has_tangent(x) for x in tensors
    )


class Kernel:
    """A loop over items, ``f(*inputs, *out, *shared)``, whose results are written into the arrays of ``out``.

    Parameters
    ----------
    f
        A function of NumPy arrays and numbers that Numba can compile.

    Examples
    --------
    >>> @Kernel
    ... def doubled(x, y):
    ...     for i in range(len(x)):
    ...         y[i] = 2 * x[i]
    >>> x, y = torch.arange(3.0), torch.empty(3)
    >>> doubled(x, out=(y,))
    >>> y.tolist()
    [0.0, 2.0, 4.0]
    """

    def __init__(self, f: Callable[..., None]) -> None:
        self.f = f
        functools.update_wrapper(self, f)

    def __call__(
        self, *inputs: Tensor, out: tuple[Tensor, ...], shared: tuple[Any, ...] = (), seconds: float = 0.0
    ) -> None:
        """Run over all items.

        Parameters
        ----------
        inputs, out
            ``(B, ...)``, the items first.
        shared
            Arguments that are the same for all items: tensors or numbers.
        seconds
            What an item costs, roughly: so much work is shared among threads.
        """
        assert all(x.is_contiguous() for x in out), "results would be lost in a copy"
        count = len(out[0])
        rest = [x.contiguous().numpy() if isinstance(x, Tensor) else x for x in shared]
        arrays = [x.contiguous().numpy() for x in (*inputs, *out)]
        parts = min(count, torch.get_num_threads(), 1 + int(count * seconds / _WORTH_A_THREAD))
        if parts < 2:
            self._compiled(*arrays, *rest)
            return
        cuts = [count * i // parts for i in range(parts + 1)]
        pieces = [[x[i:j] for x in arrays] for i, j in itertools.pairwise(cuts)]
        jobs = [_threads(os.getpid()).submit(self._compiled, *piece, *rest) for piece in pieces[1:]]
        try:
            self._compiled(*pieces[0], *rest)
        finally:
            wait(jobs)
        for job in jobs:
            job.result()

    @functools.cached_property
    def _compiled(self) -> Callable[..., None]:
        import numba

        # sums may be reordered to fill the registers; NaN and infinity keep their meaning
        compiling: dict[str, Any] = {
            "nogil": True,
            "error_model": "numpy",
            "fastmath": {"contract", "reassoc", "nsz", "arcp"},
        }
        compiled: Callable[..., None]
        try:
            compiled = numba.njit(cache=True, **compiling)(self.f)
        except RuntimeError:  # there is no folder that it could keep the code in
            compiled = numba.njit(**compiling)(self.f)
        return compiled


@functools.cache
def _threads(process: int) -> ThreadPoolExecutor:
    """Threads, as many as were ever needed at once; for each process its own, since a fork has none of its parent's."""
    del process
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="oddity")
