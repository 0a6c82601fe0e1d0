"""The circle of "Only Bayes should learn a manifold" (Hauberg 2018): has a model learnt a loop.

Points on a circle in a thousand dimensions, with noise. A model has learnt the circle if its geodesics go around:
their lengths then follow the arcs, and decoded they lie on them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from torch import Tensor, nn

from oddity.app.paper.lab import Lab, Record, summary
from oddity.geometry.manifold import Manifold
from oddity.geometry.pullback import Pullback, expected_metric
from oddity.geometry.roadmap import Roadmap
from oddity.models.layers import MLP
from oddity.models.training import fit_sigma_network, fit_vae

Array = NDArray[np.floating[Any]]

PAPER: dict[str, tuple[float, float | None]] = {
    "rbf_vae": (0.9825, 0.789),
    "vae": (0.9752, None),
    "autoencoder": (0.9748, 2.83),
}
NAMES = {"rbf_vae": "VAE, RBF precision network", "vae": "VAE, σ-network", "autoencoder": "autoencoder"}
_NODES = 65  # of a curve and of an arc, between which the distance of Hausdorff is measured


class Circle:
    """Noisy points on a circle in D dimensions, whose radius is the length of a point's noise."""

    def __init__(self, settings: Record, seed: int) -> None:
        rng = np.random.default_rng(seed)
        n, D, noise = settings["points"], settings["data_dim"], settings["noise"]
        self.radius: float = noise * math.sqrt(D)
        self.plane = np.linalg.qr(rng.normal(size=(D, 2)))[0].T  # (2, D)
        self.angle: Array = np.linspace(0, 2 * math.pi, n, endpoint=False)
        self.X = (self.at(self.angle) + noise * rng.normal(size=(n, D))).astype(np.float32)
        self.pairs = np.stack([rng.choice(n, 2, replace=False) for _ in range(settings["pairs"])])

    def at(self, angle: Array) -> Array:
        """Points of the circle without noise: ``(*,) -> (*, D)``."""
        points: Array = self.radius * np.stack([np.cos(angle), np.sin(angle)], -1) @ self.plane
        return points

    def turns(self) -> Array:
        """Signed angle of the shorter arc of each pair, ``(pairs,)``."""
        turns: Array = np.diff(self.angle[self.pairs], axis=1)[:, 0]
        return (turns + math.pi) % (2 * math.pi) - math.pi

    def arcs(self) -> Array:
        """The shorter arc of each pair, ``(pairs, nodes, D)``."""
        t = np.linspace(0, 1, _NODES)
        return self.at(self.angle[self.pairs[:, :1]] + self.turns()[:, None] * t)


def circle(lab: Lab) -> tuple[Record, dict[str, Figure]]:
    """Correlation of geodesic lengths with arcs, and mean distance of Hausdorff from them, of three models."""
    settings = lab.settings["circle"]
    found = lab.map("circle", _repetition, ((settings, seed) for seed in settings["seeds"]))
    record = {
        name: {
            key: summary([scores[name][key] for scores, _ in found])
            for key in ("correlation", "hausdorff", "converged")
        }
        for name in NAMES
    }
    return record, {"circle": _figure(found[0][1], record)}


def _repetition(settings: Record, seed: int) -> tuple[dict[str, Record], dict[str, tuple[Array, Array]]]:
    """Scores of each model, and its codes with a few geodesics."""
    world, scores, shown = Circle(settings, seed), {}, {}
    for name, (M, codes, mean) in _models(world, settings, seed).items():
        a, b = codes[world.pairs[:, 0]], codes[world.pairs[:, 1]]
        g = M.geodesic(a, b, init=Roadmap(M, codes))
        curves = g(torch.linspace(0, 1, _NODES))
        scores[name] = {
            "correlation": _correlation(g.length, world),
            "hausdorff": _hausdorff(mean(curves), world),
            "converged": float(g.converged.float().mean()),
        }
        shown[name] = codes.numpy(), curves[: settings["pictured"]].numpy()
    return scores, shown


def _models(
    world: Circle, settings: Record, seed: int
) -> dict[str, tuple[Manifold, Tensor, Callable[[Tensor], Tensor]]]:
    """Metric, codes and mean of each model."""
    X = torch.from_numpy(world.X)
    vae = fit_vae(X, seed=seed, **settings["model"])
    ordinary = fit_sigma_network(vae, X, seed=seed)
    encoder, decoder = _autoencoder(X, settings["model"]["hidden"], settings["autoencoder_epochs"], seed)
    z = vae.encode(X)
    return {
        "rbf_vae": (expected_metric(vae.decoder), z, vae.decoder.mean),
        "vae": (expected_metric(ordinary.decoder), z, ordinary.decoder.mean),
        "autoencoder": (Pullback(decoder), encoder(X), decoder),
    }


def _autoencoder(X: Tensor, hidden: tuple[int, ...], epochs: int, seed: int) -> tuple[nn.Module, nn.Module]:
    """The same two networks without noise, by least squares."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder, decoder = MLP(X.shape[1], hidden, 2), MLP(2, hidden[::-1], X.shape[1])
    networks = nn.ModuleList([encoder, decoder])
    adam = torch.optim.Adam(networks.parameters(), 3e-3, weight_decay=1e-5)
    for _ in range(epochs):
        adam.zero_grad()
        (decoder(encoder(X)) - X).square().sum(1).mean().backward()
        adam.step()
    networks.eval().requires_grad_(False)
    return encoder, decoder


def _correlation(lengths: Tensor, world: Circle) -> float:
    return float(np.corrcoef(lengths.numpy(), np.abs(world.turns()))[0, 1])


def _hausdorff(decoded: Tensor, world: Circle) -> float:
    """Mean over the pairs of the distance of Hausdorff between decoded geodesics and arcs."""
    both = [cdist(curve, arc) for curve, arc in zip(decoded.double().numpy(), world.arcs(), strict=True)]
    return float(np.mean([max(D.min(0).max(), D.min(1).max()) for D in both]))


def _figure(shown: dict[str, tuple[Array, Array]], record: Record) -> Figure:
    figure = Figure(figsize=(12.6, 4.7), dpi=200, layout="constrained")
    for axes, (name, (codes, curves)) in zip(figure.subplots(1, len(shown)), shown.items(), strict=True):
        axes.scatter(*codes.T, s=12, c="#56B4E9", linewidths=0, label="codes")
        for i, curve in enumerate(curves):
            axes.plot(*curve.T, color="#D7191C", lw=1.5, label="geodesics" if i == 0 else None)
        correlation, hausdorff = (record[name][key]["mean"] for key in ("correlation", "hausdorff"))
        axes.set_title(f"{NAMES[name]}\ncorrelation {correlation:.4f}, Hausdorff {hausdorff:.2f}", fontsize="medium")
        axes.set(xlabel="$z_1$", ylabel="$z_2$")
        axes.set_aspect("equal", "datalim")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    return figure
