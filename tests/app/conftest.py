"""An empty folder to work in, and one small model, trained once by the command itself."""

from pathlib import Path

import pytest

from oddity.app.cli import main

QUICK = ["--epochs", "80", "--variance-epochs", "20", "--centres", "12", "--hidden", "32,16"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "digits.model"
    assert main(["train", "digits", "-o", str(path), "--classes", "0,1,2", *QUICK]) == 0
    return path
