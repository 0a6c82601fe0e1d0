"""Densities of codes: a mixture of LANDs beside a Gaussian mixture (section 5.3)."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from sklearn.mixture import GaussianMixture

from oddity.app import latent
from oddity.app.paper.lab import Lab, Record, paired
from oddity.app.report import agreement
from oddity.geometry.pullback import expected_metric
from oddity.models.storage import SavedModel
from oddity.statistics.land import LAND


def density(lab: Lab) -> tuple[Record, dict[str, Figure]]:
    """Mean log density of held-out codes with respect to dz, and purity of the components, for each seed."""
    settings = lab.settings["density"]
    trained = [saved for saved, _ in lab.pairs(settings["repetitions"])]
    found = lab.map("densities", _compare, ((saved, settings, seed) for seed, saved in enumerate(trained)))
    record: Record = {name: [scores[name] for _, scores in found] for name in found[0][1]}
    record["paired"] = paired(record["land"], record["gmm"])
    record["paired_purity"] = paired(record["land_purity"], record["gmm_purity"])
    titles = "mixture of LANDs", "Gaussian mixture"
    return record, {"density": latent.draw_densities(trained[0], titles, **found[0][0], size=settings["grid"])}


def _compare(saved: SavedModel, settings: Record, seed: int) -> tuple[dict[str, Any], Record]:
    codes, labels = latent.codes_of(saved), np.asarray(saved.labels)
    rows = np.random.default_rng(seed).permutation(len(codes))
    train, test = rows[: settings["fitted"]], rows[settings["fitted"] :][: settings["held_out"]]
    models = {
        "land": LAND(expected_metric(saved.vae.decoder), 2, random_state=seed, **settings["land"]),
        "gmm": GaussianMixture(2, n_init=settings["gmm_n_init"], random_state=seed),
    }
    scores, found = {}, {}
    for name, model in models.items():
        model.fit(codes[train])
        scores[name] = model.score_samples(codes[test])
        found[f"{name}_purity"] = agreement(model.predict(codes[test]), labels[test])["purity"]
    reached = np.isfinite(scores["land"])  # no geodesic reached the others: they count for neither
    found |= {name: float(values[reached].mean()) for name, values in scores.items()}
    return models, found | {"left_out": int((~reached).sum())}
