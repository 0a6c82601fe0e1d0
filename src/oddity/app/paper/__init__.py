"""The experiments of "Latent Space Oddity" (ICLR 2018), run again: what ``oddity paper`` does.

Each experiment is a function from a :class:`~oddity.app.paper.lab.Lab` to a record of JSON's own types and to figures
by their names. :func:`run` runs them in order and writes what each found as soon as it is there.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from oddity.app import plots, report
from oddity.app.files import replacing
from oddity.app.paper.circle import circle
from oddity.app.paper.clustering import clustering
from oddity.app.paper.density import density
from oddity.app.paper.interpolation import interpolation
from oddity.app.paper.lab import Lab, Record
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
    out.mkdir(exist_ok=True)
    settings = json.loads(json.dumps(settings))  # as they will be read again
    environment = report.environment()
    lab, clock = Lab(settings, say, jobs), report.Clock()
    found = _kept(out / "paper.json", settings, environment["versions"])
    for name in names:
        with clock(name):
            found[name], figures = EXPERIMENTS[name](lab)
        found["seconds"] |= clock.seconds
        for title, figure in figures.items():
            plots.save(figure, out / f"{title}.png")
        ordered = {key: found[key] for key in EXPERIMENTS if key in found}
        found = {**ordered, "settings": settings, "seconds": found["seconds"], **environment}
        report.write_json(out / "paper.json", found)
        with replacing(out / "paper.md") as part:
            part.write_text(table(found), encoding="utf-8")
    return found


def _kept(file: Path, settings: Record, versions: Record) -> Record:
    """Return what was found before with these settings and versions."""
    before = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    kept: Record = {"seconds": {}}
    if before.get("versions") != versions:
        return kept
    for name in EXPERIMENTS:
        uses = ("data", "pair", name) if name in OF_THE_PAIR else ("data", name)
        if name in before and all(before["settings"].get(key) == settings.get(key) for key in uses):
            kept[name], kept["seconds"][name] = before[name], before["seconds"][name]
    return kept
