"""How much distances depend on the seed of training, under four models of uncertainty: what ``oddity study`` does.

Codes are not identified by the data, but distances along the manifold that a decoder spans should be: the
coefficient of variation over seeds of the length between two test points says how far they are. Four metrics are
compared that share, for each seed, one encoder and its codes, and all but the ensemble one mean: they differ in what
makes them uncertain away from the data. Syrota, Moreno-Munoz and Hauberg, "Decoder ensembling for learned latent
geometries", 2024, compare an ensemble with an RBF network in this way; here the RBF network is that of the 2018 paper,
with bandwidths from mean distances, sigma = beta^(-1/2), and the length of (mean, sigma) as one curve.
"""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor
from torch.distributions import Normal

from oddity.app import experiments
from oddity.app.datasets import open_dataset
from oddity.app.experiments import Lab, Record, draw
from oddity.app.report import Clock
from oddity.geometry.connect import ChainSolver
from oddity.geometry.ensemble import ensemble_metric
from oddity.geometry.manifold import Manifold
from oddity.geometry.pullback import expected_metric
from oddity.geometry.roadmap import Roadmap
from oddity.models.blend import EntropyBlend
from oddity.models.ensemble import fit_ensemble
from oddity.models.training import fit_sigma_network, fit_vae
from oddity.models.vae import VAE, GaussianDecoder
from oddity.statistics.stability import Stability

SETTINGS: Record = {
    "common": {
        "train": [0, 50_000],
        "test": [60_000, 70_000],
        "classes": [0, 1, 2],
        "per_class": 1000,
        "test_per_class": 100,
        "pairs": 50,
        "seeds": 5,
        "fit": {"epochs": 200},
        "sigma_fit": {"epochs": 100},
        "ensemble_fit": {"n_members": 5, "epochs": 50},
        "solver": {"max_segments": 256, "max_iterations": 300},
    },
    "mnist-2": {"data": "mnist", "latent_dim": 2},
    "mnist-10": {"data": "mnist", "latent_dim": 10},
    "fashion-mnist-2": {"data": "fashion-mnist", "latent_dim": 2},
    "fashion-mnist-10": {"data": "fashion-mnist", "latent_dim": 10},
}
METRICS = {
    "rbf": "RBF precision",
    "sigma_network": "σ-network",
    "ensemble": "ensemble",
    "blend": "entropy blend",
}
NAMES = {"euclidean": "Euclidean", **METRICS}
COLOURS = dict(zip(NAMES, ("#999999", "#0072B2", "#E69F00", "#009E73", "#CC79A7"), strict=True))

Lengths = NDArray[np.float64]


def smaller(settings: Record = SETTINGS) -> Record:
    """Return settings for a trial of everything in less than a minute, on the 8 x 8 digits: its figures mean nothing.

    Examples
    --------
    >>> smaller()["common"]["seeds"]
    2
    """
    small = deepcopy(settings)
    small["common"] |= {
        "train": [0, 1000],
        "test": [1000, 1797],
        "per_class": 60,
        "test_per_class": 20,
        "pairs": 6,
        "seeds": 2,
        "fit": {"epochs": 20, "variance_epochs": 5, "n_centres": 8},
        "sigma_fit": {"epochs": 5},
        "ensemble_fit": {"n_members": 2, "epochs": 10},
        "solver": {"max_segments": 32, "max_iterations": 10},
    }
    for name in PARTS:
        small[name] |= {"data": "digits", "latent_dim": min(3, small[name]["latent_dim"])}
    return small


def run(
    names: Sequence[str],
    settings: Record,
    out: Path,
    *,
    jobs: int = 1,
    say: Callable[[str], None] = lambda _: None,
) -> Record:
    """Run parts of the study, and write ``study.json``, ``study.md`` and ``study.png`` into a folder after each.

    Parameters
    ----------
    names
        Keys of :data:`PARTS`. What the folder holds of the others stays, if it was found with the same settings and
        versions.
    settings
        :data:`SETTINGS` or alike.
    out
        The folder, made if it is missing.
    jobs
        Processes, among which seeds are shared out.
    say
        Called with a sentence after each seed.

    Returns
    -------
    dict
        What ``study.json`` holds: the record of each part, settings, seconds, versions and the machine. Of each part:
        ``lengths``, a list over seeds of those of all pairs, null where a geodesic did not converge; ``variation``, the
        coefficient of each pair; ``tests``, of "a - b" on what both measured, t negative and p small where a varies
        less; and of each metric the share ``converged``, ``seconds`` a curve (its roadmap included), and ``why`` not.
    """
    lab = Lab(settings, say, jobs)
    return experiments.run(
        "study", PARTS, names, lab, out, uses=lambda name: ("common", name), table=table, overview=_figure
    )


