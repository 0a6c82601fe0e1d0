"""What the experiments share: settings, data, models, and how repetitions are summed up."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
from scipy.stats import ttest_rel

from oddity.app import experiments
from oddity.app.datasets import Dataset, open_dataset
from oddity.app.experiments import Record as Record
from oddity.app.experiments import Sample as Sample
from oddity.app.experiments import draw
from oddity.models.storage import SavedModel
from oddity.models.training import fit_vae

T = TypeVar("T")


class Lab(experiments.Lab):
    """The settings and the data of a run, and the models that several experiments look at.

    Parameters
    ----------
    settings
        As :data:`oddity.app.paper.settings.SETTINGS`.
    say, jobs
        As for any laboratory.
    """

    def __init__(self, settings: Record, say: Callable[[str], None] = lambda _: None, jobs: int = 1) -> None:
        super().__init__(settings, say, jobs)
        self._pairs: dict[int, tuple[SavedModel, Sample]] = {}

    @functools.cached_property
    def data(self) -> Dataset:
        """All images."""
        return open_dataset(self.settings["data"]["name"])

    def sample(self, digits: Sequence[int], per_digit: int, seed: int, part: str = "train") -> Sample:
        """Draw so many different rows of each digit from a part of the data, shuffled."""
        return draw(self.data, self.settings["data"][part], digits, per_digit, seed)

    def repeat(
        self, title: str, work: Callable[[Sample, int, Record], T], digits: Sequence[int], settings: Record
    ) -> list[T]:
        """Return what ``work`` makes of a sample of the digits, its seed and the settings, for each repetition."""
        seeds = range(settings["repetitions"])
        tasks = ((self.sample(digits, settings["per_digit"], seed), seed, settings) for seed in seeds)
        return self.map(title, work, tasks)

    def pairs(self, count: int) -> list[tuple[SavedModel, Sample]]:
        """Return the models of the digits 0 and 1 that several experiments look at, for the first seeds."""
        settings = self.settings["pair"]
        missing = [seed for seed in range(count) if seed not in self._pairs]
        samples = [self.sample(settings["digits"], settings["per_digit"], seed) for seed in missing]
        tasks = [(sample, seed, settings["fit"]) for sample, seed in zip(samples, missing, strict=True)]
        models = self.map("models of two digits", fit, tasks)
        self._pairs |= dict(zip(missing, zip(models, samples, strict=True), strict=True))
        return [self._pairs[seed] for seed in range(count)]


def fit(sample: Sample, seed: int, settings: Record, restarts: int = 1) -> SavedModel:
    """Train a model on a sample: of several trainings, the one with the highest evidence bound."""
    seeds = np.random.SeedSequence(seed).generate_state(restarts) if restarts > 1 else [seed]
    models = [fit_vae(sample.X, seed=int(number), **settings) for number in seeds]
    names = {str(digit): f"digit {digit}" for digit in np.unique(sample.y)}
    info = {"image_shape": sample.image_shape, "class_names": names}
    vae = max(models, key=lambda vae: float(vae.elbo(sample.X, torch.Generator().manual_seed(0)).mean()))
    return SavedModel(vae, vae.encode(sample.X), torch.from_numpy(sample.y), info)


def summary(runs: Sequence[float]) -> Record:
    """Mean and standard deviation of the runs, and each of them."""
    values = np.asarray(runs, dtype=float)
    sd = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    return {"mean": float(values.mean()), "sd": sd, "runs": values.tolist()}


def paired(ours: Sequence[float], theirs: Sequence[float]) -> Record:
    """Paired t test of whether ours are greater; no statistic where the differences are all the same, or only one."""
    ahead = np.subtract(ours, theirs)
    t = p = None
    if np.ptp(ahead) > 0:
        test = ttest_rel(ours, theirs, alternative="greater")
        t, p = float(test.statistic), float(test.pvalue)
    return {"ahead_by": float(ahead.mean()), "t": t, "p": p}


def by_model(runs: Sequence[float], repetitions: int) -> list[float]:
    """Means over the runs of each repetition, which share a model and are no independent trials."""
    means: list[float] = np.asarray(runs, dtype=float).reshape(repetitions, -1).mean(1).tolist()
    return means
