"""Outputs stand whole or not at all."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from oddity.app import plots, report
from oddity.app.files import check_writable, replacing
from tests import disks

WRITERS: dict[str, Callable[[Path], None]] = {
    "a.npy": lambda path: report.write_array(path, np.zeros(9999)),
    "a.npz": lambda path: report.write_arrays(path, {"a": np.zeros(9999), "b": np.zeros(9999)}),
    "a.json": lambda path: report.write_json(path, {"a": "b" * 99999}),
    **{f"a{suffix}": lambda path: plots.save(drawn(), path) for suffix in plots.FIGURE_SUFFIXES},
}


def drawn() -> Figure:
    figure = Figure()
    figure.subplots().plot(np.random.default_rng(0).normal(size=2000))
    return figure


@pytest.mark.parametrize("full", [disks.limited, disks.small])
@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_leaves_the_old_file_and_no_part(name: str, full: disks.Full, tmp_path: Path) -> None:
    with full(tmp_path, 1 << 13) as place:
        (place / name).write_text("old")
        with pytest.raises(OSError, match=rf"(File too large|No space left on device|disk full).*: '.*{name}'"):
            WRITERS[name](place / name)
        assert [path.name for path in place.iterdir()] == [name]
        assert (place / name).read_text() == "old"


def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "near.npy").symlink_to(tmp_path / "far" / "a.npy")
    report.write_array(check_writable(tmp_path / "near.npy", (".npy",)), np.zeros(3))
    assert (tmp_path / "near.npy").is_symlink()
    assert np.load(tmp_path / "far" / "a.npy").shape == (3,)


@pytest.mark.parametrize("kind", [os.mkfifo, lambda path: path.symlink_to("/dev/full")])
def test_pipes_and_devices_are_not_written_to(kind: Callable[[Path], None], tmp_path: Path) -> None:
    kind(tmp_path / "a.npy")
    with pytest.raises(ValueError, match=r"a\.npy: it is a pipe or a device; name a file"):
        check_writable(tmp_path / "a.npy", (".npy",))


@pytest.mark.parametrize("name", ["$", "$x_$", r"$\frac{$", "\udcff", "a\\$b"])
def test_any_name_can_be_drawn(name: str, tmp_path: Path) -> None:
    figure = Figure()
    axes = figure.subplots()
    shown = name.encode("utf-8", "backslashreplace").decode()
    axes.plot([0, 1], label=shown)
    axes.set_title(shown, loc="left")
    axes.legend()
    plots.save(figure, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 0


def test_a_failure_leaves_the_old_file_and_no_part(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")

    def write_half() -> None:
        with replacing(target) as part:
            part.write_text("ne")
            raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space left on device"):
        write_half()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_disk_that_does_not_say_where_is_given_the_name(tmp_path: Path) -> None:
    for error in (OSError(28, "No space left on device"), OSError("80 requested and 0 written")):
        with pytest.raises(OSError, match=r"a\.npy") as caught, replacing(tmp_path / "a.npy"):
            raise error
        assert caught.value.strerror
        assert caught.value.filename == str(tmp_path / "a.npy")


def test_a_success_replaces_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    with replacing(target) as part:
        part.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize(
    ("name", "error", "sentence"),
    [
        ("a.jpg", ValueError, "let its name end in .png or .pdf"),
        ("none/a.png", FileNotFoundError, "there is no folder"),
        ("file/a.png", NotADirectoryError, "file is not a folder"),
        ("folder.png", IsADirectoryError, "it is a folder; name a file"),
    ],
)
def test_places_where_nothing_can_be_written(name: str, error: type[Exception], sentence: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(error, match=sentence):
        check_writable(tmp_path / name, (".png", ".pdf"))


def test_a_folder_that_may_not_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda *_: False)  # the superuser may write anywhere
    with pytest.raises(PermissionError, match="is not writable"):
        check_writable(tmp_path / "a.png", (".png",))
