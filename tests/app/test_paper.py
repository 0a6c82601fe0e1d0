"""The experiments of the paper: what a run writes, keeps and refuses. The figures themselves are in ``results/``."""

import json
import warnings
from copy import deepcopy

import numpy as np
import pytest
import torch

from oddity.app import paper
from oddity.app.cli import main
from oddity.app.experiments import kept
from oddity.app.paper.circle import Circle
from oddity.app.paper.lab import Lab, by_model, fit, paired, summary
from oddity.app.paper.settings import smaller

CIRCLE = {"points": 50, "data_dim": 30, "noise": 0.1, "pairs": 20}


def test_a_run_keeps_what_was_found_with_the_same_settings(tmp_path):
    settings = smaller()
    found = paper.run(["surface"], settings, tmp_path)
    assert found["surface"]["geodesic"] < found["surface"]["line"]
    assert json.loads((tmp_path / "paper.json").read_text()) == found
    assert {"surface.png", "paper.md"} <= {path.name for path in tmp_path.iterdir()}
    other = deepcopy(settings)
    other["surface"]["height"] = 1.0
    assert "surface" in kept(tmp_path / "paper.json", ["surface"], settings, found["versions"], paper._uses)
    assert "surface" not in kept(tmp_path / "paper.json", ["surface"], other, found["versions"], paper._uses)


@pytest.mark.slow
def test_every_experiment_runs_and_records_what_it_promises(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # models of a minute have rays that do not converge, and fits that do not
        found = paper.run(list(paper.EXPERIMENTS), smaller(), tmp_path)
    runs = found["clustering"]["012"]["riemannian"]["runs"]
    assert len(runs) == 4
    assert found["clustering"]["012"]["riemannian"]["mean"] == pytest.approx(np.mean(runs))
    assert set(found["log_likelihood"]) >= {"rbf", "sigma_network", "repetitions"}
    assert len(found["density"]["land"]) == len(found["density"]["gmm"]) == 1
    assert found["walk"]["completed"]["riemannian"] <= found["walk"]["walkers"] == 4
    assert set(found["circle"]) == {"rbf_vae", "vae", "autoencoder"}
    assert set(found["seconds"]) == set(paper.EXPERIMENTS)
    table = (tmp_path / "paper.md").read_text()
    assert table.count("\n") == 2 + 1 + 2 + 1 + 2 + 3 + 2 + 1 + 6  # a line for each figure


def test_samples_are_different_rows_of_the_right_digits_from_their_part():
    settings = smaller()
    settings["data"] |= {"train": [0, 1000], "valid": [1000, 1797]}
    lab = Lab(settings)
    train, valid = (lab.sample([3, 5], 40, 0, part) for part in ("train", "valid"))
    assert np.bincount(train.y, minlength=10).tolist() == [0, 0, 0, 40, 0, 40, 0, 0, 0, 0]
    rows = {row.numpy().tobytes() for row in train.X}
    assert len(rows) == 80
    assert not rows & {row.numpy().tobytes() for row in valid.X}
    assert not np.array_equal(train.y, np.sort(train.y))


def test_runs_of_one_model_are_one_trial():
    ours, theirs = [3.0, 3.2, 2.0, 2.2, 5.0, 5.2], [2.0, 2.4, 1.5, 1.9, 4.1, 4.3]
    assert by_model(ours, 3) == pytest.approx([3.1, 2.1, 5.1])
    assert paired(by_model(ours, 3), by_model(theirs, 3))["p"] > paired(ours, theirs)["p"]


def test_arcs_of_the_circle_join_their_pairs_the_short_way():
    world = Circle(CIRCLE, seed=0)
    arcs, ends = world.arcs(), world.at(world.angle)[world.pairs]
    np.testing.assert_allclose(arcs[:, [0, -1]], ends, atol=1e-12)
    lengths = np.linalg.norm(np.diff(arcs, axis=1), axis=-1).sum(1)
    np.testing.assert_allclose(lengths, world.radius * np.abs(world.turns()), rtol=1e-3)
    assert np.abs(world.turns()).max() <= np.pi


def test_of_several_trainings_the_best_is_kept():
    settings = {"epochs": 3, "variance_epochs": 2, "n_centres": 4, "hidden": (8, 4)}
    sample = Lab(smaller()).sample([0, 1], 30, 0)

    def bound(restarts):
        return float(fit(sample, 0, settings, restarts).vae.elbo(sample.X, torch.Generator().manual_seed(0)).mean())

    assert bound(6) >= bound(2)


def test_summaries_and_tests():
    assert summary([1.0, 3.0]) == {"mean": 2.0, "sd": pytest.approx(2**0.5), "runs": [1.0, 3.0]}
    ahead = paired([2.0, 3.1, 4.0], [1.0, 2.0, 3.1])
    assert ahead["ahead_by"] == pytest.approx(1.0)
    assert ahead["p"] < 0.01
    assert paired([1.0], [0.0])["p"] is None


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--only", "nonsense"], "there is no experiment nonsense"),
        (["--only", "surface", "--out", "no/such/folder"], "there is no folder"),
    ],
)
def test_a_mistake_ends_in_a_sentence(arguments, sentence, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["paper", *arguments]) == 2
    assert sentence in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
