"""Distances and curves: ``oddity map``, ``geodesic``, ``interpolate`` and ``distances``."""

from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

from oddity.app.commands.options import Classes, Goal, Method, Model, Start, listed
from oddity.app.terminal import Interrupted, bars, note, show

FRAMES = 9

app = typer.Typer()


@app.command("map", epilog="Example: oddity map digits.model -o map.png")
def map_(
    model: Model,
    out: Annotated[Path, Option("--out", "-o", metavar="PNG", help="The figure: .png, .pdf or .svg.")] = Path(
        "map.png"
    ),
    size: Annotated[int, Option(min=2, help="Points of the grid along each axis.")] = 200,
) -> None:
    """Draw the magnification factor over a two-dimensional latent space, with the codes."""
    from oddity.app import latent, plots
    from oddity.app.files import check_writable
    from oddity.models.storage import load_model

    check_writable(out, plots.FIGURE_SUFFIXES)
    saved = load_model(model)
    plane = plots.Plane.around(latent.codes_of(saved), size=size)
    plots.save(latent.draw_map(saved, plane), out)
    note(f"{out}: log sqrt det M on {size} x {size} points, {len(latent.codes_of(saved))} codes")


@app.command(epilog="Example: oddity geodesic digits.model --from 3 --to=-0.3,1.2 -o g.npz")
def geodesic(
    model: Model,
    start: Start,
    to: Goal,
    out: Annotated[
        Path | None, Option("--out", "-o", metavar="NPZ", help="A file for the curve and its lengths.")
    ] = None,
) -> None:
    """Find the geodesic between two places, and compare it with the straight line."""
    from oddity.app import latent, report
    from oddity.app.files import check_writable
    from oddity.models.storage import load_model

    if out is not None:
        check_writable(out, (".npz",))
    found = latent.between(load_model(model), start, to)
    if out is not None:
        report.write_arrays(out, found.arrays())
    show(found.table())


@app.command(epilog="Example: oddity interpolate digits.model --from 3 --to 41 --frames 9 -o frames.png")
def interpolate(
    model: Model,
    start: Start,
    to: Goal,
    frames: Annotated[int, Option(min=2, help="Decoded frames, both ends included.")] = FRAMES,
    out: Annotated[Path, Option("--out", "-o", metavar="PNG", help="The figure: .png, .pdf or .svg.")] = Path(
        "frames.png"
    ),
) -> None:
    """Draw decoded frames along the geodesic between two places, over those along the straight line."""
    from oddity.app import latent, plots
    from oddity.app.files import check_writable
    from oddity.models.storage import load_model

    check_writable(out, plots.FIGURE_SUFFIXES)
    saved = load_model(model)
    found = latent.between(saved, start, to)
    decoded = latent.frames(saved, found, frames)
    plots.save(latent.draw_frames(saved, found, decoded, pictured=1), out)
    show(found.table())
    smooth, uneven = (float(interpolation.unevenness) for interpolation in decoded)
    note(
        f"{out}: {frames} frames along each; unevenness of the steps between frames, standard deviation over mean: "
        f"{smooth:.3g} along the geodesic, {uneven:.3g} along the straight line"
    )


@app.command(epilog="Example: oddity distances digits.model -o D.npy --nearest 10 --jobs 2")
def distances(
    model: Model,
    data: Annotated[
        str | None, Argument(help="Measure between the codes of these data, in place of those in the model.")
    ] = None,
    out: Annotated[Path, Option("--out", "-o", metavar="D.npy", help="A new file for the matrix.")] = Path(
        "distances.npy"
    ),
    classes: Classes = None,
    method: Annotated[
        Method, Option(help="A graph refined where it matters, every geodesic, or the graph alone.")
    ] = Method.refined,
    nearest: Annotated[int, Option(min=0, help="Solve the pairs with so many nearest codes of each.")] = 0,
    within: Annotated[float, Option(min=0, help="Solve the pairs closer than this.")] = 0.0,
    sample: Annotated[int, Option(min=0, help="Random pairs to solve, which state the error of the rest.")] = 64,
    bridge: Annotated[bool, Option("--bridge", help="Join a graph that falls apart by its shortest gaps.")] = False,
    jobs: Annotated[int, Option(min=1, help="Processes.")] = 1,
) -> None:
    """Write the geodesic distances between all pairs of codes, and say how far they are off.

    After an interruption the same command goes on from where it was.
    """
    import joblib

    from oddity.app import latent
    from oddity.app.datasets import open_dataset
    from oddity.app.files import check_writable
    from oddity.geometry.distances import pairwise_distances
    from oddity.geometry.pullback import expected_metric
    from oddity.models.storage import load_model

    check_writable(out, (".npy",))
    if classes is not None and data is None:
        raise ValueError("--classes chooses rows of data: name the data too")
    saved = load_model(model)
    vae = saved.vae
    codes = (
        latent.codes_of(saved) if data is None else vae.encode(latent.rows(open_dataset(data, listed(classes)), vae))
    )
    wishes: dict[str, Any] = {"nearest": nearest, "within": within, "sample": sample, "bridge": bridge}
    try:
        with bars() as progress, joblib.parallel_config(n_jobs=jobs):
            found = pairwise_distances(
                expected_metric(vae.decoder), codes, method=method.value, **wishes, out=out, progress=progress
            )
    except KeyboardInterrupt:
        part = Path(f"{out}.part")
        kept = f"the same command goes on from {part}" if part.exists() else "nothing was left half-written"
        raise Interrupted(f"interrupted: {kept}") from None
    note(f"{out}: {found}")
    for (i, j), why in list(zip(found.failed.tolist(), found.why, strict=True))[:5]:
        note(f"code {i} to code {j} did not converge: {why}")
