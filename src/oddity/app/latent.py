"""A saved model as the commands see it: its codes, its metric, places in it, and pictures of them."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from oddity.app import comparisons, plots
from oddity.app.datasets import Dataset
from oddity.app.plots import Plane
from oddity.app.report import Connections
from oddity.geometry.curve import Geodesic
from oddity.geometry.manifold import Manifold
from oddity.geometry.pullback import expected_metric
from oddity.geometry.roadmap import Roadmap, resampled
from oddity.geometry.spaces import Euclidean
from oddity.models.storage import SavedModel
from oddity.models.vae import VAE
from oddity.statistics.brownian import DataSupport, Walk
from oddity.statistics.interpolation import Interpolation
from oddity.statistics.land import LAND

STROLL = 0.5  # of the root mean square way between two codes, that a walk goes
AT_ONCE = 0.01  # of its steps, before which a walk stops at once


def rows(data: Dataset, vae: VAE) -> Tensor:
    """Return data as the encoder takes them: (n, D)."""
    maps = vae.image_shape is not None and data.image_shape is not None
    return torch.from_numpy((data.as_maps() if maps else data).X).to(next(vae.parameters()))


def labels(data: Dataset) -> Tensor | None:
    """Return the class of each row, (n,), where there are classes."""
    return None if data.y is None else torch.from_numpy(data.y)


def description(data: Dataset, settings: dict[str, Any]) -> dict[str, Any]:
    """Return what a model remembers of its making, in JSON's own types."""
    return {
        "data": data.name,
        "image_shape": data.image_shape and list(data.image_shape),
        "class_names": {str(label): name for label, name in data.class_names.items()},
        "training": settings,
    }


def codes_of(saved: SavedModel, remedy: str = "train it with oddity train") -> Tensor:
    """Return the codes (n, d) that the model holds."""
    if saved.codes is None:
        raise ValueError(f"the model holds no codes: {remedy}")
    return saved.codes


def geometry(saved: SavedModel) -> tuple[Manifold, Roadmap | None]:
    """Return the expected metric, and a roadmap over the codes if the model holds some."""
    M = expected_metric(saved.vae.decoder)
    return M, None if saved.codes is None else Roadmap.thinned(M, saved.codes)


def between(saved: SavedModel, start: str, goal: str) -> Connections:
    """Join two places that a user named."""
    (name, a), (other, b) = (place(saved, *option) for option in (("--from", start), ("--to", goal)))
    M, roads = geometry(saved)
    return Connections.between(M, a[None], b[None], [(name, other)], roads)


