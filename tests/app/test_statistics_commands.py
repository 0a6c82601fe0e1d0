"""``oddity cluster``, ``density``, ``walk`` and ``sample``, as a user meets them."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

import oddity
from oddity.app import latent
from oddity.app.cli import main
from oddity.models.storage import load_model, save_model
from oddity.models.vae import Architecture
from tests.app.files import arrays_in


@pytest.fixture
def blobs(here: Path) -> Path:
    """Two far blobs in a latent space of three dimensions, rows that are no images, no labels."""
    z = 0.1 * torch.randn(24, 3, generator=torch.Generator().manual_seed(0))
    z[::2] += 2
    return save_model("blobs", Architecture(data_dim=6, latent_dim=3, hidden=(8, 4)).build(), codes=z)


@pytest.fixture
def flat(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every decoder be flat: there LAND is the normal distribution."""
    monkeypatch.setattr("oddity.geometry.pullback.expected_metric", lambda decoder: oddity.Euclidean())


def table(text: str, row: str) -> list[str]:
    """Cells of a row of a table that was printed, by its first cell."""
    (line,) = [line for line in text.splitlines() if re.match(rf"│\s+{row}\s+│", line)]
    return [cell.strip() for cell in line.strip("│").split("│")][1:]


def test_cluster_writes_what_it_draws_and_tells(model: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cluster", str(model), "-k", "3", "--method", "graph"]) == 0
    said, saved = capsys.readouterr().out, load_model(model)
    found = arrays_in("clusters.npz")
    assert found["labels"].shape == found["euclidean_labels"].shape == (len(saved.codes),)
    assert found["centres"].shape == found["euclidean_centres"].shape == (3, 2)
    assert [table(said, str(i))[0] for i in range(3)] == [str(n) for n in np.bincount(found["labels"])]
    # each code is nearest to the centre of its cluster, numbered as it is
    gaps = np.linalg.norm(saved.codes.numpy()[:, None] - found["euclidean_centres"], axis=-1)
    np.testing.assert_array_equal(gaps.argmin(1), found["euclidean_labels"])
    assert (found["labels"] == found["euclidean_labels"]).mean() > 0.7  # numbered alike
    for part in table(said, "geodesic"):
        assert 0.6 < float(part) <= 1
    assert sorted(path.name for path in here.iterdir()) == ["clusters.npz", "clusters.png"]


@pytest.mark.parametrize("options", [[], ["--medoids"]])
def test_clusters_of_other_dimensions_come_without_a_figure(
    options: list[str], blobs: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["cluster", str(blobs), "-k", "2", "--method", "graph", "-o", "c.npz", *options]) == 0
    said = capsys.readouterr()
    assert "no figure: it needs a two-dimensional latent space, and this one has 3" in said.err
    assert "agreement" not in said.out
    labels = arrays_in("c.npz")["labels"]
    assert len(set(labels[::2])) == len(set(labels[1::2])) == 1
    assert labels[0] != labels[1]
    assert not Path("clusters.png").exists()


def test_in_flat_space_both_densities_are_alike(
    flat: None, model: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["density", str(model), "-k", "1", "--codes", "100", "--size", "8"]) == 0
    said = capsys.readouterr()
    land, gmm = (float(table(said.out, name)[0]) for name in ("LAND", "Gaussian mixture"))
    assert land == pytest.approx(gmm, abs=2e-3)
    C, error = (float(cell) for cell in table(said.out, "0")[2:])
    codes = load_model(model).codes
    chosen = codes[torch.randperm(len(codes), generator=torch.Generator().manual_seed(0))[20:100]]
    expected = 2 * np.pi * np.linalg.det(np.cov(chosen.numpy().T, ddof=0)) ** 0.5
    assert pytest.approx(expected, rel=1e-2) == C
    assert error < 1e-3 * C
    assert "fitted to 80 codes, judged by 20 others, 100 drawn from 537; density.png" in said.err
    assert Path("density.png").exists()


def test_densities_of_other_dimensions_come_without_a_figure(
    flat: None, blobs: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["density", str(blobs), "-k", "2"]) == 0
    said = capsys.readouterr()
    assert "no figure: it needs a two-dimensional latent space, and this one has 3" in said.err
    assert "fitted to 19 codes, judged by 5 others\n" in said.err
    assert not Path("density.png").exists()


@pytest.mark.slow
def test_density_in_a_curved_space(model: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["density", str(model), "-k", "1", "--codes", "40", "--size", "8"]) == 0
    said = capsys.readouterr().out
    mean, error = map(float, table(said, "LAND"))
    assert np.isfinite(mean)
    assert error > 0
    C, its_error = (float(cell) for cell in table(said, "0")[2:])
    assert 0 < its_error < 0.1 * C


def test_walk_says_how_much_keeps_to_the_data(model: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["walk", str(model), "--from", "5", "--walkers", "2", "--steps", "10", "--dt", "1e-6"]) == 0
    said = capsys.readouterr()
    assert "from code 5, T = 10 steps x 1e-06 = 1e-05; support: DataSupport(537 codes, radius" in said.err
    assert "walk.png" in said.err
    for name in ("Riemannian", "Euclidean"):
        assert table(said.out, name)[:3] == ["1.0000", "0.0000", "2 of 2"]
    assert Path("walk.png").exists()


def test_a_walk_goes_half_of_the_way_between_two_codes() -> None:
    codes = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
    apart = torch.cdist(codes, codes).square().sum() / (200 * 199)
    for scale in (1, 4):
        T = latent.walk_time(scale * oddity.Euclidean(), codes)
        assert 3 * T / scale == pytest.approx(0.25 * float(apart), rel=1e-5)


def test_walk_says_in_words_what_went_wrong(model: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    far = ["walk", str(model), "--from", "60,60", "--walkers", "2", "--steps", "4", "--time", "1e-6"]
    assert main(far) == 0
    said = capsys.readouterr()
    assert "Euclidean: 2 of 2 start off the data" in said.err
    assert "T = 4 steps x 2.5e-07 = 1e-06" in said.err
    assert main(["walk", str(model), "--walkers", "2", "--steps", "3", "--time", "1e3"]) == 0
    assert re.search(
        "Riemannian: a step bends by .* of itself: take more --steps, or less --time", capsys.readouterr().err
    )


def test_steps_that_a_stopped_walk_did_not_make_count_as_outside() -> None:
    space = oddity.Conformal(lambda z: torch.where(z[..., 0] > 0, torch.nan, 1.0))
    start = torch.full((3, 2), -0.05)
    walk = oddity.brownian_motion(space, start, 200, 1e-2, generator=torch.Generator().manual_seed(0))
    everywhere = lambda z: torch.ones(z.shape[:-1], dtype=torch.bool)  # noqa: E731
    assert bool((walk.inside(everywhere).float().mean(1) < 1)[~walk.completed].all())
    support = oddity.DataSupport(torch.tensor([[-0.05, 0.0], [-0.15, 0.0]]))
    assert latent.remarks(walk, support)[-1].startswith(f"{int((~walk.completed).sum())} of 3 stopped")


def test_walk_in_other_dimensions_comes_without_a_figure(
    blobs: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["walk", str(blobs), "--walkers", "1", "--steps", "3", "--dt", "1e6"]) == 0
    said = capsys.readouterr()
    assert "no figure: it needs a two-dimensional latent space, and this one has 3" in said.err
    assert table(said.out, "Euclidean")[:3] == ["0.0000", "", "1 of 1"]
    assert not Path("walk.png").exists()


def test_the_flat_metric_of_a_flat_metric_is_itself() -> None:
    codes = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    flat = latent.flat_like(4 * oddity.Euclidean(), codes)
    torch.testing.assert_close(flat.metric(codes), 4 * torch.eye(3).expand(20, 3, 3))


def test_samples_are_codes_and_their_decoded_means(model: Path, here: Path) -> None:
    assert main(["sample", str(model), "-n", "5", "-o", "s.npz"]) == 0
    found, saved = arrays_in("s.npz"), load_model(model)
    assert oddity.DataSupport(saved.codes)(torch.from_numpy(found["codes"])).all()
    np.testing.assert_array_equal(found["rows"], saved.vae.decoder.mean(torch.from_numpy(found["codes"])))
    assert found["rows"].shape == (5, 64)
    assert Path("samples.png").exists()
    assert main(["sample", str(model), "-n", "5", "-o", "s.npy"]) == 0
    np.testing.assert_array_equal(np.load("s.npy"), found["rows"])  # the same seed, the same draws


def test_samples_that_are_no_images_have_no_sheet(blobs: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", str(blobs), "-n", "2"]) == 0
    assert "no sheet: the rows of these data are not images" in capsys.readouterr().err
    assert [path.name for path in here.iterdir() if path.is_file()] == ["samples.npz"]


BAD = {
    "too many clusters": ("cluster blobs -k 25", "n_samples = 24 is less than n_clusters = 25"),
    "no clusters": ("cluster blobs -k 0", "Invalid value for '--clusters' / '-k'"),
    "labels' ending": ("cluster blobs -o c.csv", "let its name end in .npz"),
    "clusters' figure": ("cluster blobs --figure c.jpg", "let its name end in .png"),
    "too many components": ("density blobs -k 20", "20 components need as many codes, and 19 are left"),
    "density's ending": ("density blobs -o d.txt", "let its name end in .png"),
    "density's folder": ("density blobs -o none/d.png", "there is no folder none"),
    "two times": ("walk blobs --dt 1 --time 1", "--time and --dt both say how long the walk is; give one of them"),
    "no steps": ("walk blobs --steps 0", "Invalid value for '--steps'"),
    "no time": ("walk blobs --dt 0", "a step would take the time 0.0; it must be positive and finite"),
    "NaN for a time": ("walk blobs --dt nan", "a step would take the time nan"),
    "NaN for a place": ("walk blobs --from nan,0,0", "--from nan,0,0 is no place in 3 dimensions"),
    "no such code": ("walk blobs --from 24", "--from 24 is out of range: the model holds the codes 0 to 23"),
    "negative time": ("sample blobs --time=-1", "it must be positive and finite"),
    "no draws": ("sample blobs -n 0", "Invalid value for '--number' / '-n'"),
    "samples' ending": ("sample blobs -o s.csv", "let its name end in .npz or .npy"),
    **{f"no model to {name}": (f"{name} none", "there is no folder 'none'") for name in ("cluster", "density", "walk")},
    **{
        f"no codes to {name}": (f"{name} empty", "the model holds no codes: train it with oddity train")
        for name in ("cluster", "density", "walk", "sample")
    },
}


@pytest.mark.parametrize(("line", "sentence"), BAD.values(), ids=BAD)
def test_a_mistake_is_one_sentence(
    line: str, sentence: str, blobs: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = load_model(blobs)
    save_model("empty", saved.vae)
    before = sorted(here.rglob("*"))
    assert main(line.split()) == 2
    said = [words for words in capsys.readouterr().err.splitlines() if words.strip()]
    assert len(said) == 1
    assert said[0].startswith("oddity: ")
    assert sentence in said[0]
    assert sorted(here.rglob("*")) == before