def _part(name: str, lab: Lab) -> tuple[Record, dict[str, Figure]]:
    """Lengths between test points of one data set in one latent dimension, under each metric, for each seed."""
    settings = lab.settings["common"] | lab.settings[name]
    data = open_dataset(settings["data"])
    train = draw(data, settings["train"], settings["classes"], settings["per_class"], seed=0).X
    test = draw(data, settings["test"], settings["classes"], settings["test_per_class"], seed=0).X
    rng = np.random.default_rng(0)
    pairs = np.stack([rng.choice(len(test), 2, replace=False) for _ in range(settings["pairs"])])  # (P, 2)
    ends = test[pairs[:, 0]], test[pairs[:, 1]]
    seeds = range(settings["seeds"])
    found = lab.map(name, _lengths_of_seed, ((train, *ends, seed, settings) for seed in seeds))
    lengths = {metric: np.stack([lengths[metric] for lengths, _, _ in found]) for metric in NAMES}  # (S, P)
    about = {
        metric: {
            "converged": float(np.isfinite(lengths[metric]).mean()),
            "seconds": sum(seconds[metric] for _, seconds, _ in found) / lengths[metric].size,
            "why": dict(sum((why[metric] for _, _, why in found), Counter()).most_common()),
        }
        for metric in METRICS
    }
    return {
        "data": settings["data"],
        "latent_dim": settings["latent_dim"],
        "metrics": about,
        "variation": {metric: _listed(_variation(values)) for metric, values in lengths.items()},
        "tests": {f"{a} - {b}": _test(lengths[a], lengths[b]) for b, a in itertools.combinations(NAMES, 2)},
        "lengths": {metric: [_listed(row) for row in values] for metric, values in lengths.items()},
    }, {}


def _lengths_of_seed(
    train: Tensor, a: Tensor, b: Tensor, seed: int, settings: Record
) -> tuple[dict[str, Lengths], dict[str, float], dict[str, Counter[str]]]:
    """Train with one seed; return each metric's lengths (NaN where a geodesic did not converge), seconds, reasons."""
    lengths, clock, why = {}, Clock(), {}
    vae = fit_vae(train, latent_dim=settings["latent_dim"], seed=seed, **settings["fit"])
    codes, a, b = vae.encode(train), vae.encode(a), vae.encode(b)
    lengths["euclidean"] = torch.linalg.vector_norm(b - a, dim=-1).double().numpy()
    for name, M in _metrics(vae, train, seed, settings).items():
        with clock(name):
            g = M.geodesic(a, b, init=Roadmap.thinned(M, codes), solver=ChainSolver(**settings["solver"]))
        lengths[name] = torch.where(g.converged, g.length.double(), torch.nan).numpy()
        why[name] = Counter(_reason(sentence) for sentence in g.why if sentence)
    return lengths, clock.seconds, why


def _metrics(vae: VAE, train: Tensor, seed: int, settings: Record) -> dict[str, Manifold]:
    """The metrics by their names, all on the codes of one encoder."""
    ordinary = fit_sigma_network(vae, train, seed=seed, **settings["sigma_fit"])
    ensemble = fit_ensemble(vae, train, seed=seed, **settings["ensemble_fit"])
    return {
        "rbf": expected_metric(vae.decoder),
        "sigma_network": expected_metric(ordinary.decoder),
        "ensemble": ensemble_metric(ensemble),
        "blend": expected_metric(_Blended(vae, train, seed)),
    }


class _Blended:
    """The mean of a model under noise of one size on the data, blended to ten times as much away from them.

    All D outputs have the same standard deviation s; one output of standard deviation sqrt(D) s has the same metric.
    """

    def __init__(self, vae: VAE, X: Tensor, seed: int) -> None:
        decoder: GaussianDecoder = vae.decoder
        size = float((X - vae(X)).square().sum(1).mean().sqrt())  # sqrt(D) s
        self.mean, self.expand_mean = decoder.mean, decoder.expand_mean
        self._blend = EntropyBlend(lambda z: Normal(0 * z[:, :1], 0 * z[:, :1] + size), vae.encode(X), seed=seed)

    def std(self, z: Tensor) -> Tensor:
        """Of the one output: ``(N, d) -> (N, 1)``."""
        law = self._blend(z)
        assert isinstance(law, Normal)
        return law.scale


def _reason(sentence: str) -> str:
    """The kind of a reason, without its numbers."""
    return "".join(itertools.takewhile(lambda letter: letter not in ":(", sentence)).strip()


def _stability(ours: Lengths, theirs: Lengths) -> Stability:
    """Two sets of lengths (S, P) of the same pairs, where both have them."""
    both = np.isfinite(ours) & np.isfinite(theirs)
    S, P = ours.shape
    pairs = np.zeros((P, 2), np.int64)  # their names do not matter here
    return Stability(tuple(range(S)), pairs, np.where(both, ours, 0.0), np.where(both, theirs, 0.0), both, {})


def _variation(lengths: Lengths) -> Lengths:
    """Coefficient of variation over seeds of each pair, (S, P) -> (P,); NaN where fewer than two seeds measured it."""
    found = _stability(lengths, lengths)
    variation = np.full(lengths.shape[1], np.nan)
    variation[found.measured] = found.cv_geodesic
    return variation