def place(saved: SavedModel, option: str, text: str) -> tuple[str, Tensor]:
    """Read an index of a code, or latent coordinates; return what to call the place, and the point (d,)."""
    if re.fullmatch(r"[+-]?[0-9]{1,18}", text.strip()):
        codes, index = codes_of(saved, "train it with oddity train, or give coordinates"), int(text)
        if not 0 <= index < len(codes):
            raise ValueError(f"{option} {index} is out of range: the model holds the codes 0 to {len(codes) - 1}")
        return f"code {index}", codes[index]
    try:
        numbers = [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise ValueError(f"{option} {text} is neither an index nor coordinates such as 0.3,-1.2") from None
    point = torch.tensor(numbers, dtype=next(saved.vae.parameters()).dtype)
    if len(point) != saved.vae.latent_dim or not bool(point.isfinite().all()):
        d = saved.vae.latent_dim
        raise ValueError(f"{option} {text} is no place in {d} dimensions: give as many finite numbers")
    return f"({', '.join(f'{number:g}' for number in numbers)})", point


def over(plane: Plane, like: Tensor, function: Callable[[Tensor], Tensor]) -> Any:
    """Return the values of a function of codes at the plane's points: (h * w,)."""
    with torch.no_grad():
        points = torch.from_numpy(plane.points).to(like)
        return torch.cat([function(part) for part in points.split(4096)]).numpy()


def magnification(saved: SavedModel, plane: Plane) -> Any:
    """Return the magnification factor, log sqrt(det M), at the plane's points: (h * w,)."""
    return over(plane, codes_of(saved), expected_metric(saved.vae.decoder).log_volume)


def decoded(saved: SavedModel, z: ArrayLike | Tensor) -> NDArray[Any]:
    """Return the means that the decoder gives codes: (n, d) -> (n, D)."""
    with torch.no_grad():
        rows: NDArray[Any] = saved.vae.decoder.mean(torch.as_tensor(z)).numpy()
    return rows


def flat_like(M: Manifold, codes: Tensor) -> Manifold:
    """Return the flat metric whose Brownian steps are, in the mean square, as long as those of M at the median code."""
    with torch.no_grad():
        widths = torch.linalg.inv(M.metric(codes)).diagonal(dim1=-2, dim2=-1).mean(-1)  # mean square step over dt
    return float(1 / widths.median()) * Euclidean()


def walk_time(M: Manifold, codes: Tensor) -> float:
    """Return the time in which Brownian motion from a typical code goes half of the way between two codes.

    Both ways are root mean squares, under the flat metric that is like M at the median code.
    """
    way = STROLL * math.sqrt(2) * float(flat_like(M, codes).norm(codes[0], codes.std(0)))
    return way**2 / codes.shape[1]


def remarks(walk: Walk, support: DataSupport) -> list[str]:
    """Return what to know of walks: whether they start off the data, and whether they stopped early, or at once."""
    starts, stopped = walk.points[:, 0], ~walk.completed
    off, count = int((~support(starts)).sum()), len(starts)
    said = [f"{off} of {count} start off the data"] if off else []
    if bool(stopped.any()):
        hardly = bool((walk.steps[stopped] < AT_ONCE * (walk.points.shape[1] - 1)).all())
        said.append(f"{int(stopped.sum())} of {count} stopped {'at once' if hardly else 'early'}")
    return said


def draw_map(saved: SavedModel, plane: Plane, found: Connections | None = None) -> Figure:
    """Draw the magnification factor with the codes, and geodesics where some were found."""
    codes = codes_of(saved)
    return plots.latent_map(
        plane,
        magnification(saved, plane),
        codes,
        saved.labels,
        geodesics=None if found is None else found.geodesic.points,
        class_names=class_names(saved),
    )


def frames(saved: SavedModel, found: Connections, count: int) -> tuple[Interpolation, Interpolation]:
    """Decode frames at equal steps along the geodesics, and along the straight lines."""
    curves = found.geodesic, _lines(found)
    along, straight = (Interpolation.along(saved.vae.decoder, curve, count) for curve in curves)
    return along, straight


def paced(saved: SavedModel, found: Connections, count: int) -> Interpolation:
    """Decode frames along the straight lines, at equal steps of their Riemannian length."""
    g, lines = found.geodesic, _lines(found)
    n = g.points.shape[-2] - 1
    points = resampled(g.manifold, lines(torch.linspace(0, 1, n + 1, dtype=g.points.dtype)), n)
    return Interpolation.along(saved.vae.decoder, replace(lines, points=points), count)


def _lines(found: Connections) -> Geodesic:
    """The straight lines between the ends, as geodesics of the flat chart."""
    return Euclidean().geodesic(found.geodesic.points[:, 0], found.geodesic.points[:, -1])


def draw_frames(
    saved: SavedModel, found: Connections, decoded: tuple[Interpolation, Interpolation], pictured: int
) -> Figure:
    """Draw the pairs whose straight line is longest beside the geodesic: there is most to see."""
    chosen = found.ratio.nan_to_num(1.0).argsort()[:pictured].sort().values
    above, below = (interpolation.images[chosen].numpy() for interpolation in decoded)
    titles = [found.titles()[i] for i in chosen.tolist()]
    return plots.interpolations(above, below, titles, image_shape=image_shape(saved))


def draw_densities(saved: SavedModel, titles: Sequence[str], land: LAND, gmm: Any, size: int) -> Figure:
    """Draw a mixture of LANDs and a Gaussian mixture, with respect to dz, side by side.

    A geodesic for each point is dear, but the density of LAND with respect to dM is smooth: it is measured on a grid of
    ``size`` x ``size`` points, and interpolated.
    """
    codes = codes_of(saved)
    plane, coarse = Plane.around(codes), Plane.around(codes, size=size)
    log_volume = magnification(saved, plane)
    log_density = plane.interpolated(coarse, land.log_density(coarse.points.astype(land.means_.dtype)))
    values = log_density + log_volume, gmm.score_samples(plane.points)
    return comparisons.densities(
        plane,
        log_volume,
        codes,
        saved.labels,
        dict(zip(titles, values, strict=True)),
        [land.means_, gmm.means_],
        class_names=class_names(saved),
    )


def draw_walks(
    saved: SavedModel, walks: Mapping[str, Walk], shares: Mapping[str, float], total: float, count: int
) -> Figure:
    """Draw the first walker of each kind, and so many frames decoded along its way; ``shares`` go into the titles."""
    codes = codes_of(saved)
    paths, support = {}, DataSupport(codes)
    for title, walk in walks.items():
        at = np.linspace(0, walk.points.shape[1] - 1, count).round().astype(int)
        lines = [f"{title}: {100 * shares[title]:.1f} % of all steps within the data"]
        lines += ["; ".join(said)] if (said := remarks(walk, support)) else []
        paths["\n".join(lines)] = comparisons.Path(walk.points[0], decoded(saved, walk.points[0, at]), at.tolist())
    plane = Plane.around(codes)
    return comparisons.walks(plane, magnification(saved, plane), codes, paths, total, image_shape=image_shape(saved))


def image_shape(saved: SavedModel) -> tuple[int, ...] | None:
    """Return the shape of the data that are images, and nothing of others."""
    shape = saved.info.get("image_shape")
    return tuple(shape) if shape else None


def class_names(saved: SavedModel) -> dict[int, str]:
    """Return the names that the data gave to classes, as text that can be shown: names of folders may be any bytes."""
    names = saved.info.get("class_names", {})
    return {int(label): name.encode("utf-8", "backslashreplace").decode() for label, name in names.items()}
