"""Outputs stand whole or not at all."""

from pathlib import Path

import pytest

from oddity.app.files import check_writable, replacing


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
