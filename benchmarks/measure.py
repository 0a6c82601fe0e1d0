"""The one judge of all curves: their true length, in float64, by code that belongs to none of the solvers."""

from collections.abc import Mapping

import numpy as np
import torch

from benchmarks.peers.common import POINTS
from benchmarks.peers.plain import PlainDecoder


def true_lengths(problem: Mapping[str, np.ndarray], points: np.ndarray) -> np.ndarray:
    """Sums of the chords of (mean, std) over a thousand points of each curve: ``(B, T, d) -> (B,)``.

    The ends are put where they belong, so that no curve is short because it stops short.
    """
    decode = PlainDecoder(problem, torch.float64)
    lengths = []
    for i, curve in enumerate(points.astype(np.float64)):
        curve[0], curve[-1] = problem["a"][i], problem["b"][i]
        with torch.no_grad():
            on_surface = decode(torch.as_tensor(resampled(curve, POINTS)))
        lengths.append(float(on_surface.diff(dim=0).norm(dim=-1).sum()))
    return np.array(lengths)


def resampled(curve: np.ndarray, count: int) -> np.ndarray:
    """A polyline ``(T, d)`` at equal steps of its parameter, between its points linearly: ``(count, d)``."""
    t, own = np.linspace(0, 1, count), np.linspace(0, 1, len(curve))
    return np.stack([np.interp(t, own, x) for x in curve.T], -1)
