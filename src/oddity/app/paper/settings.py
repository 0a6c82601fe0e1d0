"""The settings of the experiments, and where each of them comes from.

The paper fixes the data of each experiment, the hidden layers (64 and 32 units, tanh), the penalty on the weights
(1e-5), the number of centres K and the reach a of the RBF precision network. It leaves open the optimiser, the epochs,
zeta, the standard deviation of the first stage, how clusters are matched with classes, and the steps of the walks.
Those were chosen on the part ``valid`` of the data (the circle's on other seeds), which no figure in the results has
seen; ``benchmarks/NOTES.md`` has what was tried. So were three departures from the paper: a = 1 for the clusters and
0.7 for the walks, where it has 2, and K = 128, a = 2 for the likelihood, where it has 32 and 1.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

Settings = dict[str, Any]

SETTINGS: Settings = {
    "data": {"name": "mnist", "train": [0, 50_000], "valid": [50_000, 60_000]},
    "pair": {  # the model that variance, interpolation and density look at
        "digits": [0, 1],
        "per_digit": 1000,
        "fit": {"epochs": 200},
    },
    "surface": {"height": 1.6, "width": 0.6, "ends": [[-1.25, -0.5], [1.25, 0.35]]},
    "clustering": {
        "digits": [[0, 1, 2], [3, 4, 7], [5, 6, 9]],
        "per_digit": 1000,
        "subsets": 10,
        "repetitions": 6,
        "restarts": 3,
        "method": "graph",
        "n_init": 10,
        "fit": {"epochs": 200, "constant_std": 1.0, "a": 1.0},
    },
    "interpolation": {"repetitions": 6, "pairs": 50, "frames": 9, "pictured": 4},
    "density": {
        "repetitions": 10,
        "fitted": 300,
        "held_out": 500,
        "gmm_n_init": 10,
        "land": {"n_samples": 32},
        "grid": 32,
    },
    "walk": {
        "digits": [0, 1],
        "per_digit": 1000,
        "fit": {"constant_std": 1.0, "a": 0.7},
        "repetitions": 5,
        "walkers": 64,
        "steps": 2000,
        "dt": 2.5e-3,
        "frames": 7,
    },
    "log_likelihood": {
        "digits": [0, 1],
        "per_digit": 1000,
        "held_out": 0.1,
        "repetitions": 10,
        "draws": 10_000,
        "min_std": 1e-2,
        "fit": {"epochs": 600, "constant_std": 1.0, "n_centres": 128, "a": 2.0},
        "sigma_fit": {"epochs": 200},
    },
    "circle": {
        "points": 200,
        "data_dim": 1000,
        "noise": 0.1,
        "pairs": 200,
        "seeds": [2, 3, 4, 5, 6],  # the settings were chosen on 0 and 1
        "pictured": 12,
        "autoencoder_epochs": 500,
        "model": {"hidden": (32, 16), "epochs": 60, "n_centres": 16, "constant_std": 0.3},
    },
}


def smaller(settings: Settings = SETTINGS) -> Settings:
    """Return settings for a trial of everything in a minute, on the 8 x 8 digits: its figures mean nothing.

    Examples
    --------
    >>> smaller()["clustering"]["repetitions"]
    2
    """
    small = deepcopy(settings)
    small["data"] = {"name": "digits", "train": [0, 1797], "valid": [0, 1797]}
    tiny = {"epochs": 20, "variance_epochs": 5, "n_centres": 8}
    small["pair"] |= {"per_digit": 60, "fit": tiny}
    small["clustering"] |= {"digits": [[0, 1, 2]], "per_digit": 60, "subsets": 2, "repetitions": 2, "fit": tiny}
    small["interpolation"] |= {"repetitions": 1, "pairs": 4, "pictured": 2}
    small["density"] |= {
        "repetitions": 1,
        "fitted": 60,
        "held_out": 40,
        "grid": 8,
        "land": {"n_samples": 32, "measure": "magnification", "max_iter": 2},
    }
    small["walk"] |= {"repetitions": 1, "walkers": 4, "steps": 20, "per_digit": 60, "fit": tiny}
    small["log_likelihood"] |= {
        "per_digit": 60,
        "repetitions": 2,
        "draws": 100,
        "fit": tiny,
        "sigma_fit": {"epochs": 5},
    }
    small["circle"] |= {
        "points": 40,
        "data_dim": 20,
        "pairs": 8,
        "seeds": [0],
        "autoencoder_epochs": 20,
        "model": {"hidden": (8, 4), **tiny},
    }
    return small
