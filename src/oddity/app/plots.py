"""Figures of a latent space, drawn from arrays.

Every function returns a figure of its own and leaves Matplotlib's global state alone; :func:`save` writes it.
Classes are told apart by colour (Okabe and Ito's palette, safe for colour-blind readers) and, beyond eight
of them, by marker as well.
"""

import io
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from numpy.typing import ArrayLike, NDArray
from scipy.interpolate import RectBivariateSpline, RegularGridInterpolator
from scipy.ndimage import distance_transform_edt, maximum_filter

from oddity.app.datasets import channels_last
from oddity.app.files import check_writable, replacing

FIGURE_SUFFIXES = (".png", ".pdf", ".svg")
CLASS_COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#CC79A7", "#D55E00", "#999999")
CLASS_MARKERS = "os^Dv"
GEODESIC_COLOUR, STRAIGHT_COLOUR = "#D7191C", "#FFFFFF"
_DPI = 200
_DEPTH = 30.0  # logarithm of a density, below its greatest, beyond which there is nothing to draw

Array = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Plane:
    """A regular grid over a rectangle of a two-dimensional latent space.

    Attributes
    ----------
    z1 : ndarray, shape (w,)
        The abscissae.
    z2 : ndarray, shape (h,)
        The ordinates.

    Examples
    --------
    >>> plane = Plane.around([[0.0, 0.0], [2.0, 1.0]], size=5, margin=0.5)
    >>> plane.points.shape, plane.extent
    ((25, 2), (-1.0, 3.0, -1.5, 2.5))
    """

    z1: Array
    z2: Array

    @classmethod
    def around(cls, codes: ArrayLike, *, size: int = 200, margin: float = 0.25) -> "Plane":
        """Lay a square grid of ``size`` x ``size`` points around codes (n, 2); the margin is in widths."""
        codes = _flat_codes(codes)
        centre = (codes.min(0) + codes.max(0)) / 2
        half = (0.5 + margin) * float(np.ptp(codes, axis=0).max() or 1.0)
        z1, z2 = (np.linspace(c - half, c + half, size) for c in centre)
        return cls(z1, z2)

    @property
    def points(self) -> Array:
        """The grid's points, row after row: (h * w, 2)."""
        return np.stack(np.meshgrid(self.z1, self.z2), axis=-1).reshape(-1, 2)

    @property
    def extent(self) -> tuple[float, float, float, float]:
        """Left, right, bottom, top."""
        return float(self.z1[0]), float(self.z1[-1]), float(self.z2[0]), float(self.z2[-1])

    def interpolated(self, coarse: "Plane", values: ArrayLike) -> Array:
        """Values at the points of another plane, carried over to these points: (h' * w',) -> (h * w,).

        By a bicubic spline. What is less than the greatest value by more than 30 counts as 30 less, and nothing rises
        above the values around it, since a spline rings beside a cliff. What is not finite is taken from the nearest
        that is, and becomes minus infinity again.
        """
        image = coarse.image(values)
        finite = np.isfinite(image)
        if not finite.any():
            return np.full(len(self.points), -np.inf)
        nearest = distance_transform_edt(~finite, return_distances=False, return_indices=True)
        filled = np.maximum(image[tuple(nearest)], image[finite].max() - _DEPTH)
        smooth = RectBivariateSpline(coarse.z2, coarse.z1, filled)(self.z2, self.z1).ravel()
        around, known = (
            RegularGridInterpolator((coarse.z2, coarse.z1), part)(self.points[:, ::-1])
            for part in (maximum_filter(filled, 3), finite.astype(float))
        )
        along: Array = np.where(known > 0.5, np.minimum(smooth, around), -np.inf)
        return along

    def image(self, values: ArrayLike) -> Array:
        """Values at the points, (h * w,), as rows and columns: (h, w)."""
        return np.asarray(values, dtype=float).reshape(len(self.z2), len(self.z1))