def _test(ours: Lengths, theirs: Lengths) -> Record:
    """Paired t test of coefficients of variation, over what both measured; t is negative where ours vary less."""
    found = _stability(ours, theirs)
    about: Record = {"pairs": int(found.measured.sum())}
    try:
        return about | {"t": found.t, "p": found.p}
    except RuntimeError:  # too few pairs for a test
        return about | {"t": None, "p": None}


def _listed(values: Lengths) -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in values]


def table(found: Record) -> str:
    """Lay out the parts that there are: a line for each metric, then the tests between metrics.

    Examples
    --------
    >>> print(table({}))
    | data | d | metric | coefficient of variation | t, less than Euclidean (p) | converged | seconds a curve |
    |---|---|---|---|---|---|---|
    <BLANKLINE>
    | data | d | metrics | t (p) | pairs |
    |---|---|---|---|---|
    <BLANKLINE>
    """
    parts = [found[name] for name in PARTS if name in found]
    first = ("data", "d", "metric", "coefficient of variation", "t, less than Euclidean (p)", "converged")
    lines = [(*first, "seconds a curve"), *(row for part in parts for row in _rows(part))]
    tests = [("data", "d", "metrics", "t (p)", "pairs"), *(row for part in parts for row in _tests(part))]
    return f"{_markdown(lines)}\n{_markdown(tests)}"


def _rows(part: Record) -> Iterator[tuple[str, ...]]:
    for name, title in NAMES.items():
        variation = [value for value in part["variation"][name] if value is not None]
        mean = f"{np.mean(variation):.3f} ± {np.std(variation):.3f}, {len(variation)} pairs" if variation else "none"
        start = (part["data"], str(part["latent_dim"]), title, mean)
        if name == "euclidean":
            yield *start, "", "", ""
        else:
            about = part["metrics"][name]
            test = _t(part["tests"][f"{name} - euclidean"])
            yield *start, test, f"{100 * about['converged']:.0f} %", f"{about['seconds']:.2f}"


def _tests(part: Record) -> Iterator[tuple[str, ...]]:
    for b, a in itertools.combinations(METRICS, 2):
        test = part["tests"][f"{a} - {b}"]
        yield part["data"], str(part["latent_dim"]), f"{NAMES[a]} less {NAMES[b]}", _t(test), str(test["pairs"])


def _t(test: Record) -> str:
    return "no test" if test["t"] is None else f"{test['t']:.2f} ({test['p']:.1g})"


def _markdown(rows: Sequence[tuple[str, ...]]) -> str:
    head, *body = (f"| {' | '.join(row)} |\n" for row in rows)
    return head + "|---" * len(rows[0]) + "|\n" + "".join(body)


def _figure(found: Record) -> Figure:
    """One panel a part: the coefficients of variation of all pairs under each metric."""
    columns = min(2, len(found))
    lines = -(-len(found) // columns)
    figure = Figure(figsize=(6.4 * columns, 3.7 * lines), dpi=200, layout="constrained")
    rng = np.random.default_rng(0)
    for axes, part in zip(figure.subplots(lines, columns, squeeze=False).flat, found.values(), strict=False):
        ticks = []
        for i, (name, title) in enumerate(NAMES.items()):
            values = np.array([value for value in part["variation"][name] if value is not None])
            x = i + rng.uniform(-0.22, 0.22, len(values))
            axes.scatter(x, values, s=16, c=COLOURS[name], alpha=0.6, linewidths=0)
            if len(values):
                axes.hlines(values.mean(), i - 0.3, i + 0.3, "black", lw=2, zorder=3)
            ticks.append(f"{title}\n{_under(part, name)}")
        axes.set_xticks(range(len(NAMES)), ticks, fontsize="small")
        axes.set(xlim=(-0.6, len(NAMES) - 0.4), ylim=(0, None), ylabel="coefficient of variation over seeds")
        axes.set_title(f"{part['data']}, d = {part['latent_dim']}", fontsize="medium")
    for axes in figure.axes[len(found) :]:
        axes.remove()
    figure.supxlabel(
        "a dot: a pair of test points; a bar: their mean; t: paired, negative where lengths vary less than "
        "Euclidean ones",
        fontsize="medium",
    )
    return figure


def _under(part: Record, name: str) -> str:
    """What stands under the name of a metric: its test against Euclidean lengths, and how many geodesics converged."""
    if name == "euclidean":
        return ""
    t = part["tests"][f"{name} - euclidean"]["t"]
    return f"{'no test' if t is None else f't = {t:.1f}'}\n{100 * part['metrics'][name]['converged']:.0f} % converged"


PARTS: dict[str, Callable[[Lab], tuple[Record, dict[str, Figure]]]] = {
    name: functools.partial(_part, name) for name in SETTINGS if name != "common"
}
