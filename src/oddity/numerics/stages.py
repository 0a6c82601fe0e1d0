"""Functions that are rows of stages: what compiled loops have to know of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

__all__ = ["ACTIVATIONS", "SOFTPLUS_THRESHOLD", "Layered", "Stage", "largest_exponent"]

ACTIVATIONS = "none", "tanh", "sigmoid", "softplus", "root", "bump", "depth", "inverse"
"""y = x; tanh x; 1 / (1 + e^-x); log(1 + e^(r x)) / r; x^(-1/2); e^(-2 r x); -log x; 1 / x."""


SOFTPLUS_THRESHOLD = 20.0
"""Of r x: beyond it y = x, as in PyTorch by default."""


class Stage(NamedTuple):
    """A linear map and an activation of each of its outputs: scale * s(x), x = matrix' y + bias with y from before.

    A bump, which only a first stage may be, has x = |z - c|^2 / 2 for each column c of the matrix; its exponent is held
    at :func:`largest_exponent`.
    """

    matrix: Tensor  # (k, m)   from the stage before, or from the point, k = d
    bias: Tensor | None = None  # (m,)
    activation: str = "none"
    rate: Tensor | float = 1.0  # r of a softplus or a bump, (m,) or one for all
    scale: Tensor | None = None  # (m,)   of the last stage only


@runtime_checkable
class Layered(Protocol):
    """A function of stages."""

    def _stages(self) -> Sequence[Stage] | None:
        """The stages as they are now, or None where one of them is not known here."""
        ...


def largest_exponent(dtype: torch.dtype) -> float:
    """The largest x for which exp(-x), its square and moderate multiples are normal numbers."""
    return -0.45 * math.log(torch.finfo(dtype).tiny)
