"""Clusters of digits by k-means, geodesic beside Euclidean (section 5.1)."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from sklearn.cluster import KMeans

from oddity.app import latent
from oddity.app.paper.lab import Lab, Record, Sample, fit, paired, summary
from oddity.app.report import agreement
from oddity.geometry.pullback import expected_metric
from oddity.statistics.clustering import GeodesicKMeans

PAPER = {
    "012": {"riemannian": (94.28, 1.14), "euclidean": (77.57, 0.87)},
    "347": {"riemannian": (89.54, 1.61), "euclidean": (77.80, 0.91)},
    "569": {"riemannian": (81.13, 2.52), "euclidean": (64.93, 0.96)},
}
COLOURS = {"riemannian": "#D55E00", "euclidean": "#0072B2"}


def clustering(lab: Lab) -> tuple[Record, dict[str, Figure]]:
    """F-measures, in per cent, of each subset of each repetition."""
    settings = lab.settings["clustering"]
    record: Record = {}
    for digits in settings["digits"]:
        found = lab.repeat(f"clustering of {', '.join(map(str, digits))}", f_measures, digits, settings)
        runs = {name: [value for part in found for value in part[name]] for name in COLOURS}
        test = paired(runs["riemannian"], runs["euclidean"])
        record["".join(map(str, digits))] = {name: summary(values) for name, values in runs.items()} | {"paired": test}
    return record, {"clustering": _figure(record)}


def f_measures(sample: Sample, seed: int, settings: Record) -> dict[str, list[float]]:
    """Train a model on the sample and cluster each subset of its codes both ways."""
    saved = fit(sample, seed, settings["fit"], settings["restarts"])
    k = len(np.unique(sample.y))
    M, shared = expected_metric(saved.vae.decoder), {"n_init": settings["n_init"], "random_state": seed}
    makers: dict[str, Any] = {
        "riemannian": GeodesicKMeans(M, k, method=settings["method"], sample=0, **shared),
        "euclidean": KMeans(k, **shared),
    }
    subsets = np.array_split(np.arange(len(sample.y)), settings["subsets"])  # the rows come shuffled
    codes = latent.codes_of(saved)
    return {
        name: [100 * agreement(maker.fit(codes[rows]).labels_, sample.y[rows])["F-measure"] for rows in subsets]
        for name, maker in makers.items()
    }


def _figure(record: Record) -> Figure:
    figure = Figure(figsize=(7.2, 4.4), dpi=200, layout="constrained")
    axes, rng = figure.add_subplot(), np.random.default_rng(0)
    for i, (digits, found) in enumerate(record.items()):
        for side, (name, colour) in zip((-0.17, 0.17), COLOURS.items(), strict=True):
            runs = np.asarray(found[name]["runs"])
            x = i + side + rng.uniform(-0.08, 0.08, len(runs))
            axes.scatter(x, runs, s=9, c=colour, alpha=0.5, linewidths=0, label=f"{name.title()}, one subset")
            axes.hlines(runs.mean(), i + side - 0.14, i + side + 0.14, colour, lw=2.5, label=f"{name.title()}, mean")
            if digits in PAPER:
                mark: dict[str, Any] = {"marker": "D", "mfc": "white", "mec": colour, "mew": 1.5, "ms": 7, "ls": ""}
                axes.plot(i + side, PAPER[digits][name][0], label=f"{name.title()}, the paper's", **mark)
    axes.set_xticks(range(len(record)), [f"digits {', '.join(digits)}" for digits in record])
    axes.set_ylabel("F-measure of k-means, %")
    handles = dict(zip(*axes.get_legend_handles_labels()[::-1], strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=2, frameon=False)
    return figure
