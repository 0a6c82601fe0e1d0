"""Types of single cells by their nearest neighbours, geodesic and Euclidean.

``.venvs/adapters/bin/python -m benchmarks.cells`` after ``make adapters``. For each seed scVI is trained on the 700
blood cells that scanpy carries, a type is predicted for each cell from its five nearest others, and the share of right
ones is printed for distances of the negative binomial law's Fisher-Rao metric and for straight ones. Written to
``benchmarks/results/cells.json`` after every seed.
"""

import argparse
import importlib.metadata
import json
import logging
import time
import warnings
from datetime import date

import anndata
import numpy as np
import scvi
import torch
from torch import Tensor
from torch.distributions import NegativeBinomial

import oddity
from benchmarks.demo import RESULTS, machine

NEAREST = 5


def main() -> None:
    args = _arguments()
    warnings.simplefilter("ignore")
    logging.disable()
    counts, types = cells()
    runs = []
    for seed in args.seeds:
        begin = time.perf_counter()
        law, z = trained(counts, seed, args.latent, args.epochs)
        depth = float(counts.sum(1).log().mean())
        M = oddity.fisher_metric(lambda z, law=law, depth=depth: law(z, depth))
        wanted = {"nearest": NEAREST} if args.method == "refined" else {}
        D = oddity.pairwise_distances(M, z, method=args.method, **wanted)
        runs.append(
            {
                "seed": seed,
                "geodesic": accuracy(np.asarray(D.values), types),
                "euclidean": accuracy(torch.cdist(z, z).numpy(), types),
                "seconds": round(time.perf_counter() - begin, 1),
            }
        )
        mean = {name: round(float(np.mean([run[name] for run in runs])), 4) for name in ("geodesic", "euclidean")}
        settings = {"latent": args.latent, "epochs": args.epochs, "method": args.method}
        figures = {"mean": mean, "runs": runs, "settings": settings, "machine": machine(), "date": str(date.today())}
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "cells.json").write_text(json.dumps(figures, indent=2) + "\n")
        print(json.dumps(runs[-1]), flush=True)
    print(json.dumps(mean))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4, 5])
    parser.add_argument("--latent", type=int, default=10, help="latent dimensions; scVI's own default")
    parser.add_argument("--epochs", type=int, default=400, help="scVI's own default for so few cells")
    parser.add_argument("--method", choices=["graph", "refined"], default="graph")
    return parser.parse_args()


def cells() -> tuple[Tensor, np.ndarray]:
    """Counts ``(700, 765)``, made whole again from their logarithms, and the cells' types."""
    files = importlib.metadata.distribution("scanpy").files or []
    data = anndata.read_h5ad(next(file for file in files if file.name == "10x_pbmc68k_reduced.h5ad").locate())
    scaled = torch.as_tensor(data.raw.X.toarray()).expm1()
    one = torch.where(scaled > 0, scaled, torch.inf).amin(1, keepdim=True)
    return (scaled / one).round(), data.obs.bulk_labels.cat.codes.to_numpy()


def trained(counts: Tensor, seed: int, latent: int, epochs: int) -> tuple[object, Tensor]:
    """The law of a cell's counts by its code and depth, and the codes."""
    scvi.settings.seed = seed
    data = anndata.AnnData(counts.numpy())
    scvi.model.SCVI.setup_anndata(data)
    model = scvi.model.SCVI(data, n_latent=latent, gene_likelihood="nb")
    model.train(max_epochs=epochs, accelerator="cpu", enable_progress_bar=False, logger=False)
    z = torch.as_tensor(model.get_latent_representation())
    module = model.module.eval().requires_grad_(False)

    def law(z: Tensor, depth: float) -> NegativeBinomial:
        rows = z.new_ones(len(z), 1)
        px = module.generative(z, depth * rows, (0 * rows).long())["px"]
        return NegativeBinomial(px.theta, logits=px.mu.log() - px.theta.log())

    return law, z


def accuracy(distances: np.ndarray, types: np.ndarray) -> float:
    """Share of the cells whose type is the most frequent one of their nearest others."""
    away = distances + np.diag(np.full(len(distances), np.inf))
    near = np.argsort(away, 1)[:, :NEAREST]
    predicted = np.array([np.bincount(types[row]).argmax() for row in near])
    return round(float((predicted == types).mean()), 4)


if __name__ == "__main__":
    main()
