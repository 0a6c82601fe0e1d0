"""How a set of experiments is run, and what was found before is kept: for ``oddity paper`` and ``oddity study``.

An experiment is a function from a :class:`Lab` to a record of JSON's own types and to figures by their names.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from joblib import Parallel, delayed
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from oddity._files import check_readable
from oddity.app import plots, report
from oddity.app.datasets import Dataset
from oddity.app.files import replacing

Record = dict[str, Any]
T = TypeVar("T")
AnyLab = TypeVar("AnyLab", bound="Lab")


class Sample(NamedTuple):
    """Rows of a data set, (n, D), and the class of each, (n,)."""

    X: Tensor
    y: NDArray[np.int64]
    image_shape: tuple[int, ...] | None


class Lab:
    """The settings of a run, and where its work is shared out.

    Parameters
    ----------
    settings
        Of JSON's own types, by the name of the experiment or of what several share.
    say
        Called with a sentence after each part of an experiment.
    jobs
        Processes, among which repetitions are shared out.
    """

    def __init__(self, settings: Record, say: Callable[[str], None] = lambda _: None, jobs: int = 1) -> None:
        self.settings: Record = json.loads(json.dumps(settings))  # as they will be read again
        self.say, self.jobs = say, jobs

    def map(self, title: str, work: Callable[..., T], tasks: Iterable[tuple[Any, ...]]) -> list[T]:
        """Return what ``work`` makes of the arguments of each task, in their order."""
        results = Parallel(n_jobs=self.jobs, return_as="generator")(delayed(work)(*task) for task in tasks)
        done = []
        for result in results:
            done.append(result)
            self.say(f"{title}: {len(done)} done")
        return done


def draw(data: Dataset, part: Sequence[int], classes: Sequence[int], per_class: int, seed: int) -> Sample:
    """Draw so many different rows of each class from a part of the data, first and last row, shuffled."""
    first, last = part
    assert data.y is not None
    y, rng = data.y[first:last], np.random.default_rng([seed, *classes])
    rows = np.concatenate([rng.choice(np.flatnonzero(y == label), per_class, replace=False) for label in classes])
    rows = first + rng.permutation(rows)
    return Sample(torch.from_numpy(data.X[rows]), data.y[rows], data.image_shape)


def run(
    title: str,
    experiments: Mapping[str, Callable[[AnyLab], tuple[Record, dict[str, Figure]]]],
    names: Sequence[str],
    lab: AnyLab,
    out: Path,
    *,
    uses: Callable[[str], Sequence[str]],
    table: Callable[[Record], str],
    overview: Callable[[Record], Figure] | None = None,
) -> Record:
    """Run experiments, and write ``<title>.json``, ``<title>.md`` and the figures into a folder after each.

    Parameters
    ----------
    title
        Of the files.
    experiments
        All that there are, in the order of the files.
    names
        Those to run. What the folder holds of the others stays, if it was found with the same settings and versions.
    lab
        Handed to each experiment.
    out
        The folder, made if it is missing.
    uses
        The settings that an experiment depends on, by their names.
    table
        Lays out everything found as Markdown.
    overview
        Draws everything found as ``<title>.png``.

    Returns
    -------
    dict
        What ``<title>.json`` holds: the record of each experiment, settings, seconds, versions and the machine.
    """
    out.mkdir(exist_ok=True)
    environment, clock = report.environment(), report.Clock()
    found = kept(out / f"{title}.json", experiments, lab.settings, environment["versions"], uses)
    for name in names:
        with clock(name):
            found[name], figures = experiments[name](lab)
        found["seconds"] |= clock.seconds
        ordered = {key: found[key] for key in experiments if key in found}
        found = {**ordered, "settings": lab.settings, "seconds": found["seconds"], **environment}
        for file, figure in (figures if overview is None else figures | {title: overview(ordered)}).items():
            plots.save(figure, out / f"{file}.png")
        report.write_json(out / f"{title}.json", found)
        with replacing(out / f"{title}.md") as part:
            part.write_text(table(found), encoding="utf-8")
    return found


def kept(
    file: Path, experiments: Iterable[str], settings: Record, versions: Record, uses: Callable[[str], Sequence[str]]
) -> Record:
    """Return what the file holds that was found with these settings and versions, by the names of the experiments."""
    found: Record = {"seconds": {}}
    if not file.exists():
        return found
    check_readable(file)
    try:
        before = json.loads(file.read_text(encoding="utf-8"))
        if before.get("versions") != versions:
            return found
        for name in experiments:
            if name in before and all(before["settings"].get(key) == settings.get(key) for key in uses(name)):
                found[name], found["seconds"][name] = before[name], before["seconds"][name]
    except (ValueError, RecursionError, AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is damaged ({error}): remove it, and run again what it held") from error
    return found