def latent_map(
    plane: Plane,
    log_volume: ArrayLike,
    codes: ArrayLike,
    labels: ArrayLike | None = None,
    *,
    geodesics: ArrayLike | None = None,
    class_names: Mapping[int, str] | None = None,
) -> Figure:
    r"""Draw the magnification factor ``log sqrt(det M)`` with the codes, geodesics and their straight lines.

    Parameters
    ----------
    plane
        Where the factor was evaluated.
    log_volume
        The factor at ``plane.points``, (h * w,).
    codes
        The codes (n, 2), drawn over the map.
    labels
        The class of each code (n,).
    geodesics
        Curves (k, n + 1, 2); the straight line between the ends of each is drawn beside it.
    class_names
        Names for the legend; a label without one stands for itself.

    Raises
    ------
    ValueError
        If the codes are not two-dimensional: other latent spaces have no such map.

    Examples
    --------
    >>> codes = [[0.0, 0.0], [1.0, 1.0]]
    >>> plane = Plane.around(codes, size=20)
    >>> figure = latent_map(plane, plane.points.sum(1), codes, [0, 1], geodesics=[[[0, 0], [1, 0], [1, 1]]])
    >>> [text.get_text() for text in figure.legends[0].get_texts()]
    ['class 0', 'class 1', 'geodesic', 'straight line']
    """
    codes, image = _flat_codes(codes), plane.image(log_volume)
    figure = Figure(figsize=(7.2, 6.9), dpi=_DPI, layout="constrained")
    axes = figure.add_subplot()
    low, high = limits(plane, image, codes)
    shown = axes.imshow(image.clip(low, high), cmap="gray", norm=Normalize(low, high), **_where(plane))
    bar = figure.colorbar(shown, cax=_beside(axes), extend=beyond(image, low, high))
    bar.set_label(r"magnification factor  $\log\sqrt{\det M(z)}$")
    handles = _scatter_codes(axes, codes, labels, class_names or {})
    if geodesics is not None:
        handles += _draw_curves(axes, np.asarray(geodesics, dtype=float))
    _label_plane(axes)
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 5), frameon=False)
    return figure


def variance(
    plane: Plane,
    deviations: Mapping[str, ArrayLike],
    codes: ArrayLike,
    labels: ArrayLike | None = None,
    *,
    class_names: Mapping[int, str] | None = None,
) -> Figure:
    """Draw standard deviations over the plane side by side, on one logarithmic colour scale.

    Parameters
    ----------
    plane
        Where they were evaluated.
    deviations
        The decoder's mean standard deviation at ``plane.points``, (h * w,), by the title of its panel.
    codes
        The codes (n, 2), drawn over each panel.
    labels
        The class of each code (n,).
    class_names
        Names for the legend; a label without one stands for itself.

    Raises
    ------
    ValueError
        If the codes are not two-dimensional.

    Examples
    --------
    >>> plane = Plane.around([[0.0, 0.0], [1.0, 1.0]], size=10)
    >>> figure = variance(plane, {"left": [1.0] * 100, "right": [2.0] * 100}, [[0.0, 0.0], [1.0, 1.0]])
    >>> [axes.get_title() for axes in figure.axes[:2]]
    ['left', 'right']
    """
    codes = _flat_codes(codes)
    images = {title: plane.image(sd) for title, sd in deviations.items()}
    values = np.stack(list(images.values()))
    norm = LogNorm(values.min(), values.max())
    lines = max((title.count("\n") for title in images), default=0)
    size = 4.6 * len(images) + 1.2, 5.45 + 0.25 * lines
    figure = Figure(figsize=size, dpi=_DPI, layout="constrained")
    panels = figure.subplots(1, len(images), sharey=True, squeeze=False)[0]
    for axes, (title, image) in zip(panels, images.items(), strict=True):
        shown = axes.imshow(image, cmap="magma", norm=norm, **_where(plane))
        handles = _scatter_codes(axes, codes, labels, class_names or {}, size=5)
        axes.set_title(title)
        _label_plane(axes)
        axes.label_outer()
    bar = figure.colorbar(shown, cax=_beside(panels[-1]))
    bar.set_label("decoder standard deviation, mean over the outputs")
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 5), frameon=False)
    return figure


