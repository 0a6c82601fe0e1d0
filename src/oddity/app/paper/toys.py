"""The two pictures that the paper begins with: a curved surface, and a variance off the data (figures 1, 4 and 5)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from oddity.app import latent, plots
from oddity.app.paper.lab import Lab, Record
from oddity.geometry.pullback import Pullback, expected_metric
from oddity.models.training import fit_sigma_network

LINE, GEODESIC = "#0072B2", "#D7191C"
_VIEW = 38, -60  # elevation and azimuth in degrees
_FLAT = 0.4  # of a unit along the third axis, to one along the others


def surface(lab: Lab) -> tuple[Record, dict[str, Figure]]:
    """The shortest way over a surface with a hill, and the straight line in latent space."""
    settings = lab.settings["surface"]
    height, width = settings["height"], settings["width"]

    def hill(z: Tensor) -> Tensor:
        rise = height * torch.exp(-z.square().sum(-1, keepdim=True) / (2 * width**2))
        return torch.cat([z, rise], -1)

    M = Pullback(hill)
    a, b = torch.tensor(settings["ends"], dtype=torch.float64)
    g = M.geodesic(a, b).require()
    line = torch.lerp(a, b, torch.linspace(0, 1, 257, dtype=torch.float64)[:, None])
    record = {"geodesic": float(g.length), "line": float(M.length(line))}
    return record, {"surface": _hill(hill, g.points, line, record)}


def _hill(hill: Callable[[Tensor], Tensor], curve: Tensor, line: Tensor, record: Record) -> Figure:
    rng = np.random.default_rng(0)
    axis = torch.linspace(-2, 2, 81, dtype=torch.float64)
    x, y, h = hill(torch.cartesian_prod(axis, axis)).T.reshape(3, 81, 81).numpy()
    angle = rng.uniform(0.25 * math.pi, 1.75 * math.pi, 150)  # a class around the hill, and another on its top
    around = np.stack([1.25 * np.cos(angle), 1.25 * np.sin(angle)], -1) + 0.09 * rng.normal(size=(150, 2))
    classes = [around, 0.22 * rng.normal(size=(80, 2))]

    def above(z: Tensor) -> Tensor:  # so that nothing sinks into the surface
        return hill(z) + torch.tensor([0.0, 0.0, 0.02])

    figure = Figure(figsize=(10.4, 4.9), dpi=200, layout="constrained")
    flat, solid = (
        figure.add_subplot(1, 2, 1),
        figure.add_subplot(1, 2, 2, projection="3d", computed_zorder=False),
    )
    edge: dict[str, Any] = {"linewidths": 0.4, "edgecolors": "black"}
    flat.contour(x, y, h, levels=8, colors="0.75", linewidths=0.8)
    solid.plot_surface(x, y, h, color="0.92", alpha=0.7, linewidth=0, antialiased=True, zorder=1)
    for z, colour, name in zip(classes, plots.CLASS_COLOURS, ("class 1", "class 2"), strict=False):
        flat.scatter(z[:, 0], z[:, 1], s=20, c=colour, label=name, **edge)
        raised = above(torch.from_numpy(z))
        for part, layer in ((raised[hidden := _hidden(hill, raised)], 0.5), (raised[~hidden], 5)):
            solid.scatter(*part.numpy().T, s=16, c=colour, depthshade=False, zorder=layer, **edge)
    for points, colour, name in ((line, LINE, "line"), (curve, GEODESIC, "geodesic")):
        label = f"{'straight line' if name == 'line' else name}, length {record[name]:.2f}"
        flat.plot(*points.numpy().T, color=colour, lw=2.2, label=label)
        solid.plot(*above(points).numpy().T, color=colour, lw=2.2, zorder=10)
    flat.set(xlabel="$z_1$", ylabel="$z_2$", aspect="equal", title="latent space", xlim=(-2, 2), ylim=(-2, 2))
    solid.set(title="the surface that it parametrises", xlabel="$x_1$", ylabel="$x_2$", zlabel="$x_3$")
    solid.set(xticks=[-2, 0, 2], yticks=[-2, 0, 2], zticks=[0, 1])
    solid.view_init(*_VIEW)
    figure.legend(*flat.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return figure


def _hidden(hill: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return which points (n, 3) the hill hides from the beholder, about."""
    up, around = (math.radians(angle) for angle in _VIEW)
    way = torch.tensor([math.cos(up) * math.cos(around), math.cos(up) * math.sin(around), _FLAT * math.sin(up)])
    line = x[:, None] + torch.linspace(0.05, 3, 60, dtype=x.dtype)[:, None] * way.to(x)  # (n, 60, 3)
    return (hill(line[..., :2])[..., 2] > line[..., 2]).any(1)


def variance(lab: Lab) -> tuple[Record, dict[str, Figure]]:
    """Standard deviation and magnification factor on and around the data, of both networks of the variance."""
    saved, sample = lab.pairs(1)[0]
    ordinary = fit_sigma_network(saved.vae, sample.X, seed=0)
    decoders = {"RBF precision network": saved.vae.decoder, "ordinary σ-network": ordinary.decoder}
    codes = latent.codes_of(saved)
    centre, radius = codes.mean(0), codes.sub(codes.mean(0)).norm(dim=-1).max()
    angle = torch.linspace(0, 2 * math.pi, 256)
    ring = centre + 1.5 * radius * torch.stack([angle.cos(), angle.sin()], -1)
    record, plane = {}, plots.Plane.around(codes)
    for name, decoder in decoders.items():
        M = expected_metric(decoder)
        record[name] = {
            where: {
                "std": float(decoder.std(z).mean()),
                "log_magnification": float(M.log_volume(z).mean()),
            }
            for where, z in {"at the codes": codes, "on a circle around them": ring}.items()
        }
    spread = latent.over(plane, codes, lambda z: torch.stack([f.std(z).mean(-1) for f in decoders.values()], -1))
    deviations = dict(zip(decoders, spread.T, strict=True))
    return record, {
        "variance": plots.variance(plane, deviations, codes),
        "magnification": latent.draw_map(saved, plane),
    }
