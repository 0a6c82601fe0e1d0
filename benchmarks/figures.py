"""The benchmark's figures."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

# Okabe and Ito's colours, which differ for colour-blind eyes too; the shapes say the same once more.
STYLE = {
    "Oddity": ("#0072B2", "o"),
    "stochman, defaults": ("#E69F00", "s"),
    "stochman, 600 steps": ("#D55E00", "D"),
    "finslerax": ("#009E73", "^"),
}
_AREA = {1: 35, 16: 80, 256: 170}
_LEAST = 1e-3  # percent; what is below is drawn there


def excess(rows: Sequence[Mapping], file: Path, caption: str) -> None:
    """Mean excess length against the time of a curve, one panel for each dimension."""
    dims = sorted({row["d"] for row in rows})
    figure, axes = plt.subplots(
        1, len(dims), figsize=(max(7.5, 4.2 * len(dims)), 5), sharex=True, sharey=True, squeeze=False
    )
    for ax, d in zip(axes[0], dims, strict=True):
        _excess_panel(ax, [row for row in rows if row["d"] == d])
        ax.set(title=f"d = {d}", xlabel="seconds a curve")
    axes[0, 0].set_ylabel("mean excess over the best length known (%)")
    figure.legend(handles=_legend(rows), loc="lower center", ncols=4 if len(dims) < 3 else 7, frameon=False)
    title = f"Excess length against time: below and left is better (under {_LEAST} % drawn at {_LEAST} %)\n{caption}"
    figure.suptitle(title, fontsize=10)
    figure.tight_layout(rect=(0, 0.13 if len(dims) < 3 else 0.07, 1, 1))
    figure.savefig(file, dpi=150)
    plt.close(figure)


def _excess_panel(ax: Axes, rows: Sequence[Mapping]) -> None:
    for solver, (colour, marker) in STYLE.items():
        mine = sorted((row for row in rows if row["solver"] == solver), key=lambda row: row["batch"])
        x = [row["seconds"] for row in mine]
        y = [max(row["mean_excess_percent"], _LEAST) for row in mine]
        ax.plot(x, y, color=colour, lw=1, alpha=0.5)
        ax.scatter(x, y, [_AREA.get(row["batch"], 50) for row in mine], colour, marker, edgecolors="white", zorder=3)
    ax.set(xscale="log", yscale="log")
    ax.grid(True, which="major", alpha=0.3)
    ax.margins(0.12)


def _legend(rows: Sequence[Mapping]) -> list[Line2D]:
    def dot(label: str, colour: str, marker: str, area: float) -> Line2D:
        return Line2D([], [], ls="", marker=marker, color=colour, ms=area**0.5, mec="white", label=label)

    solvers = {row["solver"] for row in rows}
    colours = [dot(name, *style, 80) for name, style in STYLE.items() if name in solvers]
    sizes = sorted({row["batch"] for row in rows})
    return colours + [dot(f"batch {batch}", "0.5", "o", _AREA.get(batch, 50)) for batch in sizes]


LABELS = {"n": "segments n", "d": "latent dimension d", "D": "data dimension D", "batch": "curves in a batch"}
LINES = {
    "curve": ("a curve", "#0072B2", "o"),
    "iteration": ("a curve and iteration", "#E69F00", "s"),
    "block": ("block solve alone, a curve and iteration", "#009E73", "^"),
}


def scaling(sweeps: Mapping[str, Sequence[Mapping]], file: Path, caption: str) -> None:
    """Time of our solver against each size, with guides of known slope."""
    figure, axes = plt.subplots(2, 2, figsize=(9.2, 7.6))
    for ax, (name, points) in zip(axes.flat, sweeps.items(), strict=False):
        _scaling_panel(ax, name, points)
    for ax in axes.flat[len(sweeps) :]:
        ax.set_visible(False)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="lower center", ncols=4, frameon=False, fontsize=9)
    title = "Oddity on random smooth decoders; n = 32, d = 4, D = 256, batch 64 where not varied"
    figure.suptitle(f"{title}\n{caption}", fontsize=10)
    figure.tight_layout(rect=(0, 0.04, 1, 1))
    figure.savefig(file, dpi=150)
    plt.close(figure)


def _scaling_panel(ax: Axes, name: str, points: Sequence[Mapping]) -> None:
    """Seconds a curve; over the batch seconds of the whole batch, which are what should grow with slope 1."""
    x = np.array([p["size"] for p in points], float)
    times = x if name == "batch" else np.ones_like(x)
    for key, (label, colour, marker) in LINES.items():
        y = 1e3 * times * [p[key] for p in points]
        ax.plot(x, y, color=colour, marker=marker, lw=1.5, ms=5, label=label)
        if key == "curve":
            ax.plot(x, y[-1] * x / x[-1], color="0.4", ls="--", lw=1, label="slope 1")
        if name == "d" and key == "block":
            ax.plot(x[-3:], y[-1] * (x[-3:] / x[-1]) ** 3, color="0.4", ls=":", lw=1.5, label="slope 3")
            ax.annotate("slope 3", (x[-2], y[-1] * (x[-2] / x[-1]) ** 3), xytext=(6, -12), textcoords="offset points")
    ax.set(xscale="log", yscale="log", xlabel=LABELS[name], ylabel="ms" + (", whole batch" if name == "batch" else ""))
    ax.set_xticks(x, [f"{size:g}" for size in x])
    ax.minorticks_off()
    ax.grid(True, alpha=0.3)


CURVES = {"geodesic": ("#0072B2", "-"), "line": ("#D55E00", (0, (3, 1.5)))}


def movie(
    volume: np.ndarray,
    extent: tuple[float, float, float, float],
    codes: np.ndarray,
    curves: Sequence[Mapping[str, np.ndarray]],
    strips: Sequence[Mapping[str, np.ndarray]],
    file: Path,
    caption: str,
) -> None:
    """The latent plane of a film with a few curves, and beside it what the curves decode to.

    ``volume`` (rows upwards) over ``extent``; ``curves``: for each pair its chains ``(T, 2)`` by kind; ``strips``: for
    each pair and kind its frames ``(F, h, w)``.
    """
    figure = plt.figure(figsize=(13, 7), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.25))
    ax = left.subplots()
    low, high = np.percentile(volume, (1, 99))
    image = ax.imshow(volume, extent=extent, origin="lower", cmap="Greys_r", vmin=low, vmax=high, aspect="equal")
    left.colorbar(
        image, ax=ax, location="bottom", shrink=0.9, aspect=40, label="log volume of the metric", extend="both"
    )
    for i, pair in enumerate(curves):
        for kind, (colour, dashes) in CURVES.items():
            ax.plot(*pair[kind].T, color="white", lw=4.6, zorder=2)
            ax.plot(*pair[kind].T, color=colour, ls=dashes, lw=2.6, zorder=3, label=None if i else kind)
    dots = ax.scatter(*codes.T, c=np.arange(len(codes)), cmap="hsv", s=14, edgecolors="black", lw=0.3, zorder=4)
    left.colorbar(dots, ax=ax, shrink=0.9, aspect=40, label="number of the frame", location="bottom")
    for i, pair in enumerate(curves):
        mark = {"ha": "center", "va": "center", "fontsize": 11, "weight": "bold", "zorder": 5}
        ax.text(*pair["line"][0], "ABCDEF"[i], **mark, bbox={"boxstyle": "circle,pad=0.15", "fc": "white", "lw": 0.8})
    ax.set(xlim=extent[:2], ylim=extent[2:], xlabel="$z_1$", ylabel="$z_2$")
    legend = ax.legend(loc="upper right", fontsize=9, framealpha=1)
    legend.set_zorder(6)
    kinds = list(strips[0])
    axes = right.subplots(len(strips) * len(kinds), 1, squeeze=False)[:, 0]
    for i, ax in enumerate(axes):
        pair, kind = i // len(kinds), kinds[i % len(kinds)]
        ax.imshow(np.concatenate(list(strips[pair][kind]), 1), cmap="gray", vmin=0, vmax=1)
        ax.set(xticks=[], yticks=[])
        start = f"{'ABCDEF'[pair]}   " if i % len(kinds) == 0 else ""
        ax.set_ylabel(f"{start}{kind}", rotation=0, ha="right", va="center")
    right.suptitle("decoded at equal steps in the data, beside the true frames in between", fontsize=10)
    left.suptitle(caption, fontsize=10)
    figure.savefig(file, dpi=110)
    plt.close(figure)
