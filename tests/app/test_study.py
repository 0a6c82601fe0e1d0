"""The study of lengths over seeds: what it measures, writes, keeps and refuses. Its figures are in ``results/``."""

import json

import numpy as np
import pytest
import torch
from scipy.stats import ttest_rel
from torch.distributions import Normal

import oddity
from oddity.app import study
from oddity.app.cli import main
from oddity.app.experiments import kept


@pytest.mark.slow
def test_a_part_runs_records_what_it_promises_and_is_kept(tmp_path):
    settings = study.smaller()
    settings["common"] |= {
        "pairs": 4,
        "test_per_class": 5,
        "solver": {"segments": 8, "max_segments": 8, "max_iterations": 5},
    }
    found = study.run(["mnist-2"], settings, tmp_path)
    assert json.loads((tmp_path / "study.json").read_text()) == found
    assert {path.name for path in tmp_path.iterdir()} == {"study.json", "study.md", "study.png"}
    part = found["mnist-2"]
    assert set(part["metrics"]) == set(study.METRICS)
    assert len(part["tests"]) == 10
    for name, about in part["metrics"].items():
        lengths = np.array(part["lengths"][name], dtype=float)
        assert lengths.shape == (2, 4)
        assert np.isfinite(lengths).mean() == about["converged"]
        assert sum(about["why"].values()) == np.isnan(lengths).sum()
    one, two = np.array(part["lengths"]["euclidean"])  # of two numbers the deviation is their distance over sqrt(2)
    np.testing.assert_allclose(part["variation"]["euclidean"], np.abs(one - two) * 2**0.5 / (one + two))
    table = (tmp_path / "study.md").read_text()
    assert table.count("| digits | 2 |") == 5 + 6

    def kept_under(settings):
        return kept(tmp_path / "study.json", study.PARTS, settings, found["versions"], lambda name: ("common", name))

    assert "mnist-2" in kept_under(settings)
    settings["common"]["seeds"] = 3
    assert "mnist-2" not in kept_under(settings)


def test_metrics_are_compared_on_what_both_measured():
    rng = np.random.default_rng(0)
    ours, theirs = rng.uniform(1, 2, (2, 5, 8))
    cv = [values.std(0, ddof=1) / values.mean(0) for values in (ours, theirs)]
    expected = ttest_rel(*cv, alternative="less")
    found = study._test(ours, theirs)
    assert found == {"pairs": 8, "t": pytest.approx(expected.statistic), "p": pytest.approx(expected.pvalue)}
    assert study._test(theirs, ours)["t"] == pytest.approx(-expected.statistic)

    ours[1:, 0] = theirs[:4, 1] = np.nan  # one seed each is left, which has no variation
    ours[0, 2] = np.nan
    found = study._test(ours, theirs)
    cv = [values[:, 3:].std(0, ddof=1) / values[:, 3:].mean(0) for values in (ours, theirs)]
    cv = [np.append(c, v[1:, 2].std(ddof=1) / v[1:, 2].mean()) for c, v in zip(cv, (ours, theirs), strict=True)]
    assert found["pairs"] == 6
    assert found["t"] == pytest.approx(ttest_rel(*cv).statistic)
    assert np.isnan(study._variation(ours)).tolist() == [True] + [False] * 7
    assert study._test(ours, np.full((5, 8), np.nan)) == {"pairs": 0, "t": None, "p": None}


def test_one_output_stands_for_all_of_a_blend():
    X = torch.rand(80, 5, generator=torch.Generator().manual_seed(0))
    vae = oddity.fit_vae(X, hidden=(8, 4), epochs=3, variance_epochs=2, n_centres=4)
    size = float((X - vae(X)).square().mean().sqrt())

    def law(z):
        return Normal(vae.decoder.mean(z), size + 0 * vae.decoder.mean(z))

    z = vae.encode(X)
    whole = oddity.expected_metric(oddity.EntropyBlend(law, z, seed=3))
    one = oddity.expected_metric(study._Blended(vae, X, seed=3))
    around = torch.cat([z[:5], z.mean(0) + 3 * (z[:5] - z.mean(0))])
    torch.testing.assert_close(one.metric(around), whole.metric(around), rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_the_small_study_runs_as_a_command(tmp_path, capsys):
    assert main(["study", "--small", "--out", str(tmp_path)]) == 0
    assert set(json.loads((tmp_path / "study.json").read_text())) >= set(study.PARTS)


def test_a_mistake_ends_in_a_sentence(capsys):
    assert main(["study", "--only", "mnist-3"]) == 2
    assert "there is no part mnist-3: choose mnist-2, mnist-10" in capsys.readouterr().err
