"""The experiments of "Latent Space Oddity" (ICLR 2018), run again: what ``oddity paper`` does.

Each experiment is a function from a :class:`~oddity.app.paper.lab.Lab` to a record and to figures by their names.
:func:`run` runs them in order and writes what each found as soon as it is there.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from oddity.app import experiments
from oddity.app.experiments import Record
from oddity.app.paper.circle import circle
from oddity.app.paper.clustering import clustering
from oddity.app.paper.density import density
from oddity.app.paper.interpolation import interpolation
from oddity.app.paper.lab import Lab
from oddity.app.paper.likelihood import likelihood
from oddity.app.paper.tables import table
from oddity.app.paper.toys import surface, variance
from oddity.app.paper.walk import walk

Experiment = Callable[[Lab], tuple[Record, dict[str, Figure]]]

EXPERIMENTS: dict[str, Experiment] = {
    "surface": surface,
    "variance": variance,
    "clustering": clustering,
    "interpolation": interpolation,
    "density": density,
    "walk": walk,
    "log_likelihood": likelihood,
    "circle": circle,
}
OF_THE_PAIR = {"variance", "interpolation", "density"}  # experiments that look at the model of two digits


def run(
    names: Sequence[str],
    settings: dict[str, Any],
    out: Path,
    *,
    jobs: int = 1,
    say: Callable[[str], None] = lambda _: None,
) -> Record:
    """Run experiments, and write ``paper.json``, ``paper.md`` and the figures into a folder after each.

    Parameters
    ----------
    names
        Keys of :data:`EXPERIMENTS`. What the folder holds of the others stays, if it was found with the same settings
        and versions.
    settings
        :data:`oddity.app.paper.settings.SETTINGS` or alike.
    out
        The folder, made if it is missing.
    jobs
        Processes, among which repetitions are shared out.
    say
        Called with a sentence after each part.

    Returns
    -------
    dict
        What ``paper.json`` holds: the record of each experiment, ``settings``, ``seconds``, ``versions``, the machine.
    """
    return experiments.run("paper", EXPERIMENTS, names, Lab(settings, say, jobs), out, uses=_uses, table=table)


def _uses(name: str) -> tuple[str, ...]:
    """The settings that an experiment depends on."""
    return ("data", "pair", name) if name in OF_THE_PAIR else ("data", name)
