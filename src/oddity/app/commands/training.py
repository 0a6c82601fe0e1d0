"""Models: ``oddity train``, ``encode`` and ``info``."""

import shutil
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Option

from oddity.app.commands.options import Classes, Data, Model, Seed, listed
from oddity.app.terminal import Interrupted, first_process, note, show, training_bars, warnings_as_notes

if TYPE_CHECKING:
    from oddity.models.vae import VAE

app = typer.Typer()


class Accelerator(StrEnum):
    """Where to train."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    mps = "mps"


class Layers(StrEnum):
    """Of the encoder and the decoder."""

    dense = "dense"
    conv = "conv"


class Precision(StrEnum):
    """Of the arithmetic in training."""

    single = "32-true"
    double = "64-true"
    half = "16-mixed"
    bfloat = "bf16-mixed"


@app.command(epilog="Example: oddity train digits -o digits.model --latent-dim 2 --classes 0,1,2")
def train(
    data: Data,
    out: Annotated[Path, Option("--out", "-o", metavar="MODEL", help="The folder to write the model to.")],
    latent_dim: Annotated[int, Option(min=1, help="Dimension of the latent space.")] = 2,
    classes: Classes = None,
    image_shape: Annotated[str | None, Option(metavar="H,W", help="Rows are images of this height and width.")] = None,
    architecture: Annotated[Layers, Option(help="Dense layers, or convolutions for images.")] = Layers.dense,
    channels: Annotated[str, Option(metavar="LIST", help="Maps of the encoder's convolutions.")] = "16,32",
    hidden: Annotated[str, Option(metavar="LIST", help="Units in the encoder's hidden layers.")] = "64,32",
    epochs: Annotated[int, Option(min=1, help="Epochs of the encoder and the mean.")] = 200,
    variance_epochs: Annotated[int, Option(min=1, help="Epochs of the precision network.")] = 50,
    batch_size: Annotated[int, Option(min=1, help="Rows in a batch.")] = 128,
    lr: Annotated[float, Option(help="Learning rate.")] = 3e-3,
    centres: Annotated[int, Option(min=1, help="Centres of the precision network.")] = 64,
    a: Annotated[float, Option("--a", help="Reach of a centre, in radii of its cluster.")] = 2.0,
    constant_std: Annotated[
        float | None, Option(help="Standard deviation while the mean is trained; by default it is learned.")
    ] = None,
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
    from oddity.app import latent
    from oddity.app.datasets import open_dataset
    from oddity.models.storage import save_model
    from oddity.models.training import fit_vae

    if not out.name:
        raise ValueError(f"--out {out} has no name of its own: name a folder, such as digits.model")
    checkpoint = out.with_name(out.name + ".checkpoint")
    _check_target(out, checkpoint, resume, force)
    rows = open_dataset(data, listed(classes))
    if len(rows.X) < 2:
        raise ValueError(f"{rows.name} gives one row: a model needs at least two")
    if image_shape is not None:
        rows = rows.as_images(_integers("--image-shape", image_shape))
    if architecture is Layers.conv:
        rows = rows.as_maps()
    settings: dict[str, Any] = {
        "latent_dim": latent_dim,
        "architecture": architecture.value,
        "channels": _integers("--channels", channels),
        "hidden": _integers("--hidden", hidden),
        "epochs": epochs,
        "variance_epochs": variance_epochs,
        "batch_size": batch_size,
        "lr": lr,
        "n_centres": centres,
        "a": a,
        "constant_std": constant_std,
        "zeta": zeta,
        "seed": seed,
        "precision": precision.value,
    }
    X = rows.X if architecture is Layers.dense else rows.X.reshape(-1, *(rows.image_shape or ()))
    engine: dict[str, Any] = {"accelerator": accelerator.value, "devices": devices, "strategy": strategy}
    keeping: dict[str, Any] = {"checkpoint": checkpoint, "checkpoint_every": checkpoint_every, "resume": resume}
    try:
        with warnings_as_notes(), training_bars() as progress:
            vae = fit_vae(X, **settings, **engine, **keeping, progress=progress)
    except KeyboardInterrupt:
        kept = f"go on from {checkpoint} with --resume" if checkpoint.exists() else "no checkpoint was due yet"
        raise Interrupted(f"interrupted: {kept}") from None
    if not first_process():
        return
    codes = vae.encode(latent.rows(rows, vae))
    save_model(out, vae, codes=codes, labels=latent.labels(rows), info=latent.description(rows, settings))
    shutil.rmtree(checkpoint, ignore_errors=True)
    note(f"{out}: {len(codes)} codes in {latent_dim} dimensions; see: oddity info {out}")


@app.command(epilog="Example: oddity encode digits.model digits -o codes.npy")
def encode(
    model: Model,
    data: Data,
    out: Annotated[Path, Option("--out", "-o", metavar="Z.npy", help="The file to write the codes to.")],
    classes: Classes = None,
) -> None:
    """Write the codes of data, one row each."""
    from oddity.app import latent, report
    from oddity.app.datasets import open_dataset
    from oddity.app.files import check_writable
    from oddity.models.storage import load_model

    check_writable(out, (".npy",))
    vae = load_model(model).vae
    codes = vae.encode(latent.rows(open_dataset(data, listed(classes)), vae))
    report.write_array(out, codes.numpy())
    note(f"{out}: {codes.shape[0]} codes in {codes.shape[1]} dimensions")


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
    show(table)


def _check_target(out: Path, checkpoint: Path, resume: bool, force: bool) -> None:
    """Refuse to destroy an earlier result, before the work rather than after it."""
    from oddity.app.files import check_folder
    from oddity.models.storage import MODEL_FILE, check_replaceable

    check_folder(out)
    check_replaceable(out, MODEL_FILE)
    if force:
        return
    if out.exists():
        raise FileExistsError(f"{out} exists already: name another model, or replace it with --force")
    if checkpoint.exists() and not resume:
        raise FileExistsError(f"{checkpoint} holds a stopped run: go on with --resume, or drop it with --force")


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
