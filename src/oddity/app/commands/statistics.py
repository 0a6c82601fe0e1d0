"""Statistics of the codes: ``oddity cluster``, ``density``, ``walk`` and ``sample``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Option

from oddity.app.commands.options import PLACE, Method, Model, Seed
from oddity.app.terminal import messages, note, show, warnings_as_notes

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray
    from rich.table import Table
    from torch import Tensor

    from oddity.models.storage import SavedModel
    from oddity.statistics.brownian import Walk
    from oddity.statistics.clustering import GeodesicKMeans, GeodesicKMedoids

HELD_OUT = 0.2  # of the codes, to judge densities by
FRAMES = 7  # decoded along a walk
BENT = 0.5  # bend of a step, above which the steps are too long for their law

app = typer.Typer()


# ------------------------------------------------------------------------------------------------ clusters


@app.command(epilog="Example: oddity cluster digits.model -k 3 -o clusters.npz")
def cluster(
    model: Model,
    clusters: Annotated[int, Option("--clusters", "-k", min=1, help="Number of clusters.")] = 3,
    method: Annotated[
        Method, Option(help="A graph refined where it matters, every geodesic, or the graph alone.")
    ] = Method.refined,
    medoids: Annotated[bool, Option("--medoids", help="Centres are codes: k-medoids in place of k-means.")] = False,
    seed: Seed = 0,
    out: Annotated[Path, Option("--out", "-o", metavar="NPZ", help="A file for labels and centres.")] = Path(
        "clusters.npz"
    ),
    figure: Annotated[Path, Option(metavar="PNG", help="The figure: .png, .pdf or .svg.")] = Path("clusters.png"),
) -> None:
    """Cluster the codes by geodesic distance, beside the same by Euclidean distance.

    Where the model knows the classes, a table says how well the clusters agree with them.
    """
    from oddity.app import latent, plots, report
    from oddity.app.files import check_writable
    from oddity.geometry.pullback import expected_metric
    from oddity.geometry.spaces import Euclidean
    from oddity.models.storage import load_model
    from oddity.statistics.clustering import GeodesicKMeans, GeodesicKMedoids

    check_writable(out, (".npz",))
    check_writable(figure, plots.FIGURE_SUFFIXES)
    saved = load_model(model)
    codes, maker = latent.codes_of(saved), GeodesicKMedoids if medoids else GeodesicKMeans
    with messages().status("clusters"), warnings_as_notes():
        geodesic, euclidean = (
            maker(M, clusters, method=method.value, random_state=seed).fit(codes)
            for M in (expected_metric(saved.vae.decoder), Euclidean())
        )
    _name_alike(geodesic, euclidean)
    found = {"geodesic": geodesic, "Euclidean": euclidean}
    arrays = {"labels": geodesic.labels_, "centres": geodesic.cluster_centers_}
    arrays |= {"euclidean_labels": euclidean.labels_, "euclidean_centres": euclidean.cluster_centers_}
    report.write_arrays(out, arrays)
    drawn = _is_plane(saved) and _cluster_figure(saved, found, "k-medoids" if medoids else "k-means")
    if drawn:
        plots.save(drawn, figure)
    for table in _cluster_tables(saved, found):
        show(table)
    note(f"{out}: labels and centres of {clusters} clusters, {len(codes)} codes{f'; {figure}' if drawn else ''}")


def _name_alike(geodesic: "GeodesicKMeans | GeodesicKMedoids", other: "GeodesicKMeans | GeodesicKMedoids") -> None:
    """Number the other clusters so that as many codes as possible are in clusters of the same number."""
    import numpy as np
    from scipy.optimize import linear_sum_assignment

    k = len(geodesic.cluster_centers_)
    shared = np.bincount(geodesic.labels_ * k + other.labels_, minlength=k * k).reshape(k, k)
    order = linear_sum_assignment(shared, maximize=True)[1]
    other.labels_, other.cluster_centers_ = order.argsort()[other.labels_], other.cluster_centers_[order]


def _cluster_tables(saved: "SavedModel", found: "dict[str, GeodesicKMeans | GeodesicKMedoids]") -> "list[Table]":
    import numpy as np
    from rich.table import Table

    from oddity.app import latent, report

    classes = None if saved.labels is None else saved.labels.numpy()
    names = latent.class_names(saved)
    sizes = Table(title="clusters")
    sizes.add_column("cluster", justify="right")
    for name in found:
        sizes.add_column(f"{name}: size", justify="right")
        if classes is not None:
            sizes.add_column("classes")
    for i in range(len(found["geodesic"].cluster_centers_)):
        row = [str(i)]
        for clustering in found.values():
            here = clustering.labels_ == i
            row.append(str(here.sum()))
            if classes is not None:
                values, counts = np.unique(classes[here], return_counts=True)
                parts = sorted(zip(counts.tolist(), values.tolist(), strict=True), reverse=True)
                row.append(", ".join(f"{names.get(value, value)}: {count}" for count, value in parts))
        sizes.add_row(*row)
    if classes is None:
        return [sizes]
    scores = {name: report.agreement(clustering.labels_, classes) for name, clustering in found.items()}
    agreement = Table("", title="agreement of the clusters with the classes")
    for measure in scores["geodesic"]:
        agreement.add_column(measure, justify="right")
    for name, score in scores.items():
        agreement.add_row(name, *(f"{value:.4f}" for value in score.values()))
    return [sizes, agreement]


def _cluster_figure(
    saved: "SavedModel", found: "dict[str, GeodesicKMeans | GeodesicKMedoids]", method: str
) -> "Figure":
    from oddity.app import comparisons, latent, plots

    codes = latent.codes_of(saved)
    plane = plots.Plane.around(codes)
    panels = {
        f"{name} {method}": comparisons.Clustering(
            clustering.labels_, clustering.cluster_centers_, latent.decoded(saved, clustering.cluster_centers_)
        )
        for name, clustering in found.items()
    }
    return comparisons.clusters(
        plane, latent.magnification(saved, plane), codes, panels, image_shape=latent.image_shape(saved)
    )


# ----------------------------------------------------------------------------------------------- densities


@app.command(epilog="Example: oddity density digits.model -k 2 -o density.png")
def density(
    model: Model,
    components: Annotated[int, Option("--components", "-k", min=1, help="Components of each mixture.")] = 2,
    codes: Annotated[
        int,
        Option(min=2, metavar="N", help="Random codes at most, to fit and to judge by: a fit of more takes longer."),
    ] = 500,
    size: Annotated[int, Option(min=8, help="Points along each axis at which the figure measures LAND.")] = 32,
    seed: Seed = 0,
    out: Annotated[Path, Option("--out", "-o", metavar="PNG", help="The figure: .png, .pdf or .svg.")] = Path(
        "density.png"
    ),
) -> None:
    """Fit a mixture of locally adaptive normal distributions to the codes, beside a Gaussian mixture.

    Both are judged by their mean log density, with respect to dz, on a fifth of the codes that they were not fitted to.
    """
    import torch
    from sklearn.mixture import GaussianMixture

    from oddity.app import latent, plots
    from oddity.app.files import check_writable
    from oddity.geometry.pullback import expected_metric
    from oddity.models.storage import load_model
    from oddity.statistics.land import LAND

    check_writable(out, plots.FIGURE_SUFFIXES)
    saved = load_model(model)
    every = latent.codes_of(saved)
    chosen = torch.randperm(len(every), generator=torch.Generator().manual_seed(seed))[:codes]
    held_out, fitted = every[chosen].split([count := max(1, round(HELD_OUT * len(chosen))), len(chosen) - count])
    if components > len(fitted):
        raise ValueError(f"{components} components need as many codes, and {len(fitted)} are left to fit them to")
    with messages().status("densities") as status, warnings_as_notes():
        land = LAND(
            expected_metric(saved.vae.decoder),
            components,
            random_state=seed,
            progress=lambda i, bound: status.update(f"LAND: move {i}, mean log density {bound:.4g}"),
        ).fit(fitted)
        gmm = GaussianMixture(components, n_init=5, random_state=seed).fit(fitted.double())
        scores = {"LAND": land.score_samples(held_out), "Gaussian mixture": gmm.score_samples(held_out.double())}
        drawn = _is_plane(saved) and _density_figure(saved, land, gmm, size, scores)
    if drawn:
        plots.save(drawn, out)
    for table in (_score_table(scores), _component_table(land)):
        show(table)
    thinned = f", {len(chosen)} drawn from {len(every)}" if len(chosen) < len(every) else ""
    note(f"fitted to {len(fitted)} codes, judged by {len(held_out)} others{thinned}{f'; {out}' if drawn else ''}")
    if missed := int((~_reached(scores)).sum()):
        note(f"no geodesic reached {missed} of the {len(held_out)}: they are left out of both means")


def _reached(scores: "dict[str, NDArray[Any]]") -> "NDArray[Any]":
    """Which codes every density was measured at: (n,) bool."""
    import numpy as np

    reached: NDArray[Any] = np.isfinite(np.stack(list(scores.values()))).all(0)
    return reached


def _score_table(scores: "dict[str, NDArray[Any]]") -> "Table":
    from rich.table import Table

    from oddity.app import report

    table = Table(title="log density of held-out codes, with respect to dz")
    for heading in ("", "mean", "standard error"):
        table.add_column(heading, justify="right" if heading else "left")
    reached = _reached(scores)
    values = {name: log_density[reached] for name, log_density in scores.items()}
    values["difference"] = values["LAND"] - values["Gaussian mixture"]
    for name, value in values.items():
        table.add_row(name, *report.mean_and_error(value))
    return table


def _component_table(land: Any) -> "Table":
    from rich.table import Table

    table = Table(title="components of LAND")
    for heading in ("component", "weight", "mean", "normaliser", "its standard error"):
        table.add_column(heading, justify="right")
    for i, weight in enumerate(land.weights_):
        mean = ", ".join(f"{x:.3f}" for x in land.means_[i])
        table.add_row(str(i), f"{weight:.3f}", mean, f"{land.normalizers_[i]:.4g}", f"{land.normalizer_errors_[i]:.2g}")
    return table


def _density_figure(saved: "SavedModel", land: Any, gmm: Any, size: int, scores: "dict[str, NDArray[Any]]") -> "Figure":
    from oddity.app import latent

    reached = _reached(scores)
    titles = [f"{name}: log density {values[reached].mean():.3g} on held-out codes" for name, values in scores.items()]
    return latent.draw_densities(saved, titles, land, gmm, size)


# --------------------------------------------------------------------------------------- walks and samples


@app.command(epilog="Example: oddity walk digits.model --from 3 --steps 2000 -o walk.png")
def walk(
    model: Model,
    start: Annotated[str, Option("--from", metavar="PLACE", help=PLACE)] = "0",
    steps: Annotated[int, Option(min=1, help="Steps of each walker.")] = 2000,
    time: Annotated[
        float | None,
        Option(help="Time of each walk; by default such that it goes half of the way between two codes."),
    ] = None,
    dt: Annotated[float | None, Option(help="Time of a step, in place of that of the whole walk.")] = None,
    walkers: Annotated[int, Option(min=1, help="Walkers, of which the first is drawn.")] = 16,
    seed: Seed = 0,
    out: Annotated[Path, Option("--out", "-o", metavar="PNG", help="The figure: .png, .pdf or .svg.")] = Path(
        "walk.png"
    ),
) -> None:
    """Walk at random from a place, by Riemannian and by Euclidean Brownian motion, and say how much keeps to the data.

    A point is within the data's support if it has a code as near as 99 % of the codes have another. The Euclidean
    motion is that of a flat metric, under which steps at a typical code are as long as those of the Riemannian. Steps
    that a stopped walk did not make count as outside.
    """
    import torch

    from oddity.app import latent, plots
    from oddity.app.files import check_writable
    from oddity.geometry.pullback import expected_metric
    from oddity.models.storage import load_model
    from oddity.statistics.brownian import DataSupport, brownian_motion

    check_writable(out, plots.FIGURE_SUFFIXES)
    if time is not None and dt is not None:
        raise ValueError("--time and --dt both say how long the walk is; give one of them")
    saved = load_model(model)
    codes, M = latent.codes_of(saved), expected_metric(saved.vae.decoder)
    name, place = latent.place(saved, "--from", start)
    if dt is None:
        dt = (latent.walk_time(M, codes) if time is None else time) / steps
    support, crowd = DataSupport(codes), place.expand(walkers, -1)
    with messages().status("walks"), warnings_as_notes():
        found = {
            title: brownian_motion(space, crowd, steps, dt, generator=torch.Generator().manual_seed(seed))
            for title, space in {"Riemannian": M, "Euclidean": latent.flat_like(M, codes)}.items()
        }
    shares = {title: w.inside(support).float().mean(1) for title, w in found.items()}
    mean = {title: float(share.mean()) for title, share in shares.items()}
    drawn = _is_plane(saved) and latent.draw_walks(saved, found, mean, steps * dt, FRAMES)
    if drawn:
        plots.save(drawn, out)
    show(_walk_table(found, shares))
    for title, w in found.items():
        if said := latent.remarks(w, support):
            note(f"{title}: {'; '.join(said)}")
        if float(w.bend.max()) > BENT:
            note(f"{title}: a step bends by {float(w.bend.max()):.2g} of itself: take more --steps, or less --time")
    note(
        f"from {name}, T = {steps} steps x {dt:.4g} = {steps * dt:.4g}; support: {support}{f'; {out}' if drawn else ''}"
    )
    for title, w in found.items():
        for why in list(filter(None, w.why))[:3]:
            note(f"{title}: {why}")


def _walk_table(found: "dict[str, Walk]", shares: "dict[str, Tensor]") -> "Table":
    from rich.table import Table

    from oddity.app import report

    table = Table(title="Brownian motion")
    table.add_column("")
    for heading in ("steps within the support", "standard error", "walks completed", "largest bend of a step"):
        table.add_column(heading, justify="right")
    for title, w in found.items():
        completed = f"{int(w.completed.sum())} of {len(w.completed)}"
        table.add_row(title, *report.mean_and_error(shares[title].numpy()), completed, f"{float(w.bend.max()):.2g}")
    return table


@app.command(epilog="Example: oddity sample digits.model -n 64 -o samples.npz")
def sample(
    model: Model,
    number: Annotated[int, Option("--number", "-n", min=1, help="Number of draws.")] = 64,
    time: Annotated[
        float | None, Option(help="Time of each walk; by default that from a code to its tenth neighbour.")
    ] = None,
    seed: Seed = 0,
    out: Annotated[
        Path, Option("--out", "-o", metavar="FILE", help="Codes and rows as .npz, or rows alone as .npy.")
    ] = Path("samples.npz"),
    figure: Annotated[Path, Option(metavar="PNG", help="A sheet of the images: .png, .pdf or .svg.")] = Path(
        "samples.png"
    ),
) -> None:
    """Draw new data from where the codes are: from random codes along Brownian motion, and decoded.

    The walks keep to the support of the data. A decoded row is the mean that the model gives.
    """
    import torch

    from oddity.app import latent, plots, report
    from oddity.app.files import check_writable
    from oddity.geometry.pullback import expected_metric
    from oddity.models.storage import load_model
    from oddity.statistics.brownian import manifold_samples

    check_writable(out, (".npz", ".npy"))
    check_writable(figure, plots.FIGURE_SUFFIXES)
    saved = load_model(model)
    M, generator = expected_metric(saved.vae.decoder), torch.Generator().manual_seed(seed)
    with messages().status("walks"), warnings_as_notes():
        z = manifold_samples(M, latent.codes_of(saved), number, t=time, generator=generator)
    rows, shape = latent.decoded(saved, z), latent.image_shape(saved)
    if out.suffix.lower() == ".npz":
        report.write_arrays(out, {"codes": z.numpy(), "rows": rows})
    else:
        report.write_array(out, rows)
    if shape:
        plots.save(plots.sheet(rows, shape, f"{number} draws from the latent space, decoded"), figure)
    else:
        note("no sheet: the rows of these data are not images")
    note(f"{out}: {number} draws{f'; {figure}' if shape else ''}")


def _is_plane(saved: "SavedModel") -> bool:
    """Whether there is a map to draw on; if not, say so."""
    d = saved.vae.latent_dim
    if d != 2:
        note(f"no figure: it needs a two-dimensional latent space, and this one has {d}: train with --latent-dim 2")
    return d == 2
