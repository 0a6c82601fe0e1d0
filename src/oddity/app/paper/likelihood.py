"""The likelihood of unseen digits under both networks of the variance (appendix C)."""

from __future__ import annotations

import torch
from matplotlib.figure import Figure

from oddity.app.paper.lab import Lab, Record, Sample, paired
from oddity.models.training import fit_sigma_network, fit_vae

PAPER = {"rbf": -50.34, "sigma_network": -68.25}


def likelihood(lab: Lab) -> tuple[Record, dict[str, Figure]]:
    """Mean log p(x) of held-out digits 0 and 1, in nats, by draws from the prior."""
    settings = lab.settings["log_likelihood"]
    repetitions = lab.repeat("likelihood", log_likelihoods, settings["digits"], settings)
    rbf, network = ([run[name] for run in repetitions] for name in PAPER)
    record = {
        "rbf": sum(rbf) / len(rbf),
        "sigma_network": sum(network) / len(network),
        "repetitions": repetitions,
        "paired": paired(rbf, network),
    }
    return record, {}


def log_likelihoods(sample: Sample, seed: int, settings: Record) -> Record:
    """Fit one encoder and mean and both networks of the variance, under the same floor, and judge them."""
    X = 2 * sample.X - 1  # pixels in [-1, 1]
    test, train = X.tensor_split([round(settings["held_out"] * len(X))])
    vae = fit_vae(train, seed=seed, min_std=settings["min_std"], **settings["fit"])
    ordinary = fit_sigma_network(vae, train, seed=seed, min_std=settings["min_std"], **settings["sigma_fit"])
    found = {
        name: float(model.log_likelihood(test, settings["draws"], torch.Generator().manual_seed(seed)).mean())
        for name, model in {"rbf": vae, "sigma_network": ordinary}.items()
    }
    return {"seed": seed, **found}
