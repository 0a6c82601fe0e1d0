"""The numbers that a run ends with."""

import json
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from oddity.app.report import Connections, environment, write_arrays, write_json
from oddity.geometry.spaces import Sphere

WEST, EAST, NORTH = torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
NAMES = [("west", "north"), ("east", "east")]


@pytest.fixture
def found() -> Connections:
    return Connections.between(Sphere(2), torch.stack([WEST, EAST]), torch.stack([NORTH, EAST]), NAMES)


def test_lengths_beside_closed_forms(found: Connections) -> None:
    # the chord from west to north under 2 / (1 + |z|^2), by its antiderivative
    chord = 4 / 1.5**0.5 * torch.pi / 6
    torch.testing.assert_close(found.straight_length, torch.tensor([chord, 0.0]), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.geodesic.length, torch.tensor([torch.pi / 2, 0.0]), rtol=1e-4, atol=1e-6)


def test_records_are_of_json_s_own_types(found: Connections, tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"geodesics": found.records()})
    one, two = json.loads((tmp_path / "a.json").read_text())["geodesics"]
    assert (one["from"], one["to"], one["converged"], one["why"]) == ("west", "north", True, "")
    assert one["ratio"] == pytest.approx(one["length"] / one["straight_length"])
    assert two["ratio"] is None


def test_the_table_says_whether_to_believe_each_length(found: Connections) -> None:
    page = StringIO()
    Console(file=page, width=120).print(found.table())
    words = " ".join(page.getvalue().split())
    for word in ("west", "north", "straight length", "geodesic length", "ratio", "1.571", "converged"):
        assert word in words


def test_arrays_hold_no_objects_and_the_lines_join_the_same_ends(found: Connections, tmp_path: Path) -> None:
    write_arrays(tmp_path / "a.npz", found.arrays())
    with np.load(tmp_path / "a.npz", allow_pickle=False) as arrays:
        assert {"points", "straight", "length", "straight_length", "converged", "why", "names"} <= set(arrays)
        assert arrays["points"].shape == arrays["straight"].shape
        np.testing.assert_array_equal(arrays["straight"][:, [0, -1]], arrays["points"][:, [0, -1]])


def test_a_title_holds_both_lengths(found: Connections) -> None:
    assert found.titles()[0].startswith("west to north: length 1.571 along the geodesic, 1.7")


@pytest.mark.parametrize("build", [torch.__version__, "2.13.0", "2.13.0+cpu", "2.13.0+cu130"])
def test_the_environment_is_json_and_names_the_build_of_torch(build: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", build)
    assert json.loads(json.dumps(environment()))["versions"]["torch"] == build


def test_nan_is_not_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"a": float("nan")})
    assert list(tmp_path.iterdir()) == []
