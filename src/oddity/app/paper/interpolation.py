"""Interpolation between digits, along geodesics and along straight lines (section 5.2)."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from oddity.app import latent
from oddity.app.paper.lab import Lab, Record, paired, summary
from oddity.app.report import Connections
from oddity.models.storage import SavedModel
from oddity.statistics.interpolation import Interpolation

TITLES = {"geodesic": "geodesic", "line": "straight line", "paced_line": "straight line, at the geodesic's pace"}


def interpolation(lab: Lab) -> tuple[Record, dict[str, Figure]]:
    """How gradual the frames are between random images of a 0 and of a 1, and how far it is from frame to frame.

    The unevenness of the steps is a matter of pace first: a straight line at equal Riemannian steps is even too. What
    the geodesic itself saves is the way, the sum of the distances from each frame to the next.
    """
    settings = lab.settings["interpolation"]
    uneven: dict[str, list[float]] = {name: [] for name in TITLES}
    way: dict[str, list[float]] = {name: [] for name in TITLES}
    figures, converged = {}, 0
    for seed, (saved, _) in enumerate(lab.pairs(settings["repetitions"])):
        found = _pairs(saved, settings["pairs"], seed)
        converged += int(found.geodesic.converged.sum())
        decoded = latent.frames(saved, found, settings["frames"])
        paced = latent.paced(saved, found, settings["frames"])
        for name, frames in zip(TITLES, (*decoded, paced), strict=True):
            uneven[name] += frames.unevenness.tolist()
            way[name] += frames.steps.sum(-1).tolist()
        lab.say(f"interpolations: {seed + 1} done")
        if seed == 0:
            figures["interpolation"] = latent.draw_frames(saved, found, decoded, settings["pictured"])
            figures["autocorrelation"] = _figure(found, dict(zip(TITLES, decoded, strict=False)))
    record: Record = {name: summary(values) for name, values in uneven.items()}
    return record | {
        "way": {name: summary(values) for name, values in way.items()},
        "paired": paired(uneven["line"], uneven["geodesic"]),
        "paired_way": paired(way["line"], way["geodesic"]),
        "converged": converged,
        "pairs": len(uneven["line"]),
    }, figures


def _pairs(saved: SavedModel, count: int, seed: int) -> Connections:
    """Geodesics from random codes of one digit to random codes of the other."""
    M, roads = latent.geometry(saved)
    codes, labels, rng = latent.codes_of(saved), np.asarray(saved.labels), np.random.default_rng(seed)
    i, j = (rng.choice(np.flatnonzero(labels == digit), count, replace=False) for digit in np.unique(labels))
    names = [(f"code {a}", f"code {b}") for a, b in zip(i, j, strict=True)]
    return Connections.between(M, codes[i], codes[j], names, roads)


def _figure(found: Connections, both: dict[str, Interpolation]) -> Figure:
    """Draw the correlations between frames, of the pair whose line is longest beside its geodesic."""
    pair = int(found.ratio.nan_to_num(1.0).argmin())
    low = min(0.0, *(float(frames.autocorrelation[pair].min()) for frames in both.values()))
    figure = Figure(figsize=(8.4, 4.1), dpi=200, layout="constrained")
    for axes, (name, frames) in zip(panels := figure.subplots(1, 2), both.items(), strict=True):
        shown = axes.imshow(frames.autocorrelation[pair].numpy(), cmap="cividis", vmin=low, vmax=1)
        axes.set_title(f"{TITLES[name]}: unevenness {float(frames.unevenness[pair]):.2f}")
        axes.set(xlabel="frame", ylabel="frame")
    bar: Any = figure.colorbar(shown, ax=panels)
    bar.set_label("correlation between frames")
    return figure