def interpolations(
    along_geodesic: ArrayLike,
    along_line: ArrayLike,
    titles: Sequence[str],
    *,
    image_shape: tuple[int, ...] | None = None,
) -> Figure:
    """Draw decoded frames along geodesics, each over decoded frames along its straight line.

    Parameters
    ----------
    along_geodesic, along_line
        Decoded frames (k, frames, D) at equal steps of arc length, and at equal steps of the line.
    titles
        One a pair, (k,).
    image_shape
        Shape of a frame that is an image. Without it a frame is drawn as a row of colours, one a column of
        the data.

    Examples
    --------
    >>> frames = np.random.default_rng(0).random((2, 5, 16))
    >>> figure = interpolations(frames, frames[:, ::-1], ["a to b", "c to d"], image_shape=(4, 4))
    >>> [axes.get_title(loc="left") for axes in figure.axes]
    ['a to b', 'c to d']
    """
    geodesic, line = np.asarray(along_geodesic, dtype=float), np.asarray(along_line, dtype=float)
    pairs = [[_strip(frames, image_shape) for frames in pair] for pair in zip(geodesic, line, strict=True)]
    height, width = pairs[0][0].shape[:2]
    gap = max(1, height // 14)
    figure, panels = _panels(len(pairs), (2 * height + gap) / width if image_shape else 0.25, ruled=not image_shape)
    norm = Normalize(min(geodesic.min(), line.min()), max(geodesic.max(), line.max()))
    look: dict[str, Any] = {"cmap": "gray"} if image_shape else {"aspect": "auto"}
    for axes, pair, title in zip(panels, pairs, titles, strict=True):
        shown = axes.imshow(_join(pair, gap, axis=0), norm=norm, interpolation="nearest", **look)
        centre = (height - 1) / 2
        axes.set_yticks([centre, centre + height + gap], ["geodesic", "straight line"])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_title(title, loc="left", fontsize="medium")
        if image_shape or axes is not panels[-1]:
            axes.set_xticks([])
    if not image_shape:
        panels[-1].set_xlabel("column of the data (in each block, a row is a frame, the first on top)")
        figure.colorbar(shown, cax=panels[-1].inset_axes((1.02, 0.0, 0.02, 1.0)), label="value")
    return figure


def pictures(rows: Array, image_shape: tuple[int, ...]) -> Array:
    """Return rows (n, D) as pictures (n, height, width) or, in three or four colours, (n, height, width, channels).

    Images of any other number of channels are drawn by the mean of those.

    Examples
    --------
    >>> pictures(np.zeros((2, 60)), (3, 4, 5)).shape, pictures(np.zeros((2, 40)), (2, 4, 5)).shape
    ((2, 4, 5, 3), (2, 4, 5))
    """
    images = rows.reshape(-1, *image_shape)
    if len(image_shape) == 2:
        return images
    if not channels_last(image_shape):
        images = np.moveaxis(images, 1, -1)
    return images if images.shape[-1] in (3, 4) else images.mean(-1)


def sheet(images: ArrayLike, image_shape: tuple[int, ...], title: str) -> Figure:
    """Draw images (n, D) on one sheet, row after row.

    Examples
    --------
    >>> figure = sheet(np.random.default_rng(0).random((7, 16)), (4, 4), "seven")
    >>> figure.axes[0].images[0].get_array().shape  # three rows of three, gaps between them
    (14, 14)
    """
    whole = pictures(np.asarray(images, dtype=float), image_shape)
    columns = math.ceil(math.sqrt(len(whole)))
    missing, grey = -len(whole) % columns, whole.ndim == 3
    whole = np.concatenate([whole, np.full((missing, *whole.shape[1:]), np.nan if grey else 1.0)])
    gap = max(1, whole.shape[2] // 14)
    rows = [_join(row, gap, axis=1) for row in whole.reshape(-1, columns, *whole.shape[1:])]
    whole = _join(rows, gap, axis=0)
    height, width = whole.shape[:2]
    figure = Figure(figsize=(7.2, 7.2 * height / width + 0.3), dpi=_DPI, layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(whole if grey else whole.clip(0, 1), cmap="gray", interpolation="nearest")
    axes.set_axis_off()
    axes.set_title(title, loc="left", fontsize="medium")
    return figure


def save(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure beside ``path`` and rename it into place; the ending says the format.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(Figure(), folder + "/empty.png")
    ...     [file.name for file in pathlib.Path(folder).iterdir()]
    ['empty.png']
    """
    path = check_writable(path, FIGURE_SUFFIXES)
    legends: list[Any] = figure.findobj(Legend)
    named = [text for legend in legends for text in legend.get_texts()]
    for text in [*named, *(title for axes in figure.axes for title in (axes.title, axes._left_title))]:  # type: ignore[attr-defined]
        text.set_parse_math(False)  # classes may be called $ or $x_$
    drawn = io.BytesIO()  # not the file, on a full disk of which writers of figures raise what they like
    figure.savefig(drawn, format=path.suffix[1:].lower())
    with replacing(path) as part:
        part.write_bytes(drawn.getbuffer())


# ------------------------------------------------------------------------------------------------ in parts


def _flat_codes(codes: ArrayLike) -> Array:
    codes = np.asarray(codes, dtype=float)
    if codes.ndim != 2 or codes.shape[1] != 2:
        raise ValueError(f"a map needs codes of shape (n, 2), not {codes.shape}: train with latent-dim 2")
    return codes


def limits(plane: Plane, image: Array, codes: Array) -> tuple[float, float]:
    """Colour limits of a magnification factor, (h, w): from its least value at the codes to half way up the wall.

    The wall would take all contrast from where the codes are, and beyond it the factor falls without bound.

    Examples
    --------
    >>> plane = Plane.around([[0.0, 0.0], [2.0, 1.0]], size=5, margin=0.5)
    >>> low, high = limits(plane, plane.image(plane.points[:, 0]), np.array([[0.0, 0.0], [1.0, 1.0]]))
    >>> round(low, 1), round(high, 1)  # the codes have 0 and 1, the plane ends at 3
    (0.0, 2.0)
    """
    row, column = (
        np.abs(axis - x[:, None]).argmin(1) for axis, x in ((plane.z2, codes[:, 1]), (plane.z1, codes[:, 0]))
    )
    here, finite = image[row, column], image[np.isfinite(image)]
    here = here[np.isfinite(here)] if np.isfinite(here).any() else finite
    low, middle = np.quantile(here, [0.005, 0.995]) if here.size else (0.0, 1.0)
    high = (middle + finite.max(initial=middle)) / 2
    return float(low), float(high if high > low else low + 1)


def beyond(image: Array, low: float, high: float) -> str:
    """On which ends a colour bar has an arrow, since values lie beyond."""
    below, above = bool(image.min() < low), bool(image.max() > high)
    return {(False, False): "neither", (True, False): "min", (False, True): "max"}.get((below, above), "both")


def _where(plane: Plane) -> dict[str, Any]:
    return {"extent": plane.extent, "origin": "lower", "interpolation": "bilinear"}


def _beside(axes: Axes) -> Axes:
    """Return a narrow strip for a colour bar, as tall as the axes whatever their aspect."""
    return axes.inset_axes((1.03, 0.0, 0.045, 1.0))


def _scatter_codes(
    axes: Axes, codes: Array, labels: ArrayLike | None, class_names: Mapping[int, str], size: float = 9
) -> list[Line2D]:
    """Draw the codes and return a legend handle for each class (one for all, where there are no labels)."""
    y = np.zeros(len(codes), dtype=int) if labels is None else np.asarray(labels)
    classes = np.unique(y).tolist()
    names = ["codes" if labels is None else class_names.get(label, f"class {label}") for label in classes]
    return [_scatter_class(axes, codes[y == label], i, names[i], size) for i, label in enumerate(classes)]


def _scatter_class(axes: Axes, here: Array, i: int, name: str, size: float = 9) -> Line2D:
    """Draw the codes of the i-th class and return a legend handle for it."""
    colour = class_colour(i)
    marker = CLASS_MARKERS[class_round(i) % len(CLASS_MARKERS)]
    axes.scatter(here[:, 0], here[:, 1], s=size, c=colour, marker=marker, linewidths=0.25, edgecolors="black")
    return Line2D([], [], ls="", marker=marker, ms=7, mfc=colour, mec="black", mew=0.4, label=name)


def class_round(i: int) -> int:
    """How often the colours were used up before the i-th class: what else tells it apart."""
    return i // len(CLASS_COLOURS)


def class_colour(i: int) -> str:
    """Colour of the i-th class."""
    return CLASS_COLOURS[i % len(CLASS_COLOURS)]


def _draw_curves(axes: Axes, curves: Array) -> list[Line2D]:
    """Draw curves (k, n + 1, 2) over the straight lines between their ends; return a handle for each kind."""
    halo = [withStroke(linewidth=3.4, foreground="black")]
    straight: dict[str, Any] = {
        "color": STRAIGHT_COLOUR,
        "lw": 1.4,
        "ls": (0, (4, 2.5)),
        "path_effects": halo,
    }
    geodesic: dict[str, Any] = {"color": GEODESIC_COLOUR, "lw": 2, "path_effects": halo}
    for start, end in curves[:, [0, -1]]:
        axes.plot([start[0], end[0]], [start[1], end[1]], zorder=3, **straight)
    for curve in curves:
        axes.plot(curve[:, 0], curve[:, 1], zorder=4, **geodesic)
        axes.plot(curve[[0, -1], 0], curve[[0, -1], 1], zorder=5, ls="", marker="o", ms=5, mec="black", mfc="white")
    return [Line2D([], [], label="geodesic", **geodesic), Line2D([], [], label="straight line", **straight)]


def _label_plane(axes: Axes) -> None:
    axes.set(xlabel="$z_1$", ylabel="$z_2$", aspect="equal")


def _panels(count: int, aspect: float, ruled: bool) -> tuple[Figure, list[Axes]]:
    """Stack panels of a given height per width, with room for titles, row labels and, if ruled, scales."""
    width, left, title = 9.0, 1.1, 0.42
    right, bottom = (0.9, 0.6) if ruled else (0.15, 0.15)
    tall = aspect * width
    size = np.array([left + width + right, count * (tall + title) + bottom])
    figure = Figure(figsize=(size[0], size[1]), dpi=_DPI)
    grid = figure.add_gridspec(
        count,
        1,
        left=left / size[0],
        right=1 - right / size[0],
        top=1 - title / size[1],
        bottom=bottom / size[1],
        hspace=title / tall,
    )
    return figure, [figure.add_subplot(grid[i]) for i in range(count)]


def _strip(frames: Array, image_shape: tuple[int, ...] | None) -> Array:
    """Lay images (frames, D) side by side with gaps; frames without a shape stay rows of numbers."""
    if image_shape is None:
        return frames
    images = pictures(frames, image_shape)
    return _join(list(images), max(1, images.shape[2] // 14), axis=1)


def _join(images: Sequence[Array], gap: int, axis: int) -> Array:
    """Join images along an axis with a gap that is drawn white: NaN in grey images, one in coloured ones."""
    shape = list(images[0].shape)
    shape[axis] = gap
    blank = np.full(shape, np.nan if len(shape) == 2 else 1.0)
    spaced = [part for image in images for part in (blank, image)][1:]
    return np.concatenate(spaced, axis=axis)
