"""``oddity distances``, as a user meets it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import oddity
from oddity.app.cli import main
from oddity.models.storage import load_model


def test_it_writes_the_matrix_and_says_how_far_it_is_off(
    model: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["distances", str(model), "-o", "D.npy", "--sample", "4"]) == 0
    said = capsys.readouterr()
    assert said.out == ""
    matrix, codes = np.load("D.npy"), load_model(model).codes
    assert codes is not None
    assert matrix.shape == (len(codes), len(codes))
    assert (matrix == matrix.T).all()
    assert f"D.npy: Distances({len(codes)} x {len(codes)}, 4 of" in said.err
    assert "0 failed, graph error" in said.err
    assert [path.name for path in here.iterdir()] == ["D.npy"]


def test_codes_of_other_data_and_an_interruption(
    model: Path, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = load_model(model)
    rows = oddity.datasets.load("digits", classes=[0])[0][:8]
    np.save("rows.npy", rows)
    command = ["distances", str(model), "rows.npy", "-o", "D.npy", "--nearest", "1", "--sample", "3"]
    whole = oddity.pairwise_distances

    def stopped(*arguments: Any, progress: Any, **options: Any) -> Any:
        def stop(*call: Any) -> None:
            raise KeyboardInterrupt

        return whole(*arguments, **options, progress=stop)

    with monkeypatch.context() as patch:
        patch.setattr("oddity.geometry.distances.pairwise_distances", stopped)
        assert main(command) == 130
    assert "the same command goes on from D.npy.part" in capsys.readouterr().err
    assert main(command) == 0
    M = oddity.expected_metric(saved.vae.decoder)
    codes = saved.vae.encode(torch.from_numpy(rows))
    np.testing.assert_allclose(np.load("D.npy"), whole(M, codes, nearest=1, sample=3), rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "D.csv"], "D.csv"),
        (["-o", "there/D.npy"], "there"),
        (["-o", "D.npy", "--classes", "0"], "name the data too"),
        (["-o", "D.npy", "--nearest", "100000"], "nearest is 100000"),
        (["-o", "old.npy"], "old.npy exists already"),
    ],
)
def test_a_mistake_is_one_sentence(
    model: Path, here: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "old.npy").write_bytes(b"old")
    assert main(["distances", str(model), *arguments]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "\n" not in said.strip()
