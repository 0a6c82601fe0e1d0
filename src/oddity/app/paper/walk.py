"""Random walks in latent space: Riemannian beside Euclidean Brownian motion (section 5.4)."""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.figure import Figure

from oddity.app import latent
from oddity.app.paper.lab import Lab, Record, Sample, fit, summary
from oddity.geometry.pullback import expected_metric
from oddity.models.storage import SavedModel
from oddity.statistics.brownian import DataSupport, Walk, brownian_motion

TITLES = {"riemannian": "Riemannian", "euclidean": "Euclidean"}


def walk(lab: Lab) -> tuple[Record, dict[str, Figure]]:
    """Share of the steps that lie in the data's support, of walkers that start at random codes.

    The Euclidean motion has the flat metric under which steps at a typical code are as long.
    """
    settings = lab.settings["walk"]
    total = settings["steps"] * settings["dt"]
    shares: dict[str, list[float]] = {name: [] for name in TITLES}
    moved: dict[str, list[float]] = {name: [] for name in TITLES}
    completed = dict.fromkeys(TITLES, 0)
    figures = {}
    for seed, (saved, walks) in enumerate(lab.repeat("walks", _repetition, settings["digits"], settings)):
        codes = latent.codes_of(saved)
        support, width = DataSupport(codes), float(codes.std(0).norm())
        for name, found in walks.items():
            shares[name].append(
                float(found.inside(support).float().mean())
            )  # what a stopped walk did not do is outside
            completed[name] += int(found.completed.sum())
            way = (found.points[:, -1] - found.points[:, 0]).norm(dim=-1)
            moved[name].append(float(way.square().mean().sqrt()) / width)
        if seed == 0:
            titled = {TITLES[name]: found for name, found in walks.items()}
            first = {TITLES[name]: values[0] for name, values in shares.items()}
            figures["walk"] = latent.draw_walks(saved, titled, first, total, settings["frames"])
    record: Record = {name: summary(values) for name, values in shares.items()}
    record["moved"] = {name: summary(values) for name, values in moved.items()}
    walkers = settings["walkers"] * settings["repetitions"]
    return record | {"time": total, "walkers": walkers, "completed": completed}, figures


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
