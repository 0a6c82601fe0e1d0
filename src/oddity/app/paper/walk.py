"""Random walks in latent space: Riemannian beside Euclidean Brownian motion (section 5.4)."""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.figure import Figure

from oddity.app import comparisons, latent, plots
from oddity.app.paper.lab import Lab, Record, Sample, fit, summary
from oddity.geometry.pullback import expected_metric
from oddity.models.storage import SavedModel
from oddity.statistics.brownian import DataSupport, Domain, Walk, brownian_motion

TITLES = {"riemannian": "Riemannian", "euclidean": "Euclidean"}


def walk(lab: Lab) -> tuple[Record, dict[str, Figure]]:
    """Share of the steps that lie in the data's support, of walkers that start at random codes.

    The Euclidean motion has the flat metric under which steps at a typical code are as long.
    """
    settings = lab.settings["walk"]
    shares: dict[str, list[float]] = {name: [] for name in TITLES}
    moved: dict[str, list[float]] = {name: [] for name in TITLES}
    completed = dict.fromkeys(TITLES, 0)
    figures = {}
    seeds = range(settings["repetitions"])
    tasks = ((lab.sample(settings["digits"], settings["per_digit"], seed), seed, settings) for seed in seeds)
    for seed, (saved, walks) in enumerate(lab.map("walks", _repetition, tasks)):
        codes = latent.codes_of(saved)
        support, width = DataSupport(codes), float(codes.std(0).norm())
        for name, found in walks.items():
            shares[name].append(share_inside(found, support))
            completed[name] += int(found.completed.sum())
            way = (found.points[:, -1] - found.points[:, 0]).norm(dim=-1)
            moved[name].append(float(way.square().mean().sqrt()) / width)
        if seed == 0:
            figures["walk"] = _figure(saved, walks, shares, settings)
    record: Record = {name: summary(values) for name, values in shares.items()}
    total = settings["steps"] * settings["dt"]
    record["moved"] = {name: summary(values) for name, values in moved.items()}
    walkers = settings["walkers"] * settings["repetitions"]
    return record | {"time": total, "walkers": walkers, "completed": completed}, figures


def share_inside(found: Walk, support: Domain) -> float:
    """Share of the steps that end in a region; those that a stopped walk did not make count as outside.

    Examples
    --------
    >>> w = Walk(torch.tensor([[[0.0], [1.0], [1.0]]]), torch.tensor([False]), ["stopped"], torch.tensor([1]), None)
    >>> share_inside(w, lambda z: z[..., 0] > 0.5)
    0.5
    """
    made = torch.arange(found.points.shape[1] - 1) < found.steps[:, None]
    return float((support(found.points[:, 1:]) & made).float().mean())


def _repetition(sample: Sample, seed: int, settings: Record) -> tuple[SavedModel, dict[str, Walk]]:
    """Train a model and walk in its latent space."""
    saved = fit(sample, seed, settings["fit"])
    M, codes = expected_metric(saved.vae.decoder), latent.codes_of(saved)
    start = codes[np.random.default_rng(seed).choice(len(codes), settings["walkers"], replace=False)]
    spaces = {"riemannian": M, "euclidean": latent.flat_like(M, codes)}
    walks = {
        name: brownian_motion(
            space, start, settings["steps"], settings["dt"], generator=torch.Generator().manual_seed(seed)
        )
        for name, space in spaces.items()
    }
    return saved, walks


def _figure(saved: SavedModel, walks: dict[str, Walk], shares: dict[str, list[float]], settings: Record) -> Figure:
    codes = latent.codes_of(saved)
    plane = plots.Plane.around(codes)
    at = np.linspace(0, settings["steps"], settings["frames"]).round().astype(int).tolist()
    paths = {
        f"{TITLES[name]}: {100 * shares[name][0]:.1f} % of all steps within the data": comparisons.Path(
            found.points[0], latent.decoded(saved, found.points[0, at]), at
        )
        for name, found in walks.items()
    }
    return comparisons.walks(
        plane,
        latent.magnification(saved, plane),
        codes,
        paths,
        settings["steps"] * settings["dt"],
        image_shape=latent.image_shape(saved),
    )
