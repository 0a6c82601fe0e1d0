"""Figures of statistics in a latent space, Riemannian beside Euclidean, drawn from arrays over the same map.

As in :mod:`oddity.app.plots`, every function returns a figure of its own, in colours safe for colour-blind readers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import AbstractPathEffect, withStroke
from numpy.typing import ArrayLike, NDArray

from oddity.app.plots import (
    Array,
    Plane,
    _beside,
    _flat_codes,
    _label_plane,
    _scatter_class,
    _scatter_codes,
    _where,
    beyond,
    class_colour,
    class_round,
    limits,
    pictures,
)

_DPI = 200
_LEFT, _PANEL, _GAP, _RIGHT = 0.8, 4.6, 0.35, 1.2  # inches
_TOP, _SCALE, _LEGEND = 0.45, 0.6, 0.25
_CENTRES, _FRAMES = "*PXd", ("-", "--", ":", "-.")  # by how often the colours were used up
_SIGNS = 8  # in a row of the legend
_SHARES = (0.5, 0.8, 0.95)  # of the mass, whose regions of highest density are drawn
_CONTOURS: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1.5)))  # from the inmost outwards
_TIME = LinearSegmentedColormap.from_list("time", colormaps["YlOrRd"](np.linspace(0.08, 1.0, 64)))


@dataclass(frozen=True)
class Clustering:
    """Clusters of codes, and their centres.

    Attributes
    ----------
    labels : ndarray, shape (n,)
        The cluster of each code, counted from zero.
    centres : ndarray, shape (k, 2)
        In latent space.
    images : ndarray, shape (k, D), optional
        The centres decoded, where data are images.
    """

    labels: ArrayLike
    centres: ArrayLike
    images: ArrayLike | None = None


@dataclass(frozen=True)
class Path:
    """A walk in latent space, and decoded frames along it.

    Attributes
    ----------
    points : ndarray, shape (steps + 1, 2)
        Where the walker was.
    frames : ndarray, shape (f, D)
        Decoded at the steps ``at``.
    at : sequence of int
        The steps of the frames, in ascending order.
    """

    points: ArrayLike
    frames: ArrayLike
    at: Sequence[int]


def clusters(
    plane: Plane,
    log_volume: ArrayLike,
    codes: ArrayLike,
    clusterings: Mapping[str, Clustering],
    *,
    image_shape: tuple[int, ...] | None = None,
) -> Figure:
    """Draw clusterings of the same codes side by side over the magnification factor, with their decoded centres.

    Parameters
    ----------
    plane, log_volume
        Where the factor was evaluated, and the factor there (h * w,).
    codes
        The codes (n, 2).
    clusterings
        By the title of the panel.
    image_shape
        Shape of a decoded centre that is an image; without it centres are drawn in latent space only.

    Raises
    ------
    ValueError
        If the codes are not two-dimensional.

    Examples
    --------
    >>> codes = np.array([[0.0, 0.0], [1.0, 1.0]])
    >>> plane = Plane.around(codes, size=20)
    >>> panels = {"geodesic": Clustering([0, 1], codes), "Euclidean": Clustering([1, 0], codes[::-1])}
    >>> figure = clusters(plane, plane.points.sum(1), codes, panels)
    >>> [text.get_text() for text in figure.legends[0].get_texts()]
    ['cluster 0', 'cluster 1', 'centre']
    """
    codes = _flat_codes(codes)
    k = max(len(np.asarray(found.centres)) for found in clusterings.values())
    side = min(0.9, _PANEL / k) if image_shape else 0.0
    figure, panels = _maps(plane, log_volume, codes, list(clusterings), k + 1, below=side and side + 0.4)
    star: dict[str, Any] = {"mec": "black", "mew": 0.9, "ls": ""}
    for axes, found in zip(panels, clusterings.values(), strict=True):
        labels, centres = np.asarray(found.labels), _flat_codes(found.centres)
        handles = [_scatter_class(axes, codes[labels == i], i, f"cluster {i}") for i in range(k)]
        for i, centre in enumerate(centres):
            sign = _CENTRES[class_round(i) % len(_CENTRES)]
            axes.plot(*centre, marker=sign, ms=19 if sign == "*" else 14, mfc=class_colour(i), zorder=5, **star)
        if image_shape and found.images is not None:
            cells = [_cell(figure, axes, i, k, side) for i in range(k)]
            _fill(cells, np.asarray(found.images), image_shape, [class_colour(i) for i in range(k)])
            for i, cell in enumerate(cells[: len(found.images)]):  # type: ignore[arg-type]
                cell.spines[:].set_linestyle(_FRAMES[class_round(i) % len(_FRAMES)])
            cells[0].set_title("centres, decoded", loc="left", fontsize="medium")
    _legend(figure, [*handles, Line2D([], [], marker="*", ms=14, mfc="white", label="centre", **star)])
    return figure


def densities(
    plane: Plane,
    log_volume: ArrayLike,
    codes: ArrayLike,
    labels: ArrayLike | None,
    log_densities: Mapping[str, ArrayLike],
    means: Sequence[ArrayLike],
    *,
    class_names: Mapping[int, str] | None = None,
) -> Figure:
    """Draw densities side by side over the magnification factor, as their regions of highest density.

    Parameters
    ----------
    plane, log_volume
        Where the factor was evaluated, and the factor there (h * w,).
    codes, labels
        The codes (n, 2), and the class of each (n,).
    log_densities
        With respect to dz, at ``plane.points``, (h * w,), by the title of the panel.
    means
        Of each density, (k, 2).
    class_names
        Names for the legend.

    Raises
    ------
    ValueError
        If the codes are not two-dimensional.

    Examples
    --------
    >>> codes = np.array([[0.0, 0.0], [1.0, 1.0]])
    >>> plane = Plane.around(codes, size=20)
    >>> normal = -np.square(plane.points - 0.5).sum(1) / 0.1
    >>> figure = densities(plane, plane.points.sum(1), codes, None, {"LAND": normal}, [codes[:1]])
    >>> [text.get_text() for text in figure.legends[0].get_texts()]
    ['codes', 'mean', '50 % of the mass', '80 %', '95 %']
    """
    codes = _flat_codes(codes)
    classes = 1 if labels is None else len(np.unique(np.asarray(labels)))
    figure, panels = _maps(plane, log_volume, codes, list(log_densities), classes + 4)
    halo: list[AbstractPathEffect] = [withStroke(linewidth=3.6, foreground="black")]
    star: dict[str, Any] = {"marker": "*", "mfc": "white", "mec": "black", "mew": 0.9, "ls": ""}
    for axes, log_density, centres in zip(panels, log_densities.values(), means, strict=True):
        handles = _scatter_codes(axes, codes, labels, class_names or {})
        image = np.exp(plane.image(log_density))
        for share, style in zip(_SHARES, _CONTOURS, strict=True):
            look: dict[str, Any] = {"levels": [_level(image, share)], "colors": ["white"], "linestyles": [style]}
            axes.contour(plane.z1, plane.z2, image, linewidths=1.6, zorder=3, **look).set_path_effects(halo)
        for centre in _flat_codes(centres):
            axes.plot(*centre, ms=19, zorder=5, **star)
    handles.append(Line2D([], [], ms=14, label="mean", **star))
    for share, style in zip(_SHARES, _CONTOURS, strict=True):
        name = f"{share:.0%}".replace("%", " %") + (" of the mass" if share == _SHARES[0] else "")
        handles.append(Line2D([], [], color="white", ls=style, lw=1.6, path_effects=halo, label=name))
    _legend(figure, handles)
    return figure


def walks(
    plane: Plane,
    log_volume: ArrayLike,
    codes: ArrayLike,
    paths: Mapping[str, Path],
    total: float,
    *,
    image_shape: tuple[int, ...] | None = None,
) -> Figure:
    """Draw walks side by side over the magnification factor, and below each the frames decoded along it.

    Parameters
    ----------
    plane, log_volume
        Where the factor was evaluated, and the factor there (h * w,).
    codes
        The codes (n, 2).
    paths
        By the title of the panel. Outside the plane they are not drawn.
    total
        Time at the end.
    image_shape
        Shape of a frame that is an image. Without it a frame is drawn as a column of colours.

    Raises
    ------
    ValueError
        If the codes are not two-dimensional.

    Examples
    --------
    >>> codes = np.array([[0.0, 0.0], [1.0, 1.0]])
    >>> plane = Plane.around(codes, size=20)
    >>> walk = Path(codes, frames=[[0.0] * 4, [1.0] * 4], at=[0, 1])
    >>> figure = walks(plane, plane.points.sum(1), codes, {"Riemannian": walk}, 0.5, image_shape=(2, 2))
    >>> [text.get_text() for text in figure.legends[0].get_texts()]
    ['codes', 'start', 'end']
    """
    codes = _flat_codes(codes)
    count = max(len(path.at) for path in paths.values())
    side = _PANEL / count
    figure, panels = _maps(plane, log_volume, codes, list(paths), 3, below=side + 0.62)
    ends: dict[str, Any] = {"ls": "", "mec": "black", "mew": 1.0, "ms": 9}
    norm = Normalize(*_range([path.frames for path in paths.values()]))
    for axes, path in zip(panels, paths.values(), strict=True):
        points = _flat_codes(path.points)
        axes.plot(codes[:, 0], codes[:, 1], ls="", marker="o", ms=2, mew=0, mfc="#56B4E9", alpha=0.8)
        axes.plot(points[:, 0], points[:, 1], color="black", lw=2.2, zorder=3)
        pieces = np.stack([points[:-1], points[1:]], axis=1)  # (steps, 2, 2)
        axes.add_collection(LineCollection(list(pieces), array=np.arange(len(pieces)), cmap=_TIME, lw=1.2, zorder=4))
        axes.plot(*points[0], marker="o", mfc=_TIME(0.0), zorder=5, **ends)
        axes.plot(*points[-1], marker="s", mfc=_TIME(1.0), zorder=5, **ends)
        cells = [_cell(figure, axes, i, count, side) for i in range(count)]
        last = max(len(points) - 1, 1)
        _fill(cells, np.asarray(path.frames, dtype=float), image_shape, [_TIME(i / last) for i in path.at], norm)
        for cell, i in zip(cells, path.at, strict=False):
            cell.set_xlabel(f"{total * i / last:.3g}", fontsize="small", labelpad=2)
        cells[0].set_title("decoded along the walk, at the times below", loc="left", fontsize="medium")
    dot = Line2D([], [], ls="", marker="o", ms=5, mew=0, mfc="#56B4E9", label="codes")
    start = Line2D([], [], marker="o", mfc=_TIME(0.0), label="start", **ends)
    _legend(figure, [dot, start, Line2D([], [], marker="s", mfc=_TIME(1.0), label="end", **ends)])
    return figure


# ------------------------------------------------------------------------------------------------ in parts


def _maps(
    plane: Plane, log_volume: ArrayLike, codes: Array, titles: Sequence[str], signs: int, below: float = 0.0
) -> tuple[Figure, list[Axes]]:
    """Lay maps of the magnification factor side by side, with one colour bar, and room below for a legend and more.

    The legend explains so many signs; what else comes below each map is given in inches.
    """
    width = _LEFT + len(titles) * (_PANEL + _GAP) - _GAP + _RIGHT
    height = _TOP + _PANEL + _SCALE + below + 0.1 + _LEGEND * -(-signs // _SIGNS)
    figure = Figure(figsize=(width, height), dpi=_DPI)
    image = plane.image(log_volume)
    low, high = limits(plane, image, codes)
    panels: list[Axes] = []
    for i, title in enumerate(titles):
        left, bottom = _LEFT + i * (_PANEL + _GAP), height - _TOP - _PANEL
        box = (left / width, bottom / height, _PANEL / width, _PANEL / height)
        axes = figure.add_axes(box, sharey=panels[0] if panels else None)
        shown = axes.imshow(image.clip(low, high), cmap="gray", norm=Normalize(low, high), **_where(plane))
        axes.set_title(title)
        axes.autoscale(enable=False)
        _label_plane(axes)
        if panels:
            axes.set_ylabel("")
            axes.tick_params(left=False, labelleft=False)
        panels.append(axes)
    bar = figure.colorbar(shown, cax=_beside(panels[-1]), extend=beyond(image, low, high))
    bar.set_label(r"magnification factor  $\log\sqrt{\det M(z)}$")
    return figure, panels


def _legend(figure: Figure, handles: Sequence[Line2D]) -> None:
    """Explain the signs below everything."""
    figure.legend(handles=handles, loc="lower center", ncols=min(len(handles), _SIGNS), frameon=False)


def _cell(figure: Figure, above: Axes, i: int, count: int, side: float) -> Axes:
    """Make a small square, the i-th of so many, under a map; ``side`` is in inches, with what surrounds it."""
    width, height = figure.get_size_inches()
    box = above.get_position()
    step = box.width / count
    left = box.x0 + i * step + (step - 0.94 * side / width) / 2
    bottom = box.y0 - (_SCALE + 0.3 + 0.94 * side) / height
    return figure.add_axes((left, bottom, 0.94 * side / width, 0.94 * side / height))


def _fill(
    cells: Sequence[Axes],
    rows: Array,
    image_shape: tuple[int, ...] | None,
    colours: Sequence[Any],
    norm: Normalize | None = None,
) -> None:
    """Draw decoded rows (n, D) into cells, each in a frame of its colour; cells that are left over are removed."""
    norm = norm or Normalize(*_range([rows]))
    images = rows[:, :, None] if image_shape is None else pictures(rows, image_shape)
    for cell, image, colour in zip(cells, images, colours, strict=False):
        look: dict[str, Any] = {
            "cmap": "gray" if image_shape else "viridis",
            "aspect": "equal" if image_shape else "auto",
        }
        cell.imshow(image if image.ndim == 2 else image.clip(0, 1), norm=norm, interpolation="nearest", **look)
        cell.set(xticks=[], yticks=[])
        cell.spines[:].set(color=colour, linewidth=2.5)
    for cell in cells[len(rows) :]:
        cell.remove()


def _range(rows: Sequence[ArrayLike]) -> tuple[float, float]:
    """Return the least and the largest value."""
    values = np.concatenate([np.ravel(part) for part in rows])
    return float(values.min()), float(values.max())


def _level(density: NDArray[np.floating[Any]], share: float) -> float:
    """Return the density above which a share of the mass on the grid lies."""
    falling = np.sort(np.nan_to_num(density), axis=None)[::-1]
    mass = falling.cumsum()
    return float(falling[np.searchsorted(mass, share * mass[-1])])
